// The real clients, behind one interface: connect, subscribe, send with a receipt, acknowledge, leave.
import { createRequire } from "node:module";

import { Client, Versions } from "@stomp/stompjs";
import WebSocket from "ws";

const require = createRequire(import.meta.url);
const { Stomp } = require("stompjs/lib/stomp.js");
const webstomp = require("webstomp-client");
// What browsers have, and these clients take from there.
Object.assign(globalThis, { WebSocket });
Object.assign(Stomp, { setInterval: (ms, run) => setInterval(run, ms), clearInterval });

const PATIENCE_MS = 20_000;

export function within(promise, what, ms = PATIENCE_MS) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`did not happen: ${what}`)), ms).unref());
  return Promise.race([promise, late]);
}

/** Items that arrive, to be awaited one by one. */
export class Inbox {
  #items = [];
  #waiting = [];

  push = (item) => {
    const next = this.#waiting.shift();
    if (next) next(item);
    else this.#items.push(item);
  };

  next(what = "a message") {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    return within(new Promise((resume) => this.#waiting.push(resume)), what);
  }

  get isEmpty() {
    return this.#items.length === 0;
  }
}

/** @stomp/stompjs 7, speaking one version. */
class Modern {
  constructor(t, version, { url, headers = {}, ...options }) {
    const names = { "1.0": "v10.stomp", "1.1": "v11.stomp", "1.2": "v12.stomp" };
    const versions = new Versions([version]);
    Object.assign(this, { version, errors: new Inbox(), closes: new Inbox(), receipts: 0 });
    this.client = new Client({
      stompVersions: versions,
      webSocketFactory: () => (this.socket = new WebSocket(url, options.plain ? [] : [names[version]])),
      connectHeaders: headers,
      reconnectDelay: 0,
      heartbeatIncoming: options.beats ?? 10_000,
      onStompError: this.errors.push,
      onWebSocketClose: this.closes.push,
      debug: options.debug ?? (() => {}),
      ...options.more,
    });
    t.after(() => this.client.deactivate({ force: true }));
  }

  async connect() {
    const connected = new Promise((resume) => (this.client.onConnect = resume));
    this.client.activate();
    this.connected = (await within(connected, "CONNECTED")).headers;
    return this;
  }

  subscribe(destination, headers = {}) {
    const inbox = new Inbox();
    const receipt = `r${++this.receipts}`;
    const known = new Promise((resume) => this.client.watchForReceipt(receipt, resume));
    inbox.subscription = this.client.subscribe(destination, inbox.push, { ...headers, receipt });
    return within(known, `the receipt of ${destination}`).then(() => inbox);
  }

  send(destination, body, headers = {}) {
    const receipt = `r${++this.receipts}`;
    const settled = new Promise((resume) => this.client.watchForReceipt(receipt, resume));
    const content = typeof body === "string" ? { body } : { binaryBody: body };
    this.client.publish({ destination, ...content, headers: { ...headers, receipt } });
    return within(settled, `the receipt of a SEND to ${destination}`).then(({ headers }) => headers);
  }

  ack = (message) => message.ack();
  nack = (message) => message.nack();
  leave = () => within(this.client.deactivate(), "the end");
}

/** stomp.js 2.3.3 and webstomp-client, which have one interface. */
class Old {
  constructor(t, client, socket, headers) {
    Object.assign(this, { client, socket, headers, errors: new Inbox(), closes: new Inbox(), receipts: new Map() });
    client.debug = (text) => this.onDebug?.(text);
    client.onreceipt = ({ headers }) => this.receipts.get(headers["receipt-id"])?.(headers);
    t.after(() => socket.terminate());
  }

  async connect() {
    // They set handlers of their own.
    this.socket.addEventListener("close", this.closes.push);
    const connected = new Promise((resume) => this.client.connect(this.headers, resume, this.errors.push));
    this.connected = (await within(connected, "CONNECTED")).headers;
    return this;
  }

  #receipt(what) {
    const receipt = `r${this.receipts.size}`;
    const told = new Promise((resume) => this.receipts.set(receipt, resume));
    return [receipt, () => within(told, what)];
  }

  async subscribe(destination, headers = {}) {
    const inbox = new Inbox();
    const [receipt, told] = this.#receipt(`the receipt of ${destination}`);
    inbox.subscription = this.client.subscribe(destination, inbox.push, { ...headers, receipt });
    await told();
    return inbox;
  }

  send(destination, body, headers = {}) {
    const [receipt, told] = this.#receipt(`the receipt of a SEND to ${destination}`);
    const all = { ...headers, receipt };
    if (this.client.sendIsHeadersLast) this.client.send(destination, body, all);
    else this.client.send(destination, all, body);
    return told();
  }

  ack = (message) => message.ack();
  nack = (message) => message.nack();
  async leave() {
    this.client.disconnect();
    await this.closes.next("the end");
  }
}

function stompOver(t, { url, headers = {}, plain = true, socket: given }) {
  const socket = given ?? (plain ? new WebSocket(url) : new WebSocket(url, ["v10.stomp", "v11.stomp"]));
  return new Old(t, Stomp.over(socket), socket, { login: "", passcode: "", ...headers });
}

function webstompOver(t, { url, headers = {}, plain = false, socket: given }) {
  const socket = given ?? (plain ? new WebSocket(url) : new WebSocket(url, ["v10.stomp", "v11.stomp", "v12.stomp"]));
  const client = webstomp.over(socket, { debug: false, heartbeat: { incoming: 10_000, outgoing: 10_000 } });
  const old = new Old(t, client, socket, headers);
  client.sendIsHeadersLast = true;
  return old;
}

/** Every client in every version and way of connecting that it has. */
export const CLIENTS = {
  "@stomp/stompjs 1.2": (t, options) => new Modern(t, "1.2", options),
  "@stomp/stompjs 1.1": (t, options) => new Modern(t, "1.1", options),
  "@stomp/stompjs 1.0": (t, options) => new Modern(t, "1.0", options),
  "@stomp/stompjs 1.2 without a subprotocol": (t, options) => new Modern(t, "1.2", { ...options, plain: true }),
  "stompjs 2.3.3 over a plain WebSocket": (t, options) => stompOver(t, options),
  "stompjs 2.3.3": (t, options) => stompOver(t, { ...options, plain: false }),
  "webstomp-client": (t, options) => webstompOver(t, options),
  "webstomp-client over a plain WebSocket": (t, options) => webstompOver(t, { ...options, plain: true }),
};

export const modern = (t, options, version = "1.2") => new Modern(t, version, options);
