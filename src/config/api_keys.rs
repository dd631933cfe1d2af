//! The keys of backend services, and the names that they publish under.

use super::values::Secret;

const KEY_BYTES_MIN: usize = 16;
const NAME_BYTES_MAX: usize = 64;
/// The service of a key that has no name.
const UNNAMED: &str = "api";

/// A service's key. Two keys may have one name: the old one and the new one while they are changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What receivers see as the sender, and what message ids are scoped by.
    pub name: String,
    pub key: Secret,
}

impl ApiKey {
    /// `name=key` or `key`. The error does not show the key.
    pub(super) fn parse(entry: &str) -> Result<Self, &'static str> {
        let (name, key) = match entry.split_once('=') {
            // In base64 a key itself ends with `=`.
            Some((_, rest)) if rest.bytes().all(|byte| byte == b'=') => (UNNAMED, entry),
            Some((name, key)) => (name.trim(), key.trim()),
            None => (UNNAMED, entry),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
            return Err("a name before = has 1 to 64 of A-Z a-z 0-9 - _ .");
        }
        if key.len() < KEY_BYTES_MIN {
            return Err("each key must have at least 16 characters");
        }
        Ok(Self { name: name.to_owned(), key: Secret::new(key) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_have_a_name() {
        for (entry, name, key) in [
            ("0123456789abcdef", "api", "0123456789abcdef"),
            ("orders=0123456789abcdef", "orders", "0123456789abcdef"),
            ("orders = 0123456789abcde=", "orders", "0123456789abcde="),
            ("QUJDREVGR0hJSktMTU5PUA==", "api", "QUJDREVGR0hJSktMTU5PUA=="),
            ("mail=QUJDREVGR0hJSktMTU5PUA==", "mail", "QUJDREVGR0hJSktMTU5PUA=="),
        ] {
            let parsed = ApiKey::parse(entry).unwrap();
            assert_eq!((parsed.name.as_str(), parsed.key.expose()), (name, key), "{entry}");
        }
        for bad in ["0123456789abcde", "orders=0123456789abcde", "a b=0123456789abcdef", "=0123456789abcdef"]
        {
            assert!(ApiKey::parse(bad).is_err(), "{bad}");
        }
    }
}
