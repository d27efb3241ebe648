// Making and finding elements, and numbers as people read them. Texts are always set as text: no HTML is ever parsed.
import { language, t } from "./i18n.js";

export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. `on*` props are listeners, `class` and `dataset` are what they say, the others are attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** An icon of the sprite in index.html. It says nothing to a screen reader: the text beside it does. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

export function button(name, text, onclick, kind = "quiet", props = {}) {
  return h("button", { type: "button", class: `button ${kind}`, onclick, ...props }, icon(name), h("span", {}, text));
}

/** A picture or a video of any shape in a frame of another: what the frame has left over shows the picture, blurred. */
export function framed(url, content, kind = "") {
  const back = url ? h("img", { class: "frame-back", src: url, alt: "" }) : null;
  return h("div", { class: `frame ${kind}` }, ...[back, content].filter(Boolean));
}

/** Show one child in place of all others. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter(Boolean));
}

/**
 * Show children as `fill` does, but keep the elements that are there and of the same kind, with their listeners: a button
 * that is replaced between the press and the release of the mouse is never clicked, and one that has the focus loses it.
 * A link to something else is another one: who has pressed the one must not be led to the other.
 */
export function renew(element, ...children) {
  const wanted = children.flat().filter(Boolean);
  const there = [...element.childNodes];
  wanted.forEach((child, index) => {
    const old = there[index];
    if (!old) element.append(child);
    else if (old.nodeName !== child.nodeName || (old.nodeName === "A" && old.href !== child.href)) old.replaceWith(child);
    else if (old.nodeType === Node.ELEMENT_NODE) become(old, child);
    else if (old.data !== child.data) old.data = child.data;
  });
  for (const old of there.slice(wanted.length)) old.remove();
}

function become(element, wanted) {
  for (const { name } of [...element.attributes]) if (!wanted.hasAttribute(name)) element.removeAttribute(name);
  for (const { name, value } of wanted.attributes) if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  renew(element, [...wanted.childNodes]);
}

// --- numbers ---------------------------------------------------------------------------------------------------------

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language(), { maximumFractionDigits: digits }).format(value);
}

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value, value < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

/** Seconds of a medium: 11.6 s, 2:05, 1:02:05. */
export function duration(seconds) {
  if (seconds < 60) return t("unit.seconds", { n: number(seconds, 1) });
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (parts[0] === 0) parts.shift();
  return parts.map((part, index) => (index ? String(part).padStart(2, "0") : String(part))).join(":");
}

/** Seconds to wait, as loosely as they are known. */
export function roughly(seconds) {
  if (seconds < 1) return t("eta.now");
  if (seconds < 90) return t("eta.seconds", { n: number(Math.ceil(seconds)) });
  if (seconds < 5400) return t("eta.minutes", { n: number(Math.round(seconds / 60)) });
  return t("eta.hours", { n: number(seconds / 3600, 1) });
}

/** How long ago a time was, and the time itself for who looks closer. */
export function ago(time) {
  const seconds = (new Date(time).getTime() - Date.now()) / 1000;
  const format = new Intl.RelativeTimeFormat(language(), { numeric: "auto", style: "short" });
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= size) return format.format(Math.trunc(seconds / size), unit);
  }
  return t("time.now");
}

export const exactly = (time) => new Date(time).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });

// --- telling ---------------------------------------------------------------------------------------------------------

/** Say something to a screen reader. */
export function announce(text) {
  $("#announcer").textContent = text;
}

/** Show a line that goes by itself, and say it. */
export function toast(text, kind = "info") {
  const line = h("div", { class: `toast ${kind}` }, icon(kind === "bad" ? "alert" : "check"), h("span", {}, text));
  $("#toasts").append(line);
  setTimeout(() => line.remove(), kind === "bad" ? 9000 : 4500);
}

let unanswered = null;

/** Ask in a dialog; resolves to whether it was confirmed. */
export function confirmed(title, text, yes) {
  unanswered?.(false);
  const dialog = $("#confirm");
  $("h2", dialog).textContent = title;
  $("p", dialog).textContent = text;
  $("[value=yes]", dialog).textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    unanswered = resolve;
    // The event of an earlier closing may come after this opening.
    dialog.onclose = () => !dialog.open && resolve(dialog.returnValue === "yes");
  });
}
