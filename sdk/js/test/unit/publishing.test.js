// Publishes are kept until they are settled, over reconnects and retries, in order and within bounds.
import assert from "node:assert/strict";
import { test } from "node:test";

import { setUp } from "../support/client.js";
import { until } from "../support/fake-server.js";

const ids = (connection) => connection.of("publish").map(({ message_id: id }) => id);

test("a publish resolves with its settlement", async (t) => {
  const { server, client } = await setUp(t);
  const settled = await client.publish("user.bob", { a: 1 }, { event: "note", ttl: 5_000, messageId: "m1" });
  assert.deepEqual(settled, { outcome: "delivered", sessions: 1, messageId: "m1" });
  assert.deepEqual(server.connections[0].of("publish"), [
    { type: "publish", id: 1, to: "user.bob", payload: { a: 1 }, event: "note", ttl: 5_000, message_id: "m1" },
  ]);
  const [first, second] = [await client.publish("user.bob"), await client.publish("user.bob")];
  assert.match(first.messageId, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.notEqual(first.messageId, second.messageId);
});

test("what is not settled is sent again after a reconnect, in order, with the same ids", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => {
    server.answer = (frame) => (frame.message_id === "m1" ? { outcome: "stored" } : null);
  });
  const publishes = ["m0", "m1", "m2"].map((messageId) => client.publish("user.bob", messageId, { messageId }));
  assert.equal((await publishes[1]).outcome, "stored");
  await server.connections[0].frame("publish", 2);
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  publishes.push(client.publish("user.bob", "m3", { messageId: "m3" }));
  server.answer = () => ({ outcome: "delivered", sessions: 1 });
  await clock.advance(1_000);
  await Promise.all(publishes);
  assert.deepEqual(ids(server.connections[1]), ["m0", "m2", "m3"]);
  assert.equal(client.pending, 0);
});

test("an error that may pass is tried again, and later publishes to that target wait behind it", async (t) => {
  let refuse = true;
  const { server, clock, client } = await setUp(t, {}, (server) => {
    server.answer = ({ message_id: id }) =>
      id === "m0" && refuse
        ? { error: { code: "unavailable", message: "no broker", retry: true } }
        : { outcome: "delivered", sessions: 1 };
  });
  const first = client.publish("user.bob", 0, { messageId: "m0" });
  await server.connection(0).then((connection) => connection.frame("publish"));
  await until(() => clock.timers.includes(750));
  const second = client.publish("user.bob", 1, { messageId: "m1" });
  await client.publish("user.eve", 2, { messageId: "m2" });
  assert.deepEqual(ids(server.connections[0]), ["m0", "m2"]);
  refuse = false;
  await clock.advance(750);
  await Promise.all([first, second]);
  assert.deepEqual(ids(server.connections[0]), ["m0", "m2", "m0", "m1"]);
});

test("a final error rejects with code, retry and message id, and is not tried again", async (t) => {
  const { server, client } = await setUp(t, {}, (server) => {
    server.answer = () => ({ error: { code: "mailbox_full", message: "full", retry: false }, message_id: "m1" });
  });
  const error = await client.publish("user.bob", 1, { messageId: "m1" }).catch((error) => error);
  assert.deepEqual([error.name, error.code, error.retry, error.messageId], ["WarrenError", "mailbox_full", false, "m1"]);
  assert.equal(server.connections[0].of("publish").length, 1);
});

test("the deadline holds offline, under retries and without an answer", async (t) => {
  const { server, clock, client } = await setUp(t, { deadline: 30_000, heartbeat: 1e9 }, (server) => {
    server.answer = ({ to }) => (to === "user.a" ? { error: { code: "overloaded", message: "", retry: true } } : null);
  });
  await client.ready();
  const late = ["user.a", "user.b"].map((to) => client.publish(to).catch(({ code, retry }) => [code, retry]));
  await server.connections[0].frame("publish", 1);
  await clock.advance(30_000);
  assert.deepEqual(await Promise.all(late), [["timeout", true], ["timeout", true]]);

  server.connections[0].cut();
  await until(() => client.state === "waiting");
  server.refuse = () => true;
  const offline = client.publish("user.c", 1, { deadline: 100 }).catch(({ code }) => code);
  await clock.advance(100);
  assert.equal(await offline, "timeout");
  assert.equal(client.pending, 0);
});

test("a time to live goes on while the publish waits", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => (server.refuse = () => server.connections.length < 2));
  await until(() => client.state === "waiting");
  const long = client.publish("user.bob", 1, { ttl: 10_000 });
  const short = client.publish("user.bob", 2, { ttl: 500 }).catch(({ code }) => code);
  await clock.advance(750);
  assert.equal(await short, "expired");
  await long;
  assert.equal(server.connections[1].of("publish")[0].ttl, 9_250);
});

test("at_most_once is not sent again", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => (server.answer = () => null));
  await client.ready();
  const sent = client.publish("user.bob", 1, { delivery: "at_most_once" }).catch(({ code }) => code);
  assert.equal((await server.connections[0].frame("publish")).delivery, "at_most_once");
  server.connections[0].cut();
  assert.equal(await sent, "disconnected");
  await until(() => client.state === "waiting");
  server.answer = () => ({ outcome: "delivered" });
  const unsent = client.publish("user.bob", 2, { delivery: "at_most_once" });
  await clock.advance(1_000);
  await unsent;
  assert.deepEqual(server.connections[1].of("publish").map(({ payload }) => payload), [2]);
});

