// Compiles only while index.d.ts says what the library does; the lines marked as errors must be errors.
import { connect, WarrenClient, WarrenError, type Message, type Settlement, type State } from "warren-client";

const client: WarrenClient = connect("wss://example.org/ws", { token: () => fetch("/token").then((answer) => answer.text()) });
connect({ user: "alice", ack: false });
connect(["ws://a/ws", new URL("ws://b/ws")], { token: "t", backoffMin: 1, deadline: Infinity });

const off: () => void = client.on("message", async (message: Message) => {
  const sender: string = "user" in message.from ? message.from.user : message.from.service;
  console.log(sender, message.payload, message.redelivered === true);
});
client.on("state", ({ state, retryInMs, code }) => console.log(state satisfies State, (retryInMs ?? 0) + (code ?? 0)));
client.on("gap", ({ reason }) => console.log(reason.length));
client.on("presence", ({ channel, event, user, count }) => console.log(channel, event === "join", user?.length, count + 1));
client.on("unsubscribed", ({ channel, error }) => console.log(channel, error?.code));
client.on("error", (error) => console.log(error.code, error.retry, error.received?.id, error.cause));
off();

export async function use(): Promise<void> {
  const settled: Settlement = await client.publish("user.42", { text: "hi" }, { event: "note", ttl: 1000, echo: false });
  console.log(settled.outcome === "stored", settled.messageId, settled.sessions);
  try {
    const order: { id: number } = await client.request<{ id: number }>("orders.new", { sku: "x" }, { timeout: 500 });
    console.log(order.id);
  } catch (error) {
    if (error instanceof WarrenError && error.code === "no_backend") console.log(error.messageId);
  }
  const { count } = await client.subscribe("room", { presence: true });
  const { online, users } = await client.presence("channel.room");
  console.log(count, online, users?.length);
  for await (const message of client) client.ack(message);
  for await (const { state } of client.events("state")) console.log(state === "open");
  await client.unsubscribe("room");
  await client.ready();
  await client.close({ timeout: 100 });
}

// @ts-expect-error a target names its kind
void client.publish("alice", 1);
// @ts-expect-error there is no such event
client.on("mesage", () => {});
// @ts-expect-error an outcome that there is not
export const wrong: Settlement["outcome"] = "sent";
// @ts-expect-error options must name an identity's kind correctly
connect("ws://a/ws", { username: "alice" });
