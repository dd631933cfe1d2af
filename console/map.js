// The nodes as cards above the broker, the routes between them, and messages on their way.

import { confirmed, get, h, keyed, svg, text } from "./dom.js";
import { duration, figure, healthOf } from "./model.js";
import { outcomeOf } from "./feed.js";

/** Messages that move at the same time; more are not drawn. */
const PACKETS_MAX = 40;
const HOP_MS = 420;
/** From the bottom of a card to the middle of the rail below it. */
const RAIL_BELOW = 26;
/** From the left edge to the trunk that joins the rails of several rows. */
const TRUNK = 5;
/** The end of the way of what is stored. */
const MAIL = "@mail";

export class ClusterMap {
  #places = new Map();
  #moving = 0;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #route;
  #nodes = [];

  constructor({ drain }) {
    this.drain = drain;
    this.list = get("nodes");
    this.rails = get("rails");
    this.packets = get("packets");
    new ResizeObserver(() => this.#layOut()).observe(get("field"));
  }

  /** `clients` of this page, by node. */
  show(nodes, clients, mail) {
    this.#nodes = nodes;
    const alone = nodes.every(({ link }) => link === "standalone");
    text(get("broker"), `${alone ? "this process" : "RabbitMQ"} · ${figure(mail.messages)} in mail`);
    const now = Date.now();
    keyed(this.list, nodes, ({ node }) => node, (node) => this.#card(node), (card, node) => {
      const { level, label } = healthOf(node);
      card.dataset.level = level;
      const { sessions, users, rates, up, note, guests, drain } = card.parts;
      text(note, label);
      text(sessions, node.answered ? figure(node.sessions) : "–");
      text(users, node.answered ? `${node.sessions === 1 ? "session" : "sessions"}, ${figure(node.users)} ${node.users === 1 ? "user" : "users"}` : `silent for ${duration(node.silent_ms)}`);
      text(rates[0], figure(node.in));
      text(rates[1], figure(node.out));
      text(up, `up ${duration(now - node.started_ms)} · ${node.version}`);
      drain.disabled = !node.answered || node.draining;
      const here = clients.filter((client) => client.node === node.node);
      keyed(guests, here.slice(0, 12), ({ key }) => key, () => h("li"), (guest, client) => {
        guest.dataset.state = client.state;
        text(guest, client.user.slice(0, 2));
        guest.title = client.user;
      });
    });
    this.#layOut();
  }

  #card(node) {
    const rates = [h("b"), h("b")];
    const parts = { sessions: h("b", { class: "big" }), users: h("span"), rates, up: h("p", { class: "up" }), note: h("p", { class: "ill" }), guests: h("ul", { class: "guests", "aria-hidden": "true" }) };
    parts.drain = h("button", { type: "button", class: "quiet", "aria-label": `Drain ${node.node}`, onclick: () => this.#confirmDrain(node.node) }, "Drain");
    const card = h("li", { class: "node" },
      parts.guests,
      h("div", { class: "arch" },
        h("h3", { title: node.node }, node.node),
        parts.note,
        h("p", { class: "load" }, parts.sessions, parts.users),
        h("p", { class: "flow" }, h("span", {}, rates[0], " in/s"), h("span", {}, rates[1], " out/s")),
        h("footer", {}, parts.up, parts.drain)));
    card.parts = parts;
    return card;
  }

  async #confirmDrain(node) {
    const sure = await confirmed(`Drain ${node}?`, "It sends its clients to other nodes, settles what it answers for, and its process ends.", "Drain");
    if (sure) await this.drain(node);
  }

