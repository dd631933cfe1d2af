//! What the checker of the configuration takes and refuses.

use super::*;

const SECRET: &str = "canary-0123456789abcdef0123456789abcdef";

fn read(vars: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::from_vars(vars.iter().map(|(name, value)| (format!("WARREN_{name}"), value.to_string())))
}

fn mistakes(vars: &[(&str, &str)]) -> Vec<String> {
    read(vars).expect_err("a mistake").0
}

#[test]
fn nothing_given_is_a_safe_standalone_node() {
    let config = read(&[]).unwrap();
    assert!(config.standalone() && config.insecure());
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.origins, Origins::SameHost);
    assert!((1..=64).contains(&config.workers));
    assert_eq!(config.message_rate.unwrap().burst.get(), 200);
    assert_ne!(config.node_id, read(&[]).unwrap().node_id);
    assert_eq!(read(&[("LISTEN", ""), ("AMQP_URL", " ")]).unwrap().listen, config.listen);
}

#[test]
fn a_key_opens_the_listeners() {
    let config =
        read(&[("JWT_SECRET", SECRET), ("AMQP_URL", "amqp://a:canary@mq1, amqp://a:canary@mq2")]).unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.admin_listen.to_string(), "0.0.0.0:9090");
    assert_eq!(config.amqp_urls.len(), 2);
    let config = read(&[("AUTH", "insecure"), ("LISTEN", "0.0.0.0:80")]).unwrap();
    assert!(config.insecure());
}

#[test]
fn broker_urls_are_checked_together_and_never_repeated() {
    for (list, expected) in [
        ("amqp://u:CANARY1,CANARY2@mq", &["URL 1 of 2: its port", "URL 2 of 2: the scheme"][..]),
        (
            "amqp://u:CANARY1,CANARY2@mq,amqp://u:p@h?heartbeat=abc",
            &["URL 1 of 3", "URL 2 of 3", "URL 3 of 3: heartbeat"],
        ),
        ("amqp://u:CANARY1", &["its port is not"]),
        ("amqp://CANARY1@mq", &["a user without a password"]),
        ("amqp://u:CANARY1@[::1", &["no closing ]"]),
        ("amqp://u:CANARY1@mq/%ff", &["its vhost is not UTF-8"]),
        ("amqp://u:CANARY1@mq?frame_max=abc", &["frame_max is not"]),
        ("amqp://u:CANARY1@mq?auth_mechanism=foo", &["auth_mechanism is not"]),
        ("amqp://u:CANARY1@a,amqp://v:CANARY2@b", &["the same user"]),
        ("amqp://u:CANARY1@a/x,amqp://u:CANARY1@b", &["the same vhost"]),
    ] {
        let told = mistakes(&[("JWT_SECRET", SECRET), ("AMQP_URL", list)]);
        assert_eq!(told.len(), expected.len(), "{list}: {told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.contains(expected) && !told.contains("CANARY"), "{list}: {told}");
        }
    }
    let config = read(&[("JWT_SECRET", SECRET), ("AMQP_URL", "amqp://u:CANARY1@[::1]:5672")]).unwrap();
    assert_eq!(config.amqp_urls[0].address(), "[::1]:5672");
    assert!(!format!("{config:?}").contains("CANARY"));
}

