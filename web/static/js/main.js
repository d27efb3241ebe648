// Puts the parts of the page together: what one tells, the others are told here.
import { api, apiKey, facts, newKey, upload } from "./api.js";
import { wireTheme } from "./colours.js";
import { $, $$, announce, confirmed, exactly, number, toast } from "./dom.js";
import { hasEnded } from "./events.js";
import { Form } from "./form.js";
import { History } from "./history.js";
import { chooseLanguage, language, speak, t } from "./i18n.js";
import { Service } from "./service.js";
import { Stage } from "./stage.js";
import { forgetPicture, forgetPictures, keepPicture, keptPictures } from "./thumbs.js";
import { errorText } from "./words.js";

const MEDIA = ["image", "audio"];

const pictures = new Map(); // media that this page has sent, by the path that the service gave them
for (const [path, url] of keptPictures()) pictures.set(path, { path, url });
const allowed = () => !facts.auth || Boolean(apiKey.get());

// --- submitting ------------------------------------------------------------------------------------------------------

/** Send what the form holds; each medium once, however often it is used. */
async function send({ image, audio, fields }) {
  if (!allowed()) return openKeyDialog();
  const aborter = new AbortController();
  const show = stage.showUpload(image, audio.peaks, () => aborter.abort());
  form.setBusy(true);
  location.hash = "#/";
  if (matchMedia("(max-width: 900px)").matches) $("#stage").scrollIntoView({ block: "start" });
  try {
    const media = { image, audio };
    for (const kind of MEDIA) await sendMedium(kind, media[kind], show, aborter.signal);
    const task = await api.generate({ ...fields, image_path: image.path, audio_path: audio.path, metadata: noted(media) }, newKey());
    announce(t("told.queued"));
    location.hash = `#/task/${task.task_id}`;
    videos.load();
  } catch (error) {
    if (location.hash === "#/") stage.showEmpty(); // else another video was opened meanwhile
    if (error.name !== "AbortError") refused(error, { image, audio });
  } finally {
    form.setBusy(false);
  }
  return null;
}

async function sendMedium(kind, medium, show, signal) {
  if (medium.path) return;
  show(kind, 0);
  let sent;
  try {
    sent = await upload(kind, medium.file, (share) => show(kind, share < 1 ? share : null), signal);
  } catch (error) {
    for (const problem of error.errors ?? []) problem.field = kind; // an upload knows its file as `file`
    throw error;
  }
  const { path, media } = sent;
  Object.assign(medium, { path, lent: true });
  if (kind === "audio" && !medium.seconds) medium.seconds = media.seconds;
  pictures.set(path, { ...medium });
  if (kind === "image" && medium.url) keepPicture(path, medium.url);
}

/** What a later visit needs to show the task's inputs and to use them again. */
function noted({ image, audio }) {
  const size = image.width ? { image_size: `${image.width}x${image.height}` } : {};
  const seconds = audio.seconds ? { audio_seconds: String(audio.seconds) } : {};
  return {
    image_path: image.path, image_name: image.name.slice(0, 200), audio_path: audio.path, audio_name: audio.name.slice(0, 200),
    ...size, ...seconds,
  };
}

function refused(error, media) {
  if (error.status === 401) return;
  const named = error.code === "invalid_input" ? form.showErrors(error.errors) : [];
  for (const { field } of named) {
    const medium = media[field];
    if (!medium?.path) continue;
    // An upload that the service no longer has: it is sent again if it is still here.
    pictures.delete(medium.path);
    if (medium.file) delete medium.path;
    else form.pickers[field].problem({ key: "check.again" });
  }
  if (!named.length) form.say("form", errorText(error));
  toast(named.length ? t(`api.${error.code}`) : errorText(error), "bad");
}

// --- what can be done with a task ------------------------------------------------------------------------------------

const actions = {
  again(task) {
    form.load(task, pictures);
    location.hash = "#/";
    $("#form").scrollIntoView({ block: "start" });
    $("#prompt").focus({ preventScroll: true });
  },

  async remove(task) {
    const what = hasEnded(task) ? "delete" : "cancel";
    const loss = task.status === "queued" ? "confirm.leave.text" : `confirm.${what}.text`;
    const sure = await confirmed(t(`confirm.${what}.title`), t(loss), t(`confirm.${what}.yes`));
    if (!sure) return;
    try {
      if (what === "cancel") {
        const left = await api.cancel(task.task_id);
        toast(t(hasEnded(left) ? "told.cancelled" : "told.cancelling"));
      } else {
        await api.remove(task.task_id);
        toast(t("told.deleted"));
        forgetPortrait(task);
        if (location.hash === `#/task/${task.task_id}`) location.hash = "#/";
      }
    } catch (error) {
      toast(errorText(error), "bad");
      if ([404, 410].includes(error.status)) stage.forget(task.task_id);
    }
    videos.load();
  },

  /** The task as it is now: a signed link ends by itself, and a fresh one is good for longest. */
  async fresh(task) {
    try {
      return await api.task(task.task_id);
    } catch {
      return task;
    }
  },

  async share(task) {
    const link = new URL((await this.fresh(task)).output_video_url, location.href);
    const until = Number(link.searchParams.get("expires"));
    try {
      await navigator.clipboard.writeText(link.href);
      toast(until ? t("stage.shared.until", { time: exactly(until * 1000) }) : t("stage.shared"));
    } catch {
      toast(t("stage.share.failed", { link: link.href }), "bad");
    }
  },
};

