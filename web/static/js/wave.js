// A recording as bars: of a file, of what is heard just now, or of how far a task is. Decoration: the numbers stand beside.
import { svg } from "./dom.js";

const HEIGHT = 48;
const STEP = 6;
const WIDTH = 3;
const LIVE_BARS = 48;

const tall = (peak) => {
  const height = Math.max(3, Math.min(1, peak) * HEIGHT);
  return { y: (HEIGHT - height) / 2, height };
};

export function wave(peaks) {
  const bars = peaks.map((peak, index) => svg("rect", {
    x: index * STEP, width: WIDTH, rx: WIDTH / 2, class: "wave-bar", ...tall(peak),
  }));
  const box = { class: "wave", viewBox: `0 0 ${peaks.length * STEP - (STEP - WIDTH)} ${HEIGHT}`, "aria-hidden": "true" };
  const drawing = svg("svg", { ...box, preserveAspectRatio: "none" }, ...bars);
  drawing.show = (share) => bars.forEach((bar, index) => bar.classList.toggle("on", (index + 0.5) / bars.length <= share));
  return drawing;
}

/** Bars of the last seconds; `hear` takes the newest loudness, 0 to 1. */
export function liveWave() {
  const heard = Array(LIVE_BARS).fill(0);
  const drawing = wave(heard);
  drawing.hear = (level) => {
    heard.push(level);
    heard.shift();
    [...drawing.children].forEach((bar, index) => {
      for (const [name, value] of Object.entries(tall(heard[index]))) bar.setAttribute(name, value);
    });
  };
  return drawing;
}
