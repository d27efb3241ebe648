// The button that records a voice, and what is seen and said while it does.
import { $, announce, duration, fill, h, icon } from "./dom.js";
import { t } from "./i18n.js";
import { canRecord, MOST_SECONDS, Recorder } from "./recorder.js";
import { liveWave } from "./wave.js";

export class Microphone {
  /** `onFile` gets the recording. */
  constructor(onFile) {
    this.onFile = onFile;
    this.button = $("#record");
    this.hint = ""; // the key of what stands under it
    this.live = $("#audio-drop .drop-live");
    this.button.addEventListener("click", () => (this.recorder ? this.stop() : this.start()));
    this.draw();
  }

  /** Show it in the language of now. */
  draw() {
    const on = Boolean(this.recorder);
    this.button.disabled = !canRecord();
    this.label = h("span", {}, t(on ? "form.record.stop" : "form.record"));
    fill(this.button, icon(on ? "stop" : "mic"), this.label);
    this.button.classList.toggle("recording", on);
    $("#record-hint").textContent = canRecord() ? this.hint && t(this.hint) : t("form.record.insecure");
    this.live.hidden = !on;
  }

  async start() {
    if (this.starting) return;
    this.starting = true;
    const recorder = new Recorder((level) => this.hear(level), () => this.stop());
    try {
      await recorder.start();
      this.hint = "";
      this.clock = h("strong", {}, duration(0));
      this.bars = liveWave();
      fill(this.live, this.bars, this.clock);
      this.recorder = recorder;
      announce(t("form.recording"));
    } catch (error) {
      const missing = ["NotFoundError", "NotReadableError"].includes(error.name);
      this.hint = missing ? "form.record.missing" : "form.record.refused";
    }
    this.starting = false;
    this.draw();
  }

  hear(level) {
    if (!this.recorder) return; // a last block may come after the end
    this.bars.hear(level * 1.5);
    this.clock.textContent = duration(Math.min(MOST_SECONDS, Math.floor(this.recorder.seconds * 10) / 10));
  }

  stop() {
    const { recorder } = this;
    if (!recorder) return;
    this.recorder = null;
    this.draw();
    const file = recorder.stop();
    announce(t("form.recorded", { time: duration(recorder.seconds) }));
    this.onFile(file);
  }
}
