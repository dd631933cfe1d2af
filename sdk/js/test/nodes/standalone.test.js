// One real node: the protocol as the gateway speaks it.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";

import { connect } from "../../warren-client.js";
import { Cluster, eventually } from "../support/nodes.js";

const SECRET = "a-secret-that-only-the-tests-ever-use";

function client(t, url, options) {
  const made = connect(url, options);
  t.after(() => made.close({ timeout: 1_000 }));
  return made;
}

function token(sub, seconds) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const iat = Math.floor(Date.now() / 1000);
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub, iat, exp: iat + seconds })}`;
  return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
}

test("publish, receive, acknowledge, mail, session and broadcast", async (t) => {
  const { nodes: [node] } = await Cluster.start(t, 1);
  const alice = client(t, node.ws, { user: "Zoë @ work" });
  const bob = client(t, node.ws, { user: "bob" });
  const shown = [];
  alice.on("message", ({ payload, to, from, event }) => shown.push([payload, to, from, event]));
  await Promise.all([alice.ready(), bob.ready()]);
  const settled = await bob.publish("user.Zoë @ work", { n: 1 }, { event: "note" });
  assert.deepEqual([settled.outcome, settled.sessions], ["delivered", 1]);
  assert.deepEqual(shown, [[{ n: 1 }, "user.Zoë @ work", { user: "bob", session: bob.session }, "note"]]);
  assert.equal((await bob.publish(`session.${alice.session}`, 2)).outcome, "delivered");
  assert.equal((await bob.publish("broadcast", 3)).outcome, "published");
  await eventually(() => shown.length === 3);
  await assert.rejects(bob.publish("session.n0~zzz", 1), { code: "offline", retry: false });

  assert.equal((await bob.publish("user.carol", "for later")).outcome, "stored");
  const carol = client(t, node.ws, { user: "carol" });
  for await (const message of carol) {
    assert.equal(message.payload, "for later");
    carol.ack(message);
    break;
  }
});

test("hundreds at once stay within the gateway's limits, and in order", async (t) => {
  const { nodes: [node] } = await Cluster.start(t, 1, { WARREN_MESSAGE_RATE: "200", WARREN_IN_FLIGHT_PER_SESSION: "8" });
  const alice = client(t, node.ws, { user: "alice" });
  const bob = client(t, node.ws, { user: "bob" });
  const shown = [];
  alice.on("message", ({ payload }) => shown.push(payload));
  await alice.ready();
  const numbers = Array.from({ length: 500 }, (_, n) => n);
  const settled = await Promise.all(numbers.map((n) => bob.publish("user.alice", n)));
  assert.equal(settled.every(({ outcome }) => outcome === "delivered"), true);
  assert.deepEqual(shown, numbers);
});

test("tokens: a good one, one that is refreshed, one that expires, one that is refused", async (t) => {
  const { nodes: [node] } = await Cluster.start(t, 1, { WARREN_JWT_SECRET: SECRET });
  const states = [];
  let fetched = 0;
  const alice = client(t, node.ws, { token: async () => token("alice", (fetched += 1) === 1 ? 3 : 600) });
  alice.on("state", ({ state }) => states.push(state));
  await alice.ready();
  assert.equal(alice.user, "alice");
  await eventually(() => fetched === 2, "a refresh before the token expires");

  const expiring = client(t, node.ws, { token: token("bob", 2) });
  await expiring.ready();
  await eventually(() => expiring.state === "failed");
  const bad = client(t, node.ws, { token: "no.such.token" });
  await assert.rejects(bad.ready(), { code: "closed", closeCode: 4001 });
  assert.equal(alice.state, "open");
  await new Promise((resume) => setTimeout(resume, 1_500)); // Past the end of the first token.
  assert.deepEqual(states, ["open"]);
});

test("a handler that fails for longer than the gateway waits gets the message again", { timeout: 90_000 }, async (t) => {
  const { nodes: [node] } = await Cluster.start(t, 1);
  const alice = client(t, node.ws, { user: "alice" });
  const errors = [];
  const shown = [];
  const codes = [];
  let works = false;
  alice.on("error", (error) => errors.push(error.code));
  alice.on("state", ({ state, code }) => state === "waiting" && (codes.push(code), (works = true)));
  alice.on("message", ({ payload, redelivered }) => {
    if (!works) throw new Error("the database is away");
    shown.push([payload, redelivered]);
  });
  await alice.ready();
  const bob = client(t, node.ws, { user: "bob" });
  bob.publish("user.alice", "important").catch(() => {});
  await eventually(() => shown.length === 1, "redelivery", 60_000);
  assert.deepEqual([codes, shown, errors.length], [[4103], [["important", true]], 5]);
});

test("what this gateway cannot do yet is refused by name", async (t) => {
  const { nodes: [node] } = await Cluster.start(t, 1);
  const alice = client(t, node.ws, { user: "alice" });
  const refused = (promise) => promise.then(() => "done", ({ code }) => code);
  const outcomes = await Promise.all([
    refused(alice.subscribe("room")),
    refused(alice.presence("user.bob")),
    refused(alice.request("orders", 1, { timeout: 3_000 })),
    refused(alice.publish("app.orders", 1)),
  ]);
  for (const outcome of outcomes) assert.match(outcome, /^(done|bad_request|no_backend|no_answer)$/);
  assert.equal(alice.state, "open");
});

test("the demo service answers requests, and keys that nobody listens for are refused", async (t) => {
  const { nodes: [node] } = await Cluster.start(t, 1);
  const alice = client(t, node.ws, { user: "alice" });
  assert.deepEqual(await alice.request("echo", { sku: [1, "\u00e9"] }), { sku: [1, "\u00e9"] });
  assert.equal(await alice.request("app.echo", null), null);
  assert.equal((await alice.publish("app.echo", 1)).outcome, "published");
  await assert.rejects(alice.request("orders", 1), { code: "no_backend", retry: false });
  await assert.rejects(alice.request("echo", 1, { timeout: 60_001 }), { code: "bad_request" });
  const answers = await Promise.all(Array.from({ length: 200 }, (_, n) => alice.request("echo", n)));
  assert.deepEqual(answers, Array.from({ length: 200 }, (_, n) => n));
});

test("the node serves the library that is tested here", async (t) => {
  const { nodes: [node] } = await Cluster.start(t, 1);
  const answer = await fetch(`${node.http}/warren-client.js`);
  assert.equal(answer.headers.get("content-type"), "text/javascript; charset=utf-8");
  const again = await fetch(`${node.http}/warren-client.js`, { headers: { "if-none-match": answer.headers.get("etag") } });
  assert.equal(again.status, 304);
  const head = await fetch(`${node.http}/warren-client.js`, { method: "HEAD" });
  const text = await answer.text();
  assert.equal(head.headers.get("content-length"), String(Buffer.byteLength(text)));
  const { readFile } = await import("node:fs/promises");
  assert.equal(text, await readFile(new URL("../../warren-client.js", import.meta.url), "utf8"));
});
