// What can be told of a portrait or a recording before it is sent. The service looks again, at the bytes themselves.
import { facts } from "./api.js";

const { limits } = facts;
const DECODE_BYTES = 40e6; // a recording beyond it is not unpacked in memory just to draw it
const BARS = 72;

/** What is wrong with a file, as the key of a text and its values; null where nothing is. */
const wrong = (key, values = {}) => ({ key, values });

export function kindOf(file) {
  if (file.type.startsWith("image/") || /\.(png|jpe?g|webp|gif|bmp)$/i.test(file.name)) return "image";
  if (/^(audio|video)\//.test(file.type) || /\.(wav|mp3|m4a|aac|ogg|opus|flac|webm)$/i.test(file.name)) return "audio";
  return null;
}

/** Look at a portrait: {width, height, url, problem}. Without a size where this browser cannot show it. */
export async function inspectImage(file) {
  if (kindOf(file) !== "image") return { problem: wrong("check.not_image") };
  const problem = sizeProblem(file, limits.image_bytes);
  if (problem) return { problem };
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return { problem: wrong("check.image_unreadable") };
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  return { url, width, height, problem: imageProblem(width, height) };
}

function sizeProblem(file, most) {
  if (file.size === 0) return wrong("check.empty");
  return file.size > most ? wrong("check.too_large", { bytes: file.size, most }) : null;
}

function imageProblem(width, height) {
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  const values = { width, height, least: limits.image_min_side, most: limits.image_max_side };
  if (short < limits.image_min_side) return wrong("check.image_small", values);
  if (long > limits.image_max_side || width * height > limits.image_pixels) return wrong("check.image_big", values);
  return long / short > limits.image_aspect ? wrong("check.image_narrow", values) : null;
}

/** Look at a recording: {url, seconds, peaks, problem, doubt}. `doubt`: this browser cannot play it, the service may. */
export async function inspectAudio(file) {
  if (kindOf(file) !== "audio") return { problem: wrong("check.not_audio") };
  const problem = sizeProblem(file, limits.audio_bytes);
  if (problem) return { problem };
  const url = URL.createObjectURL(file);
  const decoded = file.size <= DECODE_BYTES ? await decode(file) : null;
  const seconds = decoded?.duration ?? (await playedSeconds(url));
  if (seconds === null) return { url, seconds: null, peaks: null, doubt: wrong("check.audio_unplayable") };
  return { url, seconds, peaks: decoded && peaksOf(decoded), problem: audioProblem(seconds) };
}

function audioProblem(seconds) {
  if (seconds < limits.audio_min_seconds) return wrong("check.audio_short", { least: limits.audio_min_seconds });
  if (seconds > limits.audio_max_seconds) return wrong("check.audio_long", { most: limits.audio_max_seconds });
  return null;
}

async function decode(file) {
  // At the rate that engines hear; no sound card is needed for it.
  const context = new OfflineAudioContext(1, 1, 16000);
  try {
    return await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    return null;
  }
}

function playedSeconds(url) {
  return new Promise((resolve) => {
    const audio = new Audio();
    audio.onloadedmetadata = () => resolve(Number.isFinite(audio.duration) ? audio.duration : null);
    audio.onerror = () => resolve(null);
    audio.preload = "metadata";
    audio.src = url;
  });
}

/** The loudness of a recording in BARS steps, 0 to 1. */
export function peaksOf(buffer, bars = BARS) {
  const samples = buffer.getChannelData(0);
  const step = samples.length / bars;
  const stride = Math.max(1, Math.floor(step / 400));
  const peaks = Array.from({ length: bars }, (_, bar) => {
    let most = 0;
    for (let at = Math.floor(bar * step); at < (bar + 1) * step; at += stride) most = Math.max(most, Math.abs(samples[at] ?? 0));
    return most;
  });
  const loudest = Math.max(...peaks, 0.01);
  return peaks.map((peak) => peak / loudest);
}

/** Bars for a task whose recording this page does not have: always the same ones for the same name. */
export function inventedPeaks(name, bars = BARS) {
  let state = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) >>> 0, 7);
  return Array.from({ length: bars }, (_, bar) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const wave = 0.5 + 0.35 * Math.sin(bar / 3.1) * Math.sin(bar / 11);
    return Math.max(0.12, wave * (0.45 + (0.55 * state) / 2 ** 32));
  });
}
