//! The decision on an upgrade request (RFC 6455 section 4.2): accept with which answer, or refuse and why.

use std::fmt;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use hyper::header::{
    HeaderName, CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{HeaderMap, Method, StatusCode, Version};
use sha1::{Digest as _, Sha1};

use crate::protocol::{stomp, Codec};

/// A name, and what is spoken under it.
pub type Subprotocol = (&'static str, Codec);

/// The subprotocols that are spoken here, each with its codec; of those that a client offers the first here is chosen.
pub const SUBPROTOCOLS: [Subprotocol; 4] = [
    ("warren.v1", Codec::WarrenV1),
    (stomp::SUBPROTOCOLS[0], Codec::Stomp),
    (stomp::SUBPROTOCOLS[1], Codec::Stomp),
    (stomp::SUBPROTOCOLS[2], Codec::Stomp),
];
/// A browser cannot set headers on a WebSocket, but it may offer its token as a subprotocol of this form.
const BEARER_PREFIX: &str = "bearer.";
/// RFC 6455 section 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;

/// What the 101 response says, and the token that came with the request.
#[derive(Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Value of `Sec-WebSocket-Accept`.
    pub accept: String,
    /// Value of `Sec-WebSocket-Protocol`; no such header when the client offered none.
    pub subprotocol: Option<&'static str>,
    /// That of the subprotocol; `None`: the first message will tell.
    pub codec: Option<Codec>,
    /// The token of a `bearer.<jwt>` element. A secret: it is never sent back.
    pub bearer: Option<String>,
}

/// Why there is no upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Refusal {
    pub status: StatusCode,
    /// Fit to be shown to the client.
    pub reason: &'static str,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bearer = self.bearer.as_ref().map(|_| "<secret>");
        f.debug_struct("Accepted")
            .field("accept", &self.accept)
            .field("subprotocol", &self.subprotocol)
            .field("codec", &self.codec)
            .field("bearer", &bearer)
            .finish()
    }
}

impl Refusal {
    fn bad(reason: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason }
    }

    fn upgrade(reason: &'static str) -> Self {
        Self { status: StatusCode::UPGRADE_REQUIRED, reason }
    }

    /// Headers that the status demands of its response: 426 names what to upgrade to (RFC 9110 section 15.5.22,
    /// RFC 6455 section 4.4), 405 the method (RFC 9110 section 15.5.6).
    pub fn headers(&self) -> &'static [(HeaderName, &'static str)] {
        const UPGRADE_REQUIRED: &[(HeaderName, &str)] =
            &[(SEC_WEBSOCKET_VERSION, "13"), (UPGRADE, "websocket"), (CONNECTION, "upgrade")];
        const ONLY_GET: &[(HeaderName, &str)] = &[(hyper::header::ALLOW, "GET, HEAD")];
        match self.status {
            StatusCode::UPGRADE_REQUIRED => UPGRADE_REQUIRED,
            StatusCode::METHOD_NOT_ALLOWED => ONLY_GET,
            _ => &[],
        }
    }
}

/// Checks a request in one pass over the headers concerned. Offers of extensions are another matter
/// ([`super::extensions`]).
pub fn check(method: &Method, version: Version, headers: &HeaderMap) -> Result<Accepted, Refusal> {
    if method == Method::HEAD {
        return Err(Refusal::upgrade("a WebSocket is opened with GET"));
    }
    if method != Method::GET {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "a WebSocket is opened with GET",
        });
    }
    if version != Version::HTTP_11 {
        return Err(Refusal::bad("a WebSocket is opened over HTTP/1.1"));
    }
    match single(headers, &HOST) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(Refusal::bad("no Host header")),
        Err(reason) => return Err(Refusal::bad(reason)),
    }
    if !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
        return Err(Refusal::upgrade("this address speaks WebSocket only"));
    }
    if single(headers, &SEC_WEBSOCKET_VERSION).ok().flatten() != Some("13") {
        return Err(Refusal::upgrade("Sec-WebSocket-Version must be 13"));
    }
    let key = match single(headers, &SEC_WEBSOCKET_KEY) {
        Ok(Some(key)) if is_key(key) => key,
        Ok(Some(_)) => return Err(Refusal::bad("Sec-WebSocket-Key must be 16 bytes in base64")),
        Ok(None) => return Err(Refusal::bad("no Sec-WebSocket-Key header")),
        Err(reason) => return Err(Refusal::bad(reason)),
    };
    let (subprotocol, bearer) = subprotocol(headers)?;
    let (subprotocol, codec) = subprotocol.unzip();
    Ok(Accepted { accept: accept_key(key), subprotocol, codec, bearer })
}

/// Value of `Sec-WebSocket-Accept` for the client's key (RFC 6455 section 4.2.2, item 5.4).
pub fn accept_key(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize())
}

fn is_key(key: &str) -> bool {
    // The decoder wants room for whole groups of three bytes.
    let mut bytes = [0; KEY_BYTES + 2];
    key.len() == 24 && STANDARD.decode_slice(key, &mut bytes) == Ok(KEY_BYTES)
}

/// The value of a header that must not come twice.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, &'static str> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("a header that must come once came twice");
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| "a header is not ASCII")
}

/// Whether a comma-separated header holds the token, in any case. It may be spread over several lines.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let mut lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.any(|line| line.split(',').any(|element| element.trim().eq_ignore_ascii_case(token)))
}

