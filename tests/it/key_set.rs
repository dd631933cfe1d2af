//! Keys of tokens that are published at a URL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{encode, get_current_timestamp, Algorithm, EncodingKey, Header};
use serde_json::{json, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{config, Cluster, PATIENCE};
use crate::support::raw_ws::{upgrade_request, RawClient};
use crate::support::tls::{Authority, Files};
use crate::support::user::User;

/// What a provider answers with, head and body, and how often it was asked.
#[derive(Clone, Default)]
struct Provider {
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    /// Handshakes that failed.
    refused: Arc<AtomicUsize>,
}

impl Provider {
    fn say(&self, status: &str, body: &str) {
        let length = body.len();
        *self.answer.lock().unwrap() = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    }

    fn publish(&self, keys: &[Value]) {
        self.say("200 OK", &json!({ "keys": keys }).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn serve(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("get /keys?tenant=a http/1.1\r\n") && head.contains("\r\nhost: "), "{head}");
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap().clone();
        // Whoever has heard enough hangs up.
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    /// Returns the URL.
    async fn listen(&self, tls: Option<TlsAcceptor>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (provider, is_private) = (self.clone(), tls.is_some());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (provider, tls) = (provider.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => provider.serve(tcp).await,
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => provider.serve(stream).await,
                            Err(_) => drop(provider.refused.fetch_add(1, Ordering::Relaxed)),
                        },
                    }
                });
            }
        });
        let scheme = if is_private { "https" } else { "http" };
        format!("{scheme}://localhost:{port}/keys?tenant=a")
    }
}

