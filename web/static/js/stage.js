// The result side: nothing yet, an upload, a task on its way, its video, or why there is none.
import { $, announce, button, duration, fill, framed, h, icon, number, roughly } from "./dom.js";
import { cancelled, changes, completed, failed } from "./ended.js";
import { follow, hasEnded, readLog, secondsLeft } from "./events.js";
import { t } from "./i18n.js";
import { endOf, plain } from "./log.js";
import { inventedPeaks } from "./media.js";
import { wave } from "./wave.js";
import { errorText } from "./words.js";

const PHASES = ["queued", "preparing", "loading_model", "generating", "encoding"];
const SAY_EVERY = 0.25; // how much progress a screen reader is told of at once
const TICK_MS = 500;
const LOG_MS = 2000; // how old an open log may become where nothing tells that it has grown

export class Stage {
  /** `actions`: again(task), remove(task), share(task). `onTask` sees every change. `pictures`: media by their path. */
  constructor(actions, onTask, pictures) {
    this.element = $("#stage");
    this.actions = actions;
    this.onTask = onTask;
    this.pictures = pictures;
    this.task = null;
    this.shown = null; // redraws what is shown, after a change of language
    document.addEventListener("language", () => this.redraw());
    setInterval(() => this.tick(), TICK_MS);
    // A held request may take long to notice that the network is gone.
    for (const event of ["offline", "online"]) window.addEventListener(event, () => this.showConnection(event === "online"));
    this.showEmpty();
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  card(head, ...body) {
    const hadFocus = this.element.contains(document.activeElement);
    fill(this.element, h("div", { class: "card-head" }, h("h2", { id: "stage-title" }, t("stage.title")), head), ...body);
    if (hadFocus && !this.element.contains(document.activeElement)) this.element.focus({ preventScroll: true });
  }

  redraw() {
    this.parts = null;
    this.shown?.();
  }

  leave() {
    this.following?.abort();
    this.following = null;
    this.task = null;
    this.parts = null;
  }

  showEmpty() {
    this.leave();
    this.shown = () => this.card(null, h("div", { class: "stage-empty" },
      wave(inventedPeaks("live avatar", 48)), h("h3", {}, t("stage.empty.title")), h("p", {}, t("stage.empty.text")), exampleCard()));
    this.shown();
  }

  /** Show an upload; returns what tells how far it is: (kind, share of 0 to 1, null while the service looks). */
  showUpload(picture, peaks, onCancel) {
    this.leave();
    const state = { kind: "image", share: 0 };
    this.shown = () => {
      const bars = wave(peaks ?? inventedPeaks("upload"));
      const label = h("strong", {});
      const meter = h("progress", { max: 1, "aria-label": t("stage.uploading") });
      const show = () => {
        label.textContent = state.share === null ? t("stage.checking") : t(`stage.uploading.${state.kind}`);
        bars.show(state.share ?? 1);
        if (state.share === null) meter.removeAttribute("value");
        else meter.value = state.share;
      };
      this.card(null, picturePane(picture, bars, picture.width ? picture : { width: 16, height: 10 }), h("div", { class: "now" }, label), meter,
        h("div", { class: "actions" }, button("close", t("stage.cancel"), onCancel)));
      this.showShare = show;
      show();
    };
    this.shown();
    return (kind, share) => {
      Object.assign(state, { kind, share });
      this.showShare();
    };
  }

  /** Show a task and follow it to its end. `known` is what the list knew of it, shown until there is news. */
  open(id, known = null) {
    if (this.task?.task_id === id && (this.following || hasEnded(this.task))) return;
    this.leave();
    this.logText = "";
    this.logOffset = 0;
    this.logRead = 0;
    this.said = 0;
    this.offline = false;
    this.opened = id;
    if (known) this.show(known);
    else {
      this.shown = () => this.card(null, h("div", { class: "stage-empty" }, h("p", {}, t("stage.loading"))));
      this.shown();
    }
    const following = new AbortController();
    this.following = following;
    follow(id, {
      signal: following.signal,
      onTask: (task) => !following.signal.aborted && this.show(task),
      onLog: () => this.readLog(following.signal),
      onConnection: (there) => this.showConnection(there),
    }).catch((error) => !following.signal.aborted && this.showLost(error)).finally(() => {
      if (this.following === following) this.following = null;
    });
  }

  showLost(error) {
    this.leave();
    const gone = [404, 410].includes(error.status);
    this.shown = () => this.card(null, h("div", { class: "stage-empty" }, h("div", { class: "seal" }, icon(gone ? "cut" : "alert")),
      h("h3", {}, gone ? t("stage.gone.title") : errorText(error)), gone ? h("p", {}, t("stage.gone.text")) : null));
    this.shown();
  }

  /** Another tab, or time, has removed a task. */
  forget(id) {
    if (this.task?.task_id === id) this.showLost({ status: 410 });
  }

  showConnection(there) {
    if (this.offline === !there) return;
    this.offline = !there;
    if (this.parts) this.parts.offline.hidden = there;
  }

  /** Take up news of the task: in place while it is open, so that nothing is lost of what the reader does. */
  show(task) {
    const before = this.task;
    this.task = task;
    this.onTask(task, before);
    this.tell(task, before);
    this.shown = () => this.draw();
    if (before?.task_id === task.task_id && before.status === task.status && hasEnded(task)) return;
    if (this.parts && !hasEnded(task)) this.update();
    else this.draw();
  }

  tell(task, before) {
    if (task.status === "processing" && task.progress >= this.said + SAY_EVERY) {
      this.said = Math.floor(task.progress / SAY_EVERY) * SAY_EVERY;
      announce(`${t(`phase.${task.phase}`)}, ${t("told.progress", { n: number(this.said * 100) })}`);
    } else if (before && before.status !== task.status) announce(t(`status.${task.status}`));
  }

  draw() {
    this.parts = null;
    const { task } = this;
    const head = h("span", { class: `badge ${task.status}` }, h("span", { class: "dot" }), t(`status.${task.status}`));
    const draws = { completed, failed, cancelled };
    this.card(head, ...(draws[task.status]?.(task, this.actions) ?? this.underway()));
    if (this.parts) this.update();
  }

  // --- on its way ----------------------------------------------------------------------------------------------------

  underway() {
    const { task } = this;
    const audio = this.pictures.get(task.metadata.audio_path);
    const fact = (name) => {
      const value = h("dd", { class: name });
      return [h("div", {}, h("dt", {}, t(`stage.${name}`)), value), value];
    };
    const [placeBox, place] = fact("place");
    const [etaBox, eta] = fact("eta");
    const [elapsedBox, elapsed] = fact("elapsed");
    const parts = {
      bars: wave(audio?.peaks ?? inventedPeaks(task.task_id)), phase: h("strong", {}), percent: h("span", { class: "percent" }),
      meter: h("progress", { max: 1, value: 0, "aria-label": t("stage.progress") }), placeBox, place, eta, elapsed, elapsedBox,
      attempt: h("small", {}), cancelling: h("p", { class: "hint", hidden: true }, t("stage.cancelling")),
      offline: h("p", { class: "notice bad", hidden: !this.offline }, icon("alert"), h("span", {}, t("stage.offline"))),
      steps: PHASES.map((phase) => h("li", { dataset: { phase } }, t(`phase.${phase}`))),
      cancel: button("close", t("stage.cancel"), () => !this.task.cancel_requested && this.actions.remove(this.task)),
      log: h("pre", { class: "log", tabindex: "0", "aria-label": t("stage.log") }),
    };
    this.parts = parts;
    return [
      picturePane(this.pictures.get(task.metadata.image_path), parts.bars, task.plan),
      h("div", { class: "now" }, parts.phase, parts.attempt, parts.percent), parts.meter,
      h("ol", { class: "phases" }, parts.steps), h("dl", { class: "facts" }, placeBox, etaBox, elapsedBox),
      parts.offline, parts.cancelling, h("div", { class: "actions" }, parts.cancel), changes(task), this.logBox(parts.log),
    ];
  }

  logBox(log) {
    const box = h("details", { class: "more", ontoggle: () => {
      this.logOpen = box.open;
      this.readLog(this.following?.signal);
    } }, h("summary", {}, t("stage.log")), log);
    box.open = Boolean(this.logOpen);
    log.textContent = plain(this.logText) || t("stage.log.empty");
    return box;
  }

  update() {
    const { task, parts } = this;
    const at = PHASES.indexOf(task.phase);
    const waiting = task.status === "queued";
    parts.phase.textContent = t(`phase.${task.phase}`);
    parts.percent.textContent = waiting ? "" : `${number(Math.floor(task.progress * 100))} %`;
    parts.bars.show(task.progress);
    parts.bars.classList.toggle("breathing", waiting);
    if (waiting) parts.meter.removeAttribute("value");
    else parts.meter.value = task.progress;
    parts.steps.forEach((step, index) => {
      step.className = index < at ? "past" : index === at ? "present" : "";
      if (index === at) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
    });
    parts.placeBox.hidden = !waiting || task.queue_position === null;
    parts.place.textContent = t("stage.place.value", { n: number(task.queue_position ?? 0) });
    parts.elapsedBox.hidden = waiting;
    parts.attempt.textContent = task.attempt > 1 ? t("stage.attempt", { n: number(task.attempt) }) : "";
    parts.cancelling.hidden = !task.cancel_requested;
    parts.cancel.setAttribute("aria-disabled", task.cancel_requested); // not `disabled`: that would drop the focus
    parts.badge = $(".badge", this.element);
    parts.badge.className = `badge ${task.status}`;
    parts.badge.replaceChildren(h("span", { class: "dot" }), t(`status.${task.status}`));
    this.tick();
  }

  /** What the clock changes. */
  tick() {
    const { task, parts } = this;
    if (!parts || !task) return;
    const left = secondsLeft(task);
    if (this.logOpen && performance.now() - this.logRead > LOG_MS) this.readLog(this.following?.signal);
    parts.eta.textContent = left === null ? t("eta.unknown") : roughly(left);
    if (task.start_time) {
      const atLastNews = (Date.parse(task.updated_at) - Date.parse(task.start_time)) / 1000;
      parts.elapsed.textContent = duration(Math.floor(Math.max(0, atLastNews + (performance.now() - task.knownAt) / 1000)));
    }
  }

  async readLog(signal) {
    if (!this.logOpen || this.reading || !signal || signal.aborted) return;
    this.reading = true;
    this.logRead = performance.now();
    try {
      const [text, offset] = await readLog(this.opened, this.logOffset, signal);
      if (signal.aborted) return;
      this.logText = endOf((offset < this.logOffset ? "" : this.logText) + text);
      this.logOffset = offset;
      const { log } = this.parts ?? {};
      if (!log || !text) return;
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 24;
      log.textContent = plain(this.logText);
      if (atEnd) log.scrollTop = log.scrollHeight;
    } catch {
      // The next news asks again; whether the service is reached is told by who follows the task.
    } finally {
      this.reading = false;
    }
  }
}

/** The portrait in the shape that the video will have, with the voice as bars over it. */
function picturePane(picture, bars, { width, height }) {
  const image = picture?.url ? h("img", { class: "frame-main", src: picture.url, alt: "" }) : null;
  const pane = framed(picture?.url, image, `pane ${image ? "" : "bare"}`);
  pane.append(bars);
  pane.style.aspectRatio = `${width} / ${height}`;
  return pane;
}

function exampleCard() {
  return h("button", { type: "button", class: "example", onclick: () => $("#example").click() },
    h("img", { src: "/static/example/portrait.png", alt: "", width: "88", height: "66", decoding: "async" }),
    h("span", {}, h("strong", {}, t("stage.example")), h("small", {}, t("stage.example.text"))));
}
