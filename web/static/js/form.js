// The form: what is wished, checked as it is typed, and told in pixels and seconds before anything is sent.
import { facts } from "./api.js";
import { curl } from "./command.js";
import { $, announce, duration, fill, h, number, toast } from "./dom.js";
import { t } from "./i18n.js";
import { kindOf } from "./media.js";
import { Microphone } from "./microphone.js";
import { Picker } from "./picker.js";
import { clipsInAudio, fitSize, planTime, secondsOfClips } from "./plan.js";
import { engineTitle, problemText } from "./words.js";

const MOST_CLIPS = 10000;
const MOST_SEED = 2 ** 32 - 1;
const RANGE_CLIPS = 100;
const DEFAULT_SIZE = "688*368";
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/;
const IDEAS = 3;
const FIELD = { clips: "num_clip" }; // what the API calls it

const wholeNumber = (text, least, most) => {
  const value = Number(text);
  return /^[0-9]+$/.test(text.trim()) && value >= least && value <= most ? value : null;
};

export class Form {
  /** `onSubmit` gets what to send: {image, audio, fields}, the media as in Picker. */
  constructor(onSubmit) {
    this.element = $("#form");
    this.onSubmit = onSubmit;
    this.engines = new Map(); // what the service says of each, once it was asked
    this.sizeCards = new Map();
    this.pickers = { image: new Picker("image", () => this.refresh()), audio: new Picker("audio", () => this.refresh()) };
    this.microphone = new Microphone((file) => this.pickers.audio.take(file));
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

  /** Of a recording that can be used, as far as this browser knows. */
  get seconds() {
    return this.audio?.problem ? null : (this.audio?.seconds ?? null);
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
      // While it is typed and never as the field is left: a line that comes then would move what is just clicked.
      $(`#${id}`).addEventListener("input", ({ target }) => {
        if (target.value.trim()) this.check(id);
        else this.say(FIELD[id] ?? id, "");
        this.refresh();
      });
    }
    this.element.addEventListener("change", () => this.refresh());
    $("#clips-range").addEventListener("input", (event) => this.setClips(event.target.value));
    $("#clips-fit").addEventListener("click", () => this.setClips(clipsInAudio(this.seconds)));
    $("#example").addEventListener("click", () => this.example());
    $("#as-command").addEventListener("toggle", () => this.showCommand());
    $("#command-copy").addEventListener("click", () => this.copyCommand());
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
      const card = h("label", { class: "choice" }, input, h("span", {}, pixels, area));
      $("#sizes").append(card);
      this.sizeCards.set(size, { card, pixels, area, input });
    }
  }

  /** Everything whose words depend on the language. */
  draw() {
    fill($("#ideas"), Array.from({ length: IDEAS }, (_, index) => h("button", {
      type: "button", class: "chip", onclick: () => this.setPrompt(t(`idea.${index + 1}`)),
    }, t(`idea.${index + 1}.name`))));
    this.drawEngines();
    this.microphone.draw();
    for (const picker of Object.values(this.pickers)) {
      picker.show();
      picker.problem(picker.shown ?? null);
    }
    this.refresh();
  }

  drawEngines() {
    const select = $("#engine");
    const chosen = select.value || "auto";
    const title = (engine) => (this.cannotRun(engine.name) ? t("form.engine.unavailable", { title: engineTitle(engine) }) : engineTitle(engine));
    fill(select, h("option", { value: "auto" }, t("form.engine.auto")),
      facts.engines.map((engine) => h("option", { value: engine.name }, title(engine))));
    select.value = chosen;
  }

  cannotRun(engine) {
    return this.engines.get(engine)?.available === false;
  }

  /** Take up what the service said of its engines. */
  showHealth(health) {
    if (!health?.engines) return;
    const before = Boolean(this.wrong("engine"));
    this.engines = new Map(health.engines.map((engine) => [engine.name, engine]));
    this.drawEngines();
    if (Boolean(this.wrong("engine")) !== before) this.check("engine"); // it was chosen before this was known
  }

  refresh() {
    this.showSizes();
    this.showClips();
    this.showCommand();
    const prompt = $("#prompt").value;
    $("#prompt-count").textContent = prompt.length > 200 ? `${number(prompt.trim().length)} / ${number(facts.limits.prompt)}` : "";
    const pixels = this.pixels();
    const seconds = this.videoSeconds();
    $("#summary").textContent = pixels && seconds
      ? t("form.summary", { width: pixels[0], height: pixels[1], time: duration(seconds), format: this.format === "mp4" ? "MP4" : "WebM" })
      : "";
  }

  showCommand() {
    if (!$("#as-command").open) return;
    const media = { image: this.image, audio: this.audio };
    $("#command").textContent = curl(location.origin, media, this.fields(), facts.auth);
    $("#command-key").hidden = !facts.auth;
  }

  async copyCommand() {
    try {
      await navigator.clipboard.writeText($("#command").textContent);
      toast(t("form.command.copied"));
    } catch {
      getSelection().selectAllChildren($("#command")); // where the browser allows no copying, it is ready to be copied
    }
  }

  showSizes() {
    for (const [size, { pixels, area }] of this.sizeCards) {
      const fitted = this.image?.width ? fitSize(facts.sizes[size], this.image.width, this.image.height) : null;
      pixels.textContent = fitted ? `${fitted[0]} × ${fitted[1]}` : size.replace("*", " × ");
      area.textContent = fitted ? size.replace("*", "×") : "";
    }
    // Areas that come to the same video of this portrait are one choice: what is chosen, else the smallest.
    const shown = new Map();
    for (const { card, pixels, input } of this.sizeCards.values()) {
      const rival = shown.get(pixels.textContent);
      card.hidden = Boolean(rival?.input.checked);
      if (card.hidden) continue;
      if (rival) rival.card.hidden = true;
      shown.set(pixels.textContent, { card, input });
    }
    $("#size-means").textContent = this.image?.width ? t("form.size.fitted") : "";
  }

  showClips() {
    const clips = wholeNumber($("#clips").value, 1, MOST_CLIPS);
    const means = $("#clips-means");
    const fit = $("#clips-fit");
    const { seconds } = this;
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
    return clips && this.seconds ? planTime(clips, this.seconds).seconds : null;
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
    if (id === "engine" && this.cannotRun(text)) return { key: "check.engine", values: { reason: this.engines.get(text).reason } };
    if (id === "clips" && wholeNumber(text, 1, MOST_CLIPS) === null) return { key: "check.number", values: { least: 1, most: MOST_CLIPS } };
    if (id === "seed" && text !== "" && wholeNumber(text, 0, MOST_SEED) === null) return { key: "check.number", values: { least: 0, most: MOST_SEED } };
    return null;
  }

  /** Show what is wrong with a typed field; returns whether anything is. */
  check(id) {
    const found = this.wrong(id);
    return this.say(FIELD[id] ?? id, found ? problemText(found) : "");
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
      ...["prompt", "clips", "engine", "seed"].map((id) => this.check(id)),
    ];
    return !bad.includes(true);
  }

  async submit() {
    if (this.busy || this.waiting) return;
    this.waiting = true;
    await Promise.all(Object.values(this.pickers).map((picker) => picker.ready));
    this.waiting = false;
    this.say("form", "");
    if (!this.checkAll()) {
      if ($("#seed").hasAttribute("aria-invalid")) $("#more").open = true;
      $("[aria-invalid=true]", this.element)?.focus();
      return;
    }
    this.onSubmit({ image: this.image, audio: this.audio, fields: this.fields() });
  }

  /** What the API gets beside the media. */
  fields() {
    const seed = $("#seed").value.trim();
    return {
      prompt: $("#prompt").value.trim(), size: this.size, num_clip: Number($("#clips").value), output_format: this.format,
      engine: $("#engine").value, sample_steps: Number($("#steps").value), priority: $("#priority").value,
      enable_online_decode: $("#decode").checked, ...(seed ? { seed: Number(seed) } : {}),
    };
  }

  setBusy(busy) {
    this.busy = busy;
    $("#submit").setAttribute("aria-disabled", busy);
    $("#submit span").textContent = t(busy ? "form.submitting" : "form.submit");
  }

  /** Show what the service found wrong; returns the fields that it named and this form has. */
  showErrors(errors) {
    const named = errors.map(({ field, message }) => ({ field: field.replace(/_path$/, ""), message }));
    for (const { field, message } of named) {
      if (this.pickers[field]) this.pickers[field].problem({ text: message });
      else this.say(field, message);
    }
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
}

/** A medium that the service still keeps, as the page noted it in the task's metadata. */
function mediumOf(kind, metadata, pictures) {
  const path = metadata[`${kind}_path`];
  if (!path) return null;
  const [width, height] = (metadata.image_size ?? "").split("x").map(Number);
  const facts = kind === "image" ? { width, height } : { seconds: Number(metadata.audio_seconds) || null, peaks: null };
  return { name: metadata[`${kind}_name`] ?? kind, url: null, ...facts, ...pictures.get(path), path, lent: true };
}
