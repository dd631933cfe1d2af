// A node with SockJS, clients of the real sockjs-client, and the bare frames of its transports.
import { createRequire } from "node:module";
import { once } from "node:events";

import WebSocket from "ws";

import { Cluster } from "../../sdk/js/test/support/nodes.js";
import { CLIENTS, Inbox, modern, within } from "./clients.js";

export const SockJS = createRequire(import.meta.url)("sockjs-client");

export async function setUp(t, env = {}) {
  const cluster = await Cluster.start(t, 1, env);
  const [node] = cluster.nodes;
  return { node, base: `${node.http}/sockjs`, ws: `${node.http.replace("http", "ws")}/sockjs` };
}

/** A SockJS of a page, and what happens to it. */
export function open(t, url, options = {}) {
  const sockjs = new SockJS(url, null, options);
  const events = { open: new Inbox(), message: new Inbox(), close: new Inbox() };
  for (const name of Object.keys(events)) sockjs.addEventListener(name, events[name].push);
  t.after(() => sockjs.close());
  return { sockjs, ...events };
}

/** The bare frames of a WebSocket. */
export async function bare(t, url) {
  const socket = new WebSocket(url);
  const frames = new Inbox();
  const closes = new Inbox();
  socket.on("message", (data) => frames.push(data.toString()));
  socket.on("close", (code) => closes.push(code));
  t.after(() => socket.terminate());
  await within(once(socket, "open"), "open");
  return { socket, frames, closes };
}

/** A client of STOMP whose socket is a SockJS. The old ones wrap any socket that looks like one. */
export function stompOver(t, name, { base, node }, options = {}) {
  const settings = { url: node.ws, headers: { login: "alice", passcode: "x" } };
  if (name.startsWith("@")) {
    return modern(t, { ...settings, more: { webSocketFactory: () => new SockJS(base, null, options) } });
  }
  const sockjs = new SockJS(base, null, options);
  sockjs.terminate = () => sockjs.close();
  return CLIENTS[name](t, { ...settings, socket: sockjs });
}
