// Messages: acknowledged after their handler, shown once, never lost to a handler that fails.
import assert from "node:assert/strict";
import { test } from "node:test";

import { setUp } from "../support/client.js";
import { until } from "../support/fake-server.js";

const acked = (connection) => connection.of("ack").flatMap(({ ids }) => ids);

test("acknowledged after the handler has returned, in batches", async (t) => {
  const { server, clock, client } = await setUp(t);
  const shown = [];
  const finish = [];
  client.on("message", (message) => {
    shown.push(message);
    if (message.id === "slow") return new Promise((done) => finish.push(done));
  });
  await client.ready();
  const connection = server.connections[0];
  for (const id of ["slow", "m1", "m2"]) connection.message(id);
  await until(() => shown.length === 3);
  assert.deepEqual({ ...shown[1] }, {
    id: "m1", from: { user: "bob", session: "x~1" }, to: "user.alice", payload: "m1", ts: 1,
  });
  await until(() => clock.timers.includes(10));
  await clock.advance(10);
  assert.deepEqual((await connection.frame("ack")).ids, ["m1", "m2"]);
  finish[0]();
  await until(() => clock.timers.includes(10));
  await clock.advance(10);
  assert.deepEqual((await connection.frame("ack", 1)).ids, ["slow"]);
  for (let n = 0; n < 32; n += 1) connection.message(`n${n}`);
  assert.equal((await connection.frame("ack", 2)).ids.length, 32);
});

test("what is delivered at most once is not acknowledged, and nothing is without ack", async (t) => {
  const { server, clock, client } = await setUp(t);
  const shown = [];
  client.on("message", ({ id }) => shown.push(id));
  await client.ready();
  const connection = server.connections[0];
  connection.message("b", { to: "broadcast", from: { service: "news" } });
  connection.message("c", { to: "channel.room" });
  connection.message("s", { to: "session.fake~1" });
  await until(() => shown.length === 3 && clock.timers.includes(10));
  await clock.advance(10);
  await connection.frame("ack");
  assert.deepEqual(acked(connection), ["s"]);

  const plain = await setUp(t, { ack: false });
  plain.client.on("message", ({ id }) => shown.push(id));
  await plain.client.ready();
  plain.server.connections[0].message("m1");
  await until(() => shown.length === 4);
  assert.equal(plain.clock.timers.includes(10), false);
});

test("a repeat is not shown and yet acknowledged, also after a reconnect", async (t) => {
  const { server, clock, client } = await setUp(t);
  const shown = [];
  client.on("message", ({ id, from, to }) => shown.push([id, from.user ?? from.service, to]));
  await client.ready();
  server.connections[0].message("m1");
  await until(() => clock.timers.includes(10));
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await client.ready();
  const connection = server.connections[1];
  // The publisher has reconnected as well, so its session is another.
  connection.message("m1", { redelivered: true, from: { user: "bob", session: "y~9" } });
  connection.message("m1", { from: { user: "eve", session: "x~1" } });
  connection.message("m1", { from: { service: "bob" } });
  connection.message("m1", { to: "session.fake~1" });
  await until(() => shown.length === 4 && clock.timers.includes(10));
  await clock.advance(10);
  await until(() => acked(connection).length === 4);
  assert.deepEqual(shown.map(([, from, to]) => `${from} ${to}`), [
    "bob user.alice", "eve user.alice", "bob user.alice", "bob session.fake~1",
  ]);
});

test("a repeat of what a handler still works on is acknowledged when it is done", async (t) => {
  const { server, clock, client, events } = await setUp(t);
  let calls = 0;
  let finish;
  client.on("message", () => new Promise((done) => ((calls += 1), (finish = done))));
  await client.ready();
  server.connections[0].message("m1");
  await until(() => calls === 1);
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await client.ready();
  server.connections[1].message("m1", { redelivered: true });
  server.connections[1].send({ type: "gap", reason: "after it" });
  await until(() => events.gap.length === 2);
  finish();
  await until(() => clock.timers.includes(10));
  await clock.advance(10);
  assert.deepEqual((await server.connections[1].frame("ack")).ids, ["m1"]);
  assert.equal(calls, 1);
});

