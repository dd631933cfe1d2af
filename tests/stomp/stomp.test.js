// STOMP as the real clients speak it, at real nodes.
import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../../sdk/js/warren-client.js";
import { Cluster } from "../../sdk/js/test/support/nodes.js";
import { CLIENTS, modern, within } from "./clients.js";

/** One node that believes everybody, and what a backend does over HTTP. */
async function setUp(t, env = {}) {
  const cluster = await Cluster.start(t, 1, env);
  const [node] = cluster.nodes;
  const publish = async (message) => {
    const answer = await fetch(`${node.http}/v1/messages`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(message),
    });
    return answer.json();
  };
  return { node, url: node.ws, publish };
}

const as = (login) => ({ login, passcode: "any" });

for (const [name, make] of Object.entries(CLIENTS)) {
  test(`${name}: topics, queues of the user, receipts`, async (t) => {
    const { url, publish } = await setUp(t);
    const [alice, bob] = await Promise.all(
      ["alice", "bob"].map((login) => make(t, { url, headers: as(login) }).connect()),
    );
    assert.match(alice.connected.server, /^warren\//);
    assert.match(alice.connected.session, /^n0~/);
    assert.equal(alice.connected["user-name"], "alice");

    // A colon is what escapes are for, and what old clients do not escape.
    const topic = "/topic/room.a:b";
    const room = await alice.subscribe(topic);
    const settled = await bob.send(topic, JSON.stringify({ text: "grüß dich" }), { "content-type": "application/json" });
    assert.equal(settled.outcome, "published");
    const message = await room.next();
    assert.deepEqual(JSON.parse(message.body), { text: "grüß dich" });
    assert.equal(message.headers.destination, topic);
    assert.equal(message.headers["content-type"], "application/json");
    assert.equal(message.headers["from-user"], "bob");
    assert.equal(message.headers["message-id"], settled["message-id"]);

    // For one user: the event is the path.
    const news = await alice.subscribe("/user/queue/news");
    assert.equal((await bob.send("/user/alice/queue/news", "hi")).outcome, "delivered");
    assert.equal((await news.next()).body, "hi");
    assert.equal((await publish({ to: "user.alice", event: "news", payload: [1] })).outcome, "delivered");
    const fromBackend = await news.next();
    assert.equal(fromBackend.body, "[1]");
    assert.equal(fromBackend.headers.destination, "/user/queue/news");

    // stomp.js and webstomp split at 16 KiB, between any two UTF-16 units.
    const long = "äöü€".repeat(12_000 / 4);
    await bob.send(topic, long);
    assert.equal((await room.next()).body, long);

    room.subscription.unsubscribe();
    await bob.send(topic, "nobody is there");
    assert.equal((await bob.send("/user/alice/queue/news", "last")).outcome, "delivered");
    assert.equal((await news.next()).body, "last");
    assert.ok(room.isEmpty);
    await alice.leave();
    assert.equal((await publish({ to: "user.alice", event: "news", payload: 1 })).outcome, "stored");
  });
}

test("webstomp-client gets the best version, whatever it names first", async (t) => {
  const { url } = await setUp(t);
  const client = await CLIENTS["webstomp-client"](t, { url, headers: as("alice") }).connect();
  assert.equal(client.socket.protocol, "v12.stomp");
  assert.equal(client.connected.version, "1.2");
});

test("stompjs 2.3.3 and @stomp/stompjs see heart-beats", async (t) => {
  const { url } = await setUp(t);
  const old = CLIENTS["stompjs 2.3.3"](t, { url, headers: as("alice") });
  old.client.heartbeat = { incoming: 5_000, outgoing: 0 };
  const beats = new Promise((resume) => (old.onDebug = (text) => text === "<<< PONG" && resume()));
  let fail;
  const dead = new Promise((_, reject) => (fail = reject));
  await old.connect();
  assert.equal(old.connected["heart-beat"], "5000,0");
  const debug = (text) => text.includes("did not receive server activity") && fail(new Error(text));
  const client = await modern(t, { url, headers: as("bob"), beats: 5_000, debug }).connect();
  assert.equal(client.connected["heart-beat"], "5000,0");
  // Two of their intervals: they would have given up.
  const alive = new Promise((resume) => setTimeout(resume, 12_000));
  await Promise.race([Promise.all([within(beats, "a heart-beat"), alive]), dead]);
  assert.ok(client.client.connected && old.client.connected);
});

for (const [name, version] of [["@stomp/stompjs 1.2", "1.2"], ["@stomp/stompjs 1.1", "1.1"], ["stompjs 2.3.3", "1.1"], ["webstomp-client", "1.2"]]) {
  test(`${name}: messages count when they are acknowledged`, async (t) => {
    const { url, publish } = await setUp(t);
    const alice = await CLIENTS[name](t, { url, headers: as("alice") }).connect();
    assert.equal(alice.connected.version, version);
    const each = await alice.subscribe("/user/queue/each", { ack: "client-individual" });
    const upTo = await alice.subscribe("/user/queue/upto", { ack: "client" });

    const fate = publish({ to: "user.alice", event: "each", payload: 1 });
    const message = await each.next();
    assert.equal(await Promise.race([fate, new Promise((resume) => setTimeout(resume, 200, "waits"))]), "waits");
    alice.ack(message);
    assert.equal((await fate).outcome, "delivered");

    // One ACK for three, and not for the other subscription.
    const three = [1, 2, 3].map((payload) => publish({ to: "user.alice", event: "upto", payload }));
    const other = publish({ to: "user.alice", event: "each", payload: 4 });
    const shown = [await upTo.next(), await upTo.next(), await upTo.next()];
    const left = await each.next();
    alice.ack(shown[2]);
    assert.deepEqual((await Promise.all(three)).map(({ outcome }) => outcome), Array(3).fill("delivered"));

    alice.nack(left);
    assert.equal((await other).error.code, "declined");

    // What is not acknowledged when the client leaves is kept.
    const kept = publish({ to: "user.alice", event: "each", payload: "kept" });
    await each.next();
    await alice.leave();
    assert.equal((await kept).outcome, "stored");
    const again = await CLIENTS[name](t, { url, headers: as("alice") }).connect();
    const inbox = await again.subscribe("/user/queue/each");
    const repeated = await inbox.next();
    assert.deepEqual([repeated.body, repeated.headers.redelivered], ['"kept"', "true"]);
  });
}

test("mail comes with the first subscription to something of the user, not before", async (t) => {
  const { url, publish } = await setUp(t);
  assert.equal((await publish({ to: "user.alice", event: "news", payload: "mail" })).outcome, "stored");
  const alice = await modern(t, { url, headers: as("alice") }).connect();
  await alice.subscribe("/topic/room");
  // Connected, and not there for messages of the user.
  assert.equal((await publish({ to: "user.alice", event: "news", payload: "more" })).outcome, "stored");
  const news = await alice.subscribe("/user/queue/news");
  assert.deepEqual([(await news.next()).body, (await news.next()).body], ['"mail"', '"more"']);
});

test("what no subscription asks for is declined, and said so", async (t) => {
  const { node, url, publish } = await setUp(t);
  assert.equal((await publish({ to: "user.alice", event: "other", payload: "mail" })).outcome, "stored");
  const alice = await modern(t, { url, headers: as("alice") }).connect();
  const news = await alice.subscribe("/user/queue/news");
  const { outcome, error } = await publish({ to: "user.alice", event: "other", payload: 1 });
  assert.deepEqual([outcome, error.code, error.retry], ["rejected", "declined", false]);
  // A session of another protocol takes everything.
  const client = connect(url, { user: "alice" });
  t.after(() => client.close({ timeout: 100 }));
  client.on("message", () => {});
  await client.ready();
  assert.equal((await publish({ to: "user.alice", event: "other", payload: 2 })).sessions, 1);
  // And so does a subscription to all that nothing else asks for; the mail is gone, to the dead letters.
  await client.close({ timeout: 1000 });
  const any = await alice.subscribe("/user/queue/messages");
  assert.equal((await publish({ to: "user.alice", payload: 3 })).outcome, "delivered");
  assert.equal((await any.next()).body, "3");
  assert.ok(news.isEmpty);
  const session = alice.connected.session;
  assert.equal((await publish({ to: `session.${session}`, event: "news", payload: 4 })).outcome, "delivered");
  assert.equal((await news.next()).body, "4");
  const user = await (await fetch(`${node.http}/v1/users/alice`)).json();
  assert.equal(user.sessions.length, 1);
});

test("warren.v1 and STOMP share channels, users and broadcasts", async (t) => {
  const { url } = await setUp(t);
  const client = connect(url, { user: "carol" });
  t.after(() => client.close({ timeout: 100 }));
  await client.ready();
  const seen = [];
  client.on("message", (message) => void seen.push(message));
  const alice = await modern(t, { url, headers: as("alice") }).connect();
  await client.subscribe("room");
  const room = await alice.subscribe("/topic/room");
  const everyone = await alice.subscribe("/broadcast");
  const bytes = new Uint8Array([0, 255, 1, 0]);
  await alice.send("/topic/room", bytes, { "content-type": "application/octet-stream" });
  assert.deepEqual([...(await room.next()).binaryBody], [...bytes]);
  await alice.send("/user/carol/queue/news", "text", { "content-type": "text/plain" });
  await alice.send("/topic/room", '{"a": 1}');
  assert.equal((await room.next()).body, '{"a": 1}');
  await client.publish("broadcast", { all: true });
  assert.equal((await everyone.next()).body, '{"all":true}');
  await within((async () => { while (seen.length < 4) await new Promise((resume) => setTimeout(resume, 10)); })(), "four messages");
  assert.deepEqual(
    seen.map(({ event, payload }) => [event, payload]),
    [
      [undefined, bytes],
      ["/queue/news", "text"],
      [undefined, { a: 1 }],
      [undefined, { all: true }],
    ],
  );
});

test("the application gets what is sent to it, and whoever sends hears of it", async (t) => {
  const { url } = await setUp(t);
  const alice = await modern(t, { url, headers: as("alice") }).connect();
  // The demo service of a node without a broker listens there; nobody listens elsewhere.
  assert.equal((await alice.send("/app/echo", '{"sku":7}')).outcome, "published");
  alice.client.publish({ destination: "/app/nobody/there", body: "1", headers: { receipt: "r" } });
  const { headers } = await alice.errors.next();
  assert.deepEqual([headers.code, headers["receipt-id"]], ["no_backend", "r"]);
});

test("an ERROR says what is wrong, and ends the connection", async (t) => {
  const { url } = await setUp(t);
  for (const [destination, part] of [
    ["/topic/*", "wildcards"],
    ["/queue/work", "share no queues"],
    ["/app/orders", "application"],
  ]) {
    const alice = await modern(t, { url, headers: as("alice") }).connect();
    alice.client.subscribe(destination, () => {});
    const { headers, body } = await alice.errors.next();
    assert.match(headers.message, new RegExp(part));
    assert.match(body, new RegExp(part));
    assert.equal(headers.code, "bad_request");
    assert.equal((await alice.closes.next("the close")).code, 4000);
  }
  const alice = await modern(t, { url, headers: as("alice") }).connect();
  const transaction = alice.client.begin();
  assert.match((await alice.errors.next()).headers.message, /transactions are not supported/);
  assert.ok(transaction);
});

test("a page that subscribes to its errors is told there, and goes on", async (t) => {
  const { url } = await setUp(t);
  const alice = await modern(t, { url, headers: as("alice") }).connect();
  const errors = await alice.subscribe("/user/queue/errors");
  alice.client.publish({ destination: "/queue/work", body: "x", headers: { receipt: "mine" } });
  const refused = await errors.next();
  assert.equal(refused.headers["receipt-id"], "mine");
  assert.equal(JSON.parse(refused.body).code, "bad_request");
  // A session that is nowhere: refused late.
  alice.client.publish({ destination: "/session/n0~zzzz/queue/x", body: "x", headers: { receipt: "late" } });
  const offline = await errors.next();
  assert.deepEqual(
    [offline.headers["receipt-id"], offline.headers.code, offline.headers.outcome],
    ["late", "offline", "rejected"],
  );
  assert.equal((await alice.send("/topic/room", "1")).outcome, "published");
});

test("tokens go into passcode or Authorization", async (t) => {
  const secret = "0123456789abcdef0123456789abcdef";
  const { url, node } = await setUp(t, { WARREN_JWT_SECRET: secret });
  const { createHmac } = await import("node:crypto");
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const unsigned = `${part({ alg: "HS256" })}.${part({ sub: "alice", exp: Math.floor(Date.now() / 1000) + 600 })}`;
  const token = `${unsigned}.${createHmac("sha256", secret).update(unsigned).digest("base64url")}`;
  for (const headers of [
    { login: "ignored", passcode: token },
    { Authorization: `Bearer ${token}`, "X-CSRF-TOKEN": "ignored", host: "ignored" },
  ]) {
    const alice = await modern(t, { url, headers }).connect();
    assert.equal(alice.connected["user-name"], "alice");
    await alice.leave();
  }
  for (const headers of [{}, { login: "alice", passcode: "guess" }]) {
    const stranger = modern(t, { url, headers });
    stranger.client.activate();
    assert.match((await stranger.errors.next()).headers.message, /never into the URL/);
    assert.equal((await stranger.closes.next("the close")).code, 4001);
  }
  assert.ok(node);
});

test("a node that stops says so", async (t) => {
  const { node, url } = await setUp(t, { WARREN_DRAIN_MS: "500" });
  const alice = await modern(t, { url, headers: as("alice") }).connect();
  await alice.subscribe("/user/queue/x");
  const stopped = node.stop("SIGTERM");
  const { headers } = await alice.errors.next();
  assert.deepEqual([headers.code, headers.reconnect], ["4200", "true"]);
  assert.ok(Number(headers["after-ms"]) >= 0);
  assert.equal((await alice.closes.next("the close")).code, 4200);
  await stopped;
});
