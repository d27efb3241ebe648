// A recording as bars: of a file, of what is heard just now, or of how far a task is. Decoration: the numbers stand beside.
import { svg } from "./dom.js";

const HEIGHT = 48;
const STEP = 6;
const WIDTH = 3;

export function wave(peaks) {
  const bars = peaks.map((peak, index) => {
    const height = Math.max(3, peak * HEIGHT);
    return svg("rect", {
      x: index * STEP, y: (HEIGHT - height) / 2, width: WIDTH, height, rx: WIDTH / 2, class: "wave-bar",
    });
  });
  const box = { class: "wave", viewBox: `0 0 ${peaks.length * STEP - (STEP - WIDTH)} ${HEIGHT}`, "aria-hidden": "true" };
  const drawing = svg("svg", { ...box, preserveAspectRatio: "none" }, ...bars);
  drawing.show = (share) => bars.forEach((bar, index) => bar.classList.toggle("on", (index + 0.5) / bars.length <= share));
  return drawing;
}
