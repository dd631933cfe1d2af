// The chat of examples/spring-chat in Chromium: with Spring's own broker, and moved to Warren. Maven has to have packaged
// both before.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { Cluster, eventually } from "../../sdk/js/test/support/nodes.js";
import { open, startBrowser } from "./page.js";

const EXAMPLE = new URL("../../examples/spring-chat/", import.meta.url);
/** For Java to start, on a machine that does other things. */
const STARTED_MS = 120_000;

/** Runs the backend, which also serves the page; returns the address of the page. */
async function startBackend(t, name, settings = []) {
  const jar = fileURLToPath(new URL(`${name}/target/chat.jar`, EXAMPLE));
  const backend = spawn("java", ["-Xmx128m", "-jar", jar, "--server.port=0", ...settings], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => backend.kill("SIGKILL"));
  let log = "";
  backend.stdout.on("data", (text) => (log = (log + text).slice(-50_000)));
  const started = await eventually(
    () => {
      if (backend.exitCode !== null) throw new Error(`the backend has ended:\n${log}`);
      return /Started Chat/.test(log) && /Tomcat started on port (\d+)/.exec(log);
    },
    `the start of the backend ${name}`,
    STARTED_MS,
  );
  return `http://localhost:${started[1]}/`;
}

/** A virtual host of the broker, for names that others use as well; returns its AMQP URL. */
async function virtualHost(t) {
  const { origin: management, username, password } = new URL(process.env.WARREN_TEST_MANAGEMENT_URL);
  const authorization = `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;
  const name = `chat${process.pid}${Math.random().toString(36).slice(2, 8)}`;
  const ask = async (method, path, body) => {
    const headers = { authorization, "content-type": "application/json" };
    const answer = await fetch(`${management}/api/${path}`, { method, headers, body: body && JSON.stringify(body) });
    assert.equal(answer.ok, true, `${method} ${path}: ${answer.status}`);
  };
  await ask("PUT", `vhosts/${name}`);
  t.after(() => ask("DELETE", `vhosts/${name}`));
  await ask("PUT", `permissions/${name}/${username}`, { configure: ".*", write: ".*", read: ".*" });
  return `${process.env.WARREN_TEST_AMQP_URL}/${name}`;
}

/** A page in which a name was entered. */
async function enter(t, browser, address, name) {
  const { page, context, errors } = await open(t, browser, address);
  await page.fill("#name", name);
  await page.click("#enter button");
  await page.getByText(`connected as ${name}`).waitFor();
  const line = (text) => page.locator("#log li", { hasText: text });
  return {
    page,
    leave: () => context.close(),
    async says(text) {
      await page.fill("#text", text);
      await page.click("#write button");
    },
    sees: (text) => line(text).first().waitFor(),
    async sawOnce(text) {
      assert.deepEqual([text, await line(text).count(), errors], [text, 1, []]);
    },
    async never(text) {
      assert.deepEqual([text, await line(text).count(), errors], [text, 0, []]);
    },
  };
}

/** What the page can do on either server. Returns when bob has left. */
async function chat(t, browser, [aliceAt, bobAt]) {
  const alice = await enter(t, browser, aliceAt, "alice");
  const bob = await enter(t, browser, bobAt, "bob");
  await alice.sees("bob: (is here)");
  await alice.says("hello");
  await bob.sees("alice: hello");
  await alice.sees("alice: hello");
  await bob.says("@alice psst");
  await alice.sees("bob whispers: psst");
  await bob.says("bye");
  await alice.sees("bob: bye");
  await bob.never("whispers");
  await bob.leave();
  await alice.sees("bob: (has left)");
  for (const text of ["alice: hello", "bob whispers: psst", "bob: bye"]) await alice.sawOnce(text);
  return alice;
}

test("the page and the backend of a Spring tutorial", { timeout: 240_000 }, async (t) => {
  const browser = await startBrowser(t);
  const address = await startBackend(t, "spring");
  await chat(t, browser, [address, address]);
});

test("the same, moved to two nodes of Warren", { timeout: 300_000 }, async (t) => {
  const browser = await startBrowser(t);
  const amqp = await virtualHost(t);
  const address = await startBackend(t, "warren", [`--spring.rabbitmq.addresses=${amqp}`]);
  const { nodes } = await Cluster.start(t, 2, {
    WARREN_AMQP_URL: amqp,
    WARREN_PREFIX: "warren",
    WARREN_EVENTS: "users",
    WARREN_ALLOWED_ORIGINS: new URL(address).origin,
  });
  const pages = nodes.map(({ http }) => `${address}?gateway=${http}`);
  const alice = await chat(t, browser, pages);

  // What Spring's broker drops: bob is away, and comes back on the other node.
  await alice.says("@bob are you there?");
  const bob = await enter(t, browser, pages[0], "bob");
  await bob.sees("alice whispers: are you there?");
  await bob.leave();

  // Alice's node dies, and she gets what was written meanwhile.
  const carol = await enter(t, browser, pages[1], "carol");
  await nodes[0].stop();
  await alice.page.getByText("not connected").waitFor();
  await carol.says("@alice your node has died");
  await nodes[0].start();
  await alice.sees("carol whispers: your node has died");
  await alice.sawOnce("carol whispers: your node has died");
});

/** The lines that differ, with one line around them. Imports are left out: an editor does them. */
function difference(path, scratch) {
  for (const name of ["spring", "warren"]) {
    const folder = path.endsWith(".java") ? "src/main/java/chat/" : path.endsWith(".js") ? "src/main/resources/static/" : "";
    const text = readFileSync(new URL(`${name}/${folder}${path}`, EXAMPLE), "utf8");
    writeFileSync(join(scratch, name), text.replace(/^import .*\n/gm, "").replace(/\n{3,}/g, "\n\n"));
  }
  const options = ["diff", "--no-index", "--no-color", "--patience", "-U1", "spring", "warren"];
  const { stdout } = spawnSync("git", options, { cwd: scratch, encoding: "utf8" });
  const [, ...hunks] = stdout.split(/^@@.*\n/m);
  return hunks.join("@@\n").trimEnd();
}

test("the README shows what differs", (t) => {
  const scratch = mkdtempSync(join(tmpdir(), "warren-chat."));
  t.after(() => rmSync(scratch, { recursive: true }));
  const file = new URL("README.md", EXAMPLE);
  const readme = readFileSync(file, "utf8");
  let shown = 0;
  const updated = readme.replace(/`(\S+)`:\n\n```diff\n[^]*?```/g, (_, path) => {
    shown += 1;
    return `\`${path}\`:\n\n\`\`\`diff\n${difference(path, scratch)}\n\`\`\``;
  });
  assert.equal(shown, 5);
  if (process.env.UPDATE) writeFileSync(file, updated);
  else assert.equal(readme, updated, "run: UPDATE=1 ./test chat");
});
