// What is shown of a task that has ended: its video, or why there is none, and what was made of the wishes.
import { $, button, bytes, duration, exactly, framed, h, icon, number } from "./dom.js";
import { t } from "./i18n.js";
import { adjustmentText, failureWords, noteText } from "./words.js";

const AWAY_MS = 3000; // between looks for a video that cannot be loaded
const MOST_LOOKS = 100;

export function completed(task, actions) {
  const video = h("video", { class: "frame-main", controls: true, playsinline: true, preload: "metadata", src: task.output_video_url,
    poster: task.poster_url, "aria-label": t("stage.video") });
  const screen = framed(task.poster_url, video, "screen");
  keepLoading(screen, video, () => actions.fresh(task));
  screen.style.aspectRatio = `${task.video.width} / ${task.video.height}`;
  const done = t("stage.completed", { time: duration(task.processing_seconds) });
  return [
    screen,
    h("div", { class: "actions" }, downloadLink(task, actions), button("link", t("stage.share"), () => actions.share(task)),
      button("again", t("stage.again"), () => actions.again(task)), deleteButton(task, actions)),
    h("p", { class: "hint" }, task.expires_at ? `${done} · ${t("stage.expires", { time: exactly(task.expires_at) })}` : done),
    changes(task), details(task),
  ];
}

/** Link a video anew when it cannot be loaded: a signed link ends by itself, and the service may be away for a while. */
function keepLoading(screen, video, fresh) {
  let looks = 0;
  video.addEventListener("error", async () => {
    if (looks) await new Promise((resolve) => setTimeout(resolve, AWAY_MS));
    looks += 1;
    if (looks > MOST_LOOKS || !video.isConnected) return;
    const now = await fresh();
    $(".frame-back", screen).src = video.poster = now.poster_url;
    video.src = now.output_video_url;
  });
}

export function failed(task, actions) {
  const { title, advice, said } = failureWords(task);
  const excerpt = task.log_excerpt
    ? h("details", { class: "more", open: true }, h("summary", {}, t("stage.excerpt")), h("pre", { class: "log", tabindex: "0" }, task.log_excerpt)) : null;
  return [
    verdict("alert", title, advice, "bad"),
    h("dl", { class: "said" }, h("dt", {}, t("stage.said")), h("dd", {}, said)),
    h("div", { class: "actions" }, button("again", t("stage.retry"), () => actions.again(task), "primary"), deleteButton(task, actions)),
    excerpt, changes(task), details(task),
  ];
}

export function cancelled(task, actions) {
  return [
    verdict("cut", t("stage.cancelled.title"), t("stage.cancelled.text")),
    h("div", { class: "actions" }, button("again", t("stage.again"), () => actions.again(task), "primary"), deleteButton(task, actions)),
    details(task),
  ];
}

function downloadLink(task, actions) {
  const target = ({ output_video_url: url }) => `${url}${url.includes("?") ? "&" : "?"}download=1`;
  const link = h("a", { class: "button primary", href: target(task), download: "" }, icon("download"), h("span", {}, t("stage.download")));
  const ends = Number(new URL(link.href).searchParams.get("expires") ?? Infinity) * 1000;
  const renew = async (event) => {
    if (Date.now() < ends) return;
    event.preventDefault(); // the page was open for longer than its link is good
    link.removeEventListener("click", renew);
    link.href = target(await actions.fresh(task));
    link.click();
  };
  link.addEventListener("click", renew);
  return link;
}

function verdict(glyph, title, text, kind = "") {
  return h("div", { class: "verdict" }, h("div", { class: `seal ${kind}` }, icon(glyph)), h("div", {}, h("h3", {}, title), h("p", {}, text)));
}

function deleteButton(task, actions) {
  return h("button", { type: "button", class: "button quiet bad tool", title: t("stage.delete"), "aria-label": t("stage.delete"),
    onclick: () => actions.remove(task) }, icon("trash"));
}

/** Adjustments and notes in words; null where there are none. */
export function changes({ adjustments, notes }) {
  const list = (title, kind, texts) => (texts.length ? h("div", { class: `notes ${kind}` }, icon(kind === "changed" ? "alert" : "info"),
    h("div", {}, h("strong", {}, title), h("ul", {}, texts.map((text) => h("li", {}, text))))) : null);
  const both = [list(t("stage.adjusted"), "changed", adjustments.map(adjustmentText)), list(t("stage.notes"), "told", notes.map(noteText))];
  return both.some(Boolean) ? h("div", { class: "changes" }, both) : null;
}

function details(task) {
  const { plan, params, video } = task;
  const rows = [
    ["prompt", params.prompt],
    ["resolution", `${video?.width ?? plan.width} × ${video?.height ?? plan.height} · ${number(video?.fps ?? plan.fps)} fps`],
    ["duration", duration(task.duration_seconds ?? plan.video_seconds)],
    ["size", video && bytes(video.size_bytes)], ["codec", video && `${video.video_codec}, ${video.audio_codec}`],
    ["engine", `${task.engine} (${task.profile})`], ["clips", number(plan.clips)], ["steps", String(params.sample_steps)],
    ["seed", String(params.seed)], ["id", task.task_id],
  ].filter(([, value]) => value);
  const list = rows.map(([name, value]) => h("div", {}, h("dt", {}, t(`detail.${name}`)), h("dd", {}, value)));
  return h("details", { class: "more" }, h("summary", {}, t("stage.details")), h("dl", { class: "details" }, list));
}
