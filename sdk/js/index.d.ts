// Types of warren-client. The meaning of every option and event is in README.md.

/** `user.<id>`, `session.<id>`, `channel.<name>`, `app.<key>` or `broadcast`. */
export type Target = `user.${string}` | `session.${string}` | `channel.${string}` | `app.${string}` | "broadcast";

export type State = "connecting" | "open" | "waiting" | "closed" | "failed";

/** A token, or a function that gets one; `null` from the function ends the client in the state "failed". */
export type TokenSource = string | (() => string | null | Promise<string | null>);

export interface ClientOptions {
  /** Who this is. Needed unless `user` is given. */
  token?: TokenSource;
  /** Who this is, for a gateway in insecure development mode. */
  user?: string;
  /** Messages count as delivered when the handler has returned; `false`: when they were written. Default `true`. */
  ack?: boolean;
  /** Milliseconds from `publish()` to its settlement; `Infinity` for no limit. Default 120 s. */
  deadline?: number;
  /** Milliseconds that `request()` and `presence()` wait for their answer. Default 10 s. */
  requestTimeout?: number;
  /** Milliseconds for one attempt to connect, the token function included. Default 10 s. */
  connectTimeout?: number;
  /** Milliseconds that `close()` waits for what is not settled. Default 5 s. */
  closeTimeout?: number;
  /** Milliseconds of silence after which the gateway is asked whether it is there. Default 25 s. */
  heartbeat?: number;
  /** Milliseconds for its answer. Default 5 s. */
  pongTimeout?: number;
  /** Milliseconds; defaults 500 and 20,000. */
  backoffMin?: number;
  backoffMax?: number;
  /** Publishes and requests that may be unsettled at a time. Default 1,000. */
  maxPending?: number;
  /** The same as characters of JSON. Default 4 Mi. */
  maxPendingBytes?: number;
  /** Events that an async iterator holds for a slow loop. Default 1,024. */
  maxBuffered?: number;
  /** Where there is no global `WebSocket` (Node before 22). */
  WebSocket?: new (url: string, protocols?: string[]) => unknown;
}

export interface ClientSender {
  user: string;
  session: string;
}
export interface ServiceSender {
  service: string;
}

export interface Message<Payload = unknown> {
  id: string;
  from: ClientSender | ServiceSender;
  to: string;
  event?: string;
  /** JSON; bytes that a backend published are a `Uint8Array`. */
  payload: Payload;
  /** When the gateway accepted it, milliseconds since 1970. */
  ts: number;
  /** It may have been shown to another page of this user, or come out of order. */
  redelivered?: boolean;
}

export interface Settlement {
  outcome: "delivered" | "stored" | "published";
  messageId: string;
  /** Of `delivered`: how many sessions took it. */
  sessions?: number;
}

export interface PublishOptions {
  event?: string;
  /** Time to live in milliseconds. */
  ttl?: number;
  /** `at_most_once`: not stored, not resent. */
  delivery?: "at_least_once" | "at_most_once";
  /** Idempotency key; a random UUID unless given. */
  messageId?: string;
  /** `false`: a channel message does not come back to this session. */
  echo?: boolean;
  deadline?: number;
}

export interface RequestOptions {
  event?: string;
  /** Milliseconds for the answer, at most 60,000; default `requestTimeout`. */
  timeout?: number;
  messageId?: string;
}

export interface Presence {
  online?: boolean;
  sessions?: { session: string; node: string; since_ms: number }[];
  /** Absent above 1,000 users. */
  users?: string[];
  count?: number;
  /** Some node did not answer in time. */
  partial?: boolean;
}

export interface StateEvent {
  state: State;
  previous: State;
  /** Of `waiting`, `failed` and `closed`: the close code (1006: none came) and its reason. */
  code?: number;
  reason?: string;
  /** Of `waiting`. */
  retryInMs?: number;
  /** Of `open`. */
  session?: string;
  node?: string;
}
export interface GapEvent {
  reason: string;
}
/** Of a channel subscribed to with `presence: true`. */
export type PresenceEvent = {
  channel: string;
  /** How many users are there now. */
  count: number;
} & (
  /** `user` is absent above 1,000 users: then only the number has changed, and a list is void. */
  | { event: "join" | "leave"; user?: string; users?: undefined }
  /** Everybody who is there, in place of what was known. `users` is absent above 1,000. */
  | { event: "state"; users?: string[]; user?: undefined }
);
export interface UnsubscribedEvent {
  channel: string;
  reason: string;
  error?: WarrenError;
}

export interface ClientEvents {
  message: Message;
  gap: GapEvent;
  state: StateEvent;
  presence: PresenceEvent;
  unsubscribed: UnsubscribedEvent;
  error: WarrenError;
}

export type ErrorCode =
  // Of the gateway.
  | "bad_request" | "unauthorized" | "forbidden" | "not_found" | "offline" | "expired" | "mailbox_full"
  | "rate_limited" | "overloaded" | "unavailable" | "no_backend" | "no_answer" | "bad_answer"
  // Of this library.
  | "buffer_full" | "closed" | "disconnected" | "failed" | "handler" | "no_listener" | "protocol" | "timeout"
  | "token" | "too_big" | "unsubscribed"
  // A newer gateway may have more.
  | (string & {});

export class WarrenError extends Error {
  readonly code: ErrorCode;
  /** The same may succeed later. */
  readonly retry: boolean;
  readonly messageId?: string;
  readonly closeCode?: number;
  /** Of "handler": the message whose handler failed. */
  readonly received?: Message;
}

export class WarrenClient implements AsyncIterable<Message> {
  constructor(url: string | URL | (string | URL)[], options: ClientOptions);
  readonly state: State;
  readonly session: string | undefined;
  readonly user: string | undefined;
  readonly node: string | undefined;
  readonly pending: number;
  readonly channels: string[];

  on<Type extends keyof ClientEvents>(type: Type, handler: (event: ClientEvents[Type]) => unknown): () => void;
  off<Type extends keyof ClientEvents>(type: Type, handler: (event: ClientEvents[Type]) => unknown): void;
  events<Type extends keyof ClientEvents>(type: Type): AsyncIterableIterator<ClientEvents[Type]>;
  [Symbol.asyncIterator](): AsyncIterableIterator<Message>;

  publish(to: Target, payload?: unknown, options?: PublishOptions): Promise<Settlement>;
  /** To `app.<key>`: the key, or the whole target. Resolves with the payload of a backend's answer. */
  request<Answer = unknown>(target: string, payload?: unknown, options?: RequestOptions): Promise<Answer>;
  subscribe(channel: string, options?: { presence?: boolean }): Promise<{ count?: number }>;
  unsubscribe(channel: string): Promise<void>;
  presence(target: `user.${string}` | `channel.${string}`, options?: { deadline?: number }): Promise<Presence>;
  ack(message: Message): void;

  ready(): Promise<void>;
  connect(): void;
  close(options?: { timeout?: number }): Promise<void>;
}

/** Without URL: to the gateway that this file was loaded from. */
export function connect(options: ClientOptions): WarrenClient;
export function connect(url: string | URL | (string | URL)[], options: ClientOptions): WarrenClient;
