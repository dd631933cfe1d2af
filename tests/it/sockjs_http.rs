//! SockJS over HTTP: what its sessions may cost, how they end by their clients, and what is refused. `tests/stomp` runs the real client.

use reqwest::{Method, Response};
use serde_json::{json, Value};

use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, CHECKED, PATIENCE};

pub const ALL: (&str, &str) = ("SOCKJS", "all");

/// A session's addresses, as its client uses them.
pub struct Page {
    api: Api,
    base: String,
    query: &'static str,
}

impl Page {
    pub fn new(cluster: &Cluster, name: &str, query: &'static str) -> Self {
        Self { api: cluster.api(0), base: format!("/sockjs/000/{name}"), query }
    }

    async fn ask(&self, transport: &str, body: impl Into<reqwest::Body>) -> Response {
        let method = if transport == "eventsource" { Method::GET } else { Method::POST };
        let path = format!("{}/{transport}{}", self.base, self.query);
        self.api.request(method, &path).body(body).send().await.unwrap()
    }

    /// One frame.
    pub async fn poll(&self) -> String {
        let answer = self.ask("xhr", "").await;
        assert_eq!(answer.status(), 200);
        let text = answer.text().await.unwrap();
        text.strip_suffix('\n').unwrap_or_else(|| panic!("{text:?} ends with no line")).to_owned()
    }

    async fn say(&self, texts: &[&str]) -> u16 {
        self.ask("xhr_send", json!(texts).to_string()).await.status().as_u16()
    }

    pub async fn stream(&self) -> Lines {
        let mut lines = Lines { response: self.ask("xhr_streaming", "").await, text: String::new() };
        assert_eq!(lines.next().await.unwrap(), "h".repeat(2_048));
        lines
    }
}

/// A response that streams, line by line.
pub struct Lines {
    response: Response,
    text: String,
}

impl Lines {
    /// `None` at the end.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let line = line.to_owned();
                self.text = rest.to_owned();
                return Some(line);
            }
            match self.response.chunk().await.unwrap() {
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                None => {
                    assert_eq!(self.text, "", "the end of a line is missing");
                    return None;
                }
            }
        }
    }

    pub async fn expect(&mut self, line: &str) {
        assert_eq!(self.next().await.as_deref(), Some(line));
    }
}

pub async fn sessions(cluster: &Cluster, count: usize) {
    let hub = cluster.nodes[0].router().hub();
    eventually(&format!("{count} sessions"), PATIENCE, || async { hub.sessions() == count }).await;
}

/// The payloads of an array of messages.
pub fn payloads(frame: &str) -> Vec<Value> {
    let texts: Vec<String> = serde_json::from_str(frame.strip_prefix('a').unwrap()).unwrap();
    let frames = texts.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
    frames.filter(|frame| frame["type"] == "message").map(|mut frame| frame["payload"].take()).collect()
}

#[tokio::test]
async fn a_session_goes_from_transport_to_transport() {
    let cluster = Cluster::start(1, &[ALL]).await;
    let page = Page::new(&cluster, "wanders", "");
    assert_eq!(page.poll().await, "o");
    assert_eq!(page.say(&[&json!({"type": "auth", "token": "alice"}).to_string()]).await, 204);
    assert!(page.poll().await.starts_with("a[\"{\\\"type\\\":\\\"welcome\\\""));
    // What comes between two receivers waits.
    let ping = |id: u32| json!({"type": "ping", "id": id}).to_string();
    assert_eq!((page.say(&[&ping(1), &ping(2)]).await, page.say(&[&ping(3)]).await), (204, 204));
    let mut replies = 0;
    while replies < 3 {
        replies += page.poll().await.matches("\\\"outcome\\\":\\\"ok\\\"").count();
    }
    let mut lines = page.stream().await;
    let body = json!({"to": "user.alice", "payload": "100%"});
    assert_eq!(cluster.api(0).publish(&body).await.1["outcome"], "delivered");
    assert_eq!(payloads(&lines.next().await.unwrap()), ["100%"]);
    drop(lines);
    // Its client stops receiving: the same as a socket that is closed.
    sessions(&cluster, 0).await;
    assert_eq!(page.poll().await, "c[1002,\"Connection interrupted\"]");
}

