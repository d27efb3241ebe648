// One medium of the form: chosen, dropped, recorded or kept from an earlier video; looked at before it is sent.
import { $, bytes, duration, fill, framed, h, icon, renew } from "./dom.js";
import { t } from "./i18n.js";
import { inspectAudio, inspectImage, inventedPeaks } from "./media.js";
import { wave } from "./wave.js";
import { problemText } from "./words.js";

const INSPECT = { image: inspectImage, audio: inspectAudio };

/**
 * What is picked is `picker.medium`: {file, path, name, url, problem, doubt} and width, height or seconds, peaks.
 * `path` is where the service keeps it, once it was uploaded. `onChange` is called whenever any of it changes.
 */
export class Picker {
  constructor(kind, onChange) {
    this.kind = kind;
    this.onChange = onChange;
    this.medium = null;
    this.turn = 0;
    this.box = $(`#${kind}-drop`);
    this.input = $(`#${kind}`);
    this.input.addEventListener("change", () => {
      if (this.input.files[0]) this.take(this.input.files[0]);
      this.input.value = ""; // so that the same file can be chosen again
    });
  }

  /** Look at a file and show it; `ready` is kept when that is done. */
  take(file) {
    this.ready = this.inspect(file);
    return this.ready;
  }

  async inspect(file) {
    this.put({ file, name: file.name, looking: true });
    const { turn } = this;
    const found = await INSPECT[this.kind](file);
    if (turn === this.turn) this.put({ file, name: file.name, ...found });
  }

  /** Show a medium; null shows the empty box. A file that is still looked at comes too late then. */
  put(medium) {
    this.turn += 1;
    if (this.medium?.url && this.medium.url !== medium?.url && !this.medium.lent) URL.revokeObjectURL(this.medium.url);
    this.player?.pause();
    this.medium = medium;
    this.problem(null);
    this.show();
    this.onChange();
  }

  remove() {
    this.put(null);
    this.input.focus();
  }

  /** Show what is wrong; returns whether anything is. */
  problem(found) {
    const shown = found ?? this.medium?.problem ?? this.medium?.doubt ?? null;
    const line = $(`#${this.kind}-problem`);
    this.shown = found;
    line.textContent = shown ? problemText(shown) : "";
    const bad = Boolean(found ?? this.medium?.problem);
    line.classList.toggle("doubt", !bad && Boolean(shown));
    this.box.classList.toggle("bad", bad);
    if (bad) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
    return bad;
  }

  show() {
    const { medium } = this;
    const full = $(".drop-full", this.box);
    $(".drop-empty", this.box).hidden = Boolean(medium);
    full.hidden = !medium;
    this.box.classList.toggle("full", Boolean(medium));
    if (!medium) return fill(full);
    const what = t(`form.${this.kind === "image" ? "portrait" : "voice"}`);
    const tool = (glyph, key, onclick) => h("button", { type: "button", class: "button quiet small square", title: t(key),
      "aria-label": `${t(key)}: ${what}`, onclick }, icon(glyph));
    const tools = h("div", { class: "drop-tools" },
      tool("swap", "form.replace", () => this.input.click()),
      tool("close", "form.remove", () => this.remove()));
    const facts = h("div", { class: "drop-facts" }, h("strong", { title: medium.name }, medium.name), h("small", {}, this.facts()));
    const content = this.kind === "image" ? this.picture() : this.sound();
    const foot = $(".drop-foot", full);
    if (!foot) return fill(full, content, h("div", { class: "drop-foot" }, facts, tools));
    full.firstElementChild.replaceWith(content);
    return renew(foot, facts, tools); // whoever is at its buttons while the file is looked at stays there
  }

  facts() {
    const { medium } = this;
    if (medium.looking) return t("form.looking");
    const size = medium.file ? bytes(medium.file.size) : t("form.kept");
    if (this.kind === "image") return medium.width ? `${medium.width} × ${medium.height} · ${size}` : size;
    return medium.seconds ? `${duration(medium.seconds)} · ${size}` : size;
  }

  picture() {
    const { medium } = this;
    return medium.url ? framed(medium.url, h("img", { class: "portrait", src: medium.url, alt: t("form.portrait") })) : h("div", { class: "portrait none" }, icon("image"));
  }

  sound() {
    const { medium } = this;
    const bars = wave(medium.peaks ?? inventedPeaks(medium.name));
    if (!medium.url || medium.doubt) return h("div", { class: "sound" }, h("div", { class: "sound-icon" }, icon("voice")), bars);
    this.player = new Audio(medium.url);
    const play = h("button", { type: "button", class: "button primary round", "aria-label": t("form.play"),
      onclick: () => (this.player.paused ? this.player.play() : this.player.pause()) }, icon("play"));
    const player = this.player;
    const draw = () => {
      bars.show(player.duration ? player.currentTime / player.duration : 0);
      if (!player.paused) requestAnimationFrame(draw);
    };
    const turned = () => {
      fill(play, icon(player.paused ? "play" : "pause"));
      play.setAttribute("aria-label", t(player.paused ? "form.play" : "form.pause"));
      draw();
    };
    for (const event of ["play", "pause", "ended"]) player.addEventListener(event, turned);
    return h("div", { class: "sound" }, play, bars);
  }
}
