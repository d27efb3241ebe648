// The service's HTTP API. Whatever goes wrong is one ApiError, whose `code` words.js turns into a sentence.

export const facts = JSON.parse(document.querySelector('meta[name="service"]').content);

const KEY = "api-key";
let unstored = ""; // where the browser lets no page store anything

/** The API key: in this tab's session only, gone when the tab is closed. */
export const apiKey = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? unstored;
    } catch {
      return unstored;
    }
  },
  set(key) {
    unstored = key;
    try {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    } catch {
      // It is kept above.
    }
    document.dispatchEvent(new Event("key"));
  },
};

export class ApiError extends Error {
  /** `problem`: what the service sent, {} where nothing came; `status` 0: it was not reached. */
  constructor(problem, status, retryAfter = null) {
    super(problem.detail ?? "");
    this.code = problem.error_code ?? (status === 0 ? "offline" : "unknown");
    this.errors = problem.errors ?? [];
    this.requestId = problem.request_id ?? "";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

// As a bearer, which may be an API key or a token.
const credentials = () => (apiKey.get() ? { Authorization: `Bearer ${apiKey.get()}` } : {});

/** `key`: what the request was sent with. */
function failure(status, text, retryAfter, key) {
  let problem = {};
  try {
    problem = JSON.parse(text);
  } catch {
    // Not the service's own answer, such as a proxy's page.
  }
  const error = new ApiError(problem, status, Number(retryAfter) || null);
  if (status === 401) document.dispatchEvent(new CustomEvent("unauthorized", { detail: key }));
  return error;
}

/** Ask; returns the response if its status is a success or 304. Throws ApiError, and AbortError where it was aborted. */
export async function ask(method, path, { json, headers = {}, signal, alsoGood } = {}) {
  const body = json === undefined ? {} : { body: JSON.stringify(json) };
  const kind = json === undefined ? {} : { "Content-Type": "application/json" };
  const key = apiKey.get();
  let response;
  try {
    response = await fetch(path, {
      method, signal, cache: "no-store", credentials: "omit", headers: { ...kind, ...headers, ...credentials() }, ...body,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({}, 0);
  }
  const told = response.status === alsoGood && response.headers.get("Content-Type") === "application/json";
  if (response.ok || response.status === 304 || told) return response;
  throw failure(response.status, await response.text(), response.headers.get("Retry-After"), key);
}

const read = async (...call) => (await ask(...call)).json();

export const api = {
  task: (id) => read("GET", `/api/v1/task/${id}`),
  tasks: (status, cursor, limit = 24) => {
    const query = new URLSearchParams({ limit });
    if (status) query.set("status", status);
    if (cursor) query.set("cursor", cursor);
    return read("GET", `/api/v1/tasks?${query}`);
  },
  /** Ends what is open; what has ended meanwhile is an ApiError, and stays. */
  cancel: (id) => read("POST", `/api/v1/task/${id}/cancel`),
  /** Removes what has ended. */
  remove: (id) => ask("DELETE", `/api/v1/task/${id}`),
  generate: (json, key) => read("POST", "/api/v1/generate", { json, headers: { "Idempotency-Key": key } }),
  /** What the service says of itself; a degraded one says it with status 503. */
  health: () => read("GET", "/api/v1/health", { alsoGood: 503 }),
};

/** Upload a file. `onProgress` gets 0 to 1. XMLHttpRequest, because fetch tells nothing of how much was sent. */
export function upload(kind, file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const key = apiKey.get();
    request.open("POST", "/api/v1/upload");
    for (const [name, value] of Object.entries(credentials())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText));
      else reject(failure(request.status, request.responseText, request.getResponseHeader("Retry-After"), key));
    };
    request.onerror = () => reject(new ApiError({}, 0));
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    const form = new FormData();
    form.append("type", kind);
    form.append("file", file, file.name || kind);
    request.send(form);
  });
}

/** A name for one submission, so that sending it twice makes one task. (randomUUID is for secure contexts only.) */
export function newKey() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...random].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
