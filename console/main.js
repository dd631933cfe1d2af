// The console: looks at the cluster once a second while somebody looks at it, and lets its own clients send.

import { api, ApiError, credentials } from "./api.js";
import { APPLICATION, Clients, detailOf, newId } from "./clients.js";
import { get, text } from "./dom.js";
import { Feed } from "./feed.js";
import { ClusterMap } from "./map.js";
import { Model, sentence } from "./model.js";
import * as panels from "./panels.js";

const LOOK_EVERY_MS = 1_000;
/** The log is drawn at most so often, whatever arrives. */
const DRAW_EVERY_MS = 125;
const BURST_TOGETHER = 50;

const model = new Model();
/** Exported for the browser's own console: `(await import("/console/main.js")).clients.all`. */
export const feed = new Feed();
export const clients = new Clients(feed);
const map = new ClusterMap({ drain: (node) => act(() => api.drain(node), `${node} is leaving`) });
/** The message whose way is shown. */
let chosen = null;
/** The last look failed. */
let lost = false;

// ---- the cluster ----

function state(level, words) {
  get("state").dataset.level = level;
  text(get("state-text"), words);
  document.title = level === "good" ? "Warren" : `${words} – Warren`;
}

/** Where clients reach the nodes. One that does not say is reached where this page is, if it is the one that answers. */
function places() {
  return model.nodes
    .filter(({ answered, draining }) => answered && !draining)
    .map(({ node, url }) => ({ node, ws: url ? `${url}/ws` : node === model.asked ? new URL("/ws", location.href).href : null }))
    .filter(({ ws }) => ws);
}

function show() {
  clients.places = places();
  panels.vitals(model);
  map.show(model.nodes, clients.all, model.mail);
  panels.channels(model.channels, model.nodes.reduce((most, { channels }) => Math.max(most, channels ?? 0), 0), look.at);
  panels.options(get("open-node"), clients.places.map(({ node }) => [node, node]));
  panels.options(get("send-from"), [...clients.all.map(({ key, user, node }) => [key, `${user} on ${node}`]), ["api", "the HTTP API"]]);
  text(get("asked"), model.asked ?? "this node");
}

async function lookOnce() {
  try {
    model.take(await api.cluster());
    lost = false;
    const { level, text } = sentence(model.nodes, model.asked);
    state(level, text);
    show();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 || error.status === 403) return signIn(error);
    lost = true;
    state("bad", error.status === 0 ? "This node cannot be reached; trying again" : error.message);
  }
}

/** Nothing is asked while nobody looks. */
async function keepLooking() {
  for (;;) {
    if (!document.hidden) await lookOnce();
    await new Promise((resume) => {
      const timer = setTimeout(resume, LOOK_EVERY_MS);
      if (document.hidden) {
        clearTimeout(timer);
        document.addEventListener("visibilitychange", resume, { once: true });
      }
    });
  }
}

function signIn(error) {
  state("wait", "Sign in to see the cluster");
  const dialog = get("sign-in");
  if (credentials.get()) text(get("sign-in-note"), error.status === 403 ? "It does not open the API." : "It was not accepted.");
  return new Promise((resolve) => {
    dialog.oncancel = (event) => event.preventDefault();
    get("sign-in-form").onsubmit = ({ target }) => {
      credentials.set(target.elements.token.value.trim());
      target.reset();
      get("sign-out").hidden = false;
      resolve();
    };
    if (!dialog.open) dialog.showModal();
  });
}

get("sign-out").hidden = !credentials.get();
get("sign-out").onclick = () => {
  credentials.forget();
  location.reload();
};

/** Does something at the API, and tells what came of it where the eye is. */
async function act(deed, done) {
  try {
    await deed();
    text(get("send-note"), done);
  } catch (error) {
    text(get("send-note"), error.message);
  }
  if (!lost) await lookOnce();
}

// ---- clients and messages ----

const clientActions = {
  close: (client) => clients.close(client),
  subscribe: (client, channel) => clients.subscribe(client, channel),
  unsubscribe: (client, channel) => clients.unsubscribe(client, channel),
};

clients.onchange = () => {
  panels.clients(clients.all, clientActions);
  show();
};

get("open").onsubmit = (event) => {
  event.preventDefault();
  const { user, node } = event.target.elements;
  // With credentials the gateway wants a token, which says who it is.
  const who = credentials.get() ? { token: user.value } : { user: user.value };
  if (clients.places.length === 0) return text(get("send-note"), "No node says where clients reach it: set WARREN_PUBLIC_URL.");
  try {
    clients.open({ ...who, node: node.value });
    user.value = "";
  } catch (error) {
    text(get("send-note"), error.message);
  }
};

