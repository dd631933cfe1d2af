// SockJS over HTTP (WARREN_SOCKJS=all): the real sockjs-client in networks that block WebSocket, with both codecs inside, and the
// assertions of sockjs-protocol 0.3.3 about these transports, each under the name that it has in that suite.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { eventually } from "../../sdk/js/test/support/nodes.js";
import { Inbox, within } from "./clients.js";
import { open, setUp, stompOver } from "./sockjs.js";

const ALL = { WARREN_SOCKJS: "all" };
const TRANSPORTS = ["xhr-streaming", "xhr-polling", "eventsource"];
const CODECS = ["@stomp/stompjs 1.2", "stompjs 2.3.3 over a plain WebSocket", "webstomp-client over a plain WebSocket"];

for (const transport of TRANSPORTS) {
  const options = { transports: [transport] };

  test(`sockjs-client, ${transport}: warren.v1 inside`, async (t) => {
    const { base } = await setUp(t, ALL);
    const alice = open(t, base, options);
    await alice.open.next();
    assert.equal(alice.sockjs.transport, transport);
    alice.sockjs.send(JSON.stringify({ type: "auth", token: "alice" }));
    assert.equal(JSON.parse((await alice.message.next()).data).user, "alice");
    const text = 'quotes " \\ 100% %41 and \u2028 \u0001 \r\n é 😀';
    // Many at once go in one request, and several requests of many.
    const ids = Array.from({ length: 50 }, (_, id) => id);
    for (const id of ids) {
      alice.sockjs.send(JSON.stringify({ type: "publish", id, to: "user.alice", payload: { text, id } }));
      if (id % 10 === 9) await new Promise((resume) => setImmediate(resume));
    }
    const frames = [];
    while (frames.length < 100) frames.push(JSON.parse((await alice.message.next()).data));
    const messages = frames.filter(({ type }) => type === "message").map(({ payload }) => payload);
    assert.deepEqual(messages, ids.map((id) => ({ text, id })));
    assert.ok(frames.filter(({ type }) => type === "reply").every(({ outcome }) => outcome === "delivered"));
    // More than one response may hold.
    const long = "x".repeat(20_000);
    for (const id of ids.slice(0, 20)) alice.sockjs.send(JSON.stringify({ type: "publish", to: "user.alice", payload: { long, id } }));
    for (const id of ids.slice(0, 20)) {
      const seen = await messageOf(alice);
      assert.deepEqual([seen.id, seen.long.length], [id, long.length]);
    }
  });

  test(`sockjs-client, ${transport}: a refusal comes inside, and so do the end of a node and of a page`, async (t) => {
    const secret = "0123456789abcdef0123456789abcdef";
    const checked = await setUp(t, { ...ALL, WARREN_JWT_SECRET: secret });
    const stranger = open(t, checked.base, options);
    await stranger.open.next();
    stranger.sockjs.send(JSON.stringify({ type: "auth", token: "guess" }));
    const { code, reason, wasClean } = await stranger.close.next();
    assert.deepEqual([code, reason, wasClean], [4001, "unauthorized", true]);

    const { base, node } = await setUp(t, { ...ALL, WARREN_DRAIN_MS: "2000" });
    const [alice, bob] = ["alice", "bob"].map((user) => open(t, `${base}?user=${user}`, options));
    await Promise.all([alice, bob].map(({ message }) => message.next("the welcome")));
    bob.sockjs.close();
    const isGone = async () => !(await (await fetch(`${node.http}/v1/users/bob`)).json()).online;
    await eventually(isGone, "bob is gone");
    const ended = once(node.process, "exit");
    node.process.kill("SIGTERM");
    assert.equal((await alice.close.next()).code, 4200);
    await within(ended, "the end of the node");
  });

  test(`sockjs-client, ${transport}: a session lives through heart-beats`, async (t) => {
    const { base } = await setUp(t, { ...ALL, WARREN_PING_INTERVAL_MS: "300", WARREN_PONG_TIMEOUT_MS: "2000" });
    const alice = open(t, `${base}?user=alice`, options);
    await alice.message.next("the welcome");
    const beats = new Inbox();
    alice.sockjs.addEventListener("heartbeat", beats.push);
    for (let beat = 0; beat < 5; beat += 1) await beats.next("a heart-beat");
    alice.sockjs.send(JSON.stringify({ type: "ping", id: 1 }));
    assert.equal(JSON.parse((await alice.message.next()).data).outcome, "ok");
  });

  for (const name of CODECS) {
    test(`${name} over sockjs-client, ${transport}`, async (t) => {
      const { base, node } = await setUp(t, ALL);
      const alice = stompOver(t, name, { base, node }, options);
      await alice.connect();
      const room = await alice.subscribe("/topic/room");
      const long = `äöü€ "\\ 100% ${"x".repeat(30_000)}`;
      assert.equal((await alice.send("/topic/room", long)).outcome, "published");
      assert.equal((await room.next()).body, long);
      await alice.leave();
    });
  }
}

