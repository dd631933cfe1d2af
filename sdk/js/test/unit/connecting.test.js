// When the client connects, how long it waits, and when it gives up.
import assert from "node:assert/strict";
import { test } from "node:test";

import { connect, WarrenError } from "../../warren-client.js";
import { setUp } from "../support/client.js";
import { until } from "../support/fake-server.js";

/** A JWT of which only the claims matter here. */
function jwt(claims) {
  return `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.c2ln`;
}

test("the token travels as second subprotocol, and acknowledgement is asked for", async (t) => {
  const { server, client } = await setUp(t, { user: undefined, token: "abc.def" });
  await client.ready();
  assert.equal(server.connections[0].url, "/ws?ack=client");
  assert.match(server.connections[0].protocols, /^warren\.v1, ?bearer\.abc\.def$/);
  assert.equal(client.session, "fake~1");
});

test("a user of the insecure mode travels in the query, percent-encoded", async (t) => {
  const { server, client } = await setUp(t, { user: "Zoë @ work&x", ack: false });
  await client.ready();
  assert.equal(server.connections[0].url, "/ws?user=Zo%C3%AB%20%40%20work%26x");
});

test("a token that cannot be a subprotocol travels in the first frame", async (t) => {
  const accept = (connection) => void connection.frame("auth").then(() => connection.welcome());
  const { server, client } = await setUp(t, { user: undefined, token: "a token, with spaces" }, (s) => (s.accept = accept));
  await client.ready();
  assert.deepEqual(server.connections[0].frames, [{ type: "auth", token: "a token, with spaces" }]);
});

test("after a refused handshake the token goes into the first frame, whose refusal can be read", async (t) => {
  const { server, clock, client, events, states } = await setUp(t, { user: undefined, token: "bad" }, (server) => {
    server.refuse = ({ protocols }) => protocols.includes("bearer");
    server.accept = (connection) => void connection.frame("auth").then(() => connection.close(4001, "unauthorized"));
  });
  const lost = assert.rejects(client.publish("user.bob"), { code: "closed", closeCode: 4001 });
  await until(() => client.state === "waiting");
  assert.equal(events.state.at(-1).retryInMs, 750);
  await clock.advance(750);
  await until(() => client.state === "failed");
  assert.equal(server.connections.length, 2);
  assert.deepEqual(states(), ["waiting", "connecting", "failed"]);
  assert.equal(events.error[0].closeCode, 4001);
  await lost;
  await assert.rejects(client.publish("user.bob"), { code: "closed" });
  await assert.rejects(client.ready(), WarrenError);
});

test("the backoff has full jitter between 0.5 and 20 s, and begins anew after a stable connection", async (t) => {
  let random = 0;
  const { server, clock, client, events } = await setUp(t, { env: { random: () => random } }, (server) => {
    server.refuse = () => server.connections.length <= 9;
  });
  for (let n = 0; n < 9; n += 1) {
    random = n % 2 ? 0.999999 : 0;
    await until(() => events.state.filter(({ state }) => state === "waiting").length === n + 1);
    const wait = events.state.at(-1).retryInMs;
    assert.equal(wait, Math.round(500 + random * Math.min(19_500, 500 * 2 ** n)), `wait ${n}`);
    await clock.advance(wait);
  }
  await client.ready();
  random = 0.999999;
  await clock.advance(1_999);
  server.connections[9].cut();
  await until(() => client.state === "waiting");
  assert.equal(events.state.at(-1).retryInMs, 20_000);
  await clock.advance(20_000);
  await client.ready();
  await clock.advance(9_999);
  server.connections[10].close(4102);
  await until(() => client.state === "waiting");
  assert.equal(events.state.at(-1).retryInMs, 20_000);
  await clock.advance(20_000);
  await client.ready();
  await clock.advance(2_000);
  server.connections[11].cut();
  await until(() => client.state === "waiting");
  assert.equal(events.state.at(-1).retryInMs, 1_000);
});

test("a gateway that shuts down says when to come back, and nothing shortens that", async (t) => {
  const window = new EventTarget();
  const { server, clock, client, events } = await setUp(t, { env: { window } });
  await client.ready();
  server.connections[0].close(4200, "node drains", { after_ms: 7_000 });
  await until(() => client.state === "waiting");
  assert.deepEqual({ ...events.state.at(-1) }, {
    state: "waiting", previous: "open", code: 4200, reason: "node drains", retryInMs: 7_000,
  });
  window.dispatchEvent(new Event("online"));
  await clock.advance(6_999);
  assert.equal(server.connections.length, 1);
  await clock.advance(1);
  await client.ready();
  assert.deepEqual(events.gap, [{ reason: "reconnected" }]);
});

test("every close code obeys its band", async (t) => {
  for (const code of [1002, 1007, 1009, 4000, 4001, 4003, 4005, 4099]) {
    const { server, client } = await setUp(t);
    await client.ready();
    server.connections[0].close(code);
    await until(() => client.state !== "open");
    assert.equal(client.state, "failed", `${code}`);
  }
  for (const code of [4100, 4101, 4102, 4103, 4104]) {
    const { server, client, events } = await setUp(t, { env: { random: () => 0 } });
    await client.ready();
    server.connections[0].close(code);
    await until(() => client.state !== "open");
    assert.deepEqual([client.state, events.state.at(-1).retryInMs], ["waiting", 1_000], `${code}`);
  }
  for (const code of [1000, 1001, 1011, 4300, 4999]) {
    const { server, client, events } = await setUp(t, { env: { random: () => 0 } });
    await client.ready();
    server.connections[0].close(code);
    await until(() => client.state !== "open");
    assert.deepEqual([client.state, events.state.at(-1).retryInMs], ["waiting", 500], `${code}`);
  }
});