/// Chooses from what the client offers. Without an offer none is named: a server must not name a subprotocol that was not
/// offered. A browser fails a socket whose offers were all passed over,
/// so that case is refused here, where a reason can be given.
fn subprotocol(headers: &HeaderMap) -> Result<(Option<Subprotocol>, Option<String>), Refusal> {
    let (mut offered, mut chosen, mut bearer) = (false, None::<usize>, None);
    for line in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let line = line.to_str().map_err(|_| Refusal::bad("Sec-WebSocket-Protocol is not ASCII"))?;
        for element in line.split(',').map(str::trim).filter(|element| !element.is_empty()) {
            offered = true;
            if let Some(known) = SUBPROTOCOLS.iter().position(|(name, _)| *name == element) {
                chosen = Some(chosen.map_or(known, |before| before.min(known)));
            } else if let Some(token) = element.strip_prefix(BEARER_PREFIX) {
                if token.is_empty() || bearer.is_some() {
                    return Err(Refusal::bad("offer exactly one token as bearer.<jwt>"));
                }
                bearer = Some(token.to_owned());
            }
        }
    }
    if offered && chosen.is_none() {
        return Err(Refusal::bad(
            "no supported subprotocol offered: warren.v1, v12.stomp, v11.stomp, v10.stomp",
        ));
    }
    Ok((chosen.map(|known| SUBPROTOCOLS[known]), bearer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const GOOD: &[(&str, &str)] = &[
        ("host", "example.org"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
    ];

    /// The good request with some headers replaced (an empty value removes) and some added.
    fn request(replaced: &[(&str, &str)], added: &[(&'static str, &str)]) -> Result<Accepted, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in GOOD {
            let value = replaced.iter().find(|(other, _)| other == name).map_or(*value, |(_, value)| value);
            if !value.is_empty() {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
        }
        for (name, value) in added {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        check(&Method::GET, Version::HTTP_11, &headers)
    }

    fn status(result: Result<Accepted, Refusal>) -> u16 {
        result.map_or_else(|refusal| refusal.status.as_u16(), |_| 101)
    }

    #[test]
    fn the_example_of_section_1_3() {
        let accepted = request(&[], &[]).unwrap();
        assert_eq!(accepted.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!((accepted.subprotocol, accepted.bearer), (None, None));
    }

    #[test]
    fn what_is_missing_or_wrong_is_refused() {
        let one = |name: &str, value: &str| status(request(&[(name, value)], &[]));
        assert_eq!(one("host", ""), 400);
        assert_eq!(one("connection", ""), 426);
        assert_eq!(one("connection", "keep-alive"), 426);
        assert_eq!(one("connection", "upgraded"), 426);
        assert_eq!(one("connection", "foo ,UPGRADE, bar"), 101);
        assert_eq!(one("upgrade", ""), 426);
        assert_eq!(one("upgrade", "h2c"), 426);
        assert_eq!(one("upgrade", "h2c, websocket"), 101);
        assert_eq!(one("sec-websocket-version", ""), 426);
        assert_eq!(one("sec-websocket-version", "8"), 426);
        assert_eq!(one("sec-websocket-version", " 13 "), 101);
        for key in ["", "x", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQo=", "????????????????????????"]
        {
            assert_eq!(one("sec-websocket-key", key), 400, "{key:?}");
        }
        assert_eq!(status(request(&[], &[("host", "example.org")])), 400, "RFC 9112 section 3.2");
        let twice = [("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];
        assert_eq!(status(request(&[], &twice)), 400);
        assert_eq!(status(request(&[], &[("sec-websocket-version", "13")])), 426);
        let split = [("connection", "upgrade")];
        assert_eq!(status(request(&[("connection", "keep-alive")], &split)), 101);
    }

    #[test]
    fn method_and_version() {
        let headers = HeaderMap::new();
        let refusal = check(&Method::POST, Version::HTTP_11, &headers).unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.headers()[0].1), (405, "GET, HEAD"));
        assert_eq!(status(check(&Method::HEAD, Version::HTTP_11, &headers)), 426);
        assert_eq!(status(check(&Method::GET, Version::HTTP_10, &headers)), 400);
        let refusal = request(&[("sec-websocket-version", "7")], &[]).unwrap_err();
        assert_eq!(refusal.headers()[0], (SEC_WEBSOCKET_VERSION, "13"));
    }

    #[test]
    fn subprotocols() {
        let offer = |lines: &[&'static str]| {
            let added: Vec<_> = lines.iter().map(|line| ("sec-websocket-protocol", *line)).collect();
            request(&[], &added).map(|accepted| (accepted.subprotocol, accepted.bearer))
        };
        let token = || Some("aa.bb-c.d_d".to_owned());
        assert_eq!(offer(&["warren.v1"]), Ok((Some("warren.v1"), None)));
        assert_eq!(offer(&["chat, warren.v1, bearer.aa.bb-c.d_d"]), Ok((Some("warren.v1"), token())));
        assert_eq!(offer(&["bearer.aa.bb-c.d_d", "warren.v1"]), Ok((Some("warren.v1"), token())));
        assert_eq!(offer(&[" , "]), Ok((None, None)));
        assert_eq!(
            offer(&["v10.stomp, v11.stomp"]),
            Ok((Some("v11.stomp"), None)),
            "the highest, not the first"
        );
        assert_eq!(offer(&["v10.stomp, bearer.aa.bb-c.d_d, v12.stomp"]), Ok((Some("v12.stomp"), token())));
        assert_eq!(offer(&["v12.stomp", "warren.v1"]), Ok((Some("warren.v1"), None)));
        for refused in
            ["chat", "Warren.v1", "bearer.aa", "warren.v1, bearer.", "bearer.a, warren.v1, bearer.b", "é"]
        {
            assert_eq!(offer(&[refused]).map_err(|refusal| refusal.status.as_u16()), Err(400), "{refused}");
        }
    }

    #[test]
    fn the_token_is_not_printed() {
        let added = [("sec-websocket-protocol", "warren.v1, bearer.hush")];
        assert!(!format!("{:?}", request(&[], &added).unwrap()).contains("hush"));
    }
}
