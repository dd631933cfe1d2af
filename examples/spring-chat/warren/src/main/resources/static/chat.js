// The address of a node, or of the load balancer before the nodes.
const gateway = new URLSearchParams(location.search).get("gateway") ?? "http://localhost:8080";
const at = (id) => document.getElementById(id);

function show(text) {
  at("log").append(Object.assign(document.createElement("li"), { textContent: text }));
}

function enter(name) {
  const client = new StompJs.Client({
    webSocketFactory: () => new SockJS(`${gateway}/sockjs`),
    connectHeaders: { login: name },
    onConnect: () => {
      client.subscribe("/topic/lobby", ({ body }) => {
        const { from, text } = JSON.parse(body);
        show(`${from}: ${text}`);
      });
      client.subscribe("/user/queue/whispers", ({ body }) => {
        const { from, text } = JSON.parse(body);
        show(`${from} whispers: ${text}`);
      });
      at("state").textContent = `connected as ${name}`;
    },
    onWebSocketClose: () => {
      at("state").textContent = "not connected";
    },
  });
  client.activate();
  return client;
}

function send(client, text) {
  const whisper = /^@(\S+) (.*)$/.exec(text);
  if (whisper) {
    const body = JSON.stringify({ to: whisper[1], text: whisper[2] });
    client.publish({ destination: "/app/chat.whisper", body });
    show(`to ${whisper[1]}: ${whisper[2]}`);
  } else {
    client.publish({ destination: "/app/chat.say", body: JSON.stringify({ text }) });
  }
}

at("enter").onsubmit = (event) => {
  event.preventDefault();
  at("enter").hidden = true;
  at("write").hidden = false;
  const client = enter(at("name").value);
  at("write").onsubmit = (event) => {
    event.preventDefault();
    send(client, at("text").value);
    at("text").value = "";
  };
};