test("a disconnect that forbids to come back is obeyed whatever its code", async (t) => {
  const { server, client } = await setUp(t);
  await client.ready();
  server.connections[0].close(1001, "retired", { reconnect: false });
  await until(() => client.state === "failed");
});

test("connect() begins again after a failure", async (t) => {
  const { server, client } = await setUp(t);
  await client.ready();
  server.connections[0].close(4005);
  await until(() => client.state === "failed");
  client.connect();
  await client.ready();
  assert.equal(server.connections.length, 2);
});

test("an attempt without welcome ends in time, and the next node of a list is tried", async (t) => {
  const { server, clock, client } = await setUp(t, {}, (server) => {
    server.accept = (connection) => server.connections.length > 1 && connection.welcome();
  });
  await server.connection(0);
  await clock.advance(10_000);
  assert.equal(client.state, "waiting");
  await clock.advance(1_000);
  await client.ready();

  const other = connect(["ws://127.0.0.1:9/ws", server.url], { user: "bob", env: { ...clock, random: () => 0 } });
  t.after(() => other.close({ timeout: 0 }));
  await until(() => other.state === "waiting");
  await clock.advance(500);
  await other.ready();
});

test("a token is fetched once, refreshed before it expires, and fetched anew when the gateway refuses it", async (t) => {
  const asked = [];
  let clock;
  const token = () => {
    const iat = Math.floor(clock.time / 1000);
    asked.push(jwt({ sub: "alice", iat, exp: iat + 600, n: asked.length }));
    return Promise.resolve(asked.at(-1));
  };
  const prepare = (server, fake) => (clock = fake);
  const quiet = { heartbeat: 1e9 };
  const { server, client } = await setUp(t, { user: undefined, token, ...quiet }, prepare);
  await client.ready();
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await client.ready();
  assert.equal(asked.length, 1, "the token is good for another connection");
  // 600 s, less 60 s in which a refresh may be tried several times.
  await clock.advance(538_999);
  assert.equal(asked.length, 1);
  await clock.advance(1);
  assert.deepEqual(await server.connections[1].frame("refresh"), { type: "refresh", token: asked[1], id: 1 });
  assert.equal(client.state, "open");
  await until(() => clock.timers.includes(540_000));

  server.answer = (frame) => frame.type === "refresh" && { error: { code: "unauthorized", message: "no", retry: false } };
  await clock.advance(540_000);
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await client.ready();
  assert.equal(server.connections.at(-1).protocols.endsWith(asked.at(-1)), true);
  assert.equal(asked.length, 4, "one for the refresh, and a new one for the new session");
});

test("a session whose token expired comes back with a new one; a fixed token does not", async (t) => {
  let asked = 0;
  const { server, clock, client } = await setUp(t, { user: undefined, token: () => `token-${(asked += 1)}` });
  await client.ready();
  server.connections[0].close(4105, "token expired");
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await client.ready();
  assert.match(server.connections[1].protocols, /token-2$/);

  // Refused although it is kept from before: a new one; refused although it is new: the end.
  server.accept = (connection) => connection.close(4001, "unauthorized");
  server.connections[1].cut();
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await until(() => client.state === "waiting");
  await clock.advance(3_000);
  await until(() => client.state === "failed");
  assert.equal(asked, 3);

  const fixed = await setUp(t, { user: undefined, token: "fixed" });
  await fixed.client.ready();
  fixed.server.connections[0].close(4105, "token expired");
  await until(() => fixed.client.state === "failed");
});

test("a token function that fails is tried again, one without token is the end", async (t) => {
  const answers = [() => Promise.reject(new Error("503")), () => { throw new Error("offline"); }, () => "good", () => null];
  const { server, clock, client, events } = await setUp(t, { user: undefined, token: () => answers.shift()() });
  await until(() => client.state === "waiting");
  await clock.advance(1_000);
  await until(() => events.error.length === 2);
  await clock.advance(2_000);
  await client.ready();
  assert.deepEqual(events.error.map(({ code, retry }) => [code, retry]), [["token", true], ["token", true]]);
  server.connections[0].close(4105);
  await until(() => client.state === "waiting");
  await clock.advance(5_000);
  await until(() => client.state === "failed");
});

test("a clock that is wrong does not refresh in a loop", async (t) => {
  for (const skew of [-3600, 3600]) {
    let asked = 0;
    let clock;
    const token = () => {
      asked += 1;
      const iat = Math.floor(clock.time / 1000) + skew;
      return jwt({ iat, exp: iat + 300 });
    };
    const { client } = await setUp(t, { user: undefined, token }, (server, fake) => (clock = fake));
    await client.ready();
    assert.equal(clock.timers.includes(240_000), true, `${skew}: ${clock.timers}`);
    assert.equal(asked, 1);
  }
});

test("a WebSocket of the application's own is used where there is one", async (t) => {
  let made = 0;
  class Own extends WebSocket {
    constructor(...args) {
      super(...args);
      made += 1;
    }
  }
  const { client } = await setUp(t, { WebSocket: Own });
  await client.ready();
  assert.equal(made, 1);
});

test("wrong use is told at once", () => {
  assert.throws(() => connect("ws://127.0.0.1:9/ws", {}), /token/);
  assert.throws(() => connect("not a url", { user: "a" }), /URL/);
  assert.throws(() => connect("ws://127.0.0.1:9/ws", { user: "a", env: { WebSocket: null } }), /WebSocket/);
});