#[test]
fn every_mistake_is_named_at_once() {
    let told = mistakes(&[
        ("LISTEN", "everywhere"),
        ("PREFIX", "Warren!"),
        ("NODE_ID", "a b"),
        ("AMQP_URL", "http://gateway:canary@mq"),
        ("JWT_SECRET", "canary"),
        ("API_KEYS", "canary"),
        ("ALLOWED_ORIGINS", "example.com"),
        ("PUBLIC_URL", "javascript:alert(1)"),
        ("ROUTING", "ring"),
        ("QUEUE_TYPE", "stream"),
        ("WORKERS", "65"),
        ("MAX_SESSIONS", "many"),
        ("DRAIN_MS", "-1"),
        ("LOG", "warren=loud"),
        ("LOG_FORMAT", "xml"),
        ("LISTN", "127.0.0.1:1"),
    ]);
    for expected in [
        "WARREN_LISTEN=\"everywhere\": must be ip:port",
        "WARREN_PREFIX=\"Warren!\": must be 1 to 32 of a-z 0-9 - _ .",
        "WARREN_NODE_ID=\"a b\"",
        "WARREN_AMQP_URL: the scheme is neither amqp nor amqps",
        "WARREN_JWT_SECRET: must have at least 32 bytes",
        "WARREN_API_KEYS: each key must have at least 16 characters",
        "WARREN_ALLOWED_ORIGINS: \"example.com\" is not scheme://host[:port]",
        "WARREN_PUBLIC_URL=\"javascript:alert(1)\": must be http(s)://host[:port][/path]",
        "WARREN_ROUTING=\"ring\": is a preview that has not passed the fault suite; use directory",
        "WARREN_QUEUE_TYPE=\"stream\": must be one of: classic, quorum",
        "WARREN_WORKERS=\"65\": must be a whole number, 0..64 (threads)",
        "WARREN_MAX_SESSIONS=\"many\": must be a whole number, 1..10000000 (sessions)",
        "WARREN_DRAIN_MS=\"-1\": must be a whole number, 0..600000 (ms)",
        "WARREN_LOG=\"warren=loud\"",
        "WARREN_LOG_FORMAT=\"xml\": must be one of: text, json",
        "WARREN_LISTN is not a setting; did you mean WARREN_LISTEN?",
    ] {
        assert!(told.iter().any(|told| told.starts_with(expected)), "{expected}\n{told:#?}");
    }
    assert_eq!(told.len(), 16, "{told:#?}");
    assert!(!told.concat().contains("canary"), "{told:#?}");
}

#[test]
fn every_number_and_word_of_the_table_is_read() {
    for key in KEYS.iter().filter(|key| matches!(key.allowed, Allowed::Number { .. } | Allowed::Word { .. }))
    {
        let told = mistakes(&[(key.name, "nonsense")]);
        assert!(told[0].starts_with(&format!("WARREN_{}=\"nonsense\"", key.name)), "{told:?}");
    }
    for key in KEYS {
        if let Allowed::Number { min, max, .. } = key.allowed {
            assert!(read(&[(key.name, &(max + 1).to_string())]).is_err(), "{}", key.name);
            assert!(min == 0 || read(&[(key.name, &(min - 1).to_string())]).is_err(), "{}", key.name);
        }
    }
}

#[test]
fn combinations_that_would_let_strangers_in_are_refused() {
    let key = ("JWT_SECRET", SECRET);
    for (vars, expected) in [
        (&[("LISTEN", "0.0.0.0:8080")][..], "WARREN_LISTEN=\"0.0.0.0:8080\": without WARREN_JWT_SECRET"),
        (&[("LISTEN", "[::]:8080")], "WARREN_LISTEN"),
        (&[("AUTH", "jwt")], "WARREN_AUTH=\"jwt\": needs"),
        (&[("AUTH", "insecure"), key], "WARREN_AUTH=\"insecure\": a JWT key is given"),
        (&[("AUTH", "none")], "WARREN_AUTH=\"none\": must be one of"),
        (&[("API_KEYS", "0123456789abcdef")], "WARREN_API_KEYS: needs a JWT key"),
        (&[("JWT_ISSUER", "https://issuer")], "WARREN_JWT_ISSUER: needs a JWT key"),
        (&[key, ("LISTEN", "0.0.0.0:9090")], "WARREN_ADMIN_LISTEN: must differ"),
        (
            &[("QUEUE_TYPE", "quorum"), ("INGRESS_PARTITIONS", "4")],
            "WARREN_INGRESS_PARTITIONS=\"4\": needs WARREN_QUEUE_TYPE=classic",
        ),
        (&[("OUTBOX_BYTES", "1024")], "WARREN_OUTBOX_BYTES=\"1024\": must hold one message"),
        (&[("MAILBOX_BYTES", "1024")], "WARREN_MAILBOX_BYTES=\"1024\": must hold one message"),
        (&[key, ("JWT_SECRET_FILE", "/dev/null")], "WARREN_JWT_SECRET_FILE: give either this"),
        (&[("JWT_SECRET_FILE", "/nowhere")], "WARREN_JWT_SECRET_FILE=\"/nowhere\": cannot read"),
    ] {
        let told = mistakes(vars);
        assert!(told[0].starts_with(expected), "{expected}\n{told:#?}");
    }
}

