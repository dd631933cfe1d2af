// The client library in a real browser: nodes that are killed, a frozen tab, a day of sleep, no network.
import assert from "node:assert/strict";
import { readFile, rm, writeFile } from "node:fs/promises";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { Cluster, eventually, findings, NOTHING, Publisher } from "../../sdk/js/test/support/nodes.js";
import { connect } from "../../sdk/js/warren-client.js";
import { clientPage, open, serve, startBrowser } from "./page.js";

const KILLS = Number(process.env.KILLS ?? 20);
const ANY_ORIGIN = { WARREN_ALLOWED_ORIGINS: "*" };

/** A page for alice, and a client in this process that publishes to her. */
async function setUp(t, nodes) {
  const browser = await startBrowser(t);
  const cluster = await Cluster.start(t, nodes, ANY_ORIGIN);
  const opened = await open(t, browser, await serve(t, clientPage(cluster, "alice")));
  await opened.page.waitForFunction(() => window.client?.state === "open");
  const bob = connect(cluster.urls, { user: "bob", ack: false });
  t.after(() => bob.close({ timeout: 100 }));
  await bob.ready();
  return { browser, cluster, bob, ...opened, shown: () => opened.page.evaluate(() => window.shown) };
}

/** Stops the processes of all tabs; returns what lets them go on. DevTools freeze only tabs that are not shown. */
async function freeze(browser) {
  const devtools = await browser.newBrowserCDPSession();
  const { processInfo } = await devtools.send("SystemInfo.getProcessInfo");
  const tabs = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => id);
  assert.notEqual(tabs.length, 0);
  for (const pid of tabs) process.kill(pid, "SIGSTOP");
  return () => tabs.forEach((pid) => process.kill(pid, "SIGCONT"));
}

async function nothingIsWrong(publisher, shown, errors) {
  await publisher.stop();
  await eventually(async () => findings(publisher, await shown()).missed.length === 0, "all is shown").catch(() => {});
  assert.deepEqual(findings(publisher, await shown()), NOTHING);
  assert.deepEqual(errors, []);
}

test(`${KILLS} nodes are killed under traffic`, { timeout: 100_000 + KILLS * 10_000 }, async (t) => {
  const { cluster, page, bob, shown, errors } = await setUp(t, 3);
  const publisher = new Publisher(bob, "user.alice");
  for (let kill = 0; kill < KILLS; kill += 1) {
    // In turn the page's node, the publisher's, and any.
    const victim = [await page.evaluate(() => window.client.node), bob.node, `n${kill % 3}`][kill % 3];
    await cluster.kill(cluster.nodes.findIndex(({ env }) => env.WARREN_NODE_ID === victim));
    await cluster.knowsItself();
    const mark = publisher.count;
    const seen = () => page.evaluate((mark) => window.shown.some((number) => number >= mark), mark);
    await eventually(seen, `messages after kill ${kill} of ${victim}`);
  }
  await nothingIsWrong(publisher, shown, errors);
  t.diagnostic(`${(await shown()).length} messages, ${KILLS} kills, ${await page.evaluate(() => window.gaps)} gaps told`);
});

test("a page publishes while nodes are killed", { timeout: 120_000 }, async (t) => {
  const { cluster, page, bob, errors } = await setUp(t, 3);
  const shown = [];
  const carol = connect(cluster.urls, { user: "carol" });
  t.after(() => carol.close({ timeout: 100 }));
  carol.on("message", ({ payload }) => void shown.push(payload));
  await Promise.all([carol.ready(), bob.close()]);
  await page.evaluate(() => {
    window.outcomes = [];
    window.running = (async () => {
      for (let n = 0; n < 200; n += 1) {
        window.client.publish("user.carol", n).then(({ outcome }) => outcomes.push(outcome), ({ code }) => outcomes.push(code));
        await new Promise((resume) => setTimeout(resume, 20));
      }
    })();
  });
  for (const _ of [1, 2]) {
    const victim = await page.evaluate(() => window.client.node);
    await cluster.kill(cluster.nodes.findIndex(({ env }) => env.WARREN_NODE_ID === victim));
    await page.waitForFunction((victim) => window.client.state === "open" && window.client.node !== victim, victim);
  }
  await page.waitForFunction(() => window.outcomes.length === 200, null, { timeout: 60_000 });
  const outcomes = await page.evaluate(() => [...new Set(window.outcomes)]);
  assert.deepEqual(outcomes.filter((outcome) => !["delivered", "stored"].includes(outcome)), []);
  await eventually(() => new Set(shown).size === 200);
  assert.equal(shown.length, 200);
  assert.deepEqual(errors, []);
});

test("a frozen tab whose node dies meanwhile gets everything when it is back", { timeout: 120_000 }, async (t) => {
  const { cluster, browser, page, bob, shown, errors } = await setUp(t, 3);
  const publisher = new Publisher(bob, "user.alice");
  await eventually(async () => (await shown()).length > 10);
  const node = await page.evaluate(() => window.client.node);
  const thaw = await freeze(browser);
  const frozenAt = publisher.count;
  await eventually(() => publisher.count > frozenAt + 100);
  await cluster.kill(cluster.nodes.findIndex(({ env }) => env.WARREN_NODE_ID === node));
  await cluster.knowsItself();
  thaw();
  const mark = publisher.count;
  await page.waitForFunction((mark) => window.shown.some((number) => number >= mark), mark, { timeout: 30_000 });
  await nothingIsWrong(publisher, shown, errors);
});