  /** Where the cards are, and the rails between them. */
  #layOut() {
    const field = get("field").getBoundingClientRect();
    this.#places.clear();
    const rows = new Map();
    for (const card of this.list.children) {
      const box = card.lastElementChild.getBoundingClientRect();
      const bottom = box.bottom - field.top;
      const place = { x: box.left - field.left + box.width / 2, top: box.top - field.top + 12, bottom, rail: bottom + RAIL_BELOW };
      this.#places.set(card.dataset.key, place);
      const row = rows.get(Math.round(bottom)) ?? [];
      row.push(place);
      rows.set(Math.round(bottom), row);
    }
    const mail = get("broker").getBoundingClientRect();
    const last = [...rows.values()].at(-1)?.[0];
    if (last) this.#places.set(MAIL, { x: mail.left - field.left - 8, top: last.rail, rail: last.rail });
    get("field").dataset.rows = String(rows.size);
    const drawn = [field.width, ...this.#nodes.map(({ node, link, answered }) => `${node} ${link} ${answered}`), ...[...this.#places.values()].flatMap(({ x, rail }) => [x, rail])].join();
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const alone = this.#nodes.every(({ link }) => link === "standalone");
    const paths = [];
    if (!alone) {
      const levels = [...rows.values()].map(([{ rail }]) => rail);
      for (const row of rows.values()) {
        const from = levels.length > 1 ? TRUNK : Math.min(...row.map(({ x }) => x));
        const to = row[0] === last ? this.#places.get(MAIL).x : Math.max(...row.map(({ x }) => x));
        paths.push(svg("path", { class: "rail", d: `M${from} ${row[0].rail}H${to}` }));
      }
      if (levels.length > 1) paths.push(svg("path", { class: "rail", d: `M${TRUNK} ${Math.min(...levels)}V${Math.max(...levels)}` }));
      for (const node of this.#nodes) {
        const place = this.#places.get(node.node);
        const fits = node.answered && (node.link === "ready" || node.link === "damaged");
        if (place) paths.push(svg("path", { class: fits ? "rail" : "rail cut", d: `M${place.x} ${place.bottom}V${place.rail}` }));
      }
    }
    this.#route = svg("g", { class: "route" });
    this.rails.replaceChildren(...paths, this.#route);
    get("field").dataset.alone = String(alone);
    if (this.shown) this.trace(this.shown);
  }

  #way(from, to) {
    const [a, b] = [this.#places.get(from), this.#places.get(to)];
    if (!a || !b) return null;
    if (from === to) return `M${a.x} ${a.bottom}V${a.top}`;
    const under = a.rail === b.rail ? `H${b.x}` : `H${TRUNK}V${b.rail}H${b.x}`;
    return `M${a.x} ${a.top}V${a.rail}${under}V${b.top}`;
  }

  /** A message goes from node to node. */
  move(from, to, outcome) {
    if (this.#calm.matches || document.hidden || this.#moving >= PACKETS_MAX) return;
    const way = this.#way(from, to);
    if (!way) return;
    const packet = h("i", { class: "packet" });
    packet.dataset.outcome = outcome;
    packet.style.offsetPath = `path("${way}")`;
    this.packets.append(packet);
    this.#moving += 1;
    const moving = packet.animate({ offsetDistance: ["0%", "100%"] }, { duration: HOP_MS, easing: "cubic-bezier(.3,.1,.2,1)" });
    moving.finished.catch(() => {}).then(() => {
      packet.remove();
      this.#moving -= 1;
    });
  }

  /** A message goes from a node into a mailbox. */
  store(from) {
    this.move(from, MAIL, "stored");
  }

  /** Draws the routes of one message until another is chosen. */
  trace(message) {
    this.shown = message;
    const { origin, nodes } = message ? routeOf(message) : { nodes: [] };
    const ways = [...nodes].map((node) => this.#way(origin ?? node, node)).filter(Boolean);
    const outcome = message && outcomeOf(message);
    this.#route?.replaceChildren(...ways.map((d) => svg("path", { d, "data-outcome": outcome })));
  }
}

/** From where to where a message went: as the nodes say, or else as far as this page knows. */
function routeOf(message) {
  const events = message.trace ?? [];
  const nodes = new Set(message.receipts.map(({ node }) => node));
  for (const { step, node, nodes: to } of events) {
    if (step === "sent") to.forEach((one) => nodes.add(one));
    if (step === "written" || step === "arrived") nodes.add(node);
    if (step === "to_mail") nodes.add(MAIL);
  }
  if (message.outcome === "stored") nodes.add(MAIL);
  return { origin: events.find(({ step }) => step === "accepted")?.node ?? message.origin, nodes };
}
