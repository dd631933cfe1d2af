// The console in a real browser: what an operator sees and does with it, on real nodes.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { test } from "node:test";

import { eventually } from "../../sdk/js/test/support/nodes.js";
import { NARROW, openClient, openConsole, send, settles, startCluster, WIDE } from "./console.js";

const AXE = await readFile(createRequire(new URL("../../sdk/js/package.json", import.meta.url)).resolve("axe-core/axe.min.js"), "utf8");

/** Text that becomes something else wherever it is taken for markup, a pattern, a path or a style. */
const HOSTILE = [
  `<img src=x onerror="window.harmed=1">`,
  `"><script>window.harmed=1</script>`,
  `javascript:window.harmed=1`,
  "\u202eecila\u202c ../../%2e%2e/%00?a=b#c",
  "$& ${window.harmed=1} {{7*7}} \\' \"",
  "👩🏽‍🚀".repeat(8),
];

const row = (page, text) => page.locator("#log > li", { hasText: text }).first();

test("messages are sent to everybody there is, and their ways are shown", { timeout: 90_000 }, async (t) => {
  const cluster = await startCluster(t, 2);
  const { page, problems } = await openConsole(t, `${cluster.nodes[0].http}/`);
  await settles(page, /^2 nodes, all well$/);
  await page.click("#open-pair");
  await page.locator("#clients > li[data-state=open]").nth(1).waitFor();
  assert.deepEqual(await page.locator("#clients .where").allTextContents(), ["on node-1", "on node-2"]);
  const alice = "alice on node-1";
  await page.locator("#send-from option", { hasText: alice }).waitFor({ state: "attached" });

  await send(page, { from: alice, name: "bob", payload: '{"n":1}' });
  await row(page, "delivered").waitFor();
  const steps = page.locator("#path li b");
  const way = ["accepted", "sent to node-2", "arrived", "written to a session", "acknowledged", "taken by 1 session", "delivered"];
  await eventually(async () => (await steps.allTextContents()).join() === way.join(), "the way that the nodes tell");
  await eventually(() => page.evaluate(() => document.querySelectorAll("#rails .route path[data-outcome=delivered]").length === 1), "its way is drawn");

  for (const client of await page.locator("#clients > li").all()) {
    await client.locator("input").fill("lobby");
    await client.getByText("Subscribe").click();
    await client.locator(".tags li", { hasText: "lobby" }).waitFor();
  }
  await send(page, { from: alice, kind: "channel", name: "lobby", payload: "in the lobby" });
  await row(page, "in the lobby").locator(".outcome", { hasText: "published" }).waitFor();
  await send(page, { from: alice, kind: "broadcast", payload: "for all" });
  await row(page, "for all").locator(".outcome", { hasText: "published" }).waitFor();
  const session = await page.evaluate(async () => (await (await fetch("/v1/users/bob")).json()).sessions[0].session);
  await send(page, { from: "the HTTP API", kind: "session", name: session, payload: "to a session" });
  await row(page, "to a session").locator(".outcome", { hasText: "delivered" }).waitFor();
  await send(page, { from: alice, kind: "session", name: "node-2~1", payload: "nobody there" });
  await row(page, "nobody there").locator(".outcome", { hasText: "rejected" }).waitFor();
  await send(page, { from: alice, name: "dave", payload: "later" });
  await row(page, "later").locator(".outcome", { hasText: "stored" }).waitFor();
  await page.locator("#vitals [data-is=mail] b", { hasText: /^1$/ }).waitFor();
  await send(page, { from: alice, name: "bob", payload: "many", count: 70 });
  await eventually(async () => /7[67]/.test(await page.textContent("#messages-note")), "all 70 are there");

  await page.fill("#trace input", "from-a-backend");
  await page.click("#trace button");
  await page.locator("#path", { hasText: "No node knows of it" }).waitFor();
  const published = { method: "POST", body: JSON.stringify({ to: "user.bob", payload: "hi", message_id: "from-a-backend" }) };
  assert.equal((await fetch(`${cluster.nodes[1].http}/v1/messages`, published)).status, 200);
  await page.click("#trace button");
  await page.locator("#path li", { hasText: "from service api for user.bob" }).waitFor();

  await page.locator("#channels button", { hasText: "lobby" }).click();
  await page.locator("#members button", { hasText: "bob" }).click();
  await page.locator("#found", { hasText: "online" }).waitFor();
  await page.locator("#found button", { hasText: "Disconnect" }).first().click();
  // Its client comes back by itself: as somebody who was told to go it does not.
  await page.locator("#found", { hasText: "away" }).waitFor();
  await page.locator("#clients > li[data-state=failed]", { hasText: "bob" }).waitFor();
  assert.deepEqual(problems, []);
});

