// Words in the reader's language. A text is looked up by key; {name} in it is replaced.
import { EN } from "./en.js";
import { ZH } from "./zh.js";

const WORDS = { en: EN, "zh-CN": ZH };

export const language = () => document.documentElement.lang;

export function t(key, values = {}) {
  const text = (WORDS[language()] ?? EN)[key] ?? EN[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Whether there is a text for a key that came from elsewhere, such as an error code of a newer service. */
export const known = (key) => key in EN;

/** Put the texts into elements that name theirs: data-t is the content, data-t-<attribute> an attribute. */
export function translate(root = document) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const attribute of ["aria-label", "placeholder", "title", "content"]) {
    for (const element of root.querySelectorAll(`[data-t-${attribute}]`)) {
      element.setAttribute(attribute, t(element.getAttribute(`data-t-${attribute}`)));
    }
  }
}

export function speak(wanted) {
  document.documentElement.lang = wanted;
  translate();
  document.dispatchEvent(new Event("language"));
}

/** Speak it at later visits, too. */
export function chooseLanguage(wanted) {
  speak(wanted);
  try {
    localStorage.setItem("language", wanted);
  } catch {
    // It holds until the page is left.
  }
}