/** The next message of a user to itself. */
async function messageOf({ message }) {
  for (;;) {
    const frame = JSON.parse((await message.next()).data);
    if (frame.type === "message") return frame.payload;
  }
}

test("sockjs-client finds another transport where WebSocket is blocked", async (t) => {
  const { node } = await setUp(t, { ...ALL, WARREN_ALLOWED_ORIGINS: "*" });
  const there = new URL(node.http);
  // Passes on requests, and no upgrade.
  const proxy = http.createServer((request, response) => {
    const { upgrade, ...headers } = request.headers;
    const { method, url: path } = request;
    const asked = http.request({ host: there.hostname, port: there.port, method, path, headers: { ...headers, connection: "close" } });
    asked.on("response", (answer) => answer.pipe(response.writeHead(answer.statusCode, answer.headers)));
    asked.on("error", () => response.destroy());
    response.on("close", () => asked.destroy());
    request.pipe(asked);
  });
  await once(proxy.listen(0, "127.0.0.1"), "listening");
  t.after(() => proxy.close() && proxy.closeAllConnections());
  const alice = open(t, `http://127.0.0.1:${proxy.address().port}/sockjs?user=alice`);
  await alice.open.next();
  assert.equal(alice.sockjs.transport, "xhr-streaming");
  assert.equal(JSON.parse((await alice.message.next()).data).user, "alice");
});

test("two nodes behind the nginx of docs/sockjs.md, without a cookie", async (t) => {
  if (spawnSync("nginx", ["-v"]).error) return t.skip("nginx is not installed");
  const env = { ...ALL, WARREN_TRUSTED_PROXIES: "127.0.0.1" };
  const nodes = [];
  for (const name of ["left", "right"]) nodes.push(new URL((await setUp(t, { ...env, WARREN_NODE_ID: name })).base).host);
  const folder = await mkdtemp(join(tmpdir(), "warren-nginx-"));
  const port = await freePort();
  const document = await readFile(new URL("../../docs/sockjs.md", import.meta.url), "utf8");
  let [, recipe] = /```nginx\n([^]*?)```/.exec(document);
  for (const [from, to] of [["10.0.0.1:8080", nodes[0]], ["10.0.0.2:8080", nodes[1]], ["listen 80;", `listen 127.0.0.1:${port};`]]) {
    assert.ok(recipe.includes(from), from);
    recipe = recipe.replace(from, to);
  }
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${folder};`).join("\n");
  const whole = `daemon off; pid ${folder}/pid; error_log stderr crit; events {}\nhttp { access_log off;\n${paths}\n${recipe}}\n`;
  await writeFile(join(folder, "nginx.conf"), whole);
  const nginx = spawn("nginx", ["-e", "stderr", "-p", folder, "-c", join(folder, "nginx.conf")], { stdio: "inherit" });
  const ended = once(nginx, "exit");
  t.after(async () => {
    nginx.kill("SIGTERM");
    await ended;
    await rm(folder, { recursive: true });
  });
  const base = `http://127.0.0.1:${port}/sockjs`;
  await eventually(async () => (await fetch(base).catch(() => null))?.ok, "nginx");
  const pages = Array.from({ length: 12 }, (_, at) => open(t, `${base}?user=user${at}`, { transports: [TRANSPORTS[at % 3]] }));
  const seen = new Set();
  for (const [at, page] of pages.entries()) {
    const welcome = JSON.parse((await page.message.next("the welcome")).data);
    assert.equal(welcome.user, `user${at}`);
    seen.add(welcome.node);
    for (let id = 0; id < 5; id += 1) {
      page.sockjs.send(JSON.stringify({ type: "ping", id }));
      assert.equal(JSON.parse((await page.message.next()).data).id, id);
    }
  }
  // By chance alone all would be at one node once in 2,000 times.
  assert.equal(seen.size, 2);
  const websocket = open(t, `${base}?user=alice`);
  await websocket.message.next("the welcome");
  assert.equal(websocket.sockjs.transport, "websocket");
});

