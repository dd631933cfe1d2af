// Channels and presence, as the frames of warren.v1 have them.
import assert from "node:assert/strict";
import { test } from "node:test";

import { setUp } from "../support/client.js";
import { until } from "../support/fake-server.js";

test("subscriptions are restored before anything else is sent", async (t) => {
  let confirm = true;
  const { server, clock, client, events } = await setUp(t, {}, (server) => {
    server.answer = ({ type }) => {
      if (type === "subscribe") return confirm ? { outcome: "ok", count: 3 } : null;
      return type === "publish" ? { outcome: "published" } : { outcome: "ok" };
    };
  });
  assert.deepEqual(await client.subscribe("room", { presence: true }), { count: 3 });
  await client.subscribe("news");
  await client.subscribe("gone");
  await client.unsubscribe("gone");
  const types = server.connections[0].frames.map(({ type, channel, presence }) => [type, channel, presence]);
  assert.deepEqual(types, [
    ["subscribe", "room", true], ["presence", "room", undefined], ["subscribe", "news", false], ["subscribe", "gone", false], ["unsubscribe", "gone", undefined],
  ]);
  confirm = false;
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  const published = client.publish("channel.room", "hi", { echo: false });
  await clock.advance(1_000);
  const connection = await server.connection(1);
  await connection.frame("subscribe", 1);
  assert.equal(client.state, "connecting");
  assert.deepEqual(connection.frames.map(({ type, channel }) => [type, channel]), [["subscribe", "room"], ["subscribe", "news"]]);
  for (const { id } of connection.frames) connection.send({ type: "reply", id, outcome: "ok", count: 1 });
  assert.equal((await published).outcome, "published");
  assert.equal(connection.of("publish")[0].echo, false);
  assert.deepEqual(client.channels, ["room", "news"]);
  assert.deepEqual(events.gap, [{ reason: "reconnected" }]);
});

test("a subscription that is refused rejects, or is told as unsubscribed after a reconnect", async (t) => {
  let refuse = true;
  const { server, clock, client, events } = await setUp(t, {}, (server) => {
    server.answer = () => refuse ? { error: { code: "forbidden", message: "not yours", retry: false } } : { outcome: "ok" };
  });
  await assert.rejects(client.subscribe("private.x"), { code: "forbidden" });
  refuse = false;
  await client.subscribe("room");
  refuse = true;
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await until(() => events.unsubscribed.length === 1);
  assert.equal(events.unsubscribed[0].channel, "room");
  assert.equal(events.unsubscribed[0].error.code, "forbidden");
  await client.ready();
  assert.deepEqual(client.channels, []);
});

test("a subscription is tried again after an error that may pass, and made when the connection is there", async (t) => {
  const answers = [{ error: { code: "rate_limited", message: "", retry: true } }, { outcome: "ok", count: 1 }];
  const { server, clock, client } = await setUp(t, {}, (server) => (server.answer = () => answers.shift()));
  const subscribed = client.subscribe("room");
  await until(() => clock.timers.includes(750));
  assert.equal(client.state, "open", "the rest does not wait for it");
  await clock.advance(750);
  assert.deepEqual(await subscribed, { count: 1 });
  const refused = assert.rejects(client.subscribe("other"), { code: "closed" });
  await client.close({ timeout: 0 });
  await refused;
  assert.equal(server.connections.length, 1);
});

test("a gateway that does not answer subscriptions holds publishes back for a bounded time", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => {
    server.answer = ({ type }) => (type === "publish" ? { outcome: "published" } : null);
  });
  client.subscribe("room").catch(() => {});
  const published = client.publish("channel.room", 1);
  await server.connection(0).then((connection) => connection.frame("subscribe"));
  await clock.advance(5_000);
  await published;
});

test("the gateway takes a session out of a channel, and tells who comes and goes", async (t) => {
  const { server, client, events } = await setUp(t, {}, (server) => {
    server.accept = (connection) => connection.welcome({ channels: ["given"] });
    server.answer = () => ({ outcome: "ok" });
  });
  await client.subscribe("room");
  assert.deepEqual(client.channels, ["room", "given"]);
  server.connections[0].send({ type: "presence", channel: "room", event: "join", user: "bob", count: 2 });
  server.connections[0].send({ type: "unsubscribed", channel: "room", reason: "removed" });
  await until(() => events.unsubscribed.length === 1);
  assert.deepEqual(events.presence[0].user, "bob");
  assert.deepEqual(client.channels, ["given"]);
});

test("presence is asked for by target, again after a reconnect", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => (server.answer = () => null));
  const online = client.presence("user.bob");
  const connection = await server.connection(0);
  assert.equal((await connection.frame("presence")).user, "bob");
  connection.cut();
  await until(() => client.state === "waiting");
  server.answer = ({ channel }) => channel ? { outcome: "ok", users: ["bob"], count: 1 } : { outcome: "ok", online: true, sessions: 2 };
  await clock.advance(1_000);
  assert.deepEqual(await online, { online: true, sessions: 2 });
  assert.deepEqual(await client.presence("channel.a.b"), { users: ["bob"], count: 1 });
  await assert.rejects(client.presence("bob"), { code: "bad_request" });
});

test("who is there comes as a state first, again after a reconnect, and then as changes", async (t) => {
  let there = ["alice"];
  const { server, clock, client, events } = await setUp(t, {}, (server) => {
    server.answer = ({ type }) => {
      if (type === "presence") return there ? { outcome: "ok", count: there.length, users: there } : { error: { code: "overloaded", message: "", retry: true } };
      return { outcome: "ok", count: 1 };
    };
  });
  await client.subscribe("quiet");
  await client.subscribe("room", { presence: true });
  await until(() => events.presence.length === 1);
  assert.deepEqual(events.presence[0], { channel: "room", event: "state", count: 1, users: ["alice"] });
  const join = { type: "presence", channel: "room", event: "join", user: "bob", count: 2 };
  server.connections[0].send(join);
  await until(() => events.presence.length === 2);
  assert.equal(events.presence[1].user, "bob");
  there = null;
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await client.ready();
  const connection = await server.connection(1);
  await connection.frame("presence");
  assert.equal(events.presence.length, 2);
  there = Array.from({ length: 3 }, (_, at) => `user${at}`);
  await until(() => clock.timers.length > 0);
  await clock.advance(1_000);
  await until(() => events.presence.length === 3);
  assert.deepEqual(events.presence[2], { channel: "room", event: "state", count: 3, users: there });
  assert.deepEqual(connection.of("presence").map(({ channel }) => channel), ["room", "room"]);
  // Nobody who has left asks.
  await client.unsubscribe("room");
  await client.subscribe("room");
  assert.equal(connection.of("presence").length, 2);
});
