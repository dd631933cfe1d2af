// A cluster with its console in a real Chromium: set up, watched for errors, and looked at in several sizes and colours.
import { once } from "node:events";
import { createServer } from "node:net";

import { Cluster, eventually } from "../../sdk/js/test/support/nodes.js";
import { startBrowser } from "./page.js";

export const WIDE = { width: 1440, height: 1000 };
export const NARROW = { width: 390, height: 844 };

/** Ports that were free a moment ago: a node's public URL must be known before it starts. */
async function freePorts(count) {
  const held = await Promise.all(Array.from({ length: count }, async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    return server;
  }));
  const ports = held.map((server) => server.address().port);
  await Promise.all(held.map((server) => once(server.close(), "close")));
  return ports;
}

/** Nodes whose console can open clients on each of them. */
export async function startCluster(t, count, env = {}) {
  const ports = await freePorts(count);
  return Cluster.start(t, count, (n) => ({
    WARREN_NODE_ID: `node-${n + 1}`,
    WARREN_LISTEN: `127.0.0.1:${ports[n]}`,
    WARREN_PUBLIC_URL: `http://127.0.0.1:${ports[n]}`,
    WARREN_ALLOWED_ORIGINS: "*",
    ...env,
  }));
}

/** Opens a console; `problems` fills with whatever a browser complains about. */
export async function openConsole(t, address, { dark = false, size = WIDE, browser, reducedMotion = "no-preference" } = {}) {
  browser ??= await startBrowser(t);
  const context = await browser.newContext({ viewport: size, colorScheme: dark ? "dark" : "light", reducedMotion });
  const page = await context.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(message.text()));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(address);
  return { page, context, browser, problems };
}

export const stateText = (page) => page.textContent("#state-text");

export function settles(page, wanted) {
  return eventually(async () => wanted.test(await stateText(page)), `the state ${wanted}`);
}

/** Opens a client by the form, as a person does. */
export async function openClient(page, user, node) {
  await page.fill("#open [name=user]", user);
  if (node) await page.selectOption("#open-node", node);
  await page.click("#open button");
  await page.locator("#clients > li[data-state=open]", { hasText: user }).first().waitFor();
}

export async function send(page, { from, kind = "user", name, payload = "hello", count = 1 }) {
  if (from) await page.selectOption("#send-from", { label: from });
  await page.selectOption("#send-kind", kind);
  if (kind !== "broadcast") await page.fill("#send-name", name);
  await page.fill("#send [name=payload]", payload);
  await page.fill("#send [name=count]", String(count));
  await page.click("#send button");
}