/** A port that nobody listens on, most likely. */
async function freePort() {
  const server = await new Promise((resume) => {
    const listening = createServer().listen(0, "127.0.0.1", () => resume(listening));
  });
  const { port } = server.address();
  await new Promise((resume) => server.close(resume));
  return port;
}

/** One session, as its transports show it. Pings of warren.v1 stand for the suite's echo. */
class Session {
  static #count = 0;

  constructor(base, query = "?user=alice") {
    Object.assign(this, { url: `${base}/000/session${++Session.#count}`, query });
  }

  post = (transport, body = "", headers = {}) => fetch(`${this.url}/${transport}${this.query}`, { method: "POST", body, headers });
  poll = async () => (await this.post("xhr")).text();
  say = (...ids) => this.post("xhr_send", JSON.stringify(ids.map((id) => JSON.stringify({ type: "ping", id }))));

  /** A response that streams, as text that comes. */
  async stream(t, transport = "xhr_streaming") {
    const abort = new AbortController();
    t.after(() => abort.abort());
    const method = transport === "eventsource" ? "GET" : "POST";
    const response = await fetch(`${this.url}/${transport}${this.query}`, { method, signal: abort.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    const until = async (end) => {
      while (!text.includes(end)) {
        const { done, value } = await within(reader.read(), end);
        if (done) throw new Error(`ended without ${end}: ${text}`);
        text += value;
      }
      const at = text.indexOf(end) + end.length;
      const before = text.slice(0, at);
      text = text.slice(at);
      return before;
    };
    const isDone = async () => (await within(reader.read(), "the end")).done && text === "";
    return { response, until, isDone, abort: () => abort.abort() };
  }
}

const reply = (id) => JSON.stringify(JSON.stringify({ type: "reply", id, outcome: "ok" }));

function verifyAnswer(answer, status, type) {
  assert.equal(answer.status, status);
  assert.equal(answer.headers.get("content-type"), type);
  assert.equal(answer.headers.get("access-control-allow-origin"), "*");
  assert.match(answer.headers.get("cache-control"), /no-store, no-cache, no-transform, must-revalidate, max-age=0/);
  assert.equal(answer.headers.get("set-cookie"), null);
}

test("InfoTest: what is there", async (t) => {
  const { base } = await setUp(t, ALL);
  const { transports } = await (await fetch(`${base}/info`)).json();
  assert.deepEqual(transports, ["websocket", "xhr-streaming", "eventsource", "xhr-polling"]);
});

test("XhrPolling, XhrStreaming, EventSource: test_options and test_request_headers_cors", async (t) => {
  const { base } = await setUp(t, { ...ALL, WARREN_ALLOWED_ORIGINS: "*" });
  const methods = { xhr: "OPTIONS, POST", xhr_send: "OPTIONS, POST", xhr_streaming: "OPTIONS, POST", eventsource: "OPTIONS, GET" };
  for (const [transport, allowed] of Object.entries(methods)) {
    const headers = { origin: "https://page.example", "access-control-request-headers": "a, b" };
    const answer = await fetch(`${base}/000/options/${transport}`, { method: "OPTIONS", headers });
    assert.equal(answer.status, 204);
    assert.equal(answer.headers.get("access-control-allow-methods"), allowed);
    assert.equal(answer.headers.get("access-control-allow-origin"), "https://page.example");
    assert.equal(answer.headers.get("access-control-allow-credentials"), "true");
    assert.equal(answer.headers.get("access-control-allow-headers"), "a, b");
    assert.match(answer.headers.get("cache-control"), /public.*max-age=[1-9][0-9]{6}/);
    assert.ok(Number(answer.headers.get("access-control-max-age")) > 1_000_000);
    assert.equal(await answer.text(), "");
  }
});

test("XhrPolling: test_transport, test_invalid_session_id, test_invalid_json, test_content_types", async (t) => {
  const { base } = await setUp(t, ALL);
  const session = new Session(base);
  const opened = await session.post("xhr");
  verifyAnswer(opened, 200, "application/javascript; charset=UTF-8");
  assert.equal(await opened.text(), "o\n");
  assert.match(await session.poll(), /^a\["\{\\"type\\":\\"welcome\\".*"\]\n$/);
  const sent = await session.say(1);
  verifyAnswer(sent, 204, "text/plain; charset=UTF-8");
  assert.equal(await sent.text(), "");
  assert.equal(await session.poll(), `a[${reply(1)}]\n`);

  assert.equal((await new Session(base).say(1)).status, 404);
  for (const [body, text] of [['["x', "Broken JSON encoding."], ["", "Payload expected."]]) {
    const answer = await session.post("xhr_send", body);
    assert.deepEqual([answer.status, await answer.text()], [500, text]);
  }
  const types = ["text/plain", "T", "application/json", "application/xml", "", "application/json; charset=utf-8", "text/xml; charset=utf-8", "text/xml"];
  const ping = JSON.stringify([JSON.stringify({ type: "ping", id: 2 })]);
  for (const type of types) assert.equal((await session.post("xhr_send", ping, { "content-type": type })).status, 204, type);
  let replies = 0;
  while (replies < types.length) {
    const frame = await session.poll();
    const count = frame.split(reply(2)).length - 1;
    assert.equal(frame, `a[${Array(count).fill(reply(2)).join(",")}]\n`);
    replies += count;
  }
});

test("XhrStreaming: test_transport and test_response_limit", async (t) => {
  const { base } = await setUp(t, ALL);
  const session = new Session(base);
  let stream = await session.stream(t);
  verifyAnswer(stream.response, 200, "application/javascript; charset=UTF-8");
  assert.equal(await stream.until("\n"), `${"h".repeat(2048)}\n`);
  assert.equal(await stream.until("\n"), "o\n");
  assert.match(await stream.until("\n"), /welcome/);
  assert.equal((await session.say(1)).status, 204);
  assert.equal(await stream.until("\n"), `a[${reply(1)}]\n`);
  await fill(stream, session, "\n");
  stream = await session.stream(t);
  assert.equal(await stream.until("\n"), `${"h".repeat(2048)}\n`);
  await session.say(2);
  assert.equal(await stream.until("\n"), `a[${reply(2)}]\n`);
});

/** Has a session get more than a response may hold; the response ends between two frames. */
async function fill(stream, { url }, end) {
  const payload = "x".repeat(30_000);
  const api = `${new URL(url).origin}/v1/messages`;
  for (let sent = 0; sent < 5; sent += 1) {
    const body = JSON.stringify({ to: "user.alice", payload });
    assert.equal((await (await fetch(api, { method: "POST", body })).json()).outcome, "delivered");
    assert.ok((await stream.until(end)).includes(payload));
  }
  assert.ok(await stream.isDone());
}

test("EventSource: test_transport and test_response_limit", async (t) => {
  const { base } = await setUp(t, ALL);
  const session = new Session(base);
  const stream = await session.stream(t, "eventsource");
  verifyAnswer(stream.response, 200, "text/event-stream");
  assert.equal(await stream.until("\r\n"), "\r\n");
  assert.equal(await stream.until("\r\n\r\n"), "data: o\r\n\r\n");
  assert.match(await stream.until("\r\n\r\n"), /^data: a\[".*welcome/);
  await session.say("100%\u0000\n");
  const escaped = reply("100%\u0000\n").replaceAll("%", "%25");
  assert.equal(await stream.until("\r\n\r\n"), `data: a[${escaped}]\r\n\r\n`);
  await fill(stream, session, "\r\n\r\n");
});

test("HandlingClose: test_close_frame, test_close_request, test_abort_xhr_streaming, test_abort_xhr_polling", async (t) => {
  const { base } = await setUp(t, { ...ALL, WARREN_AUTH_TIMEOUT_MS: "200" });
  const closed = new Session(base, "");
  const told = await closed.stream(t);
  await told.until('c[4001,"unauthorized"]\n');
  assert.ok(await told.isDone());
  // The same to whoever asks again.
  for (let asked = 0; asked < 2; asked += 1) assert.equal(await closed.poll(), 'c[4001,"unauthorized"]\n');

  const session = new Session(base);
  const first = await session.stream(t);
  await first.until("o\n");
  const second = await session.stream(t);
  await second.until("\n");
  assert.equal(await second.until("\n"), 'c[2010,"Another connection still open"]\n');
  assert.ok(await second.isDone());
  first.abort();
  const interrupted = 'c[1002,"Connection interrupted"]\n';
  await eventually(async () => (await session.poll()) === interrupted, "interrupted");
  assert.equal(await session.poll(), interrupted);

  const polled = new Session(base);
  assert.equal(await polled.poll(), "o\n");
  assert.match(await polled.poll(), /welcome/);
  // Of two polls the one that comes second is refused, and the other one goes on waiting.
  const polls = [0, 1].map((at) => {
    const abort = new AbortController();
    const asked = fetch(`${polled.url}/xhr${polled.query}`, { method: "POST", signal: abort.signal });
    return { at, abort, told: asked.then((answer) => answer.text()).then((text) => ({ at, text }), () => ({ at })) };
  });
  const refused = await within(Promise.race(polls.map(({ told }) => told)), "the refusal");
  assert.equal(refused.text, 'c[2010,"Another connection still open"]\n');
  const other = polls[1 - refused.at];
  other.abort.abort();
  assert.equal((await other.told).text, undefined);
  await eventually(async () => (await polled.poll()) === interrupted, "interrupted");
});

/** What a node says to a bare request, up to `end`. */
async function raw(t, base, request, end) {
  const { hostname, port } = new URL(base);
  const socket = connect(Number(port), hostname);
  t.after(() => socket.destroy());
  let text = "";
  socket.setEncoding("utf8").on("data", (data) => (text += data));
  socket.write(request);
  await eventually(() => text.includes(end), `${end} in ${text}`);
  return text;
}

test("Http10 and Http11: test_streaming", async (t) => {
  const { base } = await setUp(t, ALL);
  const old = await raw(t, base, "POST /sockjs/000/old/xhr_streaming HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", "\no\n");
  assert.match(old, /^HTTP\/1\.0 200/);
  assert.ok(!/transfer-encoding|content-length/i.test(old), old);
  const request = "POST /sockjs/000/new/xhr_streaming HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
  const chunked = await raw(t, base, request, "\r\no\n");
  assert.match(chunked, /^HTTP\/1\.1 200/);
  assert.match(chunked, /transfer-encoding: chunked/i);
});