#[tokio::test]
async fn events_are_frames_that_are_encoded_like_a_uri() {
    let cluster = Cluster::start(1, &[ALL]).await;
    let events = Page::new(&cluster, "events", "?user=100%25");
    let mut answer = events.ask("eventsource", "").await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while !text.ends_with("\"]\r\n\r\n") {
        text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.starts_with("\r\ndata: o\r\n\r\ndata: a[\"{\\\"type\\\":\\\"welcome\\\""), "{text}");
    assert!(text.contains("\\\"user\\\":\\\"100%25\\\""), "{text}");
}

#[tokio::test]
async fn the_addresses_are_there_only_if_wanted_and_with_names_that_fit() {
    let (off, on) = (Cluster::start(1, &[]).await, Cluster::start(1, &[ALL]).await);
    let long = "x".repeat(65);
    for transport in ["xhr", "xhr_streaming", "xhr_send", "eventsource"] {
        let method = if transport == "eventsource" { Method::GET } else { Method::POST };
        let status = |cluster: &Cluster, method: &Method, path: &str| {
            let asking = cluster.api(0).request(method.clone(), &format!("/sockjs/{path}{transport}")).send();
            async { asking.await.unwrap().status().as_u16() }
        };
        assert_eq!(status(&off, &method, "000/abcd/").await, 404, "{transport}");
        assert_eq!(status(&off, &Method::OPTIONS, "000/abcd/").await, 404, "{transport}");
        assert_eq!(status(&on, &Method::OPTIONS, "000/abcd/").await, 204, "{transport}");
        assert_eq!(status(&on, &Method::PUT, "000/abcd/").await, 405, "{transport}");
        for bad in ["000//", "/abcd/", "0.0/abcd/", "000/ab.cd/", "abcd/", "a/b/c/", &format!("000/{long}/")]
        {
            assert_eq!(status(&on, &method, bad).await, 404, "{transport} {bad}");
        }
    }
    for transport in ["htmlfile", "jsonp", "jsonp_send", "iframe.html"] {
        assert_eq!(on.api(0).status(&format!("/sockjs/000/abcd/{transport}")).await, 404, "{transport}");
    }
    // Nothing begins by looking.
    let head =
        on.api(0).request(Method::HEAD, "/sockjs/000/abcd/eventsource?user=alice").send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    assert_eq!(on.nodes[0].router().hub().sessions(), 0);
}

#[tokio::test]
async fn pages_of_other_origins_get_nothing_and_those_that_may_come_can_read() {
    let page = "https://page.example";
    let cluster = Cluster::start(1, &[ALL, ("ALLOWED_ORIGINS", page)]).await;
    let ask = |transport: &str, origin: &'static str| {
        let path = format!("/sockjs/000/abcd/{transport}");
        let asking = cluster.api(0).request(Method::POST, &path).header("origin", origin).send();
        async { asking.await.unwrap() }
    };
    for transport in ["xhr", "xhr_streaming", "xhr_send"] {
        let foreign = ask(transport, "https://evil.example").await;
        assert_eq!(foreign.status(), 403, "{transport}");
        assert!(!foreign.headers().contains_key("access-control-allow-origin"));
    }
    for (transport, status) in [("xhr_send", 404), ("xhr", 200), ("xhr_send", 500)] {
        let own = ask(transport, page).await;
        assert_eq!(own.status(), status, "{transport}");
        assert_eq!(own.headers()["access-control-allow-origin"], page);
        assert_eq!(own.headers()["access-control-allow-credentials"], "true");
        assert_eq!(
            own.headers()["cache-control"],
            "no-store, no-cache, no-transform, must-revalidate, max-age=0"
        );
    }
}

#[tokio::test]
async fn a_second_receiver_is_refused_and_the_first_one_goes_on() {
    let cluster = Cluster::start(1, &[ALL]).await;
    let page = Page::new(&cluster, "twice", "?user=alice");
    let mut first = page.stream().await;
    first.expect("o").await;
    assert_eq!(page.poll().await, "c[2010,\"Another connection still open\"]");
    let mut second = page.stream().await;
    second.expect("c[2010,\"Another connection still open\"]").await;
    assert_eq!(second.next().await, None);
    assert!(first.next().await.unwrap().contains("welcome"));
    assert_eq!(cluster.api(0).publish(&json!({"to": "user.alice"})).await.1["outcome"], "delivered");
    assert!(first.next().await.unwrap().contains("message"));
}

