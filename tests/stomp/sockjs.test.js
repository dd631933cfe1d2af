// SockJS: the real sockjs-client with both codecs inside, and the assertions of sockjs-protocol 0.3.3 that concern what is
// always there (greeting, info, WebSocket and raw transports), each under the name that it has in that suite.
import assert from "node:assert/strict";
import { once } from "node:events";
import { get } from "node:http";
import { test } from "node:test";

import WebSocket from "ws";

import { within } from "./clients.js";
import { bare, open, setUp, stompOver } from "./sockjs.js";

test("sockjs-client: warren.v1 inside", async (t) => {
  const { base } = await setUp(t);
  const alice = open(t, base);
  await alice.open.next();
  assert.equal(alice.sockjs.transport, "websocket");
  alice.sockjs.send(JSON.stringify({ type: "auth", token: "alice" }));
  assert.equal(JSON.parse((await alice.message.next()).data).user, "alice");
  const text = 'quotes " \\ and \u2028 \u0001 é 😀';
  alice.sockjs.send(JSON.stringify({ type: "publish", id: 1, to: "user.alice", payload: { text } }));
  const frames = [await alice.message.next(), await alice.message.next()].map(({ data }) => JSON.parse(data));
  assert.deepEqual(frames.map(({ type }) => type).sort(), ["message", "reply"]);
  assert.equal(frames.find(({ type }) => type === "message").payload.text, text);
  const named = open(t, `${base}?user=bob`);
  await named.open.next();
  assert.equal(JSON.parse((await named.message.next()).data).user, "bob");
});

test("sockjs-client: a refusal comes inside, and no other transport is tried", async (t) => {
  const secret = "0123456789abcdef0123456789abcdef";
  const { base } = await setUp(t, { WARREN_JWT_SECRET: secret });
  const stranger = open(t, base);
  await stranger.open.next();
  stranger.sockjs.send(JSON.stringify({ type: "auth", token: "guess" }));
  const { code, reason, wasClean } = await stranger.close.next();
  assert.deepEqual([code, reason, wasClean], [4001, "unauthorized", true]);

  const full = await setUp(t, { WARREN_MAX_SESSIONS: "1" });
  const first = open(t, `${full.base}?user=alice`);
  await first.message.next("the welcome");
  const second = open(t, full.base);
  assert.equal((await second.close.next()).code, 4100);
});

for (const name of ["stompjs 2.3.3 over a plain WebSocket", "webstomp-client over a plain WebSocket", "@stomp/stompjs 1.2"]) {
  test(`${name} over sockjs-client`, async (t) => {
    const { base, node } = await setUp(t);
    const alice = stompOver(t, name, { base, node });
    await alice.connect();
    const room = await alice.subscribe("/topic/room");
    const long = `äöü€ "\\ ${"x".repeat(30_000)}`;
    assert.equal((await alice.send("/topic/room", long)).outcome, "published");
    assert.equal((await room.next()).body, long);
    const bytes = await fetch(`${node.http}/v1/messages`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ to: "channel.room", payload: "from a backend" }),
    });
    assert.equal(bytes.status, 200);
    assert.equal((await room.next()).body, '"from a backend"');
    await alice.leave();
  });
}

test("BaseUrlGreeting", async (t) => {
  const { base } = await setUp(t);
  for (const url of [base, `${base}/`]) {
    const answer = await fetch(url);
    assert.equal(answer.status, 200);
    assert.equal(answer.headers.get("content-type"), "text/plain; charset=UTF-8");
    assert.equal(answer.headers.get("set-cookie"), null);
    assert.equal(await answer.text(), "Welcome to SockJS!\n");
  }
  for (const suffix of ["/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a", "/a/"]) {
    assert.equal((await fetch(base + suffix)).status, 404, suffix);
  }
});

