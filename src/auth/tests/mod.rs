//! Forged, broken and genuine credentials, for each kind of key.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use serde_json::{json, Value};

use super::keys::LEEWAY_S;
use super::*;

mod key_set;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const API_KEY: &str = "an-api-key-of-some-length";

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn config(vars: &[(&str, &str)]) -> Config {
    Config::from_vars(vars.iter().map(|(name, value)| (format!("WARREN_{name}"), value.to_string()))).unwrap()
}

/// One kind of key: what the node is given, and what signs genuine tokens.
struct Kind {
    algorithm: Algorithm,
    variable: (&'static str, String),
    signs: EncodingKey,
}

fn kinds() -> Vec<Kind> {
    let pem = |name: &str| fixture(&format!("{name}.private.pem")).into_bytes();
    vec![
        Kind {
            algorithm: Algorithm::HS256,
            variable: ("JWT_SECRET", SECRET.to_string()),
            signs: EncodingKey::from_secret(SECRET.as_bytes()),
        },
        Kind {
            algorithm: Algorithm::RS256,
            variable: ("JWT_PUBLIC_KEY", fixture("rsa.public.pem")),
            signs: EncodingKey::from_rsa_pem(&pem("rsa")).unwrap(),
        },
        Kind {
            algorithm: Algorithm::ES256,
            variable: ("JWT_PUBLIC_KEY", fixture("ec.public.pem")),
            signs: EncodingKey::from_ec_pem(&pem("ec")).unwrap(),
        },
        Kind {
            algorithm: Algorithm::EdDSA,
            variable: ("JWT_PUBLIC_KEY", fixture("ed25519.public.pem")),
            signs: EncodingKey::from_ed_pem(&pem("ed25519")).unwrap(),
        },
    ]
}

impl Kind {
    fn verifier(&self, more: &[(&str, &str)]) -> Verifier {
        let vars = [&[(self.variable.0, self.variable.1.as_str())], more].concat();
        Verifier::new(&config(&vars)).unwrap()
    }

    fn sign(&self, claims: &str) -> String {
        self.sign_with_header(&json!({"alg": self.algorithm, "typ": "JWT"}), claims)
    }

