// A gateway that does what a test says: WebSocket by hand on node:http, warren.v1 frames as objects.
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455 section 1.3
const PATIENCE_MS = 5_000;

/** Waits for a condition; the error says which one did not come. */
export async function until(condition, what = condition.toString()) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`did not happen: ${what}`);
    await new Promise((resume) => setTimeout(resume, 2));
  }
}

/** Unmasks the text and close messages in a buffer; returns what is left of it. Messages here are short. */
function decode(buffer, onMessage) {
  for (;;) {
    if (buffer.length < 2) return buffer;
    let length = buffer[1] & 127;
    let at = 2;
    if (length === 126) {
      if (buffer.length < 4) return buffer;
      length = buffer.readUInt16BE(2);
      at = 4;
    } else if (length === 127) {
      if (buffer.length < 10) return buffer;
      length = Number(buffer.readBigUInt64BE(2));
      at = 10;
    }
    if (buffer.length < at + 4 + length) return buffer;
    const mask = buffer.subarray(at, at + 4);
    const body = Buffer.from(buffer.subarray(at + 4, at + 4 + length));
    body.forEach((byte, n) => (body[n] = byte ^ mask[n % 4]));
    onMessage(buffer[0] & 15, body);
    buffer = buffer.subarray(at + 4 + length);
  }
}

function encode(opcode, body) {
  const head = body.length < 126 ? Buffer.from([0x80 | opcode, body.length]) : Buffer.alloc(4);
  if (body.length >= 126) {
    head.set([0x80 | opcode, 126]);
    head.writeUInt16BE(body.length, 2);
  }
  return Buffer.concat([head, body]);
}

/** One connection of a client: what it sent, and what the test sends to it. */
class Connection {
  frames = [];
  closeCode = null;
  ended = false;

  constructor(request, socket, server) {
    Object.assign(this, { url: request.url, protocols: request.headers["sec-websocket-protocol"] ?? "", socket });
    let rest = Buffer.alloc(0);
    socket.on("data", (bytes) => {
      rest = decode(Buffer.concat([rest, bytes]), (opcode, body) => {
        if (opcode === 1) this.#hear(JSON.parse(body.toString()), server);
        if (opcode !== 8) return;
        this.closeCode = body.length >= 2 ? body.readUInt16BE(0) : 1005;
        socket.end(encode(8, body));
      });
    });
    socket.on("close", () => (this.ended = true));
    socket.on("error", () => {});
  }

  #hear(frame, server) {
    this.frames.push(frame);
    const answer = server.answer(frame, this);
    if (answer) this.send({ type: "reply", id: frame.id, ...answer });
  }

  of(type) {
    return this.frames.filter((frame) => frame.type === type);
  }

  /** The n-th frame of a type, as soon as it is there. */
  frame(type, n = 0) {
    return until(() => this.of(type)[n], `frame ${n} of type ${type}; there are ${JSON.stringify(this.frames)}`);
  }

  send(frame) {
    this.socket.write(encode(1, Buffer.from(typeof frame === "string" ? frame : JSON.stringify(frame))));
  }

  welcome(more = {}) {
    const limits = { message_bytes: 1000, publishes_per_second: 0, in_flight: 256 };
    this.send({ type: "welcome", session: "fake~1", user: "alice", node: "fake", ping_interval: 25, limits, ...more });
  }

  message(id, more = {}) {
    this.send({ type: "message", id, from: { user: "bob", session: "x~1" }, to: "user.alice", payload: id, ts: 1, ...more });
  }

  close(code, reason = "", disconnect = {}) {
    const notice = { type: "disconnect", code, reason, reconnect: code < 4000 || code >= 4100, after_ms: 0 };
    this.send({ ...notice, ...disconnect });
    const body = Buffer.alloc(2);
    body.writeUInt16BE(code);
    this.socket.write(encode(8, body));
  }

  /** The end of a node that is killed. */
  cut() {
    this.socket.destroy();
  }
}

export class FakeServer {
  connections = [];
  /** Settles every publish at once, unless a test says otherwise. `null`: no answer. */
  answer = (frame) => {
    if (frame.type === "publish") return { outcome: "delivered", sessions: 1, message_id: frame.message_id };
    return frame.type === "ack" || frame.type === "auth" ? null : { outcome: "ok" };
  };
  /** What a new connection is met with; `false` refuses its handshake with 401. */
  accept = (connection) => void connection.welcome();

  static async start() {
    const server = new FakeServer();
    server.http = createServer((request, response) => response.writeHead(404).end());
    server.http.on("upgrade", (request, socket) => server.#upgrade(request, socket));
    server.http.listen(0, "127.0.0.1");
    await once(server.http, "listening");
    server.url = `ws://127.0.0.1:${server.http.address().port}/ws`;
    return server;
  }

  #upgrade(request, socket) {
    const connection = new Connection(request, socket, this);
    this.connections.push(connection);
    if (this.refuse?.(connection)) return socket.end("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + GUID).digest("base64");
    socket.write(
      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
        `Sec-WebSocket-Protocol: warren.v1\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    );
    this.accept(connection);
  }

  connection(n) {
    return until(() => this.connections[n], `connection ${n}`);
  }

  stop() {
    for (const connection of this.connections) connection.cut();
    this.http.close();
  }
}

/** A clock that a test moves. Timers run in the order of their times, with their promises in between. */
export class FakeClock {
  time = 1_700_000_000_000;
  /** What somebody has set the wall clock by; timers do not care. */
  offset = 0;
  #timers = new Map();
  #last = 0;
  /** 0.5 is the middle of every jitter. */
  random = () => 0.5;

  now = () => this.time + this.offset;
  setTimeout = (run, ms) => {
    this.#timers.set(++this.#last, { run, at: this.time + ms, id: this.#last });
    return this.#last;
  };
  clearTimeout = (id) => this.#timers.delete(id);

  /** Milliseconds from now of each timer. */
  get timers() {
    return [...this.#timers.values()].map(({ at }) => at - this.time).sort((a, b) => a - b);
  }

  async advance(ms) {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.#timers.values()].filter(({ at }) => at <= end).sort((a, b) => a.at - b.at || a.id - b.id)[0];
      if (!due) break;
      this.#timers.delete(due.id);
      this.time = Math.max(this.time, due.at);
      due.run();
      await new Promise(setImmediate);
    }
    this.time = end;
  }

  /** The machine sleeps: time passes, no timer runs until it is awake, then all at once. */
  async sleep(ms) {
    this.time += ms;
    await this.advance(0);
  }
}
