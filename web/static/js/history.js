// One's videos: a page of them, newest first, kept fresh while any is open; filtered by the service, searched here.
import { api } from "./api.js";
import { $, ago, duration, exactly, fill, h, icon, number, renew, toast } from "./dom.js";
import { hasEnded, stamped } from "./events.js";
import { t } from "./i18n.js";
import { errorText } from "./words.js";

const FILTERS = { all: "", active: "queued,processing", completed: "completed", failed: "failed", cancelled: "cancelled" };
const FRESH_MS = 3000;
const STALE_MS = 20000;
const LARGEST_PAGE = 200; // of the service

const pathOf = (link) => link?.split("?")[0] ?? null;

export const nameOf = (task) => task.params.prompt;

export class History {
  /** `actions`: again(task), remove(task). `allowed`: whether there are credentials. `pictures`: media by their path. */
  constructor(actions, allowed, pictures) {
    this.actions = actions;
    this.allowed = allowed;
    this.pictures = pictures;
    this.tasks = new Map(); // by id, in the order that the service gave
    this.cards = new Map();
    this.filter = "all";
    this.current = null;
    this.read = 0; // turns of reading the list
    this.kind = 0; // turns of what is listed
    $("#search").addEventListener("input", () => this.show());
    $("#history-more").addEventListener("click", () => this.more().catch((error) => toast(errorText(error), "bad")));
    document.addEventListener("language", () => this.redraw());
    document.addEventListener("visibilitychange", () => (document.hidden ? this.keepFresh() : this.load()));
    // A poster that could not be loaded is asked for again.
    window.addEventListener("online", () => (this.cards.clear(), this.load()));
    this.drawFilters();
  }

  drawFilters() {
    const label = { all: "history.all", active: "history.active" };
    fill($("#filters"), Object.keys(FILTERS).map((name) => h("button", {
      type: "button", class: "chip", "aria-pressed": String(name === this.filter), onclick: () => this.choose(name),
    }, t(label[name] ?? `status.${name}`))));
  }

  choose(name) {
    this.filter = name;
    this.drawFilters();
    $('[aria-pressed="true"]', $("#filters")).focus();
    this.kind += 1;
    this.tasks.clear();
    return this.load();
  }

  /** How many tasks are read: the first page, and all that is shown beyond it. */
  get most() {
    return Math.max(24, this.tasks.size);
  }

  /** Read the newest `most` tasks, in as few pages as the service lets. */
  async newest(most) {
    const status = FILTERS[this.filter];
    const found = [];
    let cursor = null;
    do {
      const page = await api.tasks(status, cursor, Math.min(LARGEST_PAGE, most - found.length));
      found.push(...page.tasks);
      cursor = page.next_cursor;
    } while (cursor && found.length < most);
    return { tasks: found, cursor };
  }

  /** Read again what is shown. */
  async load() {
    if (!this.allowed()) return this.forget();
    const { most } = this;
    this.read += 1;
    const turn = this.read;
    try {
      const { tasks, cursor } = await this.newest(most);
      if (turn !== this.read) return null;
      if (most < this.most) return this.load(); // meanwhile more is shown
      this.cursor = cursor;
      this.tasks = new Map(tasks.map((task) => [task.task_id, stamped(task)]));
      this.problem = null;
    } catch (error) {
      if (turn !== this.read) return null;
      this.problem = error;
    }
    this.show();
    return this.keepFresh();
  }

  /** Show nothing any more; what is on its way was for someone else. */
  forget() {
    this.read += 1;
    this.kind += 1;
    this.tasks.clear();
    this.cursor = null;
    this.show();
  }

