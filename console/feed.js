// The messages that this page has sent or seen: the latest ones, by id. Pure.

/** Messages that are kept. */
export const KEPT = 500;
/** Receipts of one message that are kept; the rest is counted. */
const RECEIPTS_KEPT = 50;

export class Feed {
  /** In the order in which they were first heard of. */
  #messages = new Map();
  /** Heard of since the page was opened. */
  count = 0;
  /** Grows with every change. */
  version = 0;
  onreceipt = () => {};
  onsettled = () => {};

  #of(id, now) {
    let message = this.#messages.get(id);
    if (!message) {
      message = { id, at: now, wall: Date.now(), receipts: [], taken: 0, outcome: null, mine: false };
      this.#messages.set(id, message);
      this.count += 1;
      if (this.#messages.size > KEPT) this.#messages.delete(this.#messages.keys().next().value);
    }
    this.version += 1;
    return message;
  }

  /** This page sends it. `origin`: the node that takes it. */
  sent(id, { from, to, payload, origin }, now) {
    return Object.assign(this.#of(id, now), { from, to, payload, origin, sentAt: now, mine: true });
  }

  settled(id, outcome, detail, now) {
    const message = Object.assign(this.#of(id, now), { outcome, detail, settledAt: now });
    this.onsettled(message);
  }

  /** A client of this page got it. */
  received(id, { client, from, to, payload, event, redelivered }, now) {
    const message = this.#of(id, now);
    message.from ??= from;
    message.to ??= to;
    message.event ??= event;
    if (!("payload" in message)) message.payload = payload;
    message.taken += 1;
    const receipt = { user: client.user, node: client.node, session: client.session, at: now, redelivered };
    if (message.receipts.length < RECEIPTS_KEPT) message.receipts.push(receipt);
    this.onreceipt(message, receipt);
  }

  /** What the nodes say about it. A message that this page has not seen is not kept. */
  traced(id, { events, partial }, now) {
    const message = this.#messages.get(id) ?? { id, at: now, receipts: [], taken: 0, outcome: null, mine: false };
    this.version += 1;
    return Object.assign(message, { trace: events, tracePartial: partial });
  }

  get(id) {
    return this.#messages.get(id);
  }

  /** The newest first. */
  latest(count) {
    return [...this.#messages.values()].slice(-count).reverse();
  }

  clear() {
    this.#messages.clear();
    this.version += 1;
  }
}

/** The outcome that is shown: what is not settled may be seen already. */
export function outcomeOf(message) {
  if (message.outcome) return message.outcome;
  return message.mine ? "pending" : "received";
}

/** One line of a payload. */
export function excerpt(payload, length = 80) {
  const whole = payload instanceof Uint8Array ? `${payload.length} bytes` : typeof payload === "string" ? payload : JSON.stringify(payload) ?? "";
  const line = whole.replace(/\s+/g, " ");
  return line.length > length ? `${line.slice(0, length - 1)}…` : line;
}
