// Real nodes: the debug binary of the gateway, standalone or as a cluster on the broker of WARREN_TEST_AMQP_URL.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const BINARY = process.env.WARREN_TEST_BINARY ?? fileURLToPath(new URL("../../../../target/debug/warren", import.meta.url));
const PATIENCE_MS = 30_000;

/** A publisher that waits for its settlements, in publishes. */
const PENDING_MAX = 200;

/** Waits for a condition of the real world; the error says which one did not come. */
export async function eventually(condition, what = condition.toString(), patience = PATIENCE_MS) {
  const deadline = Date.now() + patience;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`did not happen: ${what}`);
    await new Promise((resume) => setTimeout(resume, 20));
  }
}

class Node {
  log = "";

  constructor(env) {
    this.env = env;
  }

  /** On free ports the first time, later on the same ones. */
  async start() {
    const env = { ...process.env, WARREN_LISTEN: "127.0.0.1:0", WARREN_ADMIN_LISTEN: "127.0.0.1:0", ...this.env };
    this.process = spawn(BINARY, { env, stdio: ["ignore", "pipe", "pipe"] });
    this.process.on("error", (error) => (this.log += error));
    let greeting = "";
    this.process.stdout.on("data", (text) => (greeting += text));
    this.process.stderr.on("data", (text) => (this.log = (this.log + text).slice(-20_000)));
    const found = await eventually(() => {
      if (this.process.exitCode !== null) throw new Error(`the node ended: ${greeting}${this.log}`);
      return /ws:\/\/(\S+)\/ws[^]*http:\/\/(\S+)\/readyz/.exec(greeting);
    }, "the greeting of a node");
    const [, listen, admin] = found;
    Object.assign(this.env, { WARREN_LISTEN: listen, WARREN_ADMIN_LISTEN: admin });
    this.http = `http://${listen}`;
    this.ws = `ws://${listen}/ws`;
    await eventually(async () => (await fetch(`http://${admin}/readyz`).catch(() => null))?.ok, `ready: ${this.log}`);
  }

  async stop(signal = "SIGKILL") {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = once(this.process, "exit");
    this.process.kill(signal);
    await ended;
  }
}

export class Cluster {
  nodes = [];

  /** Standalone: one node without a broker. Else as many as named, which know each other. `env` may be a function of n. */
  static async start(t, count, env = {}) {
    const cluster = new Cluster();
    t.after(() => Promise.all(cluster.nodes.map((node) => node.stop())));
    const amqp = process.env.WARREN_TEST_AMQP_URL;
    if (count > 1 && !amqp) throw new Error("WARREN_TEST_AMQP_URL must name a RabbitMQ; ./test starts one");
    // Names of its own on a broker that others may use.
    const prefix = `js${process.pid}${Math.random().toString(36).slice(2, 8)}`;
    for (let n = 0; n < count; n += 1) {
      const shared = count > 1 ? { WARREN_AMQP_URL: amqp, WARREN_PREFIX: prefix } : { WARREN_AMQP_URL: "" };
      if (count === 1) delete shared.WARREN_AMQP_URL;
      cluster.nodes.push(new Node({ WARREN_NODE_ID: `n${n}`, ...shared, ...(typeof env === "function" ? env(n) : env) }));
    }
    await Promise.all(cluster.nodes.map((node) => node.start()));
    if (count > 1) await cluster.knowsItself();
    return cluster;
  }

  /** Every node sees every other one. */
  knowsItself() {
    const seen = async (node) => {
      const answer = await fetch(`${node.http}/v1/nodes`, { headers: this.headers }).catch(() => null);
      const body = answer?.ok ? await answer.json() : [];
      return (body.nodes ?? body).length === this.nodes.length;
    };
    return eventually(async () => (await Promise.all(this.nodes.map(seen))).every(Boolean), "all nodes know each other");
  }

  get urls() {
    return this.nodes.map(({ ws }) => ws);
  }

  /** kill -9, and the same node again at once. */
  async kill(n) {
    await this.nodes[n].stop("SIGKILL");
    await this.nodes[n].start();
  }
}

/** Publishes numbered messages until it is stopped, as fast as they are settled; keeps what became of each. */
export class Publisher {
  settled = new Map();
  failed = [];
  #running = true;
  #next = 0;
  #all = [];

  constructor(client, to, everyMs = 20) {
    this.done = this.#run(client, to, everyMs);
  }

  async #run(client, to, everyMs) {
    while (this.#running) {
      const number = this.#next++;
      const publish = client.publish(to, number).then(
        ({ outcome }) => this.settled.set(number, outcome),
        (error) => this.failed.push(`${number}: ${error.code} ${error.message}`),
      );
      this.#all.push(publish);
      do await new Promise((resume) => setTimeout(resume, everyMs));
      while (client.pending >= PENDING_MAX);
    }
    await Promise.all(this.#all);
  }

  /** How many were published so far. */
  get count() {
    return this.#next;
  }

  /** Resolves when all that was published is settled. */
  stop() {
    this.#running = false;
    return this.done;
  }
}

/** What is wrong with what was shown: empty when everything that was accepted was shown, and once. */
export function findings(publisher, shown) {
  const counts = new Map();
  for (const number of shown) counts.set(number, (counts.get(number) ?? 0) + 1);
  const missed = [...publisher.settled.keys()].filter((number) => !counts.has(number));
  const twice = [...counts].filter(([, count]) => count > 1).map(([number]) => number);
  // The first of each are enough to look for them in the logs.
  return { failed: publisher.failed.slice(0, 9), missed: missed.slice(0, 9), twice: twice.slice(0, 9) };
}

export const NOTHING = { failed: [], missed: [], twice: [] };
