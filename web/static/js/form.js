// The form: what is wished, checked as it is typed, and told in pixels and seconds before anything is sent.
import { facts } from "./api.js";
import { $, announce, duration, fill, h, icon, number, toast } from "./dom.js";
import { t } from "./i18n.js";
import { kindOf } from "./media.js";
import { Picker } from "./picker.js";
import { clipsInAudio, fitSize, planTime, secondsOfClips } from "./plan.js";
import { canRecord, MOST_SECONDS, Recorder } from "./recorder.js";
import { problemText } from "./words.js";

const MOST_CLIPS = 10000;
const MOST_SEED = 2 ** 32 - 1;
const RANGE_CLIPS = 100;
const DEFAULT_SIZE = "688*368";
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/;
const IDEAS = 3;

const wholeNumber = (text, least, most) => {
  const value = Number(text);
  return /^[0-9]+$/.test(text.trim()) && value >= least && value <= most ? value : null;
};

export class Form {
  /** `onSubmit` gets what to send: {image, audio, fields}, the media as in Picker. */
  constructor(onSubmit) {
    this.element = $("#form");
    this.onSubmit = onSubmit;
    this.available = {}; // engine -> whether it can run here, once the health has told
    this.sizeCards = new Map();
    this.pickers = { image: new Picker("image", () => this.refresh()), audio: new Picker("audio", () => this.refresh()) };
    this.makeSizes();
    this.listen();
    this.draw();
  }

  get image() {
    return this.pickers.image.medium;
  }

  get audio() {
    return this.pickers.audio.medium;
  }

  // --- wiring --------------------------------------------------------------------------------------------------------