test("a tab that slept for a day reconnects at once", { timeout: 60_000 }, async (t) => {
  const { page, bob, shown, errors } = await setUp(t, 1);
  await bob.publish("user.alice", "before");
  // What a resumed page sees: its clock has jumped, and nothing was heard.
  await page.evaluate(() => {
    const now = Date.now;
    Date.now = () => now() + 24 * 3600 * 1000;
    document.dispatchEvent(new Event("resume"));
  });
  const slept = () => window.states.some(({ reason }) => reason === "the page was asleep");
  await page.waitForFunction(slept, null, { timeout: 5_000 });
  await bob.publish("user.alice", "meanwhile");
  await page.waitForFunction(() => window.client.state === "open", null, { timeout: 5_000 });
  await bob.publish("user.alice", "after");
  await page.waitForFunction(() => window.shown.length === 3, null, { timeout: 5_000 });
  assert.deepEqual(await shown(), ["before", "meanwhile", "after"]);
  assert.deepEqual(errors, []);
});

test("a page that loses its network waits for it, and then misses nothing", { timeout: 60_000 }, async (t) => {
  const { cluster, page, context, bob, shown, errors } = await setUp(t, 3);
  const publisher = new Publisher(bob, "user.alice");
  await eventually(async () => (await shown()).length > 10);
  await context.setOffline(true);
  const node = await page.evaluate(() => window.client.node);
  await cluster.kill(cluster.nodes.findIndex(({ env }) => env.WARREN_NODE_ID === node));
  await page.waitForFunction(() => window.client.state === "waiting");
  assert.equal(await page.evaluate(() => window.states.at(-1).retryInMs >= 20_000), true);
  await context.setOffline(false);
  await page.waitForFunction(() => window.client.state === "open", null, { timeout: 10_000 });
  const mark = publisher.count;
  await page.waitForFunction((mark) => window.shown.some((number) => number >= mark), mark, { timeout: 30_000 });
  await nothingIsWrong(publisher, shown, errors);
});

test("the page of the README works as it stands, in two tabs", { timeout: 60_000 }, async (t) => {
  const browser = await startBrowser(t);
  const { nodes: [node] } = await Cluster.start(t, 1, ANY_ORIGIN);
  const readme = await readFile(new URL("../../sdk/js/README.md", import.meta.url), "utf8");
  const html = /```html\n([^]*?)```/.exec(readme)[1];
  assert.equal(html.trimEnd().split("\n").length <= 20, true, "at most 20 lines");
  const folder = mkdtempSync(join(tmpdir(), "warren-page."));
  t.after(() => rm(folder, { recursive: true }));
  await writeFile(join(folder, "page.html"), html.replaceAll("http://127.0.0.1:8080", node.http));
  const tabs = [];
  for (const user of ["alice", "bob"]) tabs.push(await open(t, browser, `file://${folder}/page.html#${user}`));
  const [alice, bob] = tabs.map(({ page }) => page);
  await alice.getByText("alice: open").waitFor();
  await bob.getByText("bob: open").waitFor();
  await alice.fill("[name=to]", "bob");
  await alice.fill("[name=text]", "hello");
  await alice.click("button");
  await bob.getByText("alice: hello").waitFor();
  await alice.getByText("to bob: hello (delivered)").waitFor();
  await node.stop();
  await alice.getByText("alice: waiting").waitFor();
  await node.start();
  await bob.getByText("bob: open").waitFor();
  await bob.fill("[name=to]", "alice");
  await bob.fill("[name=text]", "still here?");
  await bob.click("button");
  await alice.getByText("bob: still here?").waitFor();
  assert.deepEqual(tabs.flatMap(({ errors }) => errors), []);
});

test("the first page and the first line of a backend work as the README of the project has them", { timeout: 60_000 }, async (t) => {
  const browser = await startBrowser(t);
  const { nodes: [node] } = await Cluster.start(t, 1, ANY_ORIGIN);
  const readme = await readFile(new URL("../../README.md", import.meta.url), "utf8");
  const [, html] = /```html\n([^]*?)```/.exec(readme);
  assert.equal(html.trimEnd().split("\n").length <= 20, true, "at most 20 lines");
  const folder = mkdtempSync(join(tmpdir(), "warren-page."));
  t.after(() => rm(folder, { recursive: true }));
  await writeFile(join(folder, "page.html"), html.replaceAll("http://127.0.0.1:8080", node.http));
  const tabs = [];
  for (const user of ["alice", "bob"]) tabs.push(await open(t, browser, `file://${folder}/page.html#${user}`));
  const [alice, bob] = tabs.map(({ page }) => page);
  for (const [page, user] of [[alice, "alice"], [bob, "bob"]]) await page.getByText(`${user}: open`).waitFor();
  // Who is open may not have subscribed yet.
  const inLobby = async () => (await (await fetch(`${node.http}/v1/channels/lobby`)).json()).count === 2;
  await eventually(inLobby, "both are in the lobby");
  await alice.fill("[name=text]", "hello");
  await alice.click("button");
  await bob.getByText("alice: hello").waitFor();
  await alice.getByText("alice: hello").waitFor();
  const lines = [...readme.matchAll(/^curl (http:\S+) -d '(.*)'$/gm)];
  const answers = [];
  for (const [, url, body] of lines) {
    const answer = await fetch(url.replace("http://127.0.0.1:8080", node.http), { method: "POST", body });
    answers.push(await answer.json());
  }
  assert.deepEqual(answers.map(({ outcome }) => outcome), ["delivered", "answered"]);
  await alice.getByText("api: your parcel is here").waitFor();
  await node.stop();
  await bob.getByText("bob: waiting").waitFor();
  await node.start();
  await alice.getByText("alice: open").waitFor();
  await eventually(inLobby, "both are in the lobby again");
  await alice.fill("[name=text]", "still here?");
  await alice.click("button");
  await bob.getByText("alice: still here?").waitFor();
  assert.deepEqual(tabs.flatMap(({ errors }) => errors), []);
});