#[test]
fn public_keys_are_recognised() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let path = |name: &str| fixtures.join(name).to_str().unwrap().to_string();
    let algorithm = |name: &str| match read(&[("JWT_PUBLIC_KEY_FILE", &path(name))]).map(|c| c.auth) {
        Ok(Auth::Jwt(jwt)) => Ok(jwt.public_key.unwrap().algorithm),
        Ok(Auth::Insecure) => panic!("{name} is ignored"),
        Err(errors) => Err(errors.to_string()),
    };
    assert_eq!(algorithm("rsa.public.pem").unwrap(), jsonwebtoken::Algorithm::RS256);
    assert_eq!(algorithm("ed25519.public.pem").unwrap(), jsonwebtoken::Algorithm::EdDSA);
    assert!(algorithm("rsa.private.pem").unwrap_err().contains("private key"));
    assert!(algorithm("rsa1024.public.pem").unwrap_err().contains("2048 bits"));
    assert_eq!(algorithm("ec.public.pem").unwrap(), jsonwebtoken::Algorithm::ES256);
    assert!(algorithm("p384.public.pem").unwrap_err().contains("neither RSA, P-256 nor Ed25519"));
    let one_line = std::fs::read_to_string(path("ed25519.public.pem")).unwrap().replace('\n', "\\n");
    assert!(read(&[("JWT_PUBLIC_KEY", &one_line)]).is_ok());
}

