// Dead connections are noticed: by silence, by a page that comes back, by a network that comes and goes.
import assert from "node:assert/strict";
import { test } from "node:test";

import { setUp } from "../support/client.js";
import { until } from "../support/fake-server.js";

test("a silent gateway is asked, and given up when it does not answer", async (t) => {
  const { server, clock, client, events } = await setUp(t);
  await client.ready();
  await clock.advance(25_000);
  await server.connections[0].frame("ping");
  server.connections[0].send({ type: "gap", reason: "any frame will do" });
  await until(() => events.gap.length === 1);
  server.answer = () => null;
  await clock.advance(5_000);
  assert.equal(client.state, "open");
  await clock.advance(20_000);
  await server.connections[0].frame("ping", 1);
  await clock.advance(5_000);
  assert.deepEqual([client.state, events.state.at(-1).reason], ["waiting", "the gateway is silent"]);
  await clock.advance(1_000);
  await client.ready();
});

test("a tab that slept for a day reconnects at once, and keeps what the old connection still held", async (t) => {
  const document = Object.assign(new EventTarget(), { hidden: false });
  for (const wake of ["timer", "resume", "visibilitychange"]) {
    const { server, clock, client, events } = await setUp(t, { ack: false, env: { document } });
    const shown = [];
    client.on("message", ({ id }) => shown.push(id));
    await client.ready();
    clock.time += 24 * 3600 * 1000;
    if (wake === "timer") await clock.advance(0);
    else document.dispatchEvent(new Event(wake));
    assert.deepEqual([client.state, events.state.at(-1).reason], ["waiting", "the page was asleep"]);
    server.connections[0].message("m1");
    await until(() => shown.length === 1);
    await clock.advance(1_000);
    await client.ready();
    await until(() => server.connections[0].ended);
    assert.equal(events.gap.length, 1);
    await client.close({ timeout: 0 });
  }
});

test("a page whose timers are slow is not taken for one that slept", async (t) => {
  const { server, clock, client, events } = await setUp(t);
  await client.ready();
  for (let minute = 0; minute < 5; minute += 1) {
    await clock.sleep(60_000);
    await server.connections[0].frame("ping", minute);
    // Sent behind the answer, which is not something that can be seen.
    server.connections[0].send({ type: "gap", reason: "of the test" });
    await until(() => events.gap.length === minute + 1);
  }
  assert.equal(client.state, "open");
});

test("a clock that is set back costs one heartbeat, not the hour", async (t) => {
  const { server, clock, client } = await setUp(t);
  await client.ready();
  clock.offset -= 3600 * 1000;
  await clock.advance(50_000);
  await server.connections[0].frame("ping");
});

test("online and visible: a connection is probed, a backoff is cut short", async (t) => {
  const window = new EventTarget();
  const document = Object.assign(new EventTarget(), { hidden: false });
  const navigator = { onLine: true };
  const { server, clock, client, events } = await setUp(t, { env: { window, document, navigator } });
  await client.ready();
  navigator.onLine = false;
  window.dispatchEvent(new Event("offline"));
  await server.connections[0].frame("ping");
  server.connections[0].cut();
  await until(() => client.state === "waiting");
  assert.equal(events.state.at(-1).retryInMs, 20_000, "no haste while there is no network");
  document.dispatchEvent(new Event("visibilitychange"));
  assert.equal(clock.timers[0] > 1_000, true);
  navigator.onLine = true;
  window.dispatchEvent(new Event("online"));
  await clock.advance(300);
  await client.ready();

  server.connections[1].cut();
  await until(() => client.state === "waiting");
  document.dispatchEvent(new Event("visibilitychange"));
  await clock.advance(300);
  await client.ready();
  window.dispatchEvent(new Event("pageshow"));
  await server.connections[2].frame("ping");
});

test("a hidden page acknowledges at once, and before it is frozen", async (t) => {
  const document = Object.assign(new EventTarget(), { hidden: true });
  const { server, clock, client } = await setUp(t, { env: { document } });
  client.on("message", () => {});
  await client.ready();
  server.connections[0].message("m1");
  assert.deepEqual((await server.connections[0].frame("ack")).ids, ["m1"]);
  document.hidden = false;
  server.connections[0].message("m2");
  await until(() => clock.timers.includes(10));
  document.dispatchEvent(new Event("freeze"));
  assert.deepEqual((await server.connections[0].frame("ack", 1)).ids, ["m2"]);
  await client.close({ timeout: 0 });
  document.dispatchEvent(new Event("visibilitychange"));
  assert.equal(client.state, "closed");
});
