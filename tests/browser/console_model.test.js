// What the console makes of the reports of nodes, and which messages it keeps: without a browser.
import assert from "node:assert/strict";
import { test } from "node:test";

import { excerpt, Feed, KEPT, outcomeOf } from "../../console/feed.js";
import { duration, figure, healthOf, HISTORY, latency, Model, sentence, sparkline } from "../../console/model.js";

const totals = (delivered, rejected, handed) => ({ settled: { delivered, rejected }, handed });
const node = (name, more = {}) => ({ node: name, answered: true, link: "ready", draining: false, started_ms: 1, sessions: 2, users: 1, pending: 0, totals: totals(0, 0, 0), ...more });
const cluster = (at_ms, nodes) => ({ asked: "a", at_ms, nodes, channels: [], mail: { users: 1, messages: 3, bytes: 9 } });

test("rates are those of one process between two looks", () => {
  const model = new Model();
  model.take(cluster(1_000, [node("a", { totals: totals(100, 0, 500) })]));
  assert.deepEqual([model.nodes[0].in, model.nodes[0].out], [0, 0], "no rate after one look");
  model.take(cluster(3_000, [node("a", { totals: totals(140, 6, 700) })]));
  assert.deepEqual([model.nodes[0].in, model.nodes[0].out, model.nodes[0].rejected], [20, 100, 3]);
  model.take(cluster(4_000, [node("a", { totals: totals(5, 0, 9), started_ms: 2 })]));
  assert.deepEqual([model.nodes[0].in, model.nodes[0].out], [0, 0], "another process");
  model.take(cluster(4_000, [node("a", { totals: totals(9, 0, 9), started_ms: 2 })]));
  assert.equal(model.nodes[0].in, 0, "no time has passed");
  assert.deepEqual(model.figures(), { sessions: 2, users: 1, in: 0, out: 0, pending: 0, mail: 3, rejected: 0 });
  for (let n = 0; n < 2 * HISTORY; n += 1) model.take(cluster(5_000 + n, [node("a")]));
  assert.equal(model.history.sessions.length, HISTORY);
});

test("what is wrong is said in one sentence", () => {
  const said = (...nodes) => sentence(nodes, "a");
  assert.deepEqual(said(node("a"), node("b")), { level: "good", text: "2 nodes, all well" });
  assert.deepEqual(said(node("a", { link: "standalone" })), { level: "good", text: "Standalone, all well" });
  assert.deepEqual(said(node("a"), { node: "b", answered: false }), { level: "bad", text: "b: no answer" });
  assert.deepEqual(said(node("a", { link: "down" }), { node: "b", answered: false }), { level: "bad", text: "a: broker lost" });
  assert.deepEqual(said(node("a"), node("b", { draining: true }), node("c", { draining: true })), { level: "warn", text: "2 of 3 nodes: draining" });
  assert.deepEqual(said(node("a"), node("b", { draining: true }), node("c", { link: "blocked" })).text, "2 of 3 nodes need a look");
  assert.equal(healthOf(node("a", { link: "of a newer version" })).level, "good");
});

test("figures are short and honest", () => {
  const pairs = { 0: "0", 0.44: "0.4", 7: "7", 12.6: "13", 1002: "1,002", 99_999: "99,999", 123_456: "123 k", 1_500_000: "1.5 M" };
  for (const [value, text] of Object.entries(pairs)) assert.equal(figure(Number(value)), text);
  assert.deepEqual([0, 59_999, 61_000, 7_200_000, 400_000_000].map(duration), ["0 s", "59 s", "1 min", "2 h", "4 d"]);
  assert.deepEqual([0.84, 14.2, 1_234].map(latency), ["0.8 ms", "14 ms", "1.2 s"]);
  assert.equal(sparkline([1], 120, 28), "");
  assert.match(sparkline([0, 5], 120, 28), /^M119\.0 27\.0L120\.0 1\.0$/);
});

test("the latest messages are kept, whatever comes in which order", () => {
  const feed = new Feed();
  const bob = { user: "bob", node: "b", session: "b~1" };
  // Its receiver may get a message before its sender hears of it.
  feed.received("m", { client: bob, from: "alice", to: "user.bob", payload: 1 }, 5);
  assert.equal(outcomeOf(feed.get("m")), "received");
  feed.settled("m", "delivered", "1 session", 9);
  assert.equal(outcomeOf(feed.get("m")), "delivered");
  feed.sent("n", { from: "alice", to: "user.bob", payload: 2, origin: "a" }, 10);
  assert.equal(outcomeOf(feed.get("n")), "pending");
  for (let n = 0; n < 80; n += 1) feed.received("n", { client: bob }, 11);
  assert.deepEqual([feed.get("n").taken, feed.get("n").receipts.length, feed.get("n").payload], [80, 50, 2]);
  for (let n = 0; n < KEPT; n += 1) feed.sent(`x${n}`, {}, n);
  assert.deepEqual([feed.get("m"), feed.get("n"), feed.count, feed.latest(2).map(({ id }) => id)], [undefined, undefined, KEPT + 2, [`x${KEPT - 1}`, `x${KEPT - 2}`]]);
  assert.deepEqual([excerpt("a\n b"), excerpt({ a: [1] }), excerpt(undefined), excerpt(new Uint8Array(3)), excerpt("x".repeat(99), 5)], ["a b", `{"a":[1]}`, "", "3 bytes", "xxxx…"]);
});
