//! Keys that change while a node runs.

use serde_json::json;

use crate::credentials::signed_by;
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::PATIENCE;
use crate::support::process::Process;
use crate::support::user::User;

/// Keys in files that an operator replaces.
struct KeyFiles {
    folder: std::path::PathBuf,
}

impl KeyFiles {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("warren-keys-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = Self { folder };
        files.write("secret", &secret("first"));
        files.write("api", "orders=the-first-key-of-orders\nbilling=the-only-key-of-billing\n");
        files
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// As those who mount secrets do it: the old file is there until the new one is whole.
    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path("new"), content).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
    }
}

impl Drop for KeyFiles {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn secret(name: &str) -> String {
    format!("{name}-secret-that-only-the-tests-ever-use")
}

/// Whether a key of the API, or a user's token that was made with a secret, is taken.
async fn is_taken(process: &Process, credentials: &str) -> bool {
    let api = Api::new(process.public).with_token(credentials);
    match api.status("/v1/nodes").await {
        200 => true,
        // The token of a user: genuine, but no key of the API.
        403 => true,
        401 | 429 => false,
        other => panic!("{other}"),
    }
}

fn signed(name: &str) -> String {
    signed_by(&secret(name), "alice", 600, &[])
}

#[tokio::test]
async fn keys_in_files_are_read_again_on_sighup_and_a_mistake_leaves_the_former_ones() {
    let files = KeyFiles::new();
    let vars = [
        ("JWT_SECRET_FILE", files.path("secret")),
        ("API_KEYS_FILE", files.path("api")),
        ("LOG", "info".into()),
    ];
    let vars: Vec<(&str, &str)> = vars.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut process = Process::start(&vars).await;
    let (second, third) = (signed("second"), signed("third"));
    let mut connected = User::with_token(process.public, &signed("first")).await;
    assert!(is_taken(&process, "the-first-key-of-orders").await);
    assert!(!is_taken(&process, "the-second-key-of-orders").await && !is_taken(&process, &second).await);

    files.write("secret", &secret("second"));
    files.write("api", "orders=the-second-key-of-orders\nbilling=the-only-key-of-billing\n");
    process.signal("HUP");
    eventually("the new secret counts", PATIENCE, || is_taken(&process, &second)).await;
    assert!(!is_taken(&process, &signed("first")).await, "the former one does not");
    assert!(is_taken(&process, "the-second-key-of-orders").await);
    assert!(is_taken(&process, "the-only-key-of-billing").await);
    assert!(!is_taken(&process, "the-first-key-of-orders").await);
    let reply = connected.ask(json!({"type": "ping"})).await;
    assert_eq!(reply["outcome"], "ok", "who is connected stays so");

    // A secret that is too short, and then none at all: nothing changes.
    files.write("secret", "short");
    process.signal("HUP");
    process.signal("HUP");
    assert!(is_taken(&process, &second).await);
    std::fs::remove_file(files.path("secret")).unwrap();
    process.signal("HUP");
    assert!(is_taken(&process, &second).await && is_taken(&process, "the-only-key-of-billing").await);

    // Without a signal a change is found soon.
    files.write("secret", &secret("third"));
    eventually("a changed file is noticed", PATIENCE * 3, || is_taken(&process, &third)).await;

    process.signal("TERM");
    connected.expect_close(4200).await;
    assert_eq!(process.ended().await.code(), Some(0));
    let mut told = String::new();
    std::io::Read::read_to_string(&mut process.child.stderr.take().unwrap(), &mut told).unwrap();
    assert!(told.contains("the keys were NOT read again") && told.contains("at least 32 bytes"), "{told}");
    for hidden in ["short\n", &secret("second"), "the-only-key-of-billing", "the-second-key"] {
        assert!(!told.contains(hidden), "{hidden}: {told}");
    }
}
