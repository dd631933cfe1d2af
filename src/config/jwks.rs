//! A JWK Set (RFC 7517): several keys for tokens, each with the name that tokens give in `kid`.

use std::collections::HashSet;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

const KEYS_MAX: usize = 64;
const KID_BYTES_MAX: usize = 64;
/// RFC 7518 section 3.3: an RSA key has at least 2048 bits.
const RSA_BYTES_MIN: usize = 256;
/// RFC 7518 section 3.2: a key of HS256 has at least the size of its hash.
const SECRET_BYTES_MIN: usize = 32;

/// A key, the one algorithm that it may be used with (RFC 8725 section 3.1), and its name.
#[derive(Debug, Clone)]
pub struct NamedKey {
    pub kid: String,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// All keys of a set that are for signatures. An error names the key and shows nothing of it.
pub(super) fn parse(text: &str) -> Result<Vec<NamedKey>, String> {
    let set: Value = serde_json::from_str(text).map_err(|_| "this is not JSON".to_owned())?;
    let all = set["keys"].as_array().ok_or("this is not a JWK Set: it has no \"keys\"")?;
    if all.len() > KEYS_MAX {
        return Err(format!("more than {KEYS_MAX} keys"));
    }
    let (mut keys, mut names) = (Vec::new(), HashSet::new());
    for (at, entry) in all.iter().enumerate().filter(|(_, entry)| entry["use"] != "enc") {
        let key = one(entry).map_err(|why| match entry["kid"].as_str().filter(|kid| is_name(kid)) {
            Some(kid) => format!("key {kid}: {why}"),
            None => format!("key {} of {}: {why}", at + 1, all.len()),
        })?;
        if !names.insert(key.kid.clone()) {
            return Err(format!("key {}: the kid is there twice", key.kid));
        }
        keys.push(key);
    }
    match keys.is_empty() {
        true => Err("no key for signatures".to_owned()),
        false => Ok(keys),
    }
}

/// The keys of a set that an identity provider publishes for all its clients: keys of kinds that a gateway does not use are
/// passed over, and so are secrets, since everybody can read them. Beside the keys: how many were passed over.
pub fn parse_published(text: &str) -> Result<(Vec<NamedKey>, usize), String> {
    let set: Value = serde_json::from_str(text).map_err(|_| "this is not JSON".to_owned())?;
    let all = set["keys"].as_array().ok_or("this is not a JWK Set: it has no \"keys\"")?;
    let mut keys: Vec<NamedKey> = Vec::new();
    for entry in all.iter().take(KEYS_MAX).filter(|entry| entry["use"] != "enc" && entry["kty"] != "oct") {
        let is_new = |key: &NamedKey| keys.iter().all(|other| other.kid != key.kid);
        keys.extend(one(entry).ok().filter(is_new));
    }
    let passed_over = all.len() - keys.len();
    match keys.is_empty() {
        true => Err("no key for signatures that can be used".to_owned()),
        false => Ok((keys, passed_over)),
    }
}

fn is_name(kid: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic();
    (1..=KID_BYTES_MAX).contains(&kid.len()) && kid.bytes().all(plain)
}

fn one(entry: &Value) -> Result<NamedKey, &'static str> {
    let kid = entry["kid"].as_str().filter(|kid| is_name(kid));
    let kid = kid.ok_or("needs a kid of 1 to 64 printable ASCII characters without spaces")?;
    if entry.get("d").is_some() {
        return Err("is a private key; a gateway needs, and should have, only the public one");
    }
    let jwk: Jwk = serde_json::from_value(entry.clone()).map_err(|_| "is not a JWK")?;
    let bytes = |member: &str| {
        let decoded = entry[member].as_str().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        decoded.map_or(0, |bytes| bytes.iter().skip_while(|byte| **byte == 0).count())
    };
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) if bytes("n") < RSA_BYTES_MIN => return Err("has less than 2048 bits"),
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) if bytes("k") < SECRET_BYTES_MIN => {
            return Err("has less than 32 bytes");
        }
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return Err("is neither RSA, P-256, Ed25519 nor a secret"),
    };
    if entry["alg"].as_str().is_some_and(|said| said != format!("{algorithm:?}")) {
        return Err("its alg is not one of RS256, ES256, EdDSA and HS256, or not one of such a key");
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| "cannot be read")?;
    Ok(NamedKey { kid: kid.to_owned(), algorithm, key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(key: Value) -> Result<Algorithm, String> {
        let keys = parse(&json!({ "keys": [key] }).to_string())?;
        Ok(keys[0].algorithm)
    }

    #[test]
    fn each_kind_of_key_has_one_algorithm() {
        let rsa = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0xff; bytes]);
        let secret = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![7; bytes]);
        let point = URL_SAFE_NO_PAD.encode([7; 32]);
        let good = [
            (json!({"kty": "RSA", "kid": "a", "n": rsa(256), "e": "AQAB"}), Algorithm::RS256),
            (json!({"kty": "EC", "kid": "a", "crv": "P-256", "x": point, "y": point}), Algorithm::ES256),
            (
                json!({"kty": "OKP", "kid": "a", "crv": "Ed25519", "x": point, "alg": "EdDSA"}),
                Algorithm::EdDSA,
            ),
            (json!({"kty": "oct", "kid": "a", "k": secret(32), "alg": "HS256"}), Algorithm::HS256),
        ];
        for (key, algorithm) in good {
            assert_eq!(of(key.clone()), Ok(algorithm), "{key}");
            for (member, value) in [
                ("kid", json!("")),
                ("kid", json!("a b")),
                ("kid", json!("x".repeat(65))),
                ("alg", json!("RS512")),
                ("d", json!("AA")),
            ] {
                let mut bad = key.clone();
                bad[member] = value;
                let why = of(bad.clone()).unwrap_err();
                assert!(!why.contains(secret(32).as_str()), "{bad}: {why}");
            }
        }
        for bad in [
            json!({"kty": "RSA", "kid": "a", "n": rsa(255), "e": "AQAB"}),
            json!({"kty": "EC", "kid": "a", "crv": "P-384", "x": point, "y": point}),
            json!({"kty": "oct", "kid": "a", "k": secret(31)}),
            json!({"kty": "none", "kid": "a"}),
            json!({"kid": "a"}),
            json!(7),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_a_published_set_what_can_be_used_counts() {
        let point = URL_SAFE_NO_PAD.encode([7; 32]);
        let good = |kid: &str| json!({"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": point});
        let mut encryption = good("e");
        encryption["use"] = json!("enc");
        let set = json!({"keys": [
            good("a"),
            good("b"),
            good("a"),
            encryption,
            {"kty": "EC", "kid": "c", "crv": "P-384", "x": point, "y": point},
            {"kty": "oct", "kid": "d", "k": URL_SAFE_NO_PAD.encode([7; 32])},
            {"kty": "OKP", "crv": "Ed25519", "x": point},
            7,
        ]});
        let (keys, passed_over) = parse_published(&set.to_string()).unwrap();
        let names: Vec<_> = keys.iter().map(|key| key.kid.as_str()).collect();
        assert_eq!((names, passed_over), (vec!["a", "b"], 6));
        for nothing in [json!({"keys": []}), json!({"keys": [7]}), json!([]), json!({"keys": {}})] {
            assert!(parse_published(&nothing.to_string()).is_err(), "{nothing}");
        }
        assert!(parse_published("<html>").is_err());
        let many: Vec<_> = (0..1_000).map(|n| good(&n.to_string())).collect();
        assert_eq!(parse_published(&json!({ "keys": many }).to_string()).unwrap().0.len(), KEYS_MAX);
    }

    #[test]
    fn a_set_has_names_that_differ_and_keys_for_signatures() {
        let key = |kid: &str| json!({"kty": "oct", "kid": kid, "k": URL_SAFE_NO_PAD.encode([7; 32])});
        let set = |keys: Value| parse(&json!({ "keys": keys }).to_string()).map(|keys| keys.len());
        assert_eq!(set(json!([key("a"), key("b")])), Ok(2));
        assert_eq!(set(json!([key("a"), key("a")])), Err("key a: the kid is there twice".to_owned()));
        let mut encryption = key("b");
        encryption["use"] = json!("enc");
        assert_eq!(set(json!([key("a"), encryption.clone()])), Ok(1));
        assert!(
            set(json!([encryption.clone()])).is_err() && set(json!([])).is_err() && set(json!(7)).is_err()
        );
        assert!(parse("[]").is_err() && parse("{").is_err());
    }
}
