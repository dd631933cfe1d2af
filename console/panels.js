// What stands beside the map: figures, clients, messages and the path of one, channels, users.

import { confirmed, get, h, keyed, svg, text } from "./dom.js";
import { excerpt, outcomeOf } from "./feed.js";
import { duration, figure, latency, sparkline } from "./model.js";

/** Rows of the log that are on the page. */
const ROWS = 40;
const SPARK = { width: 120, height: 28 };

const VITALS = [
  ["sessions", "Sessions", ({ users }) => `${figure(users)} ${users === 1 ? "user" : "users"}`],
  ["in", "In per second", () => "messages accepted"],
  ["out", "Out per second", () => "copies to sessions"],
  ["pending", "Pending", () => "not settled yet"],
  ["mail", "Mail", (_, { mail }) => `for ${figure(mail.users)} ${mail.users === 1 ? "user" : "users"} away`],
  ["rejected", "Rejected per second", () => "refused or undeliverable"],
];

export function vitals(model) {
  const figures = model.figures();
  keyed(get("vitals"), VITALS, ([name]) => name, ([name, label]) => {
    const line = svg("path");
    const drawing = svg("svg", { viewBox: `0 0 ${SPARK.width} ${SPARK.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    drawing.append(line);
    const parts = { value: h("b"), note: h("span"), line };
    const tile = h("div", {}, h("dt", {}, label), h("dd", {}, parts.value, parts.note), drawing);
    tile.dataset.is = name;
    tile.parts = parts;
    return tile;
  }, (tile, [name, , note]) => {
    text(tile.parts.value, figure(figures[name]));
    text(tile.parts.note, note(figures, model));
    tile.dataset.some = String(figures[name] > 0);
    tile.parts.line.setAttribute("d", sparkline(model.history[name] ?? [0], SPARK.width, SPARK.height));
  });
}

export function clients(all, { close, subscribe, unsubscribe }) {
  get("no-clients").hidden = all.length > 0;
  keyed(get("clients"), all, ({ key }) => key, (client) => {
    const parts = { who: h("b"), where: h("span", { class: "where" }), got: h("span", { class: "got" }), channels: h("ul", { class: "tags" }), note: h("p", { class: "note bad" }) };
    const input = h("input", { name: "channel", required: true, maxlength: "128", placeholder: "channel", "aria-label": "Channel to subscribe to", spellcheck: "false" });
    const form = h("form", { class: "inline", autocomplete: "off", onsubmit: (event) => {
      event.preventDefault();
      subscribe(client, input.value);
      form.reset();
    } }, input, h("button", { class: "quiet" }, "Subscribe"));
    parts.close = h("button", { type: "button", class: "quiet", onclick: () => close(client) }, "Close");
    const row = h("li", {}, h("div", { class: "head" }, h("i", { class: "dot" }), parts.who, parts.where, parts.got, parts.close), h("div", { class: "line" }, parts.channels, form), parts.note);
    row.parts = parts;
    return row;
  }, (row, client) => {
    const { who, where, got, channels, note, close } = row.parts;
    row.dataset.state = client.state;
    text(who, client.user);
    text(where, client.state === "open" ? `on ${client.node}` : client.state);
    text(got, client.got ? `${figure(client.got)} got` : "");
    text(note, client.note);
    close.setAttribute("aria-label", `Close ${client.user}`);
    keyed(channels, [...client.channels], (channel) => channel, (channel) => h("li", {},
      channel, h("button", { type: "button", "aria-label": `Leave ${channel}`, onclick: () => unsubscribe(client, channel) }, "×")));
  });
}

/** Writes the options of a select, and keeps what is chosen if it is still there. */
export function options(select, wanted) {
  const chosen = select.value;
  keyed(select, wanted, ([value]) => value, ([value]) => h("option", { value }), (option, [, label]) => text(option, label));
  if (wanted.some(([value]) => value === chosen)) select.value = chosen;
}

const OUTCOMES = { delivered: "delivered", stored: "stored", published: "published", answered: "answered", rejected: "rejected", expired: "expired", pending: "under way", received: "received" };

export function log(feed, chosen, choose) {
  const latest = feed.latest(ROWS);
  get("no-messages").hidden = latest.length > 0;
  get("clear").hidden = latest.length === 0;
  text(get("messages-note"), feed.count > latest.length ? `the latest ${latest.length} of ${figure(feed.count)}` : "");
  keyed(get("log"), latest, ({ id }) => id, (message) => {
    const parts = { from: h("b"), to: h("b"), payload: h("span", { class: "payload" }), outcome: h("span", { class: "outcome" }), took: h("span", { class: "took" }) };
    const row = h("li", {}, h("button", { type: "button", onclick: () => choose(message.id) },
      h("time", {}, new Date(message.wall).toLocaleTimeString([], { hour12: false })),
      h("span", { class: "way" }, parts.from, h("i", { "aria-label": "to" }, "→"), parts.to), parts.payload, parts.outcome, parts.took));
    row.parts = parts;
    return row;
  }, (row, message) => {
    const { from, to, payload, outcome, took } = row.parts;
    const fate = outcomeOf(message);
    row.dataset.outcome = fate;
    row.firstChild.setAttribute("aria-pressed", String(message.id === chosen));
    text(from, message.from);
    text(to, message.to);
    text(payload, excerpt(message.payload));
    text(outcome, OUTCOMES[fate] ?? fate);
    text(took, message.settledAt ? latency(message.settledAt - message.sentAt) : "");
  });
}

const nodesOf = (nodes) => (nodes.length > 3 ? `${nodes.length} nodes` : nodes.join(", "));
const count = (sessions) => `${figure(sessions)} ${sessions === 1 ? "session" : "sessions"}`;

/** What a step of the gateway is called, and what is known besides. */
const STEPS = {
  accepted: ({ from, to }) => ({ what: "accepted", detail: `from ${from} for ${to}` }),
  sent: ({ nodes }) => ({ what: `sent to ${nodesOf(nodes)}` }),
  sent_to_backends: () => ({ what: "sent to the backends" }),
  sent_to_all: () => ({ what: "sent to all nodes" }),
  arrived: ({ from }) => ({ what: "arrived", detail: from && `from ${from}` }),
  read_from_mail: () => ({ what: "read from the mailbox", outcome: "stored" }),
  written: ({ session, sessions }) => ({ what: `written to ${session ? "a session" : count(sessions)}`, detail: session, outcome: "received" }),
  acknowledged: ({ session }) => ({ what: "acknowledged", detail: `by ${session}`, outcome: "delivered" }),
  taken: ({ sessions }) => ({ what: `taken by ${count(sessions)}`, outcome: sessions ? "delivered" : "rejected" }),
  to_mail: () => ({ what: "on its way into the mailbox", outcome: "stored" }),
  settled: ({ outcome, error }) => ({ what: outcome, detail: error, outcome }),
};

/** The steps of a message: those that the nodes kept, or else what this page knows. */
function stepsOf(message) {
  if (message.trace?.length) {
    const since = message.trace[0].at_us;
    return message.trace.map((event) => {
      const told = STEPS[event.step]?.(event) ?? { what: event.step };
      return { at: (event.at_us - since) / 1000, where: event.node, ...told };
    });
  }
  const steps = [];
  const since = message.sentAt ?? message.at;
  if (message.mine) steps.push({ at: 0, what: `${message.from} sends it`, where: message.origin });
  for (const receipt of message.receipts) {
    const again = receipt.redelivered ? ", marked as a repeat" : "";
    steps.push({ at: receipt.at - since, what: `${receipt.user} gets it${again}`, where: receipt.node, outcome: "delivered" });
  }
  if (message.outcome) steps.push({ at: message.settledAt - since, what: message.outcome, detail: message.detail, outcome: message.outcome });
  return steps.sort((a, b) => a.at - b.at);
}

export function path(message, close) {
  const article = get("path");
  article.hidden = !message;
  if (!message) return;
  const steps = stepsOf(message);
  const more = message.trace?.length ? 0 : message.taken - message.receipts.length;
  article.replaceChildren(
    h("header", {}, h("h3", {}, "Its way"), h("button", { type: "button", class: "quiet", onclick: close }, "Close")),
    h("p", { class: "id" }, message.id),
    steps.length ? "" : h("p", { class: "note" }, "No node knows of it: steps are kept while a console is open, and only those of the latest messages."),
    h("ol", {}, ...steps.map(({ at, what, where, detail, outcome }) => {
      const step = h("li", {}, h("span", { class: "when" }, latency(at)), h("div", {}, h("b", {}, what), where && h("span", {}, ` on ${where}`), detail && h("p", {}, detail)));
      if (outcome) step.dataset.outcome = outcome;
      return step;
    })),
    more > 0 ? h("p", { class: "note" }, `and ${figure(more)} more receipts`) : "",
    message.tracePartial ? h("p", { class: "note bad" }, "Some node did not answer.") : "",
    "payload" in message ? h("pre", {}, excerpt(message.payload, 2_000)) : "");
}

export function channels(all, count, choose) {
  get("no-channels").hidden = all.length > 0;
  text(get("channels-note"), count > all.length ? `the largest ${all.length}` : "");
  const most = Math.max(1, ...all.map(({ sessions }) => sessions));
  keyed(get("channels"), all, ({ channel }) => channel, ({ channel }) => {
    const parts = { bar: h("i", { class: "bar" }), count: h("span", { class: "count" }) };
    const row = h("li", {}, h("button", { type: "button", onclick: () => choose(channel) }, parts.bar, h("b", {}, channel), parts.count));
    row.parts = parts;
    return row;
  }, (row, { sessions, nodes }) => {
    row.parts.bar.style.setProperty("--share", sessions / most);
    text(row.parts.count, `${figure(sessions)} on ${nodes.length === 1 ? nodes[0] : `${nodes.length} nodes`}`);
  });
}

export function members({ channel, count, users, partial }, find, close) {
  const article = get("members");
  article.hidden = false;
  article.replaceChildren(
    h("header", {}, h("h3", {}, channel), h("button", { type: "button", class: "quiet", onclick: close }, "Close")),
    h("p", { class: "note" }, `${figure(count)} ${count === 1 ? "user" : "users"}${partial ? "; some node did not answer" : ""}`),
    users ? h("ul", { class: "tags" }, ...users.slice(0, 200).map((user) => h("li", {}, h("button", { type: "button", onclick: () => find(user) }, user)))) : "");
}

export function found(user, { kickSession, kickUser }) {
  const mail = user.mail ? `${figure(user.mail)} ${user.mail === 1 ? "message waits" : "messages wait"} in the mailbox.` : "No mail waits.";
  const sessions = user.sessions.map(({ session, node, since_ms }) => h("li", {},
    h("div", {}, h("b", {}, session), h("span", {}, ` on ${node}, for ${duration(Date.now() - since_ms)}`)),
    h("button", { type: "button", class: "quiet", "aria-label": `Disconnect ${session}`, onclick: () => kickSession(session) }, "Disconnect")));
  const header = h("header", {}, h("h3", {}, user.user), h("span", { class: "badge" }, user.online ? "online" : "away"));
  header.lastChild.dataset.online = String(user.online);
  get("found").replaceChildren(
    header, h("p", { class: "note" }, mail, user.partial ? " Some node did not answer." : ""),
    sessions.length ? h("ul", { class: "rows" }, ...sessions) : "",
    sessions.length > 1 ? h("button", { type: "button", class: "plain", onclick: async () => {
      if (await confirmed(`Disconnect ${user.user}?`, `All ${sessions.length} sessions are closed. The user may connect again.`, "Disconnect")) kickUser(user.user);
    } }, "Disconnect all") : "");
}

export function foundNothing(message) {
  get("found").replaceChildren(h("p", { class: "note bad" }, message));
}
