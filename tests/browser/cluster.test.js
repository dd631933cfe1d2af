// ./cluster as somebody who tries it: what it prints works, what is killed comes back, and Ctrl-C leaves nothing.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { eventually } from "../../sdk/js/test/support/nodes.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
/** For RabbitMQ to start, on a machine that does other things. */
const STARTED_MS = 180_000;

function runs(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

test("a cluster to try", { timeout: 400_000 }, async (t) => {
  const scratch = mkdtempSync(join(tmpdir(), "warren-try."));
  t.after(() => rmSync(scratch, { recursive: true }));
  const { WARREN_AMQP_URL: _, ...env } = process.env;
  Object.assign(env, { TMPDIR: scratch, WARREN_DRAIN_MS: "1000", WARREN_ALLOWED_ORIGINS: "http://localhost:8090" });
  env.WARREN_TEST_BINARY ??= join(ROOT, "target/debug/warren");
  const script = spawn("./cluster", ["2"], { cwd: ROOT, env, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  const ended = once(script, "exit");
  t.after(() => script.exitCode === null && process.kill(-script.pid, "SIGINT"));
  let said = "";
  for (const output of [script.stdout, script.stderr]) output.on("data", (text) => (said += text));
  const says = (text, patience) => eventually(() => {
    assert.equal(script.exitCode, null, said);
    return said.includes(text);
  }, `${text}, but:\n${said}`, patience);
  await says("Ctrl-C stops it all.", STARTED_MS);

  const lines = said.split("\n").map((line) => line.trim());
  const answers = [];
  for (const line of lines.filter((line) => line.startsWith("curl "))) {
    // The backend may not have bound its queue yet.
    answers.push(await eventually(async () => {
      const { outcome } = JSON.parse((await promisify(execFile)("sh", ["-c", line])).stdout);
      return outcome !== "rejected" && outcome;
    }, line));
  }
  assert.deepEqual(answers, ["stored", "answered"]);
  const [, console] = /console +(\S+)/.exec(said);
  assert.match(await (await fetch(console)).text(), /<title>/);
  // Origins that somebody names are added to those of the script.
  for (const origin of ["http://localhost:8090", new URL(console).origin]) {
    assert.equal((await fetch(`${console}sockjs/info`, { headers: { origin } })).status, 200, origin);
  }

  const [victim] = /kill -9 (\d+)/.exec(said).slice(1).map(Number);
  process.kill(victim, "SIGKILL");
  await says("is started again", 60_000);
  const pids = [...said.matchAll(/pid (\d+)/g)].map(([, pid]) => Number(pid)).filter((pid) => pid !== victim);
  assert.equal(pids.length, 3, said);
  assert.deepEqual(pids.filter(runs), pids);

  process.kill(-script.pid, "SIGINT");
  assert.deepEqual(await ended, [130, null], said);
  assert.deepEqual(pids.filter(runs), []);
  assert.deepEqual(readdirSync(scratch), []);
});