  keepFresh() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const open = [...this.tasks.values()].some((task) => !hasEnded(task));
    this.timer = setTimeout(() => this.load(), open ? FRESH_MS : STALE_MS);
  }

  async more() {
    const { kind } = this;
    const { tasks, next_cursor: cursor } = await api.tasks(FILTERS[this.filter], this.cursor);
    if (kind !== this.kind) return;
    this.cursor = cursor;
    for (const task of tasks) this.tasks.set(task.task_id, stamped(task));
    this.show();
  }

  /** Take up news of one task. */
  update(task) {
    if (!this.tasks.has(task.task_id)) return;
    this.tasks.set(task.task_id, task);
    this.show();
  }

  /** See for the first time a task that was made elsewhere: it may belong to the list. */
  meet(task) {
    if (this.filter === "all" && this.tasks.size && task.submit_time > [...this.tasks.values()][0].submit_time) this.load();
  }

  mark(id) {
    this.current = id;
    this.show();
  }

  // --- showing -------------------------------------------------------------------------------------------------------

  redraw() {
    this.cards.clear();
    this.drawFilters();
    this.show();
  }

  show() {
    const sought = $("#search").value.trim().toLowerCase();
    const matches = (task) => [task.params.prompt, task.task_id, task.metadata.image_name ?? "", task.metadata.audio_name ?? ""]
      .some((text) => text.toLowerCase().includes(sought));
    const shown = [...this.tasks.values()].filter(matches);
    const cards = shown.map((task) => this.card(task));
    const gallery = $("#gallery");
    // Only what differs is touched, so that nothing jumps and the focus stays.
    const hadFocus = gallery.contains(document.activeElement);
    for (const old of [...gallery.children]) if (!cards.includes(old)) old.remove();
    cards.forEach((card, index) => gallery.children[index] !== card && gallery.insertBefore(card, gallery.children[index] ?? null));
    if (hadFocus && !gallery.contains(document.activeElement)) $("#history-title").focus({ preventScroll: true });
    $("#history-more").hidden = !this.cursor;
    $("#history-tools").hidden = this.tasks.size === 0 && this.filter === "all";
    const empty = $("#history-empty");
    empty.hidden = shown.length > 0;
    empty.textContent = this.problem ? errorText(this.problem) : t(this.tasks.size || this.filter !== "all" ? "history.none" : "history.empty");
  }

  card(task) {
    const key = JSON.stringify([task.status, task.phase, Math.floor(task.progress * 100), task.cancel_requested, pathOf(task.poster_url), ago(task.submit_time)]);
    let card = this.cards.get(task.task_id);
    if (card?.key !== key) {
      card = { key, element: card?.element ?? h("li", { class: "item", dataset: { id: task.task_id } }) };
      renew(card.element, this.face(task)); // whoever is about to click it while it gets on still does
      this.cards.set(task.task_id, card);
    }
    card.element.classList.toggle("current", task.task_id === this.current);
    return card.element;
  }

  face(task) {
    const ended = hasEnded(task);
    const act = (what) => () => this.actions[what](this.tasks.get(task.task_id) ?? task); // as it is when it is pressed
    const name = nameOf(task);
    const sent = this.pictures.get(task.metadata.image_path)?.url;
    const none = h("div", { class: "no-poster" }, icon({ failed: "alert", cancelled: "cut" }[task.status] ?? "film"));
    const picture = task.poster_url || sent
      ? h("img", { class: task.poster_url ? "" : "sent", src: task.poster_url ?? sent, alt: "", loading: "lazy", decoding: "async",
        onerror: ({ target }) => target.replaceWith(none) }) : none;
    const length = duration(task.duration_seconds ?? task.plan.video_seconds);
    const meter = h("progress", { max: 1, value: task.progress, hidden: task.status !== "processing", "aria-label": `${t("stage.progress")}: ${name}` });
    const status = task.status === "processing" ? `${t(`phase.${task.phase}`)} ${number(Math.floor(task.progress * 100))} %` : t(`status.${task.status}`);
    const tool = (act, glyph, label, run) => h("button", { type: "button", class: "button quiet small square", dataset: { act }, title: label,
      "aria-label": `${label}: ${name}`, onclick: run }, icon(glyph));
    return [
      h("a", { class: "poster", href: `#/task/${task.task_id}`, dataset: { act: "open" }, "aria-label": t("history.open", { name, status }) }, picture,
        task.status === "completed" ? null : h("span", { class: `badge ${task.status}` }, h("span", { class: "dot" }), status),
        h("span", { class: "length" }, length)),
      meter,
      h("div", { class: "item-foot" },
        h("div", { class: "item-name", title: name }, name),
        h("div", { class: "item-row" }, h("small", { title: exactly(task.submit_time) }, ago(task.submit_time)),
          h("div", { class: "item-tools", role: "group", "aria-label": t("history.menu", { name }) },
            tool("again", "again", t("stage.again"), act("again")),
            ended ? tool("remove", "trash", t("stage.delete"), act("remove")) : tool("remove", "close", t("stage.cancel"), act("remove"))))),
    ];
  }
}