test("memory is bounded, with an error that says so", async (t) => {
  const { client } = await setUp(t, { maxPending: 3 }, (server) => (server.answer = () => null));
  for (let n = 0; n < 3; n += 1) client.publish("user.bob", n).catch(() => {});
  await assert.rejects(client.publish("user.bob", 3), { code: "buffer_full", retry: true });
  const bytes = await setUp(t, { maxPendingBytes: 2_000 }, (server) => (server.answer = () => null));
  bytes.client.publish("user.bob", "x".repeat(1_500)).catch(() => {});
  await assert.rejects(bytes.client.publish("user.bob", "x".repeat(500)), { code: "buffer_full" });
  assert.equal(bytes.client.pending, 1);
});

test("what the gateway would close the connection for is refused here", async (t) => {
  const { server, client } = await setUp(t);
  await assert.rejects(client.publish("user.bob", "é".repeat(450)), { code: "too_big" });
  await client.publish("user.bob", "é".repeat(400));
  assert.equal(server.connections[0].of("publish").length, 1);
  const circular = {};
  circular.self = circular;
  await assert.rejects(client.publish("user.bob", circular), TypeError);
  assert.equal(client.state, "open");
});

test("the limits of the welcome are kept: in flight, and a rate", async (t) => {
  const limits = { message_bytes: 1000, publishes_per_second: 10, in_flight: 4 };
  const { server, clock, client } = await setUp(t, {}, (server) => {
    server.accept = (connection) => connection.welcome({ limits });
    server.answer = () => null;
  });
  await client.ready();
  const publishes = Array.from({ length: 20 }, (_, n) => client.publish("user.bob", n));
  const connection = server.connections[0];
  await connection.frame("publish", 3);
  for (let n = 0; n < 6; n += 1) {
    connection.send({ type: "reply", id: connection.of("publish")[n].id, outcome: "delivered" });
    await connection.frame("publish", n + 4);
  }
  server.answer = () => ({ outcome: "delivered" });
  for (const { id } of connection.of("publish").slice(6)) connection.send({ type: "reply", id, outcome: "delivered" });
  await until(() => client.pending === 10);
  assert.equal(connection.of("publish").length, 10, "as many as one second allows");
  assert.equal(clock.timers[0], 100, "the next one waits for its turn");
  await clock.advance(100);
  await connection.frame("publish", 10);
  for (let n = 11; n <= 20; n += 1) await clock.advance(100);
  await Promise.all(publishes);
  assert.deepEqual(connection.of("publish").map(({ payload }) => payload), Array.from({ length: 20 }, (_, n) => n));
});

test("a request is answered by a backend, with bytes as well", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => {
    server.answer = ({ payload }) =>
      payload === "silent" ? null
      : payload === "bytes" ? { outcome: "answered", payload: "AAH/", encoding: "base64" }
      : payload === "none" ? { error: { code: "no_backend", message: "none", retry: false } }
      : { outcome: "answered", payload: { got: payload } };
  });
  assert.deepEqual(await client.request("orders.new", 7, { timeout: 3_000 }), { got: 7 });
  const { id, message_id: messageId, ...frame } = server.connections[0].of("publish")[0];
  assert.deepEqual(frame, { type: "publish", to: "app.orders.new", payload: 7, reply: true, ttl: 3_000 });
  assert.deepEqual(await client.request("orders.new", "bytes"), new Uint8Array([0, 1, 255]));
  await assert.rejects(client.request("orders.new", "none"), { code: "no_backend" });
  const silent = client.request("orders.new", "silent", { timeout: 1_000 });
  silent.catch(() => {});
  await server.connections[0].frame("publish", 3);
  await clock.advance(1_000);
  await assert.rejects(silent, { code: "no_answer", retry: true });
  await client.request("app.orders.new", 8);
  assert.equal(server.connections[0].of("publish").at(-1).to, "app.orders.new", "the whole target means the same");
});

test("a request is sent again while there is time, and not after that", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => (server.answer = () => null));
  const request = client.request("orders", 1, { timeout: 5_000, messageId: "r1" });
  request.catch(() => {});
  await server.connection(0).then((connection) => connection.frame("publish"));
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  server.answer = () => ({ error: { code: "no_answer", message: "the link was lost", retry: true } });
  await clock.advance(1_000);
  const again = await server.connection(1).then((connection) => connection.frame("publish"));
  assert.deepEqual([again.message_id, again.reply, again.ttl < 5_000], ["r1", true, true]);
  await until(() => clock.timers.includes(750), "the error is there, and another try is planned");
  server.answer = () => ({ outcome: "answered", payload: "done" });
  await clock.advance(1_000);
  assert.equal(await request, "done");
});

test("close() sends what waits, and tells what was not settled", async (t) => {
  const { server, clock, client, states } = await setUp(t, {}, (server) => (server.answer = () => null));
  await client.ready();
  const connection = server.connections[0];
  const settled = client.publish("user.bob", 1);
  const left = client.publish("user.bob", 2).catch(({ code }) => code);
  const closed = client.close({ timeout: 2_000 });
  await assert.rejects(client.publish("user.bob", 3), { code: "closed" });
  const { id } = await connection.frame("publish");
  connection.send({ type: "reply", id, outcome: "delivered" });
  await settled;
  assert.equal(client.state, "open");
  await clock.advance(2_000);
  assert.equal(await left, "closed");
  await until(() => connection.closeCode === 1000);
  await closed;
  assert.deepEqual(states().at(-1), "closed");
  assert.deepEqual(clock.timers.filter((at) => at > 1_000), [], "no timer is left");
  await client.close();
});
