// A client with a fake clock at a fake gateway, for one test.
import { connect } from "../../warren-client.js";
import { FakeClock, FakeServer } from "./fake-server.js";

/** `{ server, clock, client, events }`, stopped when the test ends. `events` are those the client told, by type. */
export async function setUp(t, options = {}, prepare = () => {}) {
  const server = await FakeServer.start();
  const clock = new FakeClock();
  prepare(server, clock);
  const { env, ...rest } = options;
  const client = connect(server.url, { user: "alice", env: { ...clock, ...env }, ...rest });
  const events = { state: [], message: [], gap: [], error: [], presence: [], unsubscribed: [] };
  for (const type of Object.keys(events)) {
    if (type !== "message") client.on(type, (event) => void events[type].push(event));
  }
  t.after(() => {
    client.close({ timeout: 0 });
    server.stop();
  });
  const states = () => events.state.map(({ state }) => state);
  return { server, clock, client, events, states };
}
