// The clients that run in this page: real sessions of the gateway, opened with its own client library.

import { connect } from "/warren-client.js";

import { excerpt } from "./feed.js";

/** So many at a time: each is a socket. */
const CLIENTS_MAX = 50;

/** What backends answer. */
export const APPLICATION = "app.";

/** What a settlement says besides its outcome. */
export function detailOf({ outcome, sessions, payload }) {
  if (outcome === "answered") return excerpt(payload);
  return outcome === "delivered" ? `${sessions} session${sessions === 1 ? "" : "s"}` : "";
}

/** `crypto.randomUUID` is missing on pages that did not come over TLS from elsewhere. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Clients {
  /** In the order in which they were opened. */
  all = [];
  #next = 1;
  /** Where the nodes are: [{ node, ws }], to be kept up to date. */
  places = [];
  onchange = () => {};

  constructor(feed) {
    this.feed = feed;
  }

  /** Opens a client on a node. When that node is gone it goes on at another. */
  open({ user, token, node }) {
    if (this.all.length >= CLIENTS_MAX) throw new Error(`at most ${CLIENTS_MAX} clients in one page`);
    const places = () => this.places;
    let attempts = 0;
    // The library takes its URLs in turn; which is first is chosen here.
    class Chosen extends WebSocket {
      constructor(url, protocols) {
        const others = places().filter((place) => place.node !== node);
        const first = places().find((place) => place.node === node);
        const order = attempts === 0 && first ? [first] : [...others, ...(first ? [first] : [])];
        const chosen = order[Math.max(0, attempts - 1) % Math.max(1, order.length)];
        attempts += 1;
        const to = new URL(url);
        const base = new URL(chosen?.ws ?? url);
        base.search = to.search;
        super(base.href, protocols);
      }
    }
    const first = this.places.find((place) => place.node === node) ?? this.places[0];
    const library = connect(first.ws, { ...(token ? { token } : { user }), WebSocket: Chosen });
    const client = { key: this.#next++, user: user || "…", library, state: "connecting", node, session: null, got: 0, channels: new Set(), note: "" };
    library.on("state", ({ state, reason }) => {
      Object.assign(client, { state, node: library.node ?? client.node, session: library.session ?? null, note: state === "failed" ? reason ?? "" : "" });
      if (state === "open") attempts = 1;
      if (library.user) client.user = library.user;
      this.onchange();
    });
    library.on("message", (message) => {
      client.got += 1;
      const { id, from, to, payload, event, redelivered } = message;
      this.feed.received(id, { client, from: from.user ?? from.service ?? "", to, payload, event, redelivered }, performance.now());
    });
    library.on("error", ({ message }) => {
      client.note = message;
      this.onchange();
    });
    library.on("unsubscribed", ({ channel }) => {
      client.channels.delete(channel);
      this.onchange();
    });
    this.all.push(client);
    this.onchange();
    return client;
  }

  close(client) {
    this.all = this.all.filter((other) => other !== client);
    client.library.close({ timeout: 500 }).catch(() => {});
    this.onchange();
  }

  async subscribe(client, channel) {
    try {
      await client.library.subscribe(channel);
      client.channels.add(channel);
      client.note = "";
    } catch (error) {
      client.note = error.message;
    }
    this.onchange();
  }

  async unsubscribe(client, channel) {
    client.channels.delete(channel);
    this.onchange();
    await client.library.unsubscribe(channel).catch(() => {});
  }

  /** Sends as a client and follows what becomes of the message. */
  async send(client, to, payload) {
    const id = newId();
    this.feed.sent(id, { from: client.user, to, payload, origin: client.node }, performance.now());
    try {
      const { library } = client;
      const options = { messageId: id };
      const settlement = to.startsWith(APPLICATION)
        ? { outcome: "answered", payload: await library.request(to.slice(APPLICATION.length), payload, options) }
        : await library.publish(to, payload, options);
      this.feed.settled(id, settlement.outcome, detailOf(settlement), performance.now());
    } catch (error) {
      this.feed.settled(id, error.code === "expired" ? "expired" : "rejected", `${error.code}: ${error.message}`, performance.now());
    }
    return id;
  }
}
