//! The keys of tokens and of services, from variables and files.

use std::path::PathBuf;

use super::reading::Reading;
use super::{jwks, key_set};
use super::{ApiKey, Auth, Jwt, PublicKey, Secret};

/// RFC 7518 section 3.2: a key of HS256 has at least the size of its hash.
const JWT_SECRET_BYTES_MIN: usize = 32;

pub(super) fn auth(from: &mut Reading) -> Auth {
    let secret = from.text_or_file("JWT_SECRET");
    if secret.as_ref().is_some_and(|secret| secret.len() < JWT_SECRET_BYTES_MIN) {
        from.mistake("JWT_SECRET", None, "must have at least 32 bytes (RFC 7518 section 3.2)");
    }
    // A PEM in one line: what some tools make of line ends in a variable.
    let pem = from.text_or_file("JWT_PUBLIC_KEY").map(|pem| pem.replace("\\n", "\n"));
    let public_key = pem.as_ref().and_then(|pem| match PublicKey::parse(pem) {
        Ok(key) => Some(key),
        Err(why) => {
            from.mistake("JWT_PUBLIC_KEY", None, why);
            None
        }
    });
    let named_keys = from.file("JWKS_FILE").map_or_else(Vec::new, |set| {
        jwks::parse(&set).unwrap_or_else(|why| {
            from.mistake("JWKS_FILE", None, why);
            Vec::new()
        })
    });
    let key_set = key_set::read(from).map(Box::new);
    // Also a key that turned out to be bad, or a file that could not be read, shows what was meant.
    let meant =
        ["JWT_SECRET", "JWT_SECRET_FILE", "JWT_PUBLIC_KEY", "JWT_PUBLIC_KEY_FILE", "JWKS_FILE", "JWKS_URL"];
    let any_key = meant.iter().any(|name| from.has(name));
    let jwt = Jwt {
        secret: secret.map(Secret::new),
        public_key,
        named_keys,
        key_set,
        issuer: from.text("JWT_ISSUER"),
        audience: from.text("JWT_AUDIENCE"),
    };
    match from.word("AUTH") {
        Some("insecure") if any_key => {
            from.mistake("AUTH", Some("insecure"), "a JWT key is given as well: remove one of the two");
        }
        Some("jwt") if !any_key => {
            from.mistake(
                "AUTH",
                Some("jwt"),
                "needs WARREN_JWT_SECRET, WARREN_JWT_PUBLIC_KEY, WARREN_JWKS_FILE or WARREN_JWKS_URL",
            );
        }
        _ if any_key => {}
        _ => {
            for name in ["JWT_ISSUER", "JWT_AUDIENCE"] {
                if from.has(name) {
                    from.mistake(name, None, "needs a JWT key, or nothing would be checked");
                }
            }
            return Auth::Insecure;
        }
    }
    Auth::Jwt(jwt)
}

pub(super) fn api_keys(from: &mut Reading, auth: &Auth) -> Vec<ApiKey> {
    let list = from.text_or_file("API_KEYS").unwrap_or_default();
    let mut keys = Vec::new();
    for entry in list.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty()) {
        match ApiKey::parse(entry) {
            Ok(key) => keys.push(key),
            Err(why) => from.mistake("API_KEYS", None, why),
        }
    }
    if !keys.is_empty() && matches!(auth, Auth::Insecure) {
        from.mistake("API_KEYS", None, "needs a JWT key: in insecure mode everybody may call the API");
    }
    keys
}

pub(super) fn key_files(from: &mut Reading) -> Vec<PathBuf> {
    let names = [
        "JWT_SECRET_FILE",
        "JWT_PUBLIC_KEY_FILE",
        "JWKS_FILE",
        "API_KEYS_FILE",
        "TLS_CERT_FILE",
        "TLS_KEY_FILE",
    ];
    names.iter().filter_map(|name| from.text(name)).map(PathBuf::from).collect()
}
