// warren-client: a client of the Warren gateway for browsers and Node, without build step or dependencies.
//
// One WarrenClient stands for one user on one page. It opens a WebSocket, opens it again whenever it is lost, and keeps
// its promises over that: a publish is resent until it is settled, a message is acknowledged only after the
// application's handler has returned, and shown once. The protocol is warren.v1; README.md beside this file explains
// every option, event and limit.

const DEFAULTS = {
  ack: true, // Messages count as delivered when the handler has returned, not when they were written to the socket.
  deadline: 120_000, // ms from publish() to its settlement, over as many reconnects and retries as fit.
  requestTimeout: 10_000, // ms from request() to the answer of a backend.
  connectTimeout: 10_000, // ms from the first byte of an attempt to `welcome`; includes the token function.
  closeTimeout: 5_000, // ms that close() waits for what is not settled.
  heartbeat: 25_000, // ms of silence after which the gateway is asked whether it is there.
  pongTimeout: 5_000, // ms for its answer.
  backoffMin: 500, // ms
  backoffMax: 20_000, // ms
  maxPending: 1_000, // Publishes and requests that are not settled.
  maxPendingBytes: 4 * 1024 * 1024, // The same as bytes of JSON.
  maxBuffered: 1_024, // Events that an async iterator holds for a slow loop.
};
// A connection that lived so many ms was a success: the next backoff is the shortest again. Longer where the gateway has
// closed it because of this client, who may do the same again.
const STABLE_MS = 2_000;
const STABLE_BLAMED_MS = 10_000;
// Browsers run the timers of a hidden page once a minute. Silence beyond this many ms means that the page was frozen
// or the machine asleep, for longer than the gateway waits for a pong.
const ASLEEP_MS = 90_000;
// Repeats of a message are known by the latest ids; the gateway's own memory is of about the same length.
const REMEMBERED = 10_000;
// A handler that throws is tried again so many times, after 1, 2, 4 and 8 s: within the 30 s of the gateway's patience.
const HANDLER_RETRIES = 4;
const SUBSCRIBE_MS = 5_000; // The longest that publishes wait for the subscriptions after a reconnect.
const ACK_DELAY_MS = 10; // Acknowledgements of a visible page are gathered for so long.
const ACK_BATCH = 32; // Ids in one ack frame: at most 32 × 131 bytes.
const TIMER_MAX_MS = 2 ** 31 - 1; // Longer timers fire at once (HTML standard, timers).
// What a subprotocol may be (RFC 9110 token), short enough for the gateway's limit of 16 KiB of headers.
const HEADER_TOKEN = /^[\w!#$%&'*+.^`|~-]{1,4096}$/;

const RELEASED = Symbol("the loop over messages has ended");

/** Why something failed. `code` is the gateway's error code, or one of the library's own. */
export class WarrenError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.name = "WarrenError";
    this.code = code;
    this.retry = details.retry ?? false;
    Object.assign(this, details);
  }
}

/** `connect("wss://host/ws", { token })`: a client that connects at once; without URL to where this file came from. */
export function connect(url, options) {
  const named = typeof url === "string" || url instanceof URL || Array.isArray(url);
  return named ? new WarrenClient(url, options) : new WarrenClient(new URL("/ws", import.meta.url), url);
}