fn signer(algorithm: Algorithm) -> EncodingKey {
    let file = |name: &str| {
        std::fs::read(format!("{}/tests/fixtures/{name}.private.pem", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_pem(&file("ec")).unwrap(),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(&file("ed25519")).unwrap(),
        _ => EncodingKey::from_rsa_pem(&file("rsa")).unwrap(),
    }
}

fn key(kid: &str, algorithm: Algorithm) -> Value {
    let mut key =
        serde_json::to_value(Jwk::from_encoding_key(&signer(algorithm), algorithm).unwrap()).unwrap();
    key["kid"] = json!(kid);
    key
}

fn token(kid: &str, algorithm: Algorithm) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
    let claims = json!({"sub": "alice", "exp": get_current_timestamp() + 600});
    encode(&header, &claims, &signer(algorithm)).unwrap()
}

/// The status with which the API answers a user who may not list nodes: 403 if the token is good.
async fn status(cluster: &Cluster, token: &str) -> u16 {
    Api::new(cluster.ws(0)).with_token(token).status("/v1/nodes").await
}

async fn is_taken(cluster: &Cluster, token: &str) -> bool {
    status(cluster, token).await == 403
}

#[tokio::test]
async fn a_node_waits_for_its_keys_and_follows_them() {
    let provider = Provider::default();
    provider.say("503 Service Unavailable", "");
    let url = provider.listen(None).await;
    let cluster = Cluster::start(1, &[("JWKS_URL", url.as_str()), ("JWKS_REFRESH_MS", "1000")]).await;
    let (old, new) = (token("old", Algorithm::RS256), token("new", Algorithm::ES256));

    // Whoever comes is told to come again, and not that the token is bad.
    let admin = cluster.admin(0);
    let (code, body) = admin.get("/readyz").await;
    assert_eq!((code, &body["ready"], &body["keys"]), (503, &json!(false), &json!(false)), "{body}");
    assert_eq!(status(&cluster, &old).await, 503);
    let request = upgrade_request("/ws", &format!("Authorization: Bearer {old}\r\n"));
    let (head, _) = RawClient::request(cluster.ws(0), &request).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let mut early = User::open(cluster.ws(0), "/ws", &[]).await;
    early.request(json!({"type": "auth", "token": old})).await;
    assert_eq!(early.end().await.code, 4100);

    provider.publish(&[key("old", Algorithm::RS256)]);
    eventually("it is ready", PATIENCE, || async { admin.status("/readyz").await == 200 }).await;
    assert!(is_taken(&cluster, &old).await);
    let mut alice = User::with_token(cluster.ws(0), &old).await;

    // What tokens name has nobody asked.
    let asked = provider.asked();
    for n in 0..30 {
        assert_eq!(status(&cluster, &token(&format!("unknown{n}"), Algorithm::EdDSA)).await, 401);
    }
    assert!(provider.asked() <= asked + 2, "at its times only: {asked}, {}", provider.asked());

    // Both while they change; then the old one is gone, and whoever came with it stays until its end.
    assert_eq!(status(&cluster, &new).await, 401);
    provider.publish(&[
        key("old", Algorithm::RS256),
        key("new", Algorithm::ES256),
        json!({"kty": "new kind"}),
    ]);
    eventually("the new one counts", PATIENCE, || is_taken(&cluster, &new)).await;
    assert!(is_taken(&cluster, &old).await);
    provider.publish(&[key("new", Algorithm::ES256)]);
    eventually("the old one counts no longer", PATIENCE, || async { status(&cluster, &old).await == 401 })
        .await;
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");

    // A provider that is broken takes no key away.
    let secret = json!({"keys": [{"kty": "oct", "kid": "new", "k": "c2VjcmV0LXRoYXQtZXZlcnlib2R5LWNhbi1yZWFkLWhlcmU"}]});
    for (answer, body) in [
        ("200 OK", "<html>"),
        ("200 OK", r#"{"keys":[]}"#),
        ("200 OK", secret.to_string().as_str()),
        ("200 OK", "x".repeat(2_000_000).as_str()),
        ("302 Found\r\nLocation: http://127.0.0.1:1/", ""),
        ("404 Not Found", &json!({"keys": [key("old", Algorithm::RS256)]}).to_string()),
    ] {
        provider.say(answer, body);
        let before = provider.asked();
        eventually("it was asked", PATIENCE, || async { provider.asked() >= before + 2 }).await;
        assert!(is_taken(&cluster, &new).await && !is_taken(&cluster, &old).await, "{answer} {body:.40}");
    }
}

#[tokio::test]
async fn a_provider_is_known_by_its_certificate() {
    let (ours, other) = (Authority::new(), Authority::new());
    let files = Files::new();
    for (issuer, is_good) in [(&ours, true), (&other, false)] {
        let provider = Provider::default();
        provider.publish(&[key("a", Algorithm::EdDSA)]);
        let url = provider.listen(Some(issuer.server("localhost"))).await;
        let ca = files.write("ca.pem", &ours.pem);
        let vars = [("JWKS_URL", url.as_str()), ("JWKS_CA_FILE", &ca), ("JWKS_REFRESH_MS", "1000")];
        let cluster = Cluster::start(1, &vars).await;
        let good = token("a", Algorithm::EdDSA);
        if is_good {
            eventually("its keys count", PATIENCE, || is_taken(&cluster, &good)).await;
        } else {
            eventually("it was tried", PATIENCE, || async { provider.refused.load(Ordering::Relaxed) > 0 })
                .await;
            assert_eq!((status(&cluster, &good).await, provider.asked()), (503, 0));
        }
    }
}

#[test]
fn what_cannot_be_followed_is_refused_at_the_start() {
    let file = std::env::temp_dir().join(format!("warren-no-ca-{}", std::process::id()));
    std::fs::write(&file, "no certificate").unwrap();
    let file = file.to_str().unwrap();
    for vars in [
        vec![("JWKS_URL", "http://id.example/keys")],
        vec![("JWKS_URL", "https://name:CANARY@id.example/keys")],
        vec![("JWKS_CA_FILE", file)],
        vec![("JWKS_URL", "https://id.example/keys"), ("JWKS_CA_FILE", file)],
        vec![("JWKS_URL", "https://id.example/keys"), ("JWKS_REFRESH_MS", "10")],
        vec![("JWKS_URL", "https://id.example/keys"), ("AUTH", "insecure")],
    ] {
        let vars = vars.iter().map(|(name, value)| (format!("WARREN_{name}"), (*value).to_owned()));
        let mistakes = warren::config::Config::from_vars(vars).unwrap_err().to_string();
        assert!(mistakes.contains("JWKS") || mistakes.contains("AUTH"), "{mistakes}");
        assert!(!mistakes.contains("CANARY"), "{mistakes}");
    }
    std::fs::remove_file(file).unwrap();
    assert!(!config("n", &[("JWKS_URL", "https://id.example/keys")]).insecure());
}
