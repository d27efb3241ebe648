// What operators look at: whether new tasks can run and why not, engines, GPUs, the queue. Asked only while it is seen,
// but for the dot in the bar.
import { api } from "./api.js";
import { $, duration, h, icon, number, renew, roughly } from "./dom.js";
import { secondsLeft, stamped } from "./events.js";
import { t } from "./i18n.js";
import { engineTitle, errorText } from "./words.js";

const SEEN_MS = 3000;
const UNSEEN_MS = 30000;
const MOST_TASKS = 12;
const ASKED_TASKS = 100;

/** What runs, then what waits, in its order. */
async function openTasks() {
  const { tasks } = await api.tasks("queued,processing", null, ASKED_TASKS);
  const place = (task) => (task.status === "processing" ? 0 : (task.queue_position ?? Infinity));
  return tasks.map((task) => stamped(task)).sort((one, other) => place(one) - place(other));
}

export class Service {
  /** `onHealth` gets each answer; `allowed` says whether there are credentials where some are needed. */
  constructor(onHealth, allowed) {
    this.onHealth = onHealth;
    this.allowed = allowed;
    document.addEventListener("language", () => this.draw());
    document.addEventListener("visibilitychange", () => !document.hidden && this.load());
  }

  get seen() {
    return !$("#service").hidden;
  }

  async load() {
    clearTimeout(this.timer);
    try {
      this.health = await api.health();
      this.problem = null;
      this.tasks = this.seen && this.allowed() ? await openTasks() : [];
    } catch (error) {
      this.problem = error;
    }
    this.onHealth(this.problem ? null : this.health);
    this.draw();
    if (!document.hidden) this.timer = setTimeout(() => this.load(), this.seen ? SEEN_MS : UNSEEN_MS);
  }

  draw() {
    const status = this.problem ? "unknown" : (this.health?.status ?? "");
    const dot = $("#health-dot");
    dot.className = `dot ${status}`;
    dot.title = status ? t(`service.${status}`) : "";
    if (!this.seen) return;
    if (this.problem) return renew($("#service-body"), h("p", { class: "notice bad" }, icon("alert"), h("span", {}, errorText(this.problem))));
    if (!this.health) return;
    const { health } = this;
    renew($("#service-body"), this.summary(health), "engines" in health
      ? [...this.lists(health), this.engines(health), this.gpus(health), this.running()]
      : h("p", { class: "notice" }, icon("key"), h("span", {}, t("service.hidden"))));
  }

  summary({ status, version, model_loaded: loaded, queue }) {
    const tile = (label, value, kind = "") => h("div", { class: `tile ${kind}` }, h("dt", {}, label), h("dd", {}, value));
    return h("dl", { class: "tiles" },
      tile(t("service.title"), [h("span", { class: `dot ${status}` }), t(`service.${status}`)], "wide"),
      queue && tile(t("service.queued"), number(queue.queued)), queue && tile(t("service.processing"), number(queue.processing)),
      tile(t("service.model"), t(loaded ? "word.yes" : "word.no")), tile(t("service.version"), version));
  }

  lists({ reasons, warnings }) {
    const list = (title, texts, kind) => (texts.length
      ? h("div", { class: `notice ${kind}` }, icon("alert"), h("div", {}, h("strong", {}, title), h("ul", {}, texts.map((text) => h("li", {}, text))))) : null);
    return [list(t("service.reasons"), reasons, "bad"), list(t("service.warnings"), warnings, "")];
  }

  engines({ engines }) {
    return h("section", { class: "panel" }, h("h2", {}, t("service.engines")), h("ul", { class: "rows" }, engines.map((engine) => h("li", {},
      h("span", { class: `dot ${engine.available ? "healthy" : "off"}` }),
      h("div", { class: "row-main" }, h("strong", {}, engineTitle(engine)), h("small", {}, engine.available ? engine.profiles.join(", ") : engine.reason)),
      h("span", { class: "row-end" }, t(engine.available ? "service.available" : "service.unavailable"))))));
  }

  gpus({ gpus }) {
    const one = (gpu) => h("li", {},
      h("span", { class: `dot ${{ free: "healthy", busy: "processing" }[gpu.state] ?? "degraded"}` }),
      h("div", { class: "row-main" }, h("strong", {}, `${gpu.index} · ${gpu.name}`),
        h("small", {}, `${t("service.gpu.memory", { used: number(gpu.total_gib - gpu.free_gib, 1), total: number(gpu.total_gib, 1) })} · ${t("service.gpu.processes", { n: number(gpu.processes) })}`),
        h("meter", { min: 0, max: gpu.total_gib, value: gpu.total_gib - gpu.free_gib, "aria-label": gpu.name })),
      h("span", { class: "row-end" }, t(`gpu.${gpu.state}`)));
    return h("section", { class: "panel" }, h("h2", {}, t("service.gpus")),
      gpus.length ? h("ul", { class: "rows" }, gpus.map(one)) : h("p", { class: "hint" }, t("service.gpus.none")));
  }

  running() {
    const one = (task) => {
      const left = secondsLeft(task);
      const where = task.status === "queued" ? t("stage.place.value", { n: number(task.queue_position ?? 0) }) : `${number(Math.floor(task.progress * 100))} %`;
      return h("li", {}, h("span", { class: `dot ${task.status}` }),
        h("div", { class: "row-main" }, h("a", { href: `#/task/${task.task_id}` }, task.params.prompt),
          h("small", {}, `${task.engine} (${task.profile}) · ${duration(task.plan.video_seconds)} · ${t(`phase.${task.phase}`)}`)),
        h("span", { class: "row-end" }, left === null ? where : `${where} · ${roughly(left)}`));
    };
    return h("section", { class: "panel" }, h("h2", {}, t("service.running")),
      this.tasks?.length ? h("ul", { class: "rows" }, this.tasks.slice(0, MOST_TASKS).map(one)) : h("p", { class: "hint" }, t("service.idle")),
      this.tasks?.length > MOST_TASKS ? h("p", { class: "hint" }, t("service.more", { n: number(this.tasks.length - MOST_TASKS) })) : "");
  }
}