function uuid() {
  // crypto.randomUUID is missing on pages that did not come over TLS.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** What the close code asks for: "never", "wait" (back off first), "planned" (the gateway says when) or "again". */
function band(code) {
  if ([1002, 1007, 1009].includes(code) || (code >= 4000 && code < 4100)) return "never";
  if (code >= 4100 && code < 4200) return "wait";
  return code >= 4200 && code < 4300 ? "planned" : "again";
}

/** Milliseconds until a JWT should be replaced; Infinity for one that does not expire or is not a JWT. */
function tokenLifetime(token, wallClock) {
  let claims;
  try {
    claims = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
  } catch {
    return Infinity;
  }
  if (!Number.isFinite(claims.exp)) return Infinity;
  // The clock of this machine may be wrong: behind when the token was issued in its future, ahead when a new token has
  // expired already. The token's own length is right in both cases.
  let left = claims.exp * 1000 - wallClock;
  const clockIsWrong = claims.iat * 1000 > wallClock || left <= 0;
  if (clockIsWrong && Number.isFinite(claims.iat)) left = (claims.exp - claims.iat) * 1000;
  if (left <= 0) return Infinity;
  return left - Math.min(60_000, left / 5);
}

/** Payloads of bytes travel as base64. */
function decodePayload(frame) {
  if (frame.encoding !== "base64") return frame;
  const { encoding, ...rest } = frame;
  return { ...rest, payload: Uint8Array.from(atob(frame.payload), (char) => char.charCodeAt(0)) };
}

/** What makes two messages the same. A publisher that reconnects has another session, but is the same publisher. */
function keyOf({ from, id, to }) {
  return JSON.stringify([from?.user ?? null, from?.service ?? null, id, to]);
}

/** The latest keys, oldest forgotten first. */
class Recent {
  #keys = new Set();
  has(key) {
    return this.#keys.has(key);
  }
  add(key) {
    this.#keys.add(key);
    if (this.#keys.size > REMEMBERED) this.#keys.delete(this.#keys.values().next().value);
  }
}

/** An async iterator over the events of one type. The turn of a loop counts as the handler of its message. */
class Events {
  #queue = [];
  #waiting = [];
  #current = null;
  #ended = false;
  #leave;

  constructor(client, type, limit, overflow) {
    const leave = client.on(type, (value) => this.#push(value, type === "message", limit, overflow));
    const leaveState = client.on("state", ({ state }) => {
      if (state === "closed" || state === "failed") this.#end();
    });
    this.#leave = () => (leave(), leaveState());
  }

  #push(value, isMessage, limit, overflow) {
    return new Promise((finish, release) => {
      const item = { value, finish, release: () => release(RELEASED) };
      if (!isMessage) finish();
      const next = this.#waiting.shift();
      if (next) return this.#hand(item, next);
      this.#queue.push(item);
      if (this.#queue.length <= limit) return;
      this.#queue.shift().release();
      overflow();
    });
  }

  #hand(item, next) {
    this.#current = item;
    next({ value: item.value, done: false });
  }

  #end() {
    this.#ended = true;
    this.#leave();
    for (const next of this.#waiting.splice(0)) next({ value: undefined, done: true });
  }

  next() {
    this.#current?.finish();
    this.#current = null;
    return new Promise((next) => {
      const item = this.#queue.shift();
      if (item) this.#hand(item, next);
      else if (this.#ended) next({ value: undefined, done: true });
      else this.#waiting.push(next);
    });
  }

  /** A `break` and an exception look the same from here: the message in hand is not acknowledged. */
  return() {
    this.#end();
    this.#current?.release();
    for (const item of this.#queue.splice(0)) item.release();
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

export class WarrenClient {
  #options;
  #urls;
  #urlAt = 0;
  #env;
  #listeners = new Map();
  #state = "closed";
  #welcome = null; // The last one: session, node, user, limits.
  #leavePage = null; // Removes the page's event listeners.
  // Time that goes forward only, in ms: sleeping counts, a clock that is set back does not.
  #time = 0;
  #wallClock = 0;

  // The connection. `attempt` numbers attempts, so that what belongs to an earlier one is recognised.
  #attempt = 0;
  #socket = null;
  #goodbye = null; // The `disconnect` frame.
  #failures = 0;
  #openedAt = null;
  #handshakeFailed = false;
  #timers = new Map(); // One timer for each purpose.
  #heardAt = 0;
  #pingedAt = null;
  #wait = null; // While waiting for the next attempt: { planned }.

  #token = null;
  #tokenUntil = 0;
  #tokenIsNew = false;

  // Requests. Ids are shared by calls (of one connection) and entries (resent until settled).
  #lastId = 0;
  #calls = new Map();
  #urgent = []; // Frames of calls that wait for the rate limit.
  #pending = new Map();
  #pendingBytes = 0;
  #inFlight = 0;
  #allowance = { tokens: 0, at: 0 };
  #pausedUntil = 0;
  #subscriptions = new Map();

  // Messages.
  #seen = new Recent();
  #inHand = new Map();
  #unheard = []; // Arrived before there was a listener.
  #acks = [];
  #closing = null;
  #onIdle = null;

  constructor(url, options = {}) {
    const base = globalThis.location?.href;
    this.#urls = [url].flat().map((one) => new URL(one, base).href.replace(/^http/, "ws").replace(/#.*/s, ""));
    this.#options = { ...DEFAULTS, ...options };
    if (options.token === undefined && options.user === undefined) {
      throw new TypeError("warren-client: give a token, a function that gets one, or (insecure mode only) a user");
    }
    const { env = {} } = options;
    this.#env = {
      now: () => Date.now(),
      random: Math.random,
      setTimeout: (run, ms) => setTimeout(run, ms),
      clearTimeout: (timer) => clearTimeout(timer),
      WebSocket: options.WebSocket ?? globalThis.WebSocket,
      window: globalThis.window,
      document: globalThis.document,
      navigator: globalThis.document && globalThis.navigator,
      ...env,
    };
    if (!this.#env.WebSocket) {
      throw new TypeError("warren-client: no WebSocket here; give one as option (Node 22 and later have it built in)");
    }
    this.#wallClock = this.#env.now();
    // Clients of a list of nodes spread over it.
    this.#urlAt = Math.floor(this.#env.random() * this.#urls.length);
    this.connect();
  }

  get state() {
    return this.#state;
  }
  get session() {
    return this.#welcome?.session;
  }
  get user() {
    return this.#welcome?.user;
  }
  get node() {
    return this.#welcome?.node;
  }
  /** Publishes and requests that are not settled. */
  get pending() {
    return this.#pending.size;
  }
  /** The channels of this client: those it asked for, and those that the gateway put it into. */
  get channels() {
    return [...new Set([...this.#subscriptions.keys(), ...(this.#welcome?.channels ?? [])])];
  }

  // ---- Events -------------------------------------------------------------------------------------------------

  /** Calls `handler` for each event of a type. Returns a function that ends this. */
  on(type, handler) {
    if (!this.#listeners.has(type)) this.#listeners.set(type, new Set());
    this.#listeners.get(type).add(handler);
    if (type === "message" && this.#unheard.length) {
      queueMicrotask(() => this.#unheard.splice(0).forEach((hand) => this.#run(hand)));
    }
    return () => this.off(type, handler);
  }

  off(type, handler) {
    this.#listeners.get(type)?.delete(handler);
  }

  /** `for await (const event of client.events("state"))`. Ends when the client is closed or has failed. */
  events(type) {
    const overflow = () => this.#emit("gap", { reason: "a loop over events is too slow" });
    return new Events(this, type, this.#options.maxBuffered, overflow);
  }

  [Symbol.asyncIterator]() {
    return this.events("message");
  }

  #emit(type, detail) {
    for (const handler of [...(this.#listeners.get(type) ?? [])]) {
      new Promise((done) => done(handler(detail))).catch((error) => {
        if (error !== RELEASED) console.error(`warren-client: a handler of "${type}" failed:`, error);
      });
    }
  }

  #report(error, details = {}) {
    if (this.#listeners.get("error")?.size) this.#emit("error", Object.assign(error, details));
    else console.warn("warren-client:", error.message, details.cause ?? "");
  }

  #setState(state, details = {}) {
    const previous = this.#state;
    this.#state = state;
    this.#emit("state", { state, previous, ...details });
  }

  /** Resolves when the connection is open and its subscriptions are restored; rejects when that will not happen. */
  ready() {
    if (this.#state === "open") return Promise.resolve();
    if (this.#state === "closed" || this.#state === "failed") return Promise.reject(this.#gone());
    return new Promise((resolve, reject) => {
      const leave = this.on("state", ({ state, code, reason }) => {
        if (state === "open") resolve();
        else if (state === "closed" || state === "failed") reject(this.#gone(code, reason));
        else return;
        leave();
      });
    });
  }

  #gone(closeCode, reason = "the client is closed") {
    return new WarrenError("closed", reason, { closeCode });
  }

  // ---- Time ---------------------------------------------------------------------------------------------------

  #now() {
    const wall = this.#env.now();
    this.#time += Math.max(0, wall - this.#wallClock);
    this.#wallClock = wall;
    return this.#time;
  }

  /** One timer for each purpose: a new one replaces the last. */
  #after(purpose, ms, run) {
    this.#stop(purpose);
    this.#timers.set(purpose, this.#env.setTimeout(run, Math.min(Math.max(0, ms), TIMER_MAX_MS)));
  }

  #stop(purpose) {
    this.#env.clearTimeout(this.#timers.get(purpose));
    this.#timers.delete(purpose);
  }

  #jitter(failures) {
    const { backoffMin, backoffMax } = this.#options;
    return backoffMin + this.#env.random() * Math.min(backoffMax - backoffMin, backoffMin * 2 ** failures);
  }

  // ---- Connecting ---------------------------------------------------------------------------------------------

  /** Needed only after `close()` or in the state "failed": a new client is connecting already. */
  connect() {
    if (this.#state !== "closed" && this.#state !== "failed") return;
    this.#closing = null;
    this.#failures = 0;
    this.#watchPage();
    this.#open();
  }

  async #open() {
    const attempt = ++this.#attempt;
    this.#stop("reconnect");
    this.#wait = null;
    this.#goodbye = null;
    this.#setState("connecting");
    this.#after("connect", this.#options.connectTimeout, () => this.#lost(1006, "no answer to the connect"));
    let token;
    try {
      token = await this.#getToken();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#reportToken("the token function failed", error);
      return this.#lost(1006, "no token");
    }
    if (attempt !== this.#attempt) return;
    if (token === null) return this.#fail(4001, "the token function gave no token");
    const query = this.#options.ack ? ["ack=client"] : [];
    // In the handshake the token saves a round trip. But no browser says why a handshake was refused, so after a
    // refusal it goes into the first frame, whose refusal has a close code.
    const inFrame = token !== undefined && (this.#handshakeFailed || !HEADER_TOKEN.test(token));
    if (token === undefined) query.push(`user=${encodeURIComponent(this.#options.user)}`);
    const protocols = token === undefined || inFrame ? ["warren.v1"] : ["warren.v1", `bearer.${token}`];
    const url = this.#urls[this.#urlAt % this.#urls.length];
    try {
      const socket = new this.#env.WebSocket([url, ...query].join("&").replace(/^([^?&]*)&/, "$1?"), protocols);
      this.#attach(socket, inFrame ? token : null);
    } catch (error) {
      this.#fail(undefined, `${url}: ${error.message}`); // Not a WebSocket URL, or not allowed on this page.
    }
  }

  #attach(socket, token) {
    this.#socket = socket;
    this.#handshakeFailed = true;
    socket.onopen = () => {
      this.#handshakeFailed = false;
      if (token !== null) this.#write({ type: "auth", token });
    };
    socket.onmessage = ({ data }) => {
      this.#heardAt = this.#now();
      this.#pingedAt = null;
      this.#onFrame(this.#parse(data));
    };
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    // A close event should follow (WebSockets standard, section 4); Node 20 has none when the handshake fails.
    socket.onerror = () => this.#handshakeFailed && this.#lost(1006, "cannot connect");
  }

  #parse(data) {
    try {
      return JSON.parse(data);
    } catch {
      this.#report(new WarrenError("protocol", "the gateway sent something that is not JSON"));
      return {};
    }
  }

  /** Ends the connection, whatever is left of it, and decides about the next one. */
  #lost(code, reason) {
    const goodbye = this.#goodbye;
    const lived = this.#openedAt === null ? -1 : this.#now() - this.#openedAt;
    this.#retire(this.#disconnect());
    code = goodbye?.code ?? code;
    reason = goodbye?.reason || reason || "the connection was lost";
    if (lived >= (band(code) === "wait" ? STABLE_BLAMED_MS : STABLE_MS)) this.#failures = 0;
    this.#urlAt += 1;
    if (this.#tokenIsStale(code)) {
      this.#token = null;
    } else if (goodbye?.reconnect === false || band(code) === "never" || code === 4105) {
      return this.#fail(code, reason);
    }
    const planned = band(code) === "planned" && goodbye !== null;
    let delay = planned ? goodbye.after_ms ?? 0 : this.#jitter(this.#failures);
    if (band(code) === "wait" && code !== 4105) {
      delay = Math.max(delay, goodbye?.after_ms ?? 0, 2 * this.#options.backoffMin);
    }
    if (this.#env.navigator?.onLine === false) delay = Math.max(delay, this.#options.backoffMax);
    this.#failures += 1;
    this.#wait = { planned };
    this.#after("reconnect", delay, () => this.#open());
    this.#setState("waiting", { code, reason, retryInMs: Math.round(delay) });
  }

  /** A refusal that a new token may turn: only if there is a function that makes one, and this one was not new. */
  #tokenIsStale(code) {
    return typeof this.#options.token === "function" && (code === 4105 || (code === 4001 && !this.#tokenIsNew));
  }

  /** Forgets all that belonged to this connection; returns its socket. */
  #disconnect() {
    const socket = this.#socket;
    this.#attempt += 1;
    this.#socket = null;
    this.#openedAt = null;
    this.#pingedAt = null;
    for (const purpose of ["connect", "heartbeat", "refresh", "ack"]) this.#stop(purpose);
    this.#acks = []; // The gateway hands out again what it has not heard of; those copies are acknowledged.
    for (const hand of this.#unheard.splice(0)) this.#inHand.delete(hand.key);
    this.#urgent = [];
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const call of calls) call.reject(new WarrenError("disconnected", "the connection was lost", { retry: true }));
    this.#inFlight = 0;
    for (const entry of this.#pending.values()) {
      if (entry.sent && entry.once) {
        this.#settle(entry, new WarrenError("disconnected", "lost before it was settled", { retry: true }));
      }
      entry.sent = false;
      entry.retryAt = 0;
    }
    return socket;
  }

  /** A connection that is given up may still hold messages that the gateway counts as delivered: hear them out. */
  #retire(socket) {
    if (!socket) return;
    socket.onopen = socket.onclose = socket.onerror = null;
    socket.onmessage = ({ data }) => {
      const frame = this.#parse(data);
      if (frame.type === "message") this.#onMessage(frame);
    };
    if (socket.readyState === 1) this.#env.setTimeout(() => socket.close(), 1_000);
    else socket.close();
  }

  /** The end: reconnecting would fail again. */
  #fail(code, reason) {
    this.#report(new WarrenError("failed", reason, { closeCode: code }));
    this.#retire(this.#finish("failed", code, reason));
  }

  #finish(state, code, reason) {
    const socket = this.#disconnect();
    for (const purpose of [...this.#timers.keys()]) this.#stop(purpose);
    this.#leavePage?.();
    this.#wait = null;
    this.#inHand.clear();
    this.#setState(state, { code, reason });
    for (const entry of [...this.#pending.values()]) this.#settle(entry, this.#gone(code, reason));
    for (const { waiters } of this.#subscriptions.values()) {
      for (const waiter of waiters.splice(0)) waiter.reject(this.#gone(code, reason));
    }
    this.#onIdle?.();
    return socket;
  }

  /** Takes no more, waits until everything is settled and acknowledged, at most `timeout` ms, and disconnects. */
  close({ timeout = this.#options.closeTimeout } = {}) {
    if (this.#state === "closed" || this.#state === "failed") return Promise.resolve();
    this.#closing ??= new Promise((resolve) => {
      this.#onIdle = resolve;
      this.#after("close", timeout, resolve);
      this.#checkIdle();
    }).then(async () => {
      this.#onIdle = null;
      this.#flushAcks();
      if (this.#state === "closed" || this.#state === "failed") return;
      const socket = this.#finish("closed", 1000, "closed by the application");
      if (!socket) return;
      await new Promise((resolve) => {
        socket.onclose = resolve;
        socket.onmessage = null;
        socket.close(1000);
        this.#env.setTimeout(resolve, 1_000);
      });
    });
    return this.#closing;
  }

  #checkIdle() {
    if (this.#pending.size === 0 && this.#inHand.size === this.#unheard.length) this.#onIdle?.();
  }

  // ---- Is anybody there? --------------------------------------------------------------------------------------

  #watchPage() {
    const { window, document } = this.#env;
    const watched = [
      [window, "online", () => this.#awake()],
      [window, "offline", () => this.#awake()],
      [window, "pageshow", () => this.#awake()],
      [document, "resume", () => this.#awake()],
      [document, "freeze", () => this.#flushAcks()],
      [document, "visibilitychange", () => (document.hidden ? this.#flushAcks() : this.#awake())],
    ].filter(([target]) => target?.addEventListener);
    for (const [target, type, run] of watched) target.addEventListener(type, run);
    this.#leavePage = () => {
      for (const [target, type, run] of watched) target.removeEventListener(type, run);
    };
  }

  /** The page is seen again, or the network has changed: do not wait for a timer to find out. */
  #awake() {
    if (this.#wait && !this.#wait.planned && this.#env.navigator?.onLine !== false) {
      // A little jitter: the network may have come back for thousands at once.
      this.#after("reconnect", this.#env.random() * 300, () => this.#open());
    } else if (this.#openedAt !== null && this.#now() - this.#heardAt < ASLEEP_MS) {
      this.#ping();
    } else if (this.#openedAt !== null) {
      this.#lost(1006, "the page was asleep");
    }
  }

  #ping() {
    if (this.#pingedAt !== null) return;
    this.#pingedAt = this.#now();
    this.#write({ type: "ping", id: ++this.#lastId });
    this.#after("heartbeat", this.#options.pongTimeout, () => this.#beat());
  }

  #beat() {
    const silence = this.#now() - this.#heardAt;
    if (silence >= Math.max(ASLEEP_MS, 3 * this.#options.heartbeat)) return this.#lost(1006, "the page was asleep");
    if (this.#pingedAt !== null) return this.#lost(1006, "the gateway is silent");
    if (silence >= this.#options.heartbeat) return this.#ping();
    this.#after("heartbeat", this.#options.heartbeat - silence, () => this.#beat());
  }

  // ---- Tokens -------------------------------------------------------------------------------------------------

  /** `undefined`: this client has a user and no token. `null`: the application wants no more connections. */
  async #getToken() {
    const source = this.#options.token;
    this.#tokenIsNew = typeof source === "string";
    if (typeof source !== "function") return source;
    if (this.#token !== null && this.#now() < this.#tokenUntil) return this.#token;
    const token = await source();
    this.#tokenIsNew = true;
    return token ? this.#keepToken(token) : null;
  }

  #reportToken(what, cause) {
    this.#report(new WarrenError("token", `${what}: ${cause?.message ?? cause}`, { retry: true, cause }));
  }

  #keepToken(token) {
    this.#token = token;
    this.#tokenUntil = this.#now() + tokenLifetime(token, this.#env.now());
    return token;
  }

  #scheduleRefresh() {
    if (typeof this.#options.token !== "function" || this.#tokenUntil === Infinity) return;
    this.#after("refresh", this.#tokenUntil - this.#now(), () => this.#refresh());
  }

  async #refresh() {
    if (this.#now() < this.#tokenUntil) return this.#scheduleRefresh(); // The time was too long for one timer.
    const attempt = this.#attempt;
    try {
      const token = await this.#options.token();
      if (attempt !== this.#attempt) return;
      if (!token) return this.#fail(4001, "the token function gave no token");
      this.#keepToken(token);
      await this.#call({ type: "refresh", token });
      this.#scheduleRefresh();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      if (error instanceof WarrenError && !error.retry) {
        // The gateway does not take it in this session: begin a new one with a new token.
        this.#token = null;
        return this.#lost(1006, "the gateway refused the new token");
      }
      this.#reportToken("cannot refresh the token", error);
      // Once more, until the gateway closes the session because the token has expired.
      this.#tokenUntil = this.#now();
      this.#after("refresh", this.#jitter(2), () => this.#refresh());
    }
  }

  // ---- Frames -------------------------------------------------------------------------------------------------

  #write(frame) {
    this.#socket?.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }

  #onFrame(frame) {
    switch (frame.type) {
      case "welcome":
        return this.#onWelcome(frame);
      case "message":
        return this.#onMessage(frame);
      case "reply":
        return this.#onReply(frame);
      case "disconnect":
        this.#goodbye = frame;
        return;
      case "unsubscribed":
        this.#subscriptions.delete(frame.channel);
        return this.#emit("unsubscribed", frame);
      case "gap":
      case "presence":
        return this.#emit(frame.type, frame);
      default: // A newer gateway may say more than this version knows.
    }
  }

  async #onWelcome(frame) {
    const attempt = this.#attempt;
    const isFirst = this.#welcome === null;
    this.#welcome = frame;
    this.#openedAt = this.#now();
    this.#stop("connect");
    this.#beat();
    this.#scheduleRefresh();
    this.#allowance = { tokens: this.#rate(), at: this.#now() };
    this.#pausedUntil = 0;
    // Subscriptions first, and confirmed, so that an answer to anything sent later is not missed.
    const late = new Promise((resolve) => this.#after("subscribe", SUBSCRIBE_MS, resolve));
    await Promise.race([late, Promise.all([...this.#subscriptions.keys()].map((name) => this.#resubscribe(name)))]);
    if (attempt !== this.#attempt) return;
    this.#stop("subscribe");
    this.#setState("open", { session: frame.session, node: frame.node });
    if (!isFirst) this.#emit("gap", { reason: "reconnected" });
    this.#pump();
  }

  #rate() {
    return this.#welcome?.limits?.publishes_per_second || Infinity;
  }

  /** Whether the gateway's rate limit has room for one more request now. */
  #takeAllowance() {
    const now = this.#now();
    const rate = this.#rate();
    if (now < this.#pausedUntil) return this.#pumpAfter(this.#pausedUntil - now);
    if (rate === Infinity) return true;
    const allowance = this.#allowance;
    allowance.tokens = Math.min(rate, allowance.tokens + ((now - allowance.at) * rate) / 1000);
    allowance.at = now;
    if (allowance.tokens < 1) return this.#pumpAfter(1000 / rate);
    allowance.tokens -= 1;
    return true;
  }

  #pumpAfter(ms) {
    this.#after("pump", ms, () => this.#pump());
    return false;
  }

  /** A request of this connection only; rejects when that is lost. */
  #call(frame) {
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId;
      this.#calls.set(id, { resolve, reject });
      this.#urgent.push({ id, ...frame });
      this.#pump();
    });
  }

  /** Sends what may be sent now: calls first, then publishes in the order in which they were made. */
  #pump() {
    if (!this.#socket || this.#openedAt === null) return;
    while (this.#urgent.length && this.#takeAllowance()) this.#write(this.#urgent.shift());
    if (this.#state !== "open" || this.#urgent.length) return;
    const held = new Set(); // Targets whose next publish waits to be tried again: later ones wait behind it.
    const now = this.#now();
    for (const entry of this.#pending.values()) {
      if (entry.sent) continue;
      if (entry.retryAt > now || held.has(entry.to)) {
        held.add(entry.to);
        continue;
      }
      if (this.#inFlight >= (this.#welcome.limits?.in_flight ?? Infinity) || !this.#takeAllowance()) return;
      this.#send(entry, now);
    }
    const retries = [...this.#pending.values()].filter((entry) => !entry.sent && entry.retryAt > now);
    if (retries.length) this.#pumpAfter(Math.min(...retries.map((entry) => entry.retryAt)) - now);
  }

  #send(entry, now) {
    let frame = `{"id":${entry.id},${entry.body.slice(1)}`;
    if (entry.expiresAt !== null) {
      const ttl = Math.ceil(entry.expiresAt - now);
      if (ttl <= 0) return this.#settle(entry, new WarrenError("expired", "its time to live ran out, unsent"));
      frame = `{"ttl":${ttl},${frame.slice(1)}`;
    }
    // A longer one would close the connection, again and again.
    const limit = this.#welcome.limits?.message_bytes ?? Infinity;
    if (frame.length * 3 > limit && new TextEncoder().encode(frame).length > limit) {
      return this.#settle(entry, new WarrenError("too_big", `longer than the gateway's limit of ${limit} bytes`));
    }
    entry.sent = true;
    this.#inFlight += 1;
    this.#write(frame);
  }

  #onReply({ id, type, error, ...reply }) {
    const failure = error && new WarrenError(error.code, error.message, { retry: error.retry ?? false });
    const call = this.#calls.get(id);
    if (call) {
      this.#calls.delete(id);
      return failure ? call.reject(failure) : call.resolve(reply);
    }
    const entry = this.#pending.get(id);
    if (id === null && failure) this.#report(failure);
    if (!entry?.sent) return; // The answer to a ping, or to something that was given up.
    if (!failure) {
      this.#settle(entry, null, reply);
    } else if (failure.retry && !entry.once && !(entry.expiresAt !== null && entry.expiresAt <= this.#now())) {
      entry.sent = false;
      this.#inFlight -= 1;
      entry.retryAt = this.#now() + this.#jitter(entry.attempts++);
      if (failure.code === "rate_limited") this.#pausedUntil = entry.retryAt;
    } else {
      this.#settle(entry, failure);
    }
    this.#pump();
  }

  // ---- Publishing ---------------------------------------------------------------------------------------------

  /** Resolves with the settlement; rejects with a WarrenError. Resent with the same message id until settled. */
  publish(to, payload, { event, ttl, delivery, messageId = uuid(), echo, deadline = this.#options.deadline } = {}) {
    const frame = { type: "publish", to, payload: payload ?? null, event, delivery, message_id: messageId, echo };
    const answer = ({ outcome, sessions }) => ({ outcome, messageId, ...(sessions !== undefined && { sessions }) });
    return this.#enqueue(frame, { ttl, deadline, answer });
  }

  /** Asks a backend: `payload` goes to `app.<key>`, and the promise resolves with the payload of its answer. `target` is
   *  the key, or the whole target. */
  request(target, payload, { event, timeout = this.#options.requestTimeout, messageId = uuid() } = {}) {
    const to = target.startsWith("app.") ? target : `app.${target}`;
    const frame = { type: "publish", to, payload: payload ?? null, event, message_id: messageId, reply: true };
    const late = new WarrenError("no_answer", "no answer in time; it may or may not have been carried out", { retry: true });
    const answer = (reply) => decodePayload(reply).payload;
    return this.#enqueue(frame, { ttl: timeout, deadline: timeout, answer, late });
  }

  /** Who is there: `presence("user.42")` → online, sessions; `presence("channel.room")` → users, count. */
  presence(target, { deadline = this.#options.requestTimeout } = {}) {
    const [, kind, name] = /^(user|channel)\.(.+)$/s.exec(target) ?? [];
    if (!kind) return Promise.reject(new WarrenError("bad_request", "presence: user.<id> or channel.<name>"));
    const answer = ({ outcome, ...rest }) => rest;
    return this.#enqueue({ type: "presence", [kind]: name }, { deadline, answer });
  }

  #enqueue(frame, { ttl, deadline, answer, late }) {
    return new Promise((resolve, reject) => {
      if (this.#closing || this.#state === "closed" || this.#state === "failed") throw this.#gone();
      const body = JSON.stringify(frame);
      const { maxPending, maxPendingBytes } = this.#options;
      if (this.#pending.size >= maxPending || this.#pendingBytes + body.length > maxPendingBytes) {
        throw new WarrenError("buffer_full", "too much waits to be sent; wait for earlier publishes", { retry: true });
      }
      const now = this.#now();
      const entry = {
        ...{ id: ++this.#lastId, to: frame.to, messageId: frame.message_id, body, answer, resolve, reject },
        ...{ once: frame.delivery === "at_most_once", expiresAt: ttl === undefined ? null : now + ttl },
        ...{ sent: false, attempts: 0, retryAt: 0 },
      };
      this.#pending.set(entry.id, entry);
      this.#pendingBytes += body.length;
      late ??= new WarrenError("timeout", "not settled in time; it may or may not have arrived", { retry: true });
      if (deadline <= TIMER_MAX_MS) this.#after(entry, deadline, () => (this.#settle(entry, late), this.#pump()));
      this.#pump();
    });
  }

  #settle(entry, error, reply) {
    if (!this.#pending.delete(entry.id)) return;
    this.#stop(entry);
    this.#pendingBytes -= entry.body.length;
    if (entry.sent) this.#inFlight = Math.max(0, this.#inFlight - 1);
    if (error) entry.reject(Object.assign(error, entry.messageId && { messageId: entry.messageId }));
    else entry.resolve(entry.answer(reply));
    this.#checkIdle();
  }

  // ---- Channels -----------------------------------------------------------------------------------------------

  /**
   * Resolves with `{ count }` when the gateway has confirmed it. Holds over reconnects until `unsubscribe`. With
   * `presence` there are `presence` events: first the state, then who joins and leaves.
   */
  subscribe(channel, { presence = false } = {}) {
    return new Promise((resolve, reject) => {
      if (this.#closing || this.#state === "closed" || this.#state === "failed") throw this.#gone();
      const waiters = [...(this.#subscriptions.get(channel)?.waiters ?? []), { resolve, reject }];
      this.#subscriptions.set(channel, { presence, waiters });
      if (this.#openedAt !== null) this.#resubscribe(channel);
    });
  }

  async #resubscribe(channel, failures = 0) {
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return;
    const attempt = this.#attempt;
    try {
      const { outcome, ...rest } = await this.#call({ type: "subscribe", channel, presence: subscription.presence });
      for (const waiter of subscription.waiters.splice(0)) waiter.resolve(rest);
      if (subscription.presence) this.#askRoster(channel, subscription);
    } catch (error) {
      if (attempt !== this.#attempt || this.#subscriptions.get(channel) !== subscription) return;
      if (!error.retry) return this.#refuseSubscription(channel, subscription, error);
      this.#env.setTimeout(() => {
        if (attempt === this.#attempt) this.#resubscribe(channel, failures + 1);
      }, this.#jitter(failures));
    }
  }

  /** Who is there when a session begins to listen: everything before it was missed. What follows fits to it. */
  async #askRoster(channel, subscription, failures = 0) {
    const attempt = this.#attempt;
    const isWanted = () => attempt === this.#attempt && this.#subscriptions.get(channel) === subscription;
    try {
      const { count, users } = await this.#call({ type: "presence", channel });
      if (isWanted()) this.#emit("presence", { channel, event: "state", count, ...(users && { users }) });
    } catch (error) {
      if (!isWanted() || !error.retry) return;
      this.#env.setTimeout(() => isWanted() && this.#askRoster(channel, subscription, failures + 1), this.#jitter(failures));
    }
  }

  #refuseSubscription(channel, { waiters }, error) {
    this.#subscriptions.delete(channel);
    if (waiters.length === 0) this.#emit("unsubscribed", { channel, reason: error.message, error });
    for (const waiter of waiters) waiter.reject(error);
  }

  async unsubscribe(channel) {
    const subscription = this.#subscriptions.get(channel);
    this.#subscriptions.delete(channel);
    const undone = new WarrenError("unsubscribed", "unsubscribed before it was confirmed");
    for (const waiter of subscription?.waiters ?? []) waiter.reject(undone);
    if (this.#openedAt === null) return; // The next session begins without it.
    await this.#call({ type: "unsubscribe", channel }).catch((error) => {
      if (error.code !== "disconnected") throw error;
    });
  }

  // ---- Receiving ----------------------------------------------------------------------------------------------

  #onMessage(frame) {
    const { type, ...message } = decodePayload(frame);
    const key = keyOf(message);
    // Only messages for a user or session are acknowledged, everything else is delivered at most once.
    const owed = this.#options.ack && /^(user|session)\./.test(message.to);
    if (this.#seen.has(key)) {
      if (owed) this.#ack(message.id);
      return;
    }
    if (this.#inHand.has(key)) return; // Acknowledged when its handler has returned.
    const hand = { key, message, owed, attempts: 0, handlers: null };
    if (owed) this.#inHand.set(key, hand);
    else this.#seen.add(key);
    this.#run(hand);
  }

  async #run(hand) {
    const handlers = hand.handlers ?? [...(this.#listeners.get("message") ?? [])];
    if (handlers.length === 0) return this.#keepUnheard(hand);
    const run = (handler) =>
      new Promise((done) => done(handler(hand.message))).then(() => null, (error) => ({ handler, error }));
    const failed = (await Promise.all(handlers.map(run))).filter((failure) => failure !== null);
    const thrown = failed.filter(({ error }) => error !== RELEASED);
    for (const { error } of thrown) {
      const text = `a handler of "message" failed: ${error?.message ?? error}`;
      this.#report(new WarrenError("handler", text, { cause: error, received: hand.message }));
    }
    if (!hand.owed) return;
    if (thrown.length && hand.attempts < HANDLER_RETRIES) {
      hand.handlers = thrown.map(({ handler }) => handler);
      this.#env.setTimeout(() => {
        if (this.#inHand.get(hand.key) === hand) this.#run(hand);
      }, 1_000 * 2 ** hand.attempts++);
      return;
    }
    this.#inHand.delete(hand.key);
    if (failed.length === 0) this.ack(hand.message);
    this.#checkIdle();
  }

  #keepUnheard(hand) {
    if (!hand.owed) return;
    if (this.#unheard.push(hand) === 1) {
      const text = 'messages wait for a listener of "message"; a client that wants none sets ack: false';
      this.#report(new WarrenError("no_listener", text));
    }
  }

  /** Acknowledges a message now: for a loop that ends with it. Handlers that return do not need this. */
  ack(message) {
    this.#seen.add(keyOf(message));
    this.#ack(message.id);
  }

  #ack(id) {
    if (this.#openedAt === null) return; // Its copy in the next session is acknowledged.
    this.#acks.push(id);
    // The timers of a hidden page run once a minute, and the gateway waits 30 s.
    if (this.#acks.length >= ACK_BATCH || this.#env.document?.hidden) this.#flushAcks();
    else if (this.#acks.length === 1) this.#after("ack", ACK_DELAY_MS, () => this.#flushAcks());
  }

  #flushAcks() {
    this.#stop("ack");
    while (this.#acks.length) this.#write({ type: "ack", ids: this.#acks.splice(0, ACK_BATCH) });
  }
}
