// Spring's own client, over WebSocket and over SockJS. `mvn` has to have put it into target/ before.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { Cluster } from "../../../sdk/js/test/support/nodes.js";

const target = fileURLToPath(new URL("target/", import.meta.url));

for (const path of ["/ws", "/sockjs"]) {
  test(`WebSocketStompClient on ${path}`, async (t) => {
    const [node] = (await Cluster.start(t, 1)).nodes;
    const classPath = `${target}classes:${(await readFile(`${target}class-path`, "utf8")).trim()}`;
    const url = path === "/ws" ? node.ws : `${node.http}${path}`;
    const { stdout } = await promisify(execFile)("java", ["-cp", classPath, "SpringClient", url]);
    assert.match(stdout, /all as it should be/);
  });
}