    /// Signs any header and any text of claims: what the library itself would not make.
    fn sign_with_header(&self, header: &Value, claims: &str) -> String {
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.signs, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

fn now() -> u64 {
    get_current_timestamp()
}

fn good_claims() -> Value {
    json!({"sub": "42", "exp": now() + 60})
}

/// The good claims with some of them replaced; `null` removes one.
fn with(changes: Value) -> String {
    let mut claims = good_claims();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims.to_string()
}

#[test]
fn genuine_tokens_pass() {
    for kind in kinds() {
        let verifier = kind.verifier(&[]);
        let identity = verifier.verify(&kind.sign(&good_claims().to_string())).unwrap();
        assert_eq!(identity.user.as_str(), "42");
        assert_eq!(identity.caps, Caps::Usual);
        assert!(identity.expires_unix_s.unwrap() >= now() + 60);
        // Allowed by RFC 7519: a fraction of a second, a start in the past, claims that we do not know.
        let claims = with(json!({"exp": now() as f64 + 60.5, "nbf": now() - 1, "scope": {"a": [1]}}));
        assert!(verifier.verify(&kind.sign(&claims)).is_ok());
        let claims = with(json!({"caps": ["api", "publish:broadcast", "later:thing"]}));
        let identity = verifier.verify(&kind.sign(&claims)).unwrap();
        assert!(identity.caps.api() && identity.caps.may_publish(&Target::Broadcast));
        // A key that a token brings along is not looked at.
        let header = json!({"alg": kind.algorithm, "kid": "../../etc/passwd", "jku": "https://evil.example",
            "x5u": "https://evil.example", "jwk": {"kty": "oct", "k": "AAAA"}});
        assert!(verifier.verify(&kind.sign_with_header(&header, &good_claims().to_string())).is_ok());
    }
}

#[test]
fn broken_claims_are_refused_although_the_signature_is_good() {
    let invalid = AuthError::Invalid;
    for kind in kinds() {
        let verifier = kind.verifier(&[]);
        for (claims, expected) in [
            (with(json!({"exp": now() - LEEWAY_S - 2})), AuthError::Expired),
            (with(json!({"exp": 0})), AuthError::Expired),
            (with(json!({"exp": null})), invalid("malformed")),
            (with(json!({"exp": (now() + 60).to_string()})), invalid("malformed")),
            (with(json!({"exp": -1})), invalid("claims")),
            (with(json!({"exp": 1e300})), invalid("claims")),
            (with(json!({"exp": 1e18})), invalid("claims")),
            (with(json!({"exp": true})), invalid("malformed")),
            (with(json!({"exp": [now() + 60]})), invalid("malformed")),
            (with(json!({"nbf": now() + LEEWAY_S + 60})), invalid("not_yet_valid")),
            (with(json!({"nbf": (now() + 60).to_string()})), invalid("claims")),
            (with(json!({"sub": null})), invalid("malformed")),
            (with(json!({"sub": ""})), invalid("malformed")),
            (with(json!({"sub": 42})), invalid("malformed")),
            (with(json!({"sub": "x".repeat(129)})), invalid("malformed")),
            (with(json!({"sub": "a\nb"})), invalid("malformed")),
            (with(json!({"aud": "someone-else"})), invalid("audience")),
            (with(json!({"caps": "publish:*"})), invalid("malformed")),
            (with(json!({"caps": [1]})), invalid("malformed")),
            (format!(r#"{{"sub":"42","sub":"1","exp":{}}}"#, now() + 60), invalid("malformed")),
            (format!(r#"["42",{}]"#, now() + 60), invalid("malformed")),
            ("null".to_string(), invalid("malformed")),
            ("".to_string(), invalid("malformed")),
        ] {
            let told = verifier.verify(&kind.sign(&claims)).unwrap_err();
            assert_eq!(told, expected, "{:?} {claims}", kind.algorithm);
        }
    }
}

#[test]
fn issuer_and_audience_are_required_when_configured() {
    for kind in kinds() {
        let verifier = kind.verifier(&[("JWT_ISSUER", "https://us"), ("JWT_AUDIENCE", "warren")]);
        let ours = json!({"iss": "https://us", "aud": "warren"});
        assert!(verifier.verify(&kind.sign(&with(ours.clone()))).is_ok());
        assert!(verifier
            .verify(&kind.sign(&with(json!({"iss": "https://us", "aud": ["x", "warren"]}))))
            .is_ok());
        for (name, value) in [
            ("iss", json!(null)),
            ("iss", json!("https://us/")),
            ("iss", json!(["https://us"])),
            ("iss", json!(1)),
            ("aud", json!(null)),
            ("aud", json!("warren2")),
            ("aud", json!([])),
            ("aud", json!(["x"])),
            ("aud", json!({"warren": 1})),
        ] {
            let mut changed = ours.clone();
            changed[name] = value;
            assert!(verifier.verify(&kind.sign(&with(changed.clone()))).is_err(), "{changed}");
        }
    }
}

#[test]
fn forged_signatures_are_refused_by_every_kind_of_key() {
    let claims = good_claims().to_string();
    let encoded = |header: Value| URL_SAFE_NO_PAD.encode(header.to_string());
    for kind in kinds() {
        let verifier = kind.verifier(&[]);
        let genuine = kind.sign(&claims);
        let [header, payload, signature] = genuine.split('.').collect::<Vec<_>>()[..] else { panic!() };
        let mut forged = vec![
            format!("{header}.{payload}."),
            format!("{header}.{payload}"),
            format!("{header}.{payload}.{signature}.{signature}"),
            format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(with(json!({"sub": "1"})))),
            format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode([0u8; 64])),
            format!(" {genuine}"),
            format!("{genuine}="),
            format!("{}.{payload}.{signature}", encoded(json!({"alg": kind.algorithm, "x": 1}))),
            "garbage".to_string(),
            "..".to_string(),
            "\0.\0.\0".to_string(),
            "x".repeat(TOKEN_BYTES_MAX + 1),
            "e30.e30.e30".to_string(),
        ];
        for alg in ["none", "None", "NONE", "nOnE", "hs256", "", "HS1", "ES256K"] {
            for signature in ["", signature] {
                forged.push(format!("{}.{payload}.{signature}", encoded(json!({"alg": alg}))));
            }
        }
        // The secret is what everybody knows: the public key in its several forms.
        for public in ["rsa.public.pem", "ed25519.public.pem"] {
            let pem = fixture(public);
            for secret in [pem.clone(), pem.trim_end().to_string(), String::new()] {
                for alg in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                    let key = EncodingKey::from_secret(secret.as_bytes());
                    forged.push(encode(&Header::new(alg), &good_claims(), &key).unwrap());
                }
            }
        }
        // Genuine, but by another kind of key, or with another algorithm of the same key.
        forged.extend(kinds().iter().filter(|k| k.algorithm != kind.algorithm).map(|k| k.sign(&claims)));
        for alg in [Algorithm::HS384, Algorithm::HS512, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256]
        {
            forged.extend(encode(&Header::new(alg), &good_claims(), &kind.signs).ok());
        }
        for token in forged {
            let told = verifier.verify(&token).expect_err(&token);
            assert_eq!(told.to_string(), "invalid credentials", "{token}");
            assert!(verifier.api(Some(&token)).is_err());
        }
        let critical = json!({"alg": kind.algorithm, "crit": ["exp"]});
        let told = verifier.verify(&kind.sign_with_header(&critical, &claims)).unwrap_err();
        assert_eq!(told, AuthError::Invalid("crit"));
        assert_eq!(verifier.verify(""), Err(AuthError::Missing));
    }
}

#[test]
fn two_keys_serve_two_algorithms_and_nothing_else() {
    let kinds = kinds();
    let verifier = kinds[0].verifier(&[("JWT_PUBLIC_KEY", &kinds[1].variable.1)]);
    let claims = good_claims().to_string();
    assert!(verifier.verify(&kinds[0].sign(&claims)).is_ok());
    assert!(verifier.verify(&kinds[1].sign(&claims)).is_ok());
    assert_eq!(verifier.verify(&kinds[2].sign(&claims)), Err(AuthError::Invalid("algorithm")));
    let confused = EncodingKey::from_secret(kinds[1].variable.1.as_bytes());
    let token = encode(&Header::new(Algorithm::HS256), &good_claims(), &confused).unwrap();
    assert_eq!(verifier.verify(&token), Err(AuthError::Invalid("signature")));
}

#[test]
fn the_api_takes_keys_and_tokens() {
    let kind = &kinds()[0];
    let verifier = kind.verifier(&[("API_KEYS", &format!("another-key-of-some-length,{API_KEY}"))]);
    assert_eq!(verifier.api(Some(API_KEY)), Ok(Caller::Service("api".into())));
    for wrong in ["an-api-key-of-some-lengt", "an-api-key-of-some-length ", "AN-API-KEY-OF-SOME-LENGTH"] {
        assert!(verifier.api(Some(wrong)).is_err(), "{wrong}");
    }
    assert_eq!(verifier.api(None), Err(AuthError::Missing));
    assert_eq!(verifier.api(Some("")), Err(AuthError::Missing));
    // An API key is no user, so it opens no socket.
    assert!(verifier.verify(API_KEY).is_err());
    let user = verifier.api(Some(&kind.sign(&good_claims().to_string()))).unwrap();
    assert!(!user.api() && user.may_publish(&Target::parse("user.1").unwrap()));
    assert!(!user.may_publish(&Target::Broadcast));
    let service = verifier.api(Some(&kind.sign(&with(json!({"caps": ["api"]}))))).unwrap();
    assert!(service.api() && service.may_publish(&Target::Broadcast));
}

#[test]
fn insecure_mode_believes_everybody() {
    let verifier = Verifier::new(&config(&[])).unwrap();
    let identity = verifier.verify("42").unwrap();
    assert_eq!((identity.user.as_str(), identity.expires_unix_s, identity.caps), ("42", None, Caps::All));
    assert!(verifier.verify("a\nb").is_err() && verifier.verify("").is_err());
    assert_eq!(verifier.api(None), Ok(Caller::Service("api".into())));
}

#[test]
fn minted_tokens_are_taken() {
    let config = config(&[("JWT_SECRET", SECRET), ("JWT_ISSUER", "us"), ("JWT_AUDIENCE", "warren")]);
    let verifier = Verifier::new(&config).unwrap();
    let user = UserId::new("zoë").unwrap();
    let ttl = Duration::from_secs(60);
    let identity = verifier.verify(&mint(&user, ttl, &[], &config).unwrap()).unwrap();
    assert_eq!((identity.user, identity.caps), (user.clone(), Caps::Usual));
    let caps = ["publish:broadcast".to_string()];
    let identity = verifier.verify(&mint(&user, Duration::MAX, &caps, &config).unwrap()).unwrap();
    assert!(identity.caps.may_publish(&Target::Broadcast));
    let wrong = ["broadcast".to_string()];
    assert_eq!(mint(&user, ttl, &wrong, &config), Err(MintError::Cap("broadcast".into())));
    let public = Config::from_vars([("WARREN_JWT_PUBLIC_KEY".into(), fixture("rsa.public.pem"))]).unwrap();
    assert_eq!(mint(&user, ttl, &[], &public), Err(MintError::NoSecret));
}

#[test]
fn fuzzed() {
    let all = kinds();
    for kind in &all {
        let verifier = kind.verifier(&[("API_KEYS", API_KEY)]);
        // Those of the other kinds are forged here.
        let good: Vec<Vec<u8>> = all.iter().map(|kind| kind.sign(&with(json!({}))).into_bytes()).collect();
        let signed: Vec<&[u8]> =
            good.iter().map(|token| &token[..token.iter().rposition(|b| *b == b'.').unwrap()]).collect();
        let words = ["eyJhbGciOiJub25lIn0", ".", "==", "eyJhbGciOiJIUzI1NiJ9", "e30"];
        crate::tests::fuzz::fuzz(&format!("tokens {:?}", kind.algorithm), &good, &words, |input| {
            let token = String::from_utf8_lossy(input);
            let caller = verifier.api(Some(&token));
            match verifier.verify(&token) {
                Ok(identity) => {
                    let end = token.rfind('.').unwrap();
                    assert!(signed.contains(&&token.as_bytes()[..end]), "taken and never signed: {token}");
                    assert_eq!(identity.user.as_str(), "42");
                    "taken"
                }
                Err(error) => {
                    assert!(caller.is_err() || token == API_KEY, "{token}");
                    error.reason()
                }
            }
        });
    }
}