get("open-pair").onclick = () => {
  const at = (n) => clients.places[n % clients.places.length]?.node;
  if (clients.places.length === 0) return;
  const pair = ["alice", "bob"].map((user, n) => clients.open({ user, node: at(n) }));
  get("send-from").value = pair[0].key;
  get("send-name").focus();
};

const NAMED = { user: "Named", session: "With the id", channel: "Named", app: "With the key" };

get("send-kind").onchange = ({ target }) => {
  const label = get("send-name-label");
  label.hidden = target.value === "broadcast";
  get("send-name").required = !label.hidden;
  text(label.firstElementChild, NAMED[target.value] ?? "Named");
};

function parsed(payload) {
  try {
    return JSON.parse(payload);
  } catch {
    return payload;
  }
}

async function sendByApi(to, payload) {
  const id = newId();
  feed.sent(id, { from: "the HTTP API", to, payload, origin: model.asked }, performance.now());
  try {
    const settlement = await api.publish({ to, payload, message_id: id, ...(to.startsWith(APPLICATION) && { reply: true }) });
    feed.settled(id, settlement.outcome, detailOf(settlement), performance.now());
  } catch (error) {
    feed.settled(id, "rejected", `${error.code}: ${error.message}`, performance.now());
  }
  return id;
}

get("send").onsubmit = async (event) => {
  event.preventDefault();
  const { from, kind, name, payload, count } = event.target.elements;
  const to = kind.value === "broadcast" ? "broadcast" : `${kind.value}.${name.value}`;
  const client = clients.all.find(({ key }) => String(key) === from.value);
  const send = (what) => (client ? clients.send(client, to, what) : sendByApi(to, what));
  text(get("send-note"), "");
  const what = parsed(payload.value);
  const many = Number(count.value);
  if (many === 1) {
    const sent = send(what);
    choose(feed.latest(1)[0]?.id ?? null);
    await sent;
    return;
  }
  for (let n = 0; n < many; n += BURST_TOGETHER) {
    const together = Math.min(BURST_TOGETHER, many - n);
    await Promise.all(Array.from({ length: together }, () => send(what)));
  }
};

feed.onreceipt = (message, { node }) => map.move(message.origin ?? node, node, "delivered");
feed.onsettled = ({ id, outcome, origin }) => {
  if (id === chosen) trace(id);
  if (outcome === "stored") map.store(origin);
  if (outcome === "rejected" || outcome === "expired") map.move(origin, origin, outcome);
};

/** A message of another sender that was asked for by its id. */
let foreign = null;

function choose(id) {
  chosen = id;
  foreign = null;
  feed.version += 1;
  if (id) trace(id);
}

/** Asks the nodes what became of a message; again when it is settled, since there is more to tell then. */
async function trace(id) {
  const answer = await api.trace(id).catch(() => null);
  if (!answer || chosen !== id) return;
  const message = feed.traced(id, answer, performance.now());
  if (!feed.get(id)) foreign = message;
}

get("trace").onsubmit = (event) => {
  event.preventDefault();
  choose(event.target.elements.id.value.trim());
};

get("clear").onclick = () => {
  feed.clear();
  choose(null);
};

let drawn = -1;
let drawnAt = 0;
function draw(now) {
  if (feed.version !== drawn && now - drawnAt >= DRAW_EVERY_MS) {
    [drawn, drawnAt] = [feed.version, now];
    const message = feed.get(chosen) ?? foreign;
    panels.log(feed, message?.id, (id) => choose(id === chosen ? null : id));
    panels.path(message, () => choose(null));
    map.trace(message);
    panels.clients(clients.all, clientActions);
  }
  requestAnimationFrame(draw);
}

// ---- channels and users ----

const look = {
  at: async (channel) => {
    try {
      panels.members(await api.channel(channel), find, () => (get("members").hidden = true));
    } catch (error) {
      text(get("channels-note"), error.message);
    }
  },
};

async function find(user) {
  get("find-user").value = user;
  try {
    panels.found(await api.user(user), {
      kickSession: (session) => again(() => api.kickSession(session), user),
      kickUser: () => again(() => api.kickUser(user), user),
    });
  } catch (error) {
    panels.foundNothing(error.message);
  }
}

async function again(deed, user) {
  try {
    await deed();
    await find(user);
  } catch (error) {
    panels.foundNothing(error.message);
  }
}

get("find").onsubmit = (event) => {
  event.preventDefault();
  find(event.target.elements.user.value);
};

requestAnimationFrame(draw);
keepLooking();