test("a handler that throws is tried again and never acknowledged; the others are not called twice", async (t) => {
  const { server, clock, client, events } = await setUp(t, { heartbeat: 1e9 });
  let fails = 2;
  const calls = [];
  client.on("message", ({ id }) => void calls.push(`good ${id}`));
  client.on("message", async ({ id }) => {
    calls.push(`bad ${id}`);
    if ((fails -= 1) >= 0) throw new Error("the database is away");
  });
  await client.ready();
  const connection = server.connections[0];
  connection.message("m1");
  await until(() => events.error.length === 1);
  assert.deepEqual([events.error[0].code, events.error[0].received.id], ["handler", "m1"]);
  await clock.advance(1_000);
  await until(() => events.error.length === 2);
  await clock.advance(2_000);
  await until(() => clock.timers.includes(10));
  await clock.advance(10);
  assert.deepEqual((await connection.frame("ack")).ids, ["m1"]);
  assert.deepEqual(calls, ["good m1", "bad m1", "bad m1", "bad m1"]);

  fails = Infinity;
  connection.message("m2");
  for (const wait of [1, 2, 4, 8]) {
    await until(() => clock.timers.includes(1_000 * wait));
    await clock.advance(1_000 * wait);
  }
  await until(() => events.error.length === 7);
  assert.deepEqual(clock.timers, [...clock.timers].filter((at) => at > 1e6), "nothing is tried any more");
  assert.deepEqual(acked(connection), ["m1"]);
  // The gateway gives up on the session and hands the message out again: the handlers get another chance.
  connection.close(4103, "messages not acknowledged");
  await until(() => client.state === "waiting");
  fails = 0;
  await clock.advance(2_000);
  await client.ready();
  server.connections[1].message("m2", { redelivered: true });
  await until(() => clock.timers.includes(10));
  await clock.advance(10);
  assert.deepEqual((await server.connections[1].frame("ack")).ids, ["m2"]);
});

test("messages wait for a listener, and are not acknowledged before", async (t) => {
  const { server, clock, client, events } = await setUp(t);
  await client.ready();
  server.connections[0].message("m1");
  server.connections[0].message("m2");
  await until(() => events.error.length === 1);
  assert.equal(events.error[0].code, "no_listener");
  server.connections[0].send({ type: "gap", reason: "both are there" });
  await until(() => events.gap.length === 1);
  const shown = [];
  client.on("message", ({ id }) => shown.push(id));
  await until(() => shown.length === 2 && clock.timers.includes(10));
  await clock.advance(10);
  assert.deepEqual((await server.connections[0].frame("ack")).ids, ["m1", "m2"]);
});

test("a loop acknowledges with its next turn; a loop that ends leaves the last one", async (t) => {
  const { server, clock, client } = await setUp(t);
  await client.ready();
  const connection = server.connections[0];
  const shown = [];
  const loop = (async () => {
    for await (const message of client) {
      shown.push(message.id);
      if (message.id === "m2") break;
    }
  })();
  for (const id of ["m1", "m2", "m3"]) connection.message(id);
  await loop;
  await until(() => clock.timers.includes(10));
  await clock.advance(10);
  assert.deepEqual((await connection.frame("ack")).ids, ["m1"]);
  assert.deepEqual(shown, ["m1", "m2"]);
  const again = (async () => {
    for await (const message of client) {
      client.ack(message);
      return message.id;
    }
  })();
  connection.message("m3", { redelivered: true });
  assert.equal(await again, "m3");
  await clock.advance(10);
  assert.deepEqual((await connection.frame("ack", 1)).ids, ["m3"]);
});

test("a slow loop loses the oldest events and is told so; loops end with the client", async (t) => {
  const { server, client, events } = await setUp(t, { maxBuffered: 2, ack: false });
  await client.ready();
  const loop = client.events("message");
  for (let n = 0; n < 4; n += 1) server.connections[0].message(`m${n}`);
  await until(() => events.gap.length === 2);
  assert.equal((await loop.next()).value.id, "m2");
  const states = client.events("state");
  await client.close({ timeout: 0 });
  assert.equal((await loop.next()).value.id, "m3");
  assert.equal((await loop.next()).done, true);
  assert.equal((await states.next()).value.state, "closed");
  assert.equal((await states.next()).done, true);
});

test("close() waits for handlers, so that their messages are acknowledged", async (t) => {
  const { server, client } = await setUp(t);
  let finish;
  client.on("message", () => new Promise((done) => (finish = done)));
  await client.ready();
  server.connections[0].message("m1");
  await until(() => finish);
  const closed = client.close();
  finish();
  await closed;
  assert.deepEqual(acked(server.connections[0]), ["m1"]);
});

test("bytes arrive as bytes, nonsense is reported and unknown frames are let be", async (t) => {
  const { server, client, events } = await setUp(t);
  const shown = [];
  client.on("message", (message) => shown.push(message));
  await client.ready();
  server.connections[0].send("{");
  server.connections[0].send({ type: "from the future" });
  server.connections[0].message("m1", { payload: "AP8=", encoding: "base64" });
  await until(() => shown.length === 1);
  assert.deepEqual(shown[0].payload, new Uint8Array([0, 255]));
  assert.equal("encoding" in shown[0], false);
  assert.deepEqual(events.error.map(({ code }) => code), ["protocol"]);
});