/** Forget the portrait of a task that is no more, if no other one was made of it. */
function forgetPortrait({ task_id: id, metadata: { image_path: path } }) {
  const another = [...videos.tasks.values()].some((task) => task.task_id !== id && task.metadata.image_path === path);
  if (path && !another) forgetPicture(path);
}

function onTask(task, before) {
  videos.update(task);
  showTitle();
  if (!before) videos.meet(task);
  if (!before || before.status === task.status) return;
  if (hasEnded(task)) {
    if (task.status === "completed") toast(t("told.completed"));
    if (task.status === "failed") toast(t("told.failed"), "bad");
    videos.load();
  }
}

// --- the address -----------------------------------------------------------------------------------------------------

function route() {
  const isService = location.hash === "#/service";
  $("#service").hidden = !isService;
  $("#studio").hidden = isService;
  for (const link of $$("nav [data-view]")) {
    if ((link.dataset.view === "service") === isService) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (isService) return service.load();
  const id = /^#\/task\/(gen_[0-9a-f_]+)$/.exec(location.hash)?.[1];
  videos.mark(id ?? null);
  if (id && allowed()) {
    const wasOpen = stage.task?.task_id === id;
    stage.open(id, videos.tasks.get(id) ?? null);
    if (!wasOpen && window.scrollY > $("#stage").offsetTop) $("#stage").scrollIntoView({ block: "start" });
  } else if (!form.busy) stage.showEmpty();
  return showTitle();
}

// --- the key, the title -------------------------------------------------------------------------------------------------

function openKeyDialog(problem = "") {
  const dialog = $("#key-dialog");
  $("#key").value = apiKey.get();
  $("#key-forget").hidden = !apiKey.get();
  $("#key-problem").textContent = problem;
  if (!dialog.open) dialog.showModal();
  $("#key").focus();
}

function wireKey() {
  const dialog = $("#key-dialog");
  $("#key-button").hidden = !facts.auth && !facts.keys;
  for (const id of ["key-button", "key-enter"]) $(`#${id}`).addEventListener("click", () => openKeyDialog());
  $("#key-close").addEventListener("click", () => dialog.close());
  $("#key-forget").addEventListener("click", () => (apiKey.set(""), dialog.close()));
  $("form", dialog).addEventListener("submit", () => apiKey.set($("#key").value.trim()));
  document.addEventListener("unauthorized", ({ detail: key }) => {
    if (key !== apiKey.get()) return; // of a request that another key has overtaken
    if (key) apiKey.set(""); // else every look at the list would be refused again
    openKeyDialog(key ? t("key.refused") : "");
  });
  document.addEventListener("key", () => {
    forgetPictures(); // of whoever had the key before
    showKey();
    stage.showEmpty();
    videos.forget();
    videos.load();
    service.load();
    route();
  });
  document.addEventListener("language", showKey);
}

function showKey() {
  $("#key-needed").hidden = allowed();
  const label = t(apiKey.get() ? "tool.key.set" : "tool.key.none");
  $("#key-button").setAttribute("aria-label", label);
  $("#key-button").title = label;
}

/** The tab tells how far the open task is, for who looks at another one meanwhile. */
function showTitle() {
  const { task } = stage;
  const far = task?.status === "processing" ? `${number(Math.floor(task.progress * 100))} %` : task && t(`status.${task.status}`);
  document.title = far ? `${far} · ${t("page.name")}` : t("page.title");
}

// --- start -----------------------------------------------------------------------------------------------------------

const form = new Form(send);
const videos = new History(actions, allowed, pictures);
const stage = new Stage(actions, onTask, pictures);
const service = new Service((health) => form.showHealth(health), allowed);

$("#version").textContent = facts.version;
$("#language").addEventListener("click", () => chooseLanguage(language() === "en" ? "zh-CN" : "en"));
wireTheme($("#theme"));
document.addEventListener("language", showTitle);
window.addEventListener("hashchange", route);
wireKey();
speak(language());
route();
videos.load();
service.load();
