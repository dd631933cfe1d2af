//! Who may come in, by which door, and for how long.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use warren::auth::mint;
use warren::ids::UserId;

use crate::support::eventually::eventually;
use crate::support::nodes::{config, Cluster, API_KEY, CHECKED, JWT_SECRET, PATIENCE};
use crate::support::raw_ws::{header, upgrade_request, RawClient};
use crate::support::user::User;

/// A token that nodes with [`CHECKED`] take, for so many seconds.
pub fn token(user: &str, ttl_s: u64, caps: &[&str]) -> String {
    signed_by(JWT_SECRET, user, ttl_s, caps)
}

/// The same with another secret.
pub fn signed_by(secret: &str, user: &str, ttl_s: u64, caps: &[&str]) -> String {
    let caps: Vec<String> = caps.iter().map(|cap| (*cap).to_owned()).collect();
    let user = UserId::new(user).unwrap();
    mint(&user, Duration::from_secs(ttl_s), &caps, &config("mint", &[("JWT_SECRET", secret)])).unwrap()
}

/// The head of the answer to an upgrade request with further header lines.
pub async fn answer(cluster: &Cluster, path: &str, lines: &str) -> String {
    RawClient::request(cluster.ws(0), &upgrade_request(path, lines)).await.0
}

pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_token_opens_a_session_by_three_doors() {
    let cluster = Cluster::start(1, CHECKED).await;
    let token = token("alice", 60, &[]);
    let mut by_header = User::with_token(cluster.ws(0), &token).await;
    let mut by_subprotocol = User::open(
        cluster.ws(0),
        "/ws",
        &[("sec-websocket-protocol", &format!("warren.v1, bearer.{token}"))],
    )
    .await
    .welcomed()
    .await;
    let mut by_frame = User::open(cluster.ws(0), "/ws", &[]).await;
    by_frame.say_text(&json!({"type": "auth", "token": token}).to_string()).await;
    let mut by_frame = by_frame.welcomed().await;
    for user in [&mut by_header, &mut by_subprotocol, &mut by_frame] {
        assert_eq!(user.welcome["user"], "alice");
        assert_eq!(user.ask(json!({"type": "ping"})).await["outcome"], "ok");
    }
    let lines = format!("Sec-WebSocket-Protocol: warren.v1, bearer.{token}\r\n");
    let head = answer(&cluster, "/ws", &lines).await;
    assert_eq!(header(&head, "sec-websocket-protocol"), Some("warren.v1"), "a token is not sent back");
}

#[tokio::test]
async fn credentials_of_a_proxy_do_not_hide_a_token() {
    let cluster = Cluster::start(1, CHECKED).await;
    let token = token("alice", 60, &[]);
    let basic = "Authorization: Basic dXNlcjpwYXNz\r\n";
    for lines in [
        format!("{basic}Sec-WebSocket-Protocol: warren.v1, bearer.{token}\r\n"),
        format!("{basic}Authorization: Bearer {token}\r\n"),
        format!("Authorization: Bearer {token}\r\n{basic}"),
    ] {
        let (head, mut client) = RawClient::request(cluster.ws(0), &upgrade_request("/ws", &lines)).await;
        assert_eq!(status(&head), 101, "{head}");
        let welcome = client.read_frame().await.unwrap();
        assert!(String::from_utf8_lossy(&welcome.payload).contains("\"user\":\"alice\""), "{lines}");
    }
    let mut by_frame = User::open(cluster.ws(0), "/ws", &[("authorization", "Basic dXNlcjpwYXNz")]).await;
    by_frame.say_text(&json!({"type": "auth", "token": token}).to_string()).await;
    assert_eq!(by_frame.welcomed().await.welcome["user"], "alice");
}

