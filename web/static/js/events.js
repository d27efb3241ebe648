// Following one task to its end: by its event stream where the service has one, else by held requests (`?wait=`).
// Either way the task comes whole at each change; whoever follows need not know which.
import { ApiError, ask, facts } from "./api.js";

const WAIT_SECONDS = 25;
const SLACK_SECONDS = 15; // what an answer may be late before the connection counts as lost
const SILENCE_SECONDS = 60; // streams beat more often
const TRIES = 3; // streams that break at once, before polling takes over
const BUSY = [429, 500, 502, 503, 504];
const ENDED = ["completed", "failed", "cancelled"];

export const hasEnded = (task) => ENDED.includes(task.status);

const pause = (seconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/** Note when the task was known to be so, on this machine's own clock: its ETA counts from `updated_at`. */
export function stamped(task, response) {
  const told = response && Date.parse(response.headers.get("Date") ?? "");
  const age = told ? Math.max(0, (told - Date.parse(task.updated_at)) / 1000) : 0;
  return Object.assign(task, { knownAt: performance.now() - age * 1000 });
}

export const secondsLeft = (task) => {
  if (task.eta_seconds === null) return null;
  return Math.max(0, task.eta_seconds - (performance.now() - task.knownAt) / 1000);
};

/**
 * Follow a task until it ends or `signal` aborts. `onTask` gets it at each change, `onLog` is called when its log may
 * have grown, `onConnection` whether the service is reached. Throws ApiError for what waiting does not mend.
 */
export async function follow(id, { onTask, onLog, onConnection, signal }) {
  const state = { id, onLog, onConnection, signal, last: null, lastEventId: "" };
  state.onTask = (task) => {
    state.last = task;
    onTask(task);
  };
  let streams = facts.events ? TRIES : 0;
  while (!signal.aborted && !(state.last && hasEnded(state.last))) {
    try {
      if (streams > 0) streams = (await stream(state)) ? TRIES : streams - 1;
      else await poll(state);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (streams > 0 && error.status > 0) streams = 0; // too many are open, or there are none: held requests take over
      else await mended(error, state);
      streams -= streams > 0 ? 1 : 0;
    }
  }
}

/** Wait where waiting may help: no connection, a busy service. Throws where it does not. */
async function mended(error, { signal, onConnection }) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 0) onConnection(false);
  else if (!BUSY.includes(error.status)) throw error;
  await pause(Math.min(error.retryAfter ?? 2, 15), signal);
}

// --- the event stream ------------------------------------------------------------------------------------------------

/** Read one stream to its end; returns whether anything came. fetch, because EventSource can send no API key. */
async function stream(state) {
  const resume = state.lastEventId ? { "Last-Event-ID": state.lastEventId } : {};
  const headers = { Accept: "text/event-stream", ...resume };
  const response = await ask("GET", `/api/v1/task/${state.id}/events`, { headers, signal: state.signal });
  state.onConnection(true);
  let came = false;
  if (!response.body) return came; // the end was told before
  try {
    for await (const event of eventsOf(response.body)) {
      came = true;
      if (event.id !== null) state.lastEventId = event.id;
      if (event.name === "task") state.onTask(stamped(JSON.parse(event.data)));
      if (event.name === "log" || event.name === "task") state.onLog();
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    // The connection broke in the middle: the next stream goes on from the last event.
  }
  if (!came) await pause(1, state.signal);
  return came;
}

/** The events of a body, as the HTML standard has them parsed. */
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { name: "message", data: [], id: null };
  for (;;) {
    const silence = setTimeout(() => reader.cancel(), SILENCE_SECONDS * 1000);
    const { value, done } = await reader.read();
    clearTimeout(silence);
    if (done) return;
    rest += value;
    // A lone CR at the end may be the first half of a CRLF.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { name: "message", data: [], id: null };
        continue;
      }
      const [, field, text] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
      if (field === "event") event.name = text ?? "";
      if (field === "data") event.data.push(text ?? "");
      if (field === "id") event.id = text ?? "";
    }
  }
}

// --- held requests ---------------------------------------------------------------------------------------------------

async function poll(state) {
  const first = state.last === null;
  const headers = state.tag ? { "If-None-Match": state.tag } : {};
  const began = performance.now();
  const path = `/api/v1/task/${state.id}${first ? "" : `?wait=${WAIT_SECONDS}`}`;
  const late = AbortSignal.timeout((WAIT_SECONDS + SLACK_SECONDS) * 1000);
  const response = await ask("GET", path, { headers, signal: AbortSignal.any([state.signal, late]) });
  state.onConnection(true);
  state.tag = response.headers.get("ETag");
  if (response.status === 200) {
    state.onTask(stamped(await response.json(), response));
    state.onLog();
  } else if (performance.now() - began < 1000) {
    // Too many wait already, and this was answered at once.
    await pause(Number(response.headers.get("Retry-After")) || 2, state.signal);
  }
}

/** Read a log on from a byte: [text, where to go on]. */
export async function readLog(id, offset, signal) {
  const response = await ask("GET", `/api/v1/task/${id}/log?offset=${offset}`, { signal });
  return [await response.text(), Number(response.headers.get("X-Log-Offset"))];
}
