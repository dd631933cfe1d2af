// The gateway's HTTP API, with the credentials of whoever looks.

const KEPT = "warren-console-token";
const PATIENCE_MS = 5_000;

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** In this tab alone, and gone with it. */
export const credentials = {
  get: () => sessionStorage.getItem(KEPT),
  set: (token) => sessionStorage.setItem(KEPT, token),
  forget: () => sessionStorage.removeItem(KEPT),
};

async function ask(method, path, body) {
  const token = credentials.get();
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    const signal = AbortSignal.timeout(PATIENCE_MS);
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store" });
  } catch {
    throw new ApiError(0, "unreachable", "this node cannot be reached");
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  const error = content.error ?? {};
  throw new ApiError(answer.status, error.code ?? "error", error.message ?? `status ${answer.status}`);
}

const part = encodeURIComponent;

export const api = {
  cluster: () => ask("GET", "/v1/cluster"),
  user: (user) => ask("GET", `/v1/users/${part(user)}`),
  channel: (channel) => ask("GET", `/v1/channels/${part(channel)}`),
  publish: (message) => ask("POST", "/v1/messages", message),
  trace: (id) => ask("GET", `/v1/messages/${part(id)}/trace`),
  kickUser: (user) => ask("DELETE", `/v1/users/${part(user)}/sessions`),
  kickSession: (session) => ask("DELETE", `/v1/sessions/${part(session)}`),
  drain: (node) => ask("POST", `/v1/nodes/${part(node)}/drain`),
};
