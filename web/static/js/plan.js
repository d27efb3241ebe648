// What the video will be, before anything is sent: the service's own arithmetic (utils/plan.py), held equal by a test.
const FPS = 25;
const CLIP_FRAMES = 48;
const DROPPED_FRAMES = 3;
const AUDIO_RATE = 16000;
const MULTIPLE = 64;

/** Seconds of video that so many clips make when the recording is long enough. */
export const secondsOfClips = (clips) => (clips * CLIP_FRAMES - DROPPED_FRAMES) / FPS;

/** Clips that a recording fills; 0 where it is too short for any. */
export function clipsInAudio(seconds) {
  const features = Math.floor((Math.ceil(seconds * AUDIO_RATE) - 400) / 320) + 1;
  return features < 1 ? 0 : Math.floor(Math.floor((features / 50) * 30) / (CLIP_FRAMES * 1.2)) + 1;
}

/** [width, height] of the video of an image within an area of pixels; null where none fits. */
export function fitSize(area, width, height) {
  const pixels = width * height;
  let highest = 1;
  let lowest = 0.1;
  if (pixels > area) {
    const pad = MULTIPLE - 1;
    const b = pad * (height + width);
    lowest = (-b + Math.sqrt(b * b - 2 * pixels * (pad * pad - area))) / (2 * pixels);
    highest = Math.sqrt(area / pixels);
  }
  for (let step = 0; step < 100; step += 1) {
    const scale = highest - ((highest - lowest) * step) / 100;
    const [fitWidth, fitHeight] = [width, height].map((side) => Math.ceil(Math.trunc(side * scale) / MULTIPLE) * MULTIPLE);
    if (fitWidth * fitHeight > 0 && fitWidth * fitHeight <= area) return [fitWidth, fitHeight];
  }
  return null;
}

/** Clips, frames and seconds of the video of a recording. */
export function planTime(clipsAtMost, audioSeconds) {
  const clips = Math.min(clipsAtMost, clipsInAudio(audioSeconds));
  const heard = Math.max(1, Math.floor(Math.round(audioSeconds * FPS * 1e6) / 1e6));
  const frames = Math.min(clips * CLIP_FRAMES - DROPPED_FRAMES, heard);
  return { clips, frames, seconds: frames / FPS };
}
