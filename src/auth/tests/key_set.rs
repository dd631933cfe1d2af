//! Several keys at once, which tokens name by `kid`.

use jsonwebtoken::jwk::Jwk;

use super::*;

/// A JWK Set with the public keys of the fixtures, named after their algorithm, and two secrets.
fn key_set() -> (Value, Vec<(&'static str, Kind)>) {
    let mut keys = Vec::new();
    for kind in kinds().iter().filter(|kind| kind.algorithm != Algorithm::HS256) {
        let mut key =
            serde_json::to_value(Jwk::from_encoding_key(&kind.signs, kind.algorithm).unwrap()).unwrap();
        key["kid"] = json!(format!("{:?}", kind.algorithm));
        keys.push(key);
    }
    let secrets = [
        ("old", "old-secret-of-thirty-two-bytes-or-more"),
        ("new", "new-secret-of-thirty-two-bytes-or-more"),
    ];
    for (kid, secret) in secrets {
        keys.push(json!({"kty": "oct", "kid": kid, "k": URL_SAFE_NO_PAD.encode(secret)}));
    }
    let secret = |(kid, secret): (&'static str, &str)| {
        let signs = EncodingKey::from_secret(secret.as_bytes());
        (kid, Kind { algorithm: Algorithm::HS256, variable: ("JWT_SECRET", secret.into()), signs })
    };
    let names = ["HS256", "RS256", "ES256", "EdDSA"];
    let signers = names.into_iter().zip(kinds()).skip(1).chain(secrets.map(secret)).collect();
    (json!({ "keys": keys }), signers)
}

/// A verifier with the keys of such a file and other settings.
fn with_key_set(set: &Value, more: &[(&str, &str)]) -> Verifier {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("warren-jwks-{}-{number}.json", std::process::id()));
    std::fs::write(&file, set.to_string()).unwrap();
    let verifier =
        Verifier::new(&config(&[&[("JWKS_FILE", file.to_str().unwrap())], more].concat())).unwrap();
    std::fs::remove_file(&file).unwrap();
    verifier
}

#[test]
fn a_token_names_its_key_and_no_other_counts() {
    let (set, signers) = key_set();
    let verifier = with_key_set(&set, &[]);
    let claims = good_claims().to_string();
    for (kid, kind) in &signers {
        for (named, _) in &signers {
            let header = json!({"alg": kind.algorithm, "kid": named});
            let told = verifier.verify(&kind.sign_with_header(&header, &claims));
            assert_eq!(told.is_ok(), named == kid, "signed by {kid}, says {named}: {told:?}");
        }
        for header in [
            json!({"alg": kind.algorithm}),
            json!({"alg": kind.algorithm, "kid": "unknown"}),
            json!({"alg": kind.algorithm, "kid": "../../etc/passwd"}),
            json!({"alg": kind.algorithm, "kid": ""}),
        ] {
            let told = verifier.verify(&kind.sign_with_header(&header, &claims));
            assert_eq!(told, Err(AuthError::Invalid("kid")), "{header}");
        }
    }
    // Beside a key without a name: that one is for tokens that name none of the set, and for no others.
    let verifier = with_key_set(&set, &[("JWT_SECRET", SECRET)]);
    let plain = &kinds()[0];
    assert!(verifier.verify(&plain.sign(&claims)).is_ok());
    assert!(verifier
        .verify(&plain.sign_with_header(&json!({"alg": "HS256", "kid": "mine"}), &claims))
        .is_ok());
    let told = verifier.verify(&plain.sign_with_header(&json!({"alg": "HS256", "kid": "old"}), &claims));
    assert_eq!(told, Err(AuthError::Invalid("signature")));
    // The public key of the set as the secret of an HMAC.
    let public = set["keys"][0]["n"].as_str().unwrap();
    let forger = Kind {
        algorithm: Algorithm::HS256,
        variable: ("", String::new()),
        signs: EncodingKey::from_secret(public.as_bytes()),
    };
    for kid in ["RS256", "ES256", "EdDSA", "old"] {
        let told = verifier.verify(&forger.sign_with_header(&json!({"alg": "HS256", "kid": kid}), &claims));
        assert!(told.is_err(), "{kid}");
    }
}

#[test]
fn a_key_that_leaves_the_set_counts_no_longer() {
    let (mut set, signers) = key_set();
    let verifier = with_key_set(&set, &[]);
    let token = |kid: &str| {
        let (_, kind) = signers.iter().find(|(name, _)| *name == kid).unwrap();
        kind.sign_with_header(&json!({"alg": kind.algorithm, "kid": kid}), &good_claims().to_string())
    };
    assert!(verifier.verify(&token("old")).is_ok() && verifier.verify(&token("new")).is_ok());
    set["keys"].as_array_mut().unwrap().retain(|key| key["kid"] != "old");
    *verifier.keys.as_ref().unwrap().write().unwrap() = with_key_set(&set, &[]).keys().unwrap();
    assert!(verifier.verify(&token("old")).is_err() && verifier.verify(&token("new")).is_ok());
}
