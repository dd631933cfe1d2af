// What the reports of the nodes mean: rates, history, health, and how figures are written. Pure.

/** Seconds of history that the figures draw. */
export const HISTORY = 120;

/** Follows the reports of a cluster. */
export class Model {
  nodes = [];
  channels = [];
  mail = { users: 0, messages: 0, bytes: 0 };
  asked = null;
  /** By figure: one value for each look, the newest last. */
  history = {};
  #before = new Map();

  /** Takes the body of `GET /v1/cluster`. */
  take(cluster) {
    const before = this.#before;
    this.#before = new Map();
    this.asked = cluster.asked;
    this.channels = cluster.channels;
    this.mail = cluster.mail;
    this.nodes = cluster.nodes.map((node) => {
      if (!node.answered) return { ...node, in: 0, out: 0, rejected: 0 };
      this.#before.set(node.node, { at: cluster.at_ms, node });
      return { ...node, ...rates(before.get(node.node), { at: cluster.at_ms, node }) };
    });
    this.nodes.sort((a, b) => (a.node < b.node ? -1 : 1));
    const now = this.figures();
    for (const [name, value] of Object.entries(now)) {
      const values = (this.history[name] ??= []);
      values.push(value);
      if (values.length > HISTORY) values.shift();
    }
    return this;
  }

  figures() {
    const sum = (of) => this.nodes.reduce((total, node) => total + (node[of] ?? 0), 0);
    return {
      sessions: sum("sessions"),
      users: sum("users"),
      in: sum("in"),
      out: sum("out"),
      pending: sum("pending"),
      mail: this.mail.messages,
      rejected: sum("rejected"),
    };
  }
}

const accepted = ({ settled: { rejected = 0, ...others } }) => Object.values(others).reduce((sum, count) => sum + count, 0);

/** Per second between two reports of one process; a process that began anew has no rate yet. */
function rates(before, now) {
  const seconds = before ? (now.at - before.at) / 1000 : 0;
  if (!before || before.node.started_ms !== now.node.started_ms || seconds <= 0) return { in: 0, out: 0, rejected: 0 };
  const [was, is] = [before.node.totals, now.node.totals];
  const rate = (from, to) => Math.max(0, to - from) / seconds;
  return {
    in: rate(accepted(was), accepted(is)),
    out: rate(was.handed, is.handed),
    rejected: rate(was.settled.rejected ?? 0, is.settled.rejected ?? 0),
  };
}

const LINKS = {
  standalone: null,
  ready: null,
  damaged: "topology damaged",
  blocked: "broker blocked",
  silent: "broker silent",
  down: "broker lost",
};

/** What is wrong with a node: `level` is "good", "warn" or "bad". */
export function healthOf(node) {
  if (!node.answered) return { level: "bad", label: "no answer" };
  const link = LINKS[node.link] ?? null;
  if (link) return { level: node.link === "blocked" || node.link === "damaged" ? "warn" : "bad", label: link };
  if (node.draining) return { level: "warn", label: "draining" };
  return { level: "good", label: "" };
}

/** One sentence about the cluster, as `asked` sees it: without the broker it can ask nobody else. */
export function sentence(nodes, asked) {
  const count = nodes.length === 1 ? "1 node" : `${nodes.length} nodes`;
  const ill = nodes.map((node) => ({ node, ...healthOf(node) })).filter(({ level }) => level !== "good");
  if (ill.length === 0) {
    const alone = nodes.length === 1 && nodes[0].link === "standalone";
    return { level: "good", text: alone ? "Standalone, all well" : `${count}, all well` };
  }
  const blind = ill.find(({ node, level }) => node.node === asked && level === "bad");
  if (blind) return { level: "bad", text: `${asked}: ${blind.label}` };
  const level = ill.some((one) => one.level === "bad") ? "bad" : "warn";
  const labels = new Set(ill.map(({ label }) => label));
  const text =
    ill.length === 1 ? `${ill[0].node.node}: ${ill[0].label}`
    : labels.size === 1 ? `${ill.length} of ${count}: ${[...labels][0]}`
    : `${ill.length} of ${count} need a look`;
  return { level, text };
}

/** 0.4, 999, 12,345, 123 k, 3.4 M. */
export function figure(value) {
  if (value < 10 && !Number.isInteger(value)) return value.toFixed(1);
  if (value < 99_999.5) return Math.round(value).toLocaleString("en");
  for (const [unit, size] of [["k", 1e3], ["M", 1e6], ["G", 1e9]]) {
    const scaled = value / size;
    if (scaled < 999.5) return `${scaled < 99.95 ? scaled.toFixed(1).replace(/\.0$/, "") : Math.round(scaled)} ${unit}`;
  }
  return "many";
}

/** 42 s, 7 min, 3 h, 12 d. */
export function duration(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** 0.8 ms, 14 ms, 1.2 s. */
export function latency(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(1)} s`;
}

/** The points of a sparkline within a box, as an SVG path. */
export function sparkline(values, width, height) {
  if (values.length < 2) return "";
  const top = Math.max(...values, 1e-9);
  const step = width / (HISTORY - 1);
  const from = width - step * (values.length - 1);
  return values.map((value, at) => {
    const [x, y] = [from + at * step, height - 1 - (value / top) * (height - 2)];
    return `${at === 0 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
  }).join("");
}
