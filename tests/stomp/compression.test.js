// permessage-deflate as clients of other projects negotiate it: `ws` under stomp.js and the client library, and the
// WebSocket of Node (undici), which offers what browsers offer.
import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../../sdk/js/warren-client.js";
import { Cluster } from "../../sdk/js/test/support/nodes.js";

const Undici = globalThis.WebSocket;
const { Inbox, modern, within } = await import("./clients.js");

const ACCEPTED = "permessage-deflate";
// `ws` compresses what is longer than 1,024 bytes.
const LONG = JSON.stringify(Array.from({ length: 200 }, (_, at) => ({ row: at, name: `gr\u00fc\u00df dich, ${at}`, state: "open" })));

async function node(t, compression) {
  const cluster = await Cluster.start(t, 1, { WARREN_COMPRESSION: compression });
  return cluster.nodes[0];
}

test("stomp.js over ws: both directions", async (t) => {
  for (const compression of ["on", "off"]) {
    const { ws: url } = await node(t, compression);
    const alice = await modern(t, { url, headers: { login: "alice", passcode: "any" } }).connect();
    assert.ok(compression === "on" ? ACCEPTED in extensions(alice.socket) : !alice.socket.extensions, alice.socket.extensions);
    const room = await alice.subscribe("/topic/room");
    for (const text of ["short", LONG]) {
      await alice.send("/topic/room", text);
      assert.equal((await room.next()).body, text);
    }
    await alice.leave();
  }
});

/** By name. */
function extensions(socket) {
  return Object.fromEntries(socket.extensions.split(";").map((part) => [part.trim().split("=")[0], true]));
}

test("the client library over ws", async (t) => {
  const { ws: url } = await node(t, "on");
  const client = connect(url, { user: "alice" });
  t.after(() => client.close());
  const inbox = new Inbox();
  client.on("message", inbox.push);
  await within(client.subscribe("room"), "a subscription");
  for (const payload of ["short", JSON.parse(LONG)]) {
    await within(client.publish("channel.room", payload), "a settlement");
    assert.deepEqual((await inbox.next()).payload, payload);
  }
});

test("the WebSocket of Node", { skip: Undici === undefined }, async (t) => {
  const { ws: url } = await node(t, "on");
  const socket = new Undici(`${url}?user=alice`);
  t.after(() => socket.close());
  const inbox = new Inbox();
  socket.onmessage = ({ data }) => inbox.push(JSON.parse(data));
  assert.equal((await inbox.next("welcome")).type, "welcome");
  const say = (frame) => socket.send(JSON.stringify(frame));
  say({ type: "subscribe", id: 1, channel: "room" });
  assert.equal((await inbox.next()).outcome, "ok");
  say({ type: "publish", id: 2, to: "channel.room", payload: JSON.parse(LONG) });
  const frames = [await inbox.next(), await inbox.next()];
  const { payload } = frames.find(({ type }) => type === "message");
  assert.deepEqual(payload, JSON.parse(LONG));
  // Older versions of undici offer nothing; those that do must have been understood.
  assert.ok(["", ACCEPTED].includes(socket.extensions.split(";")[0]), socket.extensions);
});
