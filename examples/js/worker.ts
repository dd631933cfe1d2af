// A backend in Node that takes the messages of one user, one after the other, and answers each.
import { connect, WarrenError } from "warren-client";

interface Job {
  url: string;
}

const client = connect("ws://127.0.0.1:8080/ws", { user: "worker" });
client.on("state", ({ state, reason }) => console.log(state, reason ?? ""));
client.on("error", (error) => console.error(error.code, error.message));

for await (const message of client) {
  // The next turn of the loop acknowledges the message; an exception would leave it to the next worker.
  if (!("user" in message.from)) continue;
  const { url } = message.payload as Job;
  const status = await fetch(url).then(({ status }) => status).catch(() => 0);
  try {
    const { outcome } = await client.publish(`user.${message.from.user}`, { url, status }, { event: "checked" });
    console.log(url, status, outcome);
  } catch (error) {
    if (error instanceof WarrenError) console.error(url, error.code);
  }
}