#[tokio::test]
async fn wrong_tokens_are_refused_before_the_upgrade() {
    let cluster = Cluster::start(1, CHECKED).await;
    let good = token("alice", 60, &[]);
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let root = token("root", 60, &[]);
    let root_claims = root.split('.').nth(1).unwrap();
    // {"alg":"none"}
    let unsigned = format!("eyJhbGciOiJub25lIn0.{claims}.");
    for (name, line) in [
        ("cut", format!("Authorization: Bearer {head}.{claims}")),
        ("other claims", format!("Authorization: Bearer {head}.{root_claims}.{signature}")),
        ("unsigned", format!("Authorization: Bearer {unsigned}")),
        ("API key", format!("Authorization: Bearer {API_KEY}")),
        ("empty", "Authorization: Bearer ".to_owned()),
        ("twice", format!("Authorization: Bearer {good}\r\nAuthorization: Bearer {good}")),
        ("user id", "Authorization: Bearer alice".to_owned()),
        ("long", format!("Authorization: Bearer {}", "x".repeat(9_000))),
        ("subprotocol", format!("Sec-WebSocket-Protocol: warren.v1, bearer.{head}.{claims}.x")),
    ] {
        let head = answer(&cluster, "/ws", &format!("{line}\r\n")).await;
        assert_eq!(status(&head), 401, "{name}: {head}");
        assert_eq!(header(&head, "www-authenticate"), Some("Bearer"), "{name}");
    }
    // A cookie is no credential, `?user=` is none beside a key, and Basic is for a proxy: such a socket still has to
    // say who it is.
    let cookie = [("cookie", "session=1")];
    let basic = format!("Basic {good}");
    let basic = [("authorization", basic.as_str())];
    for (path, headers) in [("/ws", &cookie[..]), ("/ws", &basic), ("/ws?user=alice", &[])] {
        let mut nobody = User::open(cluster.ws(0), path, headers).await;
        nobody.say_text(r#"{"type":"ping","id":1}"#).await;
        nobody.expect_close(4001).await;
        assert!(nobody.kept("welcome").is_empty() && nobody.kept("reply").is_empty());
    }
}

#[tokio::test]
async fn a_token_in_the_url_is_refused_even_if_it_is_good() {
    let cluster = Cluster::start(1, CHECKED).await;
    let token = token("alice", 60, &[]);
    for name in ["token", "x=1&access_token", "%74oken", "x&acces%73_%74oken"] {
        let path = format!("/ws?{name}={token}");
        let head = answer(&cluster, &path, &format!("Authorization: Bearer {token}\r\n")).await;
        assert_eq!(status(&head), 400, "{head}");
    }
}

#[tokio::test]
async fn whoever_does_not_say_who_it_is_is_closed_soon() {
    let cluster = Cluster::start(1, &[CHECKED, &[("AUTH_TIMEOUT_MS", "200")]].concat()).await;
    let began = Instant::now();
    let mut silent = User::open(cluster.ws(0), "/ws", &[]).await;
    silent.expect_close(4001).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let mut wrong = User::open(cluster.ws(0), "/ws", &[]).await;
    wrong.say_text(r#"{"type":"auth","token":"a.b.c"}"#).await;
    wrong.expect_close(4001).await;
    assert_eq!(cluster.nodes[0].router().hub().sessions(), 0);
}

#[tokio::test]
async fn sockets_that_have_yet_to_say_who_they_are_have_a_bound() {
    let cluster = Cluster::start(1, &[CHECKED, &[("CONNECTIONS_PER_ADDRESS", "3")]].concat()).await;
    let mut unnamed = Vec::new();
    for _ in 0..3 {
        unnamed.push(User::open(cluster.ws(0), "/ws", &[]).await);
    }
    assert_eq!(status(&answer(&cluster, "/ws", "").await), 503, "one more of this address");
    let token = token("alice", 60, &[]);
    User::with_token(cluster.ws(0), &token).await;
    let mut named = unnamed.pop().unwrap();
    named.say_text(&json!({"type": "auth", "token": token}).to_string()).await;
    let named = named.welcomed().await;
    let _fourth = User::open(cluster.ws(0), "/ws", &[]).await;
    drop(unnamed);
    eventually("those that are gone do not count", PATIENCE, || async {
        status(&answer(&cluster, "/ws", "").await) == 101
    })
    .await;
    drop(named);
}

#[tokio::test]
async fn a_session_ends_with_its_token_unless_it_brings_a_new_one() {
    let cluster = Cluster::start(1, CHECKED).await;
    // Clocks may differ by ten seconds, so this one is good for three more.
    let claims = json!({"sub": "alice", "exp": jsonwebtoken::get_current_timestamp() - 7});
    let key = jsonwebtoken::EncodingKey::from_secret(JWT_SECRET.as_bytes());
    let expiring = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let mut idle = User::with_token(cluster.ws(0), &expiring).await;
    let mut renewed = User::with_token(cluster.ws(0), &expiring).await;

    let other = json!({"type": "refresh", "token": token("mallory", 60, &[])});
    assert_eq!(renewed.ask(other).await["error"]["code"], "unauthorized");
    let nonsense = json!({"type": "refresh", "token": "x"});
    assert_eq!(renewed.ask(nonsense).await["error"]["code"], "unauthorized");
    let good = json!({"type": "refresh", "token": token("alice", 60, &["publish:user.bob"])});
    assert_eq!(renewed.ask(good).await["outcome"], "ok");

    let disconnect = idle.expect_close(4105).await;
    assert_eq!(disconnect["reconnect"], true);
    assert_eq!(renewed.ask(json!({"type": "ping"})).await["outcome"], "ok");
    let reply = renewed.publish("user.alice", "not any more").await;
    assert_eq!(reply["error"]["code"], "forbidden", "a new token brings new rights: {reply}");
}

#[tokio::test]
async fn caps_decide_what_may_be_published() {
    let cluster = Cluster::start(1, CHECKED).await;
    let mut usual = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    assert_eq!(usual.publish("user.alice", 1).await["outcome"], "delivered");
    let reply = usual.publish("broadcast", 1).await;
    assert_eq!((&reply["error"]["code"], &reply["error"]["retry"]), (&json!("forbidden"), &json!(false)));
    let mut crier = User::with_token(cluster.ws(0), &token("crier", 60, &["publish:broadcast"])).await;
    assert_eq!(crier.publish("broadcast", 1).await["outcome"], "published");
    assert_eq!(crier.publish("user.alice", 1).await["error"]["code"], "forbidden");
    let mut mute = User::with_token(cluster.ws(0), &token("mute", 60, &["api"])).await;
    assert_eq!(mute.publish("user.alice", 1).await["error"]["code"], "forbidden");
}

#[tokio::test]
async fn pages_come_from_listed_origins_only() {
    let vars = [("ALLOWED_ORIGINS", "https://app.example.com, http://localhost:3000")];
    let cluster = Cluster::start(1, &vars).await;
    for (origin, expected) in [
        ("https://app.example.com", 101),
        ("http://localhost:3000", 101),
        ("https://app.example.com:443", 403),
        ("https://app.example.com.evil.com", 403),
        ("https://evilapp.example.com", 403),
        ("https://app.example.com.", 403),
        ("HTTPS://APP.EXAMPLE.COM", 403),
        ("https://app.example.com:8443", 403),
        ("http://app.example.com", 403),
        ("http://localhost", 403),
        ("https://app.example.com/", 403),
        ("null", 403),
        ("", 403),
        ("https://app.example.com, https://evil.com", 403),
        ("https://app.example.com\r\nOrigin: https://app.example.com", 403),
        ("https://app.example.com\r\nOrigin: https://evil.com", 403),
    ] {
        let head = answer(&cluster, "/ws?user=a", &format!("Origin: {origin}\r\n")).await;
        assert_eq!(status(&head), expected, "{origin:?}: {head}");
    }
    assert_eq!(status(&answer(&cluster, "/ws?user=a", "").await), 101, "what is no page has no origin");
}

#[tokio::test]
async fn without_a_list_pages_come_from_the_same_host_only() {
    let cluster = Cluster::start(1, &[]).await;
    for (origin, expected) in
        [("http://localhost", 101), ("https://localhost", 403), ("http://localhost:81", 403), ("null", 403)]
    {
        let head = answer(&cluster, "/ws?user=a", &format!("Origin: {origin}\r\n")).await;
        assert_eq!(status(&head), expected, "{origin:?}: {head}");
    }
}
