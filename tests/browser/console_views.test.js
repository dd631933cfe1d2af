// How the console looks when nothing happens, much happens, the broker is away, and a thousand users are there: in two
// sizes and two colours. The pictures go to target/console; UPDATE=1 also makes those of the README anew.
import assert from "node:assert/strict";
import { copyFile, mkdir, stat } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { eventually } from "../../sdk/js/test/support/nodes.js";
import { NARROW, openConsole, send, settles, startCluster, WIDE } from "./console.js";

const PICTURES = fileURLToPath(new URL("../../target/console/", import.meta.url));
const DOCS = fileURLToPath(new URL("../../docs/", import.meta.url));
const README_BYTES_MAX = 200 * 1024;
const CHANNELS = ["lobby", "orders.eu", "orders.us", "prices", "chat.support", "board.7"];

/** Between the nodes and the broker, so that the broker can be taken away. */
async function startRelay(t) {
  const { hostname, port } = new URL(process.env.WARREN_TEST_AMQP_URL);
  const sockets = new Set();
  const relay = {
    open: true,
    cut() {
      relay.open = false;
      sockets.forEach((socket) => socket.destroy());
    },
  };
  const server = createServer((near) => {
    if (!relay.open) return void near.destroy();
    const far = connect(port, hostname);
    for (const [one, other] of [[near, far], [far, near]]) {
      sockets.add(one);
      one.pipe(other);
      one.on("error", () => {}).on("close", () => (sockets.delete(one), other.destroy()));
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  t.after(() => (relay.cut(), server.close()));
  const url = new URL(process.env.WARREN_TEST_AMQP_URL);
  url.port = server.address().port;
  relay.url = url.href.replace(/\/$/, "");
  return relay;
}

/** Users who are just there, each in a channel; more in the first ones. */
async function openCrowd(t, cluster, count) {
  const sockets = [];
  t.after(() => sockets.forEach((socket) => socket.close()));
  const one = (n) => new Promise((opened, failed) => {
    const socket = new WebSocket(`${cluster.urls[n % cluster.urls.length]}?user=user-${n}`);
    sockets.push(socket);
    socket.onerror = failed;
    socket.onmessage = ({ data }) => {
      const { type } = JSON.parse(data);
      if (type === "welcome") socket.send(JSON.stringify({ type: "subscribe", id: 1, channel: CHANNELS[Math.min(n % 11, n % 8, 5)] }));
      if (type === "reply") opened();
    };
  });
  for (let n = 0; n < count; n += 50) {
    await Promise.all(Array.from({ length: Math.min(50, count - n) }, (_, at) => one(n + at)));
  }
}

/** A backend that publishes all the time. */
function keepPublishing(t, cluster, users) {
  let running = true;
  const batch = () => [
    ...Array.from({ length: 12 }, () => ({ to: `user.user-${Math.floor(Math.random() * users)}`, payload: { at: Date.now() } })),
    ...CHANNELS.slice(1, 3).map((channel) => ({ to: `channel.${channel}`, payload: { at: Date.now() } })),
  ];
  const publish = async () => {
    while (running) {
      const node = cluster.nodes[Math.floor(Math.random() * cluster.nodes.length)];
      await fetch(`${node.http}/v1/messages`, { method: "POST", body: JSON.stringify(batch()) }).catch(() => {});
      await new Promise((resume) => setTimeout(resume, 100));
    }
  };
  const done = publish();
  t.after(() => ((running = false), done));
}

/** The page in every size and colour. */
async function pictures(page, state) {
  await page.evaluate(() => (document.activeElement.blur(), scrollTo(0, 0)));
  for (const [sizeName, { width, height }] of Object.entries({ wide: WIDE, narrow: NARROW })) {
    for (const colorScheme of ["light", "dark"]) {
      const name = `${state}-${sizeName}-${colorScheme}`;
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height });
      // As high as the page is, so that what sticks to the top is at the top.
      const whole = await page.evaluate(() => document.documentElement.scrollHeight);
      await page.setViewportSize({ width, height: Math.max(whole, 600) });
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true, `${name}: nothing sticks out`);
      await page.screenshot({ path: `${PICTURES}${name}.png`, animations: "disabled" });
    }
  }
  await page.setViewportSize(WIDE);
}

async function talk(page) {
  await eventually(async () => (await page.locator("#open-node option").count()) === 3, "all nodes have just answered");
  await page.click("#open-pair");
  await page.locator("#clients > li[data-state=open]").nth(1).waitFor();
  const client = page.locator("#clients > li").first();
  await client.locator("input").fill("lobby");
  await client.getByText("Subscribe").click();
  await client.locator(".tags li").waitFor();
  const from = await page.locator("#send-from option").first().textContent();
  await send(page, { from, kind: "channel", name: "lobby", payload: '{"text":"Good morning, everybody"}' });
  await send(page, { from, name: "dave", payload: '{"text":"See you tomorrow"}' });
  await send(page, { from, kind: "session", name: "node-2~1", payload: '"Still there?"' });
  await page.locator("#log .outcome", { hasText: "rejected" }).first().waitFor();
  await send(page, { from, name: "bob", payload: '{"order":4711,"state":"packed"}', count: 6 });
  await eventually(async () => (await page.locator("#log > li[data-outcome=delivered]").count()) >= 6);
  await send(page, { from, name: "bob", payload: '{"order":4711,"state":"shipped"}' });
  await page.locator("#path li", { hasText: "acknowledged" }).waitFor();
  await page.locator("#path li[data-outcome=delivered] b", { hasText: /^delivered$/ }).waitFor();
}

test("it is looked at when little and much happens", { timeout: 110_000 }, async (t) => {
  await mkdir(PICTURES, { recursive: true });
  const relay = await startRelay(t);
  const cluster = await startCluster(t, 3, { WARREN_AMQP_URL: relay.url });
  const { page, problems } = await openConsole(t, `${cluster.nodes[0].http}/`);
  await settles(page, /^3 nodes, all well$/);
  await pictures(page, "empty");
  await openCrowd(t, cluster, 1_000);
  keepPublishing(t, cluster, 1_400);
  await talk(page);
  await page.locator("#vitals [data-is=sessions] b", { hasText: "1,002" }).waitFor();
  await eventually(async () => Number(await page.textContent("#vitals [data-is=in] b")) > 10, "messages come in");
  await pictures(page, "busy");
  for (const colour of ["light", "dark"]) {
    const made = `${PICTURES}busy-wide-${colour}.png`;
    const { size } = await stat(made);
    assert.equal(size < README_BYTES_MAX, true, `${made}: ${size} bytes`);
    if (process.env.UPDATE) await copyFile(made, `${DOCS}console-${colour}.png`);
  }
  await page.locator("#channels button").first().click();
  await page.locator("#members h3").waitFor();
  await page.fill("#find-user", "user-7");
  await page.click("#find button");
  await page.locator("#found h3", { hasText: "user-7" }).waitFor();
  await pictures(page, "crowd");
  relay.cut();
  await settles(page, /^node-1: broker lost$/);
  await pictures(page, "broken");
  // The clients of the page are told that they may have missed something; nothing else is a problem of the page.
  assert.deepEqual(problems, []);
});
