// Three real nodes behind a real RabbitMQ, killed under traffic: nothing is missed, nothing is shown twice.
import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../../warren-client.js";
import { Cluster, eventually, findings, NOTHING, Publisher } from "../support/nodes.js";

const KILLS = Number(process.env.KILLS ?? 8);

test(`${KILLS} nodes are killed under traffic`, { timeout: 240_000 }, async (t) => {
  const cluster = await Cluster.start(t, 3);
  const alice = connect(cluster.urls, { user: "alice" });
  const bob = connect(cluster.urls, { user: "bob" });
  t.after(() => Promise.all([alice.close({ timeout: 100 }), bob.close({ timeout: 100 })]));
  const shown = [];
  alice.on("message", async ({ payload }) => {
    await new Promise((resume) => setTimeout(resume, payload % 7)); // Handlers may be slow, some more than others.
    shown.push(payload);
  });
  await Promise.all([alice.ready(), bob.ready()]);
  const publisher = new Publisher(bob, "user.alice");
  for (let kill = 0; kill < KILLS; kill += 1) {
    // In turn the receiver's node, the publisher's, and any.
    const victim = [alice.node, bob.node, `n${kill % 3}`][kill % 3];
    await cluster.kill(cluster.nodes.findIndex(({ env }) => env.WARREN_NODE_ID === victim));
    await cluster.knowsItself();
    const mark = publisher.count;
    await eventually(() => shown.some((number) => number >= mark), `messages after kill ${kill} of ${victim}`);
  }
  await publisher.stop();
  await eventually(() => findings(publisher, shown).missed.length === 0, "everything is shown").catch(() => {});
  assert.deepEqual(findings(publisher, shown), NOTHING);
  t.diagnostic(`${shown.length} messages, ${KILLS} kills`);
});

test("a node that shuts down moves its clients without a gap in what they get", { timeout: 60_000 }, async (t) => {
  const cluster = await Cluster.start(t, 2, { WARREN_DRAIN_MS: "500" });
  const alice = connect(cluster.urls, { user: "alice" });
  const bob = connect(cluster.urls, { user: "bob" });
  t.after(() => Promise.all([alice.close({ timeout: 100 }), bob.close({ timeout: 100 })]));
  const shown = [];
  const codes = [];
  alice.on("message", ({ payload }) => shown.push(payload));
  alice.on("state", ({ code }) => code && codes.push(code));
  await Promise.all([alice.ready(), bob.ready()]);
  const publisher = new Publisher(bob, "user.alice");
  await eventually(() => shown.length > 10);
  await cluster.nodes.find(({ env }) => env.WARREN_NODE_ID === alice.node).stop("SIGTERM");
  await eventually(() => shown.at(-1) > publisher.count - 5 && alice.state === "open");
  await publisher.stop();
  await eventually(() => findings(publisher, shown).missed.length === 0, "everything is shown").catch(() => {});
  assert.deepEqual(findings(publisher, shown), NOTHING);
  assert.equal(codes[0], 4200);
});