test("what strangers name is text", { timeout: 60_000 }, async (t) => {
  const cluster = await startCluster(t, 1);
  const { page, problems } = await openConsole(t, `${cluster.nodes[0].http}/`);
  await settles(page, /all well/);
  for (const name of HOSTILE) {
    await page.fill("#open [name=user]", name);
    await page.click("#open button");
    const client = page.locator("#clients > li").last();
    await eventually(async () => (await client.getAttribute("data-state")) === "open", `a client named ${name}`);
    await client.locator("input").fill(name);
    await client.getByText("Subscribe").click();
    await client.locator(".tags li").waitFor();
    await send(page, { from: `${name} on node-1`, kind: "channel", name, payload: JSON.stringify({ [name]: name }) });
    await row(page, name).locator(".outcome", { hasText: "published" }).waitFor();
    await page.fill("#find-user", name);
    await page.click("#find button");
    await page.locator("#found h3", { hasText: name }).waitFor();
    await page.locator("#channels button", { hasText: name }).waitFor();
    await page.locator("#channels button", { hasText: name }).click();
    await page.locator("#members h3", { hasText: name }).waitFor();
  }
  const found = await page.evaluate(() => [window.harmed, document.images.length, document.querySelectorAll("script:not([src='/console/main.js'])").length]);
  assert.deepEqual(found, [undefined, 0, 0]);
  assert.deepEqual(problems, []);
});

