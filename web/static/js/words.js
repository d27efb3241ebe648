// What went wrong, or was changed, in words that tell what to do. The service's own sentence stands beside where it adds.
import { bytes, duration, number } from "./dom.js";
import { EN } from "./en.js";
import { known, t } from "./i18n.js";

/** A problem that media.js or form.js found, or in the service's own `text`. */
export function problemText({ key, values = {}, text = "" }) {
  if (text) return text;
  const shown = { ...values };
  if ("bytes" in shown) shown.bytes = bytes(shown.bytes);
  if ("most" in shown && key === "check.too_large") shown.most = bytes(shown.most);
  else if ("most" in shown && key === "check.audio_long") shown.most = duration(shown.most);
  else if ("most" in shown) shown.most = number(shown.most);
  return t(key, shown);
}

/** An ApiError in one or two sentences. */
export function errorText(error) {
  const key = `api.${error.code}`;
  const text = known(key) ? t(key) : t("api.unknown");
  const says = ["invalid_input", "no_hardware", "quota_exceeded", "unknown", "too_large"].includes(error.code);
  const detail = says && error.message ? ` (${error.message})` : "";
  const wait = error.retryAfter ? ` ${t("api.retry_after", { n: number(error.retryAfter) })}` : "";
  return text + detail + wait;
}

/** Why a task failed: {title, advice, said}. `said` is the service's own line. */
export function failureWords(task) {
  const code = known(`fail.${task.error_code}.title`) ? task.error_code : "unknown";
  return { title: t(`fail.${code}.title`), advice: t(`fail.${code}.advice`), said: task.error };
}

const shown = (value) => (typeof value === "boolean" ? t(value ? "word.on" : "word.off") : String(value).replace("*", "×"));

export function adjustmentText({ field, from, to, reason }) {
  const name = known(`field.${field}`) ? t(`field.${field}`) : field;
  return t("adjusted", { field: name, from: shown(from), to: shown(to), reason });
}

export const noteText = ({ code, message }) => (known(`note.${code}`) ? t(`note.${code}`) : message);

/** An engine's title; what the project ships is known in each language, what an operator named stays as named. */
export const engineTitle = ({ name, title }) => (EN[`engine.${name}`] === title ? t(`engine.${name}`) : title || name);