#[tokio::test]
async fn without_a_receiver_and_with_a_broken_one_a_session_ends() {
    let cluster = Cluster::start(1, &[ALL]).await;
    let (quiet, cut) = (Page::new(&cluster, "quiet", "?user=alice"), Page::new(&cluster, "cut", "?user=bob"));
    assert_eq!(quiet.poll().await, "o");
    let mut lines = cut.stream().await;
    lines.expect("o").await;
    sessions(&cluster, 2).await;
    drop(lines);
    sessions(&cluster, 1).await;
    assert_eq!(cut.poll().await, "c[1002,\"Connection interrupted\"]");
    assert_eq!(cut.say(&["late"]).await, 204, "its client has yet to be told");
    // Five seconds.
    sessions(&cluster, 0).await;
    assert_eq!(quiet.say(&["late"]).await, 404);
    assert_eq!(quiet.poll().await, "o", "a new one");
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_as_clients_expect() {
    let cluster = Cluster::start(1, &[ALL, ("MAX_MESSAGE_BYTES", "1024")]).await;
    let page = Page::new(&cluster, "sends", "?user=alice");
    assert_eq!(page.poll().await, "o");
    for (body, text) in
        [("", "Payload expected."), ("[\"x", "Broken JSON encoding."), ("[1]", "Broken JSON encoding.")]
    {
        let answer = page.ask("xhr_send", body).await;
        assert_eq!(
            (answer.status().as_u16(), answer.text().await.unwrap()),
            (500, text.to_owned()),
            "{body}"
        );
    }
    let answer = page.ask("xhr_send", "[]").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (204, &"text/plain; charset=UTF-8".parse().unwrap())
    );
    let long = json!(["x".repeat(17 * 1_024)]).to_string();
    assert_eq!(page.ask("xhr_send", long).await.status(), 413);
    let packed =
        page.api.request(Method::POST, &format!("{}/xhr_send", page.base)).header("content-encoding", "gzip");
    assert_eq!(packed.body("[]").send().await.unwrap().status(), 415);
    // A message is as long as a frame may be, whatever came with it.
    assert!(page.poll().await.contains("welcome"));
    assert_eq!(page.say(&[&"x".repeat(1_100), "y"]).await, 204);
    assert!(page.poll().await.contains("disconnect"));
    assert_eq!(page.poll().await, "c[1009,\"message too big\"]");
}

#[tokio::test]
async fn names_are_not_guessed() {
    let cluster = Cluster::start(1, &[ALL]).await;
    let mut answers = Vec::new();
    for at in 0..60 {
        answers.push(Page::new(&cluster, &format!("guess{at}"), "").say(&["x"]).await);
    }
    assert_eq!((answers[0], answers[59]), (404, 429));
    // Those who know theirs do not notice.
    let page = Page::new(&cluster, "known", "?user=alice");
    assert_eq!((page.poll().await.as_str(), page.say(&["x"]).await), ("o", 204));
}

#[tokio::test]
async fn sessions_over_http_have_a_bound_and_an_address_has_a_share() {
    for (bound, status) in [("MAX_SESSIONS", 503), ("SESSIONS_PER_ADDRESS", 429)] {
        let cluster = Cluster::start(1, &[ALL, (bound, "8")]).await;
        let pages = ["one", "two", "three"].map(|name| Page::new(&cluster, name, "?user=alice"));
        assert_eq!((pages[0].poll().await.as_str(), pages[1].poll().await.as_str()), ("o", "o"));
        assert_eq!(pages[2].ask("xhr", "").await.status(), status, "{bound}");
        assert!(pages[0].poll().await.contains("welcome"), "others go on");
    }
    // A refusal is a session that ends.
    let cluster = Cluster::start(1, &[&[ALL][..], CHECKED].concat()).await;
    let page = Page { api: cluster.api(0).with_token("guess"), ..Page::new(&cluster, "bad", "") };
    assert_eq!(page.poll().await, "o");
    assert!(page.poll().await.contains("disconnect"));
    assert_eq!(page.poll().await, "c[4001,\"unauthorized\"]");
    let cluster = Cluster::start(1, &[ALL, ("AUTH_TIMEOUT_MS", "200")]).await;
    let page = Page::new(&cluster, "silent", "");
    let mut lines = page.stream().await;
    lines.expect("o").await;
    assert!(lines.next().await.unwrap().contains("disconnect"));
    lines.expect("c[4001,\"unauthorized\"]").await;
    assert_eq!(lines.next().await, None);
}