/** What axe calls serious or critical, as one line each. */
async function barriers(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const severe = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  return severe.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id}: ${target} ${failureSummary}`));
}

test("nobody is kept out: axe finds nothing serious, and the keyboard gets everywhere", { timeout: 90_000 }, async (t) => {
  const cluster = await startCluster(t, 1);
  let browser;
  for (const size of [WIDE, NARROW]) {
    for (const dark of [false, true]) {
      // Without motion, so that no colour is looked at half-way.
      const opened = await openConsole(t, `${cluster.nodes[0].http}/`, { size, dark, browser, reducedMotion: "reduce" });
      const { page, problems } = opened;
      browser = opened.browser;
      await settles(page, /all well/);
      assert.deepEqual(await barriers(page), [], "empty");
      await page.click("#open-pair");
      await page.locator("#clients > li[data-state=open]").nth(1).waitFor();
      const client = page.locator("#clients > li").first();
      await client.locator("input").fill("lobby");
      await client.getByText("Subscribe").click();
      for (const name of ["bob", "nobody"]) await send(page, { from: "alice on node-1", name });
      await send(page, { from: "alice on node-1", kind: "session", name: "node-1~1" });
      await row(page, "rejected").waitFor();
      await page.locator("#channels button").first().click();
      await page.locator("#members h3").waitFor();
      await page.fill("#find-user", "bob");
      await page.click("#find button");
      await page.locator("#found h3").waitFor();
      assert.deepEqual(await barriers(page), [], "busy");
      assert.deepEqual(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0, "nothing sticks out");
      assert.deepEqual(await unreached(page), []);
      assert.deepEqual(problems, []);
      await opened.context.close();
    }
  }
});

/** The controls that the Tab key does not reach, or where it does not show. */
async function unreached(page) {
  const controls = await page.evaluate(() => {
    const shown = [...document.querySelectorAll("a[href], button, input, select, textarea")].filter((control) => control.checkVisibility() && !control.disabled);
    shown.forEach((control, at) => (control.dataset.tab = at));
    document.activeElement?.blur();
    window.getSelection().removeAllRanges();
    document.body.tabIndex = -1;
    document.body.focus();
    return shown.map((control) => control.outerHTML.slice(0, 120));
  });
  const reached = new Set();
  for (let tab = 0; tab < controls.length + 5; tab += 1) {
    await page.keyboard.press("Tab");
    const [at, ring] = await page.evaluate(() => [document.activeElement.dataset.tab, getComputedStyle(document.activeElement).outlineStyle]);
    if (at !== undefined && ring !== "none") reached.add(Number(at));
  }
  return controls.filter((_, at) => !reached.has(at));
}

test("10,000 events a second do not freeze it", { timeout: 60_000 }, async (t) => {
  const cluster = await startCluster(t, 1);
  const { page, problems } = await openConsole(t, `${cluster.nodes[0].http}/`);
  await settles(page, /all well/);
  await page.click("#open-pair");
  await page.locator("#clients > li[data-state=open]").nth(1).waitFor();
  const { frames, fed } = await page.evaluate(async () => {
    const { feed, clients } = await import("/console/main.js");
    const [alice, bob] = clients.all;
    const frames = [];
    let fed = 0;
    let last = performance.now();
    const began = last;
    await new Promise((done) => {
      const frame = (now) => {
        frames.push(now - last);
        last = now;
        // As many as are due; half of them bob gets, the other half alice has sent.
        for (const due = (now - began) * 10; fed < due; fed += 1) {
          const id = `event-${fed}`;
          if (fed % 2) feed.received(id, { client: bob, from: "alice", to: "user.bob", payload: { n: fed } }, now);
          else {
            feed.sent(id, { from: "alice", to: "user.bob", payload: fed, origin: alice.node }, now);
            feed.settled(id, fed % 50 ? "delivered" : "rejected", "", now);
          }
        }
        if (now - began < 4_000) requestAnimationFrame(frame);
        else done();
      };
      requestAnimationFrame(frame);
    });
    return { frames: frames.slice(1).sort((a, b) => a - b), fed };
  });
  assert.equal(fed >= 39_000, true, `${fed} events`);
  const [median, p95] = [frames[frames.length >> 1], frames[Math.floor(frames.length * 0.95)]];
  t.diagnostic(`${fed} events, ${frames.length} frames: median ${median.toFixed(1)} ms, p95 ${p95.toFixed(1)} ms, worst ${frames.at(-1).toFixed(1)} ms`);
  assert.equal(p95 < 200, true, `p95 of ${p95} ms`);
  assert.equal(await page.locator("#log > li").count(), 40);
  assert.equal((await page.locator(".packet").count()) <= 40, true);
  assert.deepEqual(problems, []);
});

test("a node is drained from another one's console, and its clients move", { timeout: 60_000 }, async (t) => {
  const cluster = await startCluster(t, 2, { WARREN_DRAIN_MS: "3000" });
  const { page, problems } = await openConsole(t, `${cluster.nodes[0].http}/`);
  await settles(page, /^2 nodes, all well$/);
  await openClient(page, "alice", "node-1");
  await openClient(page, "bob", "node-2");
  await page.click("[aria-label='Drain node-2']");
  await page.locator("#confirm", { hasText: "Drain node-2?" }).waitFor();
  await page.click("#confirm button[value=no]");
  assert.equal(await page.textContent("#state-text"), "2 nodes, all well");
  await page.click("[aria-label='Drain node-2']");
  await page.click("#confirm-yes");
  await page.locator("#clients > li[data-state=open] .where", { hasText: "on node-1" }).nth(1).waitFor();
  await eventually(() => cluster.nodes[1].process.exitCode === 0, "node-2 ends with 0");
  await settles(page, /^1 node, all well$/);
  await send(page, { from: "alice on node-1", name: "bob" });
  await row(page, "delivered").waitFor();
  assert.deepEqual(problems, []);
});

test("with tokens it wants credentials, and keeps them out of the page", { timeout: 60_000 }, async (t) => {
  const key = "a-key-that-only-the-tests-use";
  const cluster = await startCluster(t, 1, { WARREN_JWT_SECRET: "a-secret-that-only-the-tests-ever-use", WARREN_API_KEYS: key });
  assert.equal((await fetch(`${cluster.nodes[0].http}/`)).status, 404, "not where clients are");
  const { page } = await openConsole(t, `http://${cluster.nodes[0].env.WARREN_ADMIN_LISTEN}/`);
  await settles(page, /^Sign in/);
  for (const [given, note] of [["wrong", "It was not accepted."]]) {
    await page.fill("#sign-in [name=token]", given);
    await page.click("#sign-in button");
    await page.locator("#sign-in-note", { hasText: note }).waitFor();
  }
  await page.fill("#sign-in [name=token]", key);
  await page.click("#sign-in button");
  await settles(page, /all well/);
  assert.equal(await page.locator("#sign-in").isVisible(), false);
  assert.equal((await page.content()).includes(key), false);
  await page.click("#sign-out");
  await settles(page, /^Sign in/);
});