  listen() {
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.submit();
    });
    for (const id of ["prompt", "clips", "seed", "engine"]) {
      $(`#${id}`).addEventListener("input", () => this.refresh());
      $(`#${id}`).addEventListener("change", () => this.check(id));
    }
    this.element.addEventListener("change", () => this.refresh());
    $("#clips-range").addEventListener("input", (event) => this.setClips(event.target.value));
    $("#clips-fit").addEventListener("click", () => this.setClips(clipsInAudio(this.audio.seconds)));
    $("#example").addEventListener("click", () => this.example());
    $("#record").addEventListener("click", () => this.record());
    document.addEventListener("language", () => this.draw());
    this.listenForFiles();
  }

  /** Files may be dropped anywhere on the page, and pasted; each goes where its kind belongs. */
  listenForFiles() {
    const veil = $("#veil");
    const isFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!isFiles(event)) return;
      event.preventDefault();
      veil.hidden = false;
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) veil.hidden = true;
    });
    document.addEventListener("drop", (event) => {
      veil.hidden = true;
      if (!isFiles(event)) return;
      event.preventDefault();
      this.takeFiles(event.dataTransfer.files);
    });
    document.addEventListener("paste", (event) => {
      if (event.clipboardData?.files.length) this.takeFiles(event.clipboardData.files);
    });
  }

  takeFiles(files) {
    for (const file of files) {
      const kind = kindOf(file);
      if (kind) this.pickers[kind].take(file);
      else toast(t("form.dropped.other", { name: file.name }), "bad");
    }
  }

  // --- showing -------------------------------------------------------------------------------------------------------

  makeSizes() {
    for (const size of Object.keys(facts.sizes)) {
      const pixels = h("strong", {});
      const area = h("small", {});
      const input = h("input", { type: "radio", name: "size", value: size, checked: size === DEFAULT_SIZE });
      $("#sizes").append(h("label", { class: "choice" }, input, h("span", {}, pixels, area)));
      this.sizeCards.set(size, { pixels, area, input });
    }
  }

  /** Everything whose words depend on the language. */
  draw() {
    fill($("#ideas"), Array.from({ length: IDEAS }, (_, index) => h("button", {
      type: "button", class: "chip", onclick: () => this.setPrompt(t(`idea.${index + 1}`)),
    }, t(`idea.${index + 1}.name`))));
    this.drawEngines();
    this.drawRecorder();
    for (const picker of Object.values(this.pickers)) {
      picker.show();
      picker.problem(picker.shown ?? null);
    }
    this.refresh();
  }

  drawEngines() {
    const select = $("#engine");
    const chosen = select.value || "auto";
    const title = ({ name, title: text }) => (this.available[name] === false ? t("form.engine.unavailable", { title: text }) : text);
    fill(select, h("option", { value: "auto" }, t("form.engine.auto")),
      facts.engines.map((engine) => h("option", { value: engine.name }, title(engine))));
    select.value = chosen;
  }

  /** Take up what the service said of its engines. */
  showHealth(health) {
    if (!health?.engines) return;
    this.available = Object.fromEntries(health.engines.map((engine) => [engine.name, engine.available]));
    this.drawEngines();
  }

  refresh() {
    this.showSizes();
    this.showClips();
    const prompt = $("#prompt").value;
    $("#prompt-count").textContent = prompt.length > 200 ? `${number(prompt.trim().length)} / ${number(facts.limits.prompt)}` : "";
    const pixels = this.pixels();
    const seconds = this.videoSeconds();
    $("#summary").textContent = pixels && seconds
      ? t("form.summary", { width: pixels[0], height: pixels[1], time: duration(seconds), format: this.format === "mp4" ? "MP4" : "WebM" })
      : "";
  }

  showSizes() {
    for (const [size, { pixels, area }] of this.sizeCards) {
      const fitted = this.image?.width ? fitSize(facts.sizes[size], this.image.width, this.image.height) : null;
      pixels.textContent = fitted ? `${fitted[0]} × ${fitted[1]}` : size.replace("*", " × ");
      area.textContent = fitted ? t("form.size.area", { size: size.replace("*", "×") }) : "";
    }
  }

  showClips() {
    const clips = wholeNumber($("#clips").value, 1, MOST_CLIPS);
    const means = $("#clips-means");
    const fit = $("#clips-fit");
    const seconds = this.audio?.seconds;
    const needed = seconds ? clipsInAudio(seconds) : 0;
    const range = $("#clips-range");
    range.max = Math.max(RANGE_CLIPS, Math.min(needed, MOST_CLIPS));
    range.value = clips ?? 1;
    fit.hidden = !(clips && needed > clips);
    fit.textContent = t("form.clips.fit", { clips: number(needed) });
    if (!clips) means.textContent = "";
    else if (!needed) means.textContent = t("form.clips.means", { time: duration(secondsOfClips(clips)) });
    else {
      const plan = planTime(clips, seconds);
      const values = { clips: number(plan.clips), time: duration(plan.seconds), audio: duration(seconds) };
      means.textContent = t(needed > clips ? "form.clips.cut" : "form.clips.whole", values);
    }
  }

  setClips(clips) {
    $("#clips").value = clips;
    this.check("clips");
    this.refresh();
  }

  setPrompt(text) {
    $("#prompt").value = text;
    this.check("prompt");
    this.refresh();
    $("#prompt").focus();
  }

  get size() {
    return $("input[name=size]:checked").value;
  }

  get format() {
    return $("input[name=format]:checked").value;
  }

  pixels() {
    return this.image?.width ? fitSize(facts.sizes[this.size], this.image.width, this.image.height) : null;
  }

  videoSeconds() {
    const clips = wholeNumber($("#clips").value, 1, MOST_CLIPS);
    return clips && this.audio?.seconds ? planTime(clips, this.audio.seconds).seconds : null;
  }

  // --- checking ------------------------------------------------------------------------------------------------------

  /** What is wrong with a typed field, null where nothing is. */
  wrong(id) {
    const text = $(`#${id}`).value;
    if (id === "prompt") {
      const length = [...text.trim()].length;
      if (length === 0) return { key: "check.need_prompt" };
      if (length > facts.limits.prompt) return { key: "check.prompt_long", values: { n: number(length), most: facts.limits.prompt } };
      return CONTROL.test(text) ? { key: "check.prompt_control" } : null;
    }
    if (id === "clips" && wholeNumber(text, 1, MOST_CLIPS) === null) return { key: "check.number", values: { least: 1, most: MOST_CLIPS } };
    if (id === "seed" && text !== "" && wholeNumber(text, 0, MOST_SEED) === null) return { key: "check.number", values: { least: 0, most: MOST_SEED } };
    return null;
  }

  /** Show what is wrong with a typed field; returns whether anything is. */
  check(id) {
    if (id === "engine") return this.say("engine", "");
    const found = this.wrong(id);
    return this.say(id === "clips" ? "num_clip" : id, found ? problemText(found) : "");
  }

  /** Show a sentence under the field of this name in the API; returns whether there is one. */
  say(field, text) {
    const line = $(`#${field}-problem`) ?? $("#form-problem");
    line.textContent = text;
    const input = $(`[data-field="${field}"] :is(input:not([type=range]), textarea, select)`);
    if (text) input?.setAttribute("aria-invalid", "true");
    else input?.removeAttribute("aria-invalid");
    return Boolean(text);
  }

  checkAll() {
    const { image, audio } = this.pickers;
    const bad = [
      image.problem(this.image ? null : { key: "check.need_image" }),
      audio.problem(this.audio ? null : { key: "check.need_audio" }),
      ...["prompt", "clips", "seed"].map((id) => this.check(id)),
    ];
    return !bad.includes(true);
  }

  submit() {
    if (this.busy || this.image?.looking || this.audio?.looking) return;
    this.say("form", "");
    if (!this.checkAll()) {
      if ($("#seed").hasAttribute("aria-invalid")) $("#more").open = true;
      $("[aria-invalid=true]", this.element)?.focus();
      return;
    }
    const seed = $("#seed").value.trim();
    this.onSubmit({ image: this.image, audio: this.audio, fields: {
      prompt: $("#prompt").value.trim(), size: this.size, num_clip: Number($("#clips").value), output_format: this.format,
      engine: $("#engine").value, sample_steps: Number($("#steps").value), priority: $("#priority").value,
      enable_online_decode: $("#decode").checked, ...(seed ? { seed: Number(seed) } : {}),
    } });
  }

  setBusy(busy) {
    this.busy = busy;
    $("#submit").setAttribute("aria-disabled", busy);
    $("#submit span").textContent = t(busy ? "form.submitting" : "form.submit");
  }

  /** Show what the service found wrong; returns the fields that it named and this form has. */
  showErrors(errors) {
    const named = errors.map(({ field, message }) => ({ field: field.replace(/_path$/, ""), message }));
    for (const { field, message } of named) this.say(field, message);
    $("[aria-invalid=true]", this.element)?.focus();
    return named;
  }

  // --- filling in ----------------------------------------------------------------------------------------------------

  /** Take over the wishes of an earlier task, and its media as far as the service keeps them. */
  load(task, pictures) {
    const { params, metadata } = task;
    $("#prompt").value = params.prompt;
    $("#clips").value = params.num_clip;
    $("#steps").value = params.sample_steps;
    $("#seed").value = params.seed;
    $("#priority").value = task.priority;
    $("#decode").checked = params.enable_online_decode;
    if (this.sizeCards.has(params.size)) this.sizeCards.get(params.size).input.checked = true;
    $(`input[name=format][value=${params.output_format}]`).checked = true;
    if ([...$("#engine").options].some((option) => option.value === task.engine)) $("#engine").value = task.engine;
    for (const kind of ["image", "audio"]) {
      const kept = mediumOf(kind, metadata, pictures);
      if (kept && this.pickers[kind].medium?.path !== kept.path) this.pickers[kind].put(kept);
      else if (!kept) this.pickers[kind].put(null);
    }
    for (const id of ["prompt", "clips", "seed", "engine"]) this.check(id);
    this.refresh();
  }

  async example() {
    const files = [["portrait.png", "image/png"], ["speech.wav", "audio/wav"]].map(async ([name, type]) => {
      const response = await fetch(`/static/example/${name}`);
      return new File([await response.blob()], name, { type });
    });
    try {
      this.takeFiles(await Promise.all(files));
    } catch {
      return toast(t("api.offline"), "bad");
    }
    if (!$("#prompt").value.trim()) $("#prompt").value = t("idea.1");
    this.check("prompt");
    return announce(t("told.example"));
  }

  // --- the microphone ------------------------------------------------------------------------------------------------

  drawRecorder() {
    const record = $("#record");
    record.disabled = !canRecord();
    if (!canRecord()) $("#record-hint").textContent = t("form.record.insecure");
    const time = duration(this.recorder?.seconds ?? 0);
    fill(record, icon(this.recorder ? "stop" : "mic"), h("span", {}, this.recorder ? t("form.record.stop", { time }) : t("form.record")));
    record.classList.toggle("recording", Boolean(this.recorder));
    $("#level").hidden = !this.recorder;
  }

  async record() {
    if (this.recorder) return this.stopRecording();
    const recorder = new Recorder((level, seconds) => this.showLevel(level, seconds), () => this.stopRecording());
    $("#record-hint").textContent = "";
    try {
      await recorder.start();
    } catch (error) {
      const missing = ["NotFoundError", "NotReadableError"].includes(error.name);
      $("#record-hint").textContent = t(missing ? "form.record.missing" : "form.record.refused");
      return null;
    }
    this.recorder = recorder;
    announce(t("form.recording"));
    return this.drawRecorder();
  }

  showLevel(level, seconds) {
    $("#level span").style.transform = `scaleX(${Math.min(1, level * 1.6)})`;
    const label = $("#record span");
    const text = t("form.record.stop", { time: duration(Math.min(MOST_SECONDS, Math.floor(seconds * 10) / 10)) });
    if (this.recorder && label.textContent !== text) label.textContent = text;
  }

  stopRecording() {
    if (!this.recorder) return;
    const file = this.recorder.stop();
    announce(t("form.recorded", { time: duration(this.recorder.seconds) }));
    this.recorder = null;
    this.drawRecorder();
    this.pickers.audio.take(file);
  }
}

/** A medium that the service still keeps, as the page noted it in the task's metadata. */
function mediumOf(kind, metadata, pictures) {
  const path = metadata[`${kind}_path`];
  if (!path) return null;
  const known = pictures.get(path);
  if (known) return { ...known, path, lent: true };
  const [width, height] = (metadata.image_size ?? "").split("x").map(Number);
  const facts = kind === "image" ? { width, height } : { seconds: Number(metadata.audio_seconds) || null, peaks: null };
  return { path, name: metadata[`${kind}_name`] ?? kind, url: null, ...facts };
}
