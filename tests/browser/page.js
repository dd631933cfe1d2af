// Pages in a real Chromium, driven by playwright-core; served by the test, not by a node.
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";

// Installed for the client library, which these tests are about.
const { chromium } = createRequire(new URL("../../sdk/js/package.json", import.meta.url))("playwright-core");
const CHROMIUM = [process.env.WARREN_TEST_CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** A browser of its own for one test. */
export async function startBrowser(t) {
  const executablePath = CHROMIUM.find((path) => path && existsSync(path));
  if (!executablePath) throw new Error("no Chromium; install it, or name it in WARREN_TEST_CHROMIUM");
  const isRoot = process.getuid() === 0;
  const browser = await chromium.launch({ executablePath, args: isRoot ? ["--no-sandbox"] : [] });
  t.after(() => browser.close());
  return browser;
}

/** Serves one page; returns its address. */
export async function serve(t, html) {
  const server = createServer((request, response) => {
    const found = request.url === "/";
    response.writeHead(found ? 200 : 404, { "content-type": "text/html; charset=utf-8" }).end(found ? html : "");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  return `http://127.0.0.1:${server.address().port}/`;
}

/** A page with a client that shows what it gets. It has no line about reconnecting. */
export function clientPage(cluster, user) {
  return `<!doctype html><meta charset="utf-8"><title>client</title><script type="module">
    import { connect } from "${cluster.nodes[0].http}/warren-client.js";
    window.shown = [];
    window.states = [];
    window.gaps = 0;
    window.client = connect(${JSON.stringify(cluster.urls)}, { user: ${JSON.stringify(user)} });
    client.on("message", ({ payload }) => { shown.push(payload); });
    client.on("state", (state) => { states.push(state); });
    client.on("gap", () => { gaps += 1; });
  </script>`;
}

/** Opens an address, and fails the test when the page reports an error. */
export async function open(t, browser, address) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(address);
  return { page, context, errors };
}