test("InfoTest", async (t) => {
  const { base } = await setUp(t, { WARREN_ALLOWED_ORIGINS: "https://page.example" });
  const plain = await fetch(`${base}/info?t=1`);
  assert.equal(plain.status, 200);
  assert.equal(plain.headers.get("content-type"), "application/json; charset=UTF-8");
  assert.match(plain.headers.get("cache-control"), /no-store, no-cache, no-transform, must-revalidate, max-age=0/);
  assert.equal(plain.headers.get("access-control-allow-origin"), "*");
  const { entropy, ...info } = await plain.json();
  assert.deepEqual(info, { websocket: true, origins: ["*:*"], cookie_needed: false, transports: ["websocket"] });
  const other = (await (await fetch(`${base}/info`)).json()).entropy;
  assert.ok(Number.isInteger(entropy) && entropy >= 0 && entropy < 2 ** 32);
  assert.notEqual(entropy, other);

  const origin = "https://page.example";
  const asked = await fetch(`${base}/info`, { headers: { origin } });
  assert.equal(asked.headers.get("access-control-allow-origin"), origin);
  assert.equal(asked.headers.get("access-control-allow-credentials"), "true");
  const preflight = await fetch(`${base}/info`, {
    method: "OPTIONS",
    headers: { origin, "access-control-request-headers": "a, b" },
  });
  assert.equal(preflight.status, 204);
  assert.match(preflight.headers.get("cache-control"), /public/);
  assert.match(preflight.headers.get("cache-control"), /max-age=[1-9][0-9]{6}/);
  assert.ok(Number(preflight.headers.get("access-control-max-age")) > 1_000_000);
  assert.equal(preflight.headers.get("access-control-allow-methods"), "OPTIONS, GET");
  assert.equal(preflight.headers.get("access-control-allow-headers"), "a, b");
  assert.equal(await preflight.text(), "");

  // What /ws refuses is refused here.
  const foreign = await fetch(`${base}/info`, { headers: { origin: "https://evil.example" } });
  assert.equal(foreign.status, 403);
  assert.equal(foreign.headers.get("access-control-allow-origin"), null);
  assert.equal((await fetch(`${base}/info?token=x`)).status, 400);
  const socket = new WebSocket(`${base.replace("http", "ws")}/0/a/websocket`, { origin: "https://evil.example" });
  const [, answer] = await within(once(socket, "unexpected-response"), "the refusal");
  assert.equal(answer.statusCode, 403);
  socket.on("error", () => {});
  socket.terminate();
});

test("SessionURLs", async (t) => {
  const { base, ws } = await setUp(t);
  for (const part of ["/a/a", "/_/_", "/1/1", "/abcdefgh_i-j%20/abcdefg_i-j%20"]) {
    const { frames } = await bare(t, `${ws}${part}/websocket`);
    assert.equal(await frames.next(), "o");
  }
  for (const suffix of ["//", "/a./a", "/a/a.", "/./.", "/", "///"]) {
    // `fetch` would resolve the dots.
    const answered = new Promise((resume) => get({ host: new URL(base).hostname, port: new URL(base).port, path: `/sockjs${suffix}/websocket` }, resume));
    assert.equal((await within(answered, suffix)).statusCode, 404, suffix);
  }
});

test("WebsocketHttpErrors", async (t) => {
  const { base } = await setUp(t);
  assert.equal((await fetch(`${base}/0/0/websocket`)).status, 400);
  const posted = await fetch(`${base}/0/0/websocket`, { method: "POST", body: "" });
  assert.equal(posted.status, 405);
  assert.match(posted.headers.get("allow"), /GET/);
  // Transports that are not there unless WARREN_SOCKJS says so: sockjs-http.test.js.
  for (const transport of ["xhr", "xhr_streaming", "xhr_send", "eventsource", "htmlfile", "jsonp"]) {
    assert.equal((await fetch(`${base}/0/0/${transport}`, { method: "POST", body: "" })).status, 404, transport);
  }
  assert.equal((await fetch(`${base}/iframe.html`)).status, 404);
});

test("WebsocketHixie76 and WebsocketHybi10: frames of the transport", async (t) => {
  const { ws } = await setUp(t);
  const { socket, frames, closes } = await bare(t, `${ws}/000/same/websocket`);
  assert.equal(await frames.next(), "o");
  // The same session name twice at once is no matter.
  const other = await bare(t, `${ws}/000/same/websocket`);
  assert.equal(await other.frames.next(), "o");
  // Nothing, an empty array, a lone string, two at once.
  socket.send("");
  socket.send("[]");
  socket.send(JSON.stringify(JSON.stringify({ type: "auth", token: "alice" })));
  assert.match(await frames.next(), /^a\["\{\\"type\\":\\"welcome\\"/);
  const ping = (id) => JSON.stringify({ type: "ping", id });
  socket.send(JSON.stringify([ping(1), ping(2)]));
  for (const id of [1, 2]) {
    assert.equal(await frames.next(), `a[${JSON.stringify(JSON.stringify({ type: "reply", id, outcome: "ok" }))}]`);
  }
  // Broken JSON ends the connection.
  socket.send('["');
  assert.match(await frames.next(), /disconnect/);
  assert.equal(await frames.next(), 'c[4000,"bad request"]');
  assert.equal(await closes.next(), 4000);
});

test("heart-beats come without traffic", async (t) => {
  const { ws } = await setUp(t, { WARREN_PING_INTERVAL_MS: "1000" });
  const { frames } = await bare(t, `${ws}/000/beats/websocket?user=alice`);
  assert.equal(await frames.next(), "o");
  assert.match(await frames.next(), /welcome/);
  assert.equal(await frames.next(), "h");
  assert.equal(await frames.next(), "h");
});

test("RawWebsocket", async (t) => {
  const { ws } = await setUp(t);
  const { socket, frames, closes } = await bare(t, `${ws}/websocket`);
  socket.send(JSON.stringify({ type: "auth", token: "alice" }));
  assert.equal(JSON.parse(await frames.next()).type, "welcome");
  socket.close(1000);
  assert.equal(await closes.next(), 1000);
});