#[test]
fn variables_of_tests_and_of_kubernetes_are_left_alone() {
    read(&[
        ("TEST_AMQP_URL", "x"),
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT_WS", "8080"),
        ("PORT", "tcp://10.0.0.1:8080"),
        ("PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("ADMIN_SERVICE_HOST", "10.0.0.1"),
        ("ADMIN_PORT", "tcp://10.0.0.1:9090"),
    ])
    .unwrap();
    assert!(mistakes(&[("listen", "127.0.0.1:1")])[0].contains("did you mean WARREN_LISTEN?"));
}

#[test]
fn no_secret_is_in_the_debug_form() {
    let config = read(&[
        ("JWT_SECRET", SECRET),
        ("API_KEYS", "canary-0123456789,canary-9876543210"),
        ("AMQP_URL", "amqp://gateway:canary@mq"),
    ])
    .unwrap();
    assert!(!format!("{config:?}").contains("canary"));
}

#[test]
fn certificates_come_with_their_keys() {
    let folder = std::env::temp_dir().join(format!("warren-certificates-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let made = || {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    };
    let ((chain, key), (_, other)) = (made(), made());
    let [cert, key, other, junk] =
        [("cert", &chain), ("key", &key), ("other", &other), ("junk", &"canary".to_owned())]
            .map(|(n, t)| write(n, t));
    let broker = ("AMQP_URL", "amqps://u:p@mq,amqps://u:p@mq2");
    let good = read(&[
        ("TLS_CERT_FILE", &cert),
        ("TLS_KEY_FILE", &key),
        ("AMQP_CA_FILE", &cert),
        ("AMQP_CERT_FILE", &cert),
        ("AMQP_KEY_FILE", &key),
        ("AMQP_URL", "amqps://u@mq?auth_mechanism=external"),
    ])
    .unwrap();
    assert!(good.tls.is_some() && good.amqp_urls[0].credentials().has_certificate());
    assert!(read(&[("AMQP_CA_FILE", &cert), broker]).is_ok());
    for (vars, expected) in [
        (&[("TLS_CERT_FILE", &cert[..])][..], "needs WARREN_TLS_KEY_FILE"),
        (&[("TLS_KEY_FILE", &key)], "needs WARREN_TLS_CERT_FILE"),
        (&[("TLS_CERT_FILE", &cert), ("TLS_KEY_FILE", &other)], "does not belong"),
        (&[("TLS_CERT_FILE", &cert), ("TLS_KEY_FILE", &junk)], "no private key"),
        (&[("TLS_CERT_FILE", &junk), ("TLS_KEY_FILE", &key)], "no certificate"),
        (&[("TLS_CERT_FILE", "/nowhere"), ("TLS_KEY_FILE", &key)], "cannot read"),
        (&[("AMQP_CA_FILE", &cert), ("AMQP_URL", "amqp://u:p@mq")], "needs an amqps:// URL"),
        (&[("AMQP_CA_FILE", &junk), broker], "no certificate"),
        (&[("AMQP_CERT_FILE", &cert), broker], "needs WARREN_AMQP_KEY_FILE"),
        (&[("AMQP_CERT_FILE", &cert), ("AMQP_KEY_FILE", &other), broker], "does not belong"),
        (&[("AMQP_URL", "amqps://u@mq?auth_mechanism=external")], "auth_mechanism=external needs"),
    ] {
        let told = mistakes(vars).join("\n");
        assert!(told.contains(expected) && !told.contains("canary"), "{vars:?}: {told}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_rate_of_zero_is_no_limit() {
    assert_eq!(read(&[("MESSAGE_RATE", "0")]).unwrap().message_rate, None);
}

#[test]
fn events_are_a_list() {
    let kinds = |text| EventKinds::parse(text).map(|kinds| (kinds.sessions, kinds.users, kinds.channels));
    assert_eq!(kinds("none"), Some((false, false, false)));
    assert_eq!(kinds("users, channels"), Some((false, true, true)));
    assert_eq!(kinds("sessions"), Some((true, false, false)));
    for wrong in ["all", "users,none", "users,", ",", "Users"] {
        assert_eq!(kinds(wrong), None, "{wrong}");
    }
}

#[test]
fn fuzzed() {
    let good = [
        "LISTEN=127.0.0.1:8080\nWORKERS=2\nPING_INTERVAL_MS=25000\nLOG=info,warren=debug",
        "JWT_SECRET=0123456789abcdef0123456789abcdef\nAPI_KEYS=a=0123456789abcdef,fedcba9876543210\nJWT_ISSUER=x",
        "AMQP_URL=amqp://u:p@h:5672/%2f?heartbeat=5,amqps://u:p@[::1]/v\nNODE_ID=n-1\nPREFIX=w",
        "ALLOWED_ORIGINS=https://a.example, http://localhost:3000\nTRUSTED_PROXIES=10.0.0.0/8,fd00::/8",
    ];
    let words =
        ["://", "[::1]", "/33", "*", "%00", "\\n", "AUTH=insecure", "-----BEGIN PUBLIC KEY-----", "@", "?"];
    crate::tests::fuzz::fuzz("configuration", &good.map(|text| text.as_bytes().to_vec()), &words, |input| {
        let text = String::from_utf8_lossy(input);
        // No files: a name that came about by chance must not be opened.
        let lines = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.len() < 64 && !name.contains("FILE"));
        let vars: Vec<_> = lines.map(|(name, value)| (format!("WARREN_{name}"), value.to_owned())).collect();
        match Config::from_vars(vars) {
            Ok(config) => format!("{} {}", config.insecure(), config.standalone()),
            Err(ConfigErrors(mistakes)) => {
                mistakes.iter().map(|one| one.split([':', '=']).next().unwrap_or_default()).collect()
            }
        }
    });
}
