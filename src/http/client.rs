//! Who is at the other end: the client's address and scheme, by the connection or as a trusted proxy says.

use std::net::{IpAddr, Ipv6Addr};

use percent_encoding::percent_decode_str;
use warp::http::header::{HeaderMap, FORWARDED};

use crate::config::TrustedProxies;

/// More hops than this are not looked at: the header is a stranger's word.
const HOPS_MAX: usize = 32;

/// The client of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// Whether the client spoke TLS: to the node, or to the proxy that it met first.
    pub(super) is_https: bool,
    /// The address is a trusted proxy's, which did not tell for whom it speaks.
    pub(super) is_proxy: bool,
}

impl Client {
    /// Headers count only from a trusted proxy. The client is the rightmost address that is no trusted proxy
    /// itself: what stands left of it, the client may have written (RFC 7239 section 8.1).
    /// Whether the connection itself `is_secure` counts where no proxy says how the client came to it.
    pub(super) fn of(peer: IpAddr, is_secure: bool, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let client = Self::heard_of(peer, is_secure, headers, trusted);
        Self { is_proxy: trusted.contains(client.address), ..client }
    }

    fn heard_of(peer: IpAddr, is_secure: bool, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let mut client = Self { address: canonical(peer), is_https: is_secure, is_proxy: false };
        let told = [FORWARDED.as_str(), "x-forwarded-proto", "x-forwarded-for"];
        let is_told = told.iter().any(|name| headers.contains_key(*name));
        if !is_told || !trusted.contains(client.address) {
            return client;
        }
        if headers.contains_key(FORWARDED) {
            for hop in elements(headers, FORWARDED.as_str()) {
                client.is_https =
                    parameter(hop, "proto").is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
                let Some(address) = parameter(hop, "for").and_then(address) else { break };
                client.address = address;
                if !trusted.contains(address) {
                    break;
                }
            }
            return client;
        }
        let proto = elements(headers, "x-forwarded-proto").next();
        client.is_https = proto.is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
        for hop in elements(headers, "x-forwarded-for") {
            let Some(address) = address(hop) else { break };
            client.address = address;
            if !trusted.contains(address) {
                break;
            }
        }
        client
    }
}

/// As which a client counts: an IPv6 host has a /64 for itself.
pub(super) fn counted(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// An IPv4 address that came over an IPv6 socket is an IPv4 address.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The elements of a list header, the last one first.
fn elements<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let lines: Vec<&str> = headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect();
    lines.into_iter().rev().flat_map(|line| line.rsplit(',')).map(str::trim).take(HOPS_MAX)
}

/// A parameter of an element of `Forwarded`: `for=192.0.2.1;proto=https`.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut found = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value.trim().trim_matches('"'))
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None if text.matches(':').count() == 1 => text.split_once(':')?.0,
        None => text,
    };
    bare.parse().ok().map(canonical)
}

/// The name in a `Host` header, without its port.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(host, |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether a `Host` header names this machine. A page that had its own name resolved to 127.0.0.1 does not.
pub(super) fn is_loopback_host(host: &str) -> bool {
    let name = host_name(host.trim()).trim_end_matches('.');
    let is_local =
        name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    is_local || name.parse::<IpAddr>().is_ok_and(|address| canonical(address).is_loopback())
}

/// The value of a query parameter by its decoded name, as it stands in the URL.
pub(super) fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| percent_decode_str(key).eq(name.bytes())).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, lines: &[(&'static str, &str)]) -> (String, bool) {
        let trusted = TrustedProxies::parse("10.0.0.0/8, fd00::/8").unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let client = Client::of(peer.parse().unwrap(), false, &headers, &trusted);
        let secure = Client::of(peer.parse().unwrap(), true, &headers, &trusted);
        let is_told = !headers.is_empty() && trusted.contains(canonical(peer.parse().unwrap()));
        assert_eq!(
            secure.is_https,
            client.is_https || !is_told,
            "TLS of the connection counts if nothing else is said"
        );
        (client.address.to_string(), client.is_https)
    }

    #[test]
    fn only_trusted_proxies_speak_for_a_client() {
        let spoofed = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")];
        assert_eq!(of("192.0.2.1", &spoofed), ("192.0.2.1".into(), false));
        assert_eq!(of("10.0.0.1", &spoofed), ("1.2.3.4".into(), true));
        assert_eq!(of("::ffff:10.0.0.1", &spoofed), ("1.2.3.4".into(), true));
        let chain = [("x-forwarded-for", "6.6.6.6, 1.2.3.4:99"), ("x-forwarded-for", "10.9.9.9")];
        assert_eq!(of("10.0.0.1", &chain), ("1.2.3.4".into(), false), "6.6.6.6 is the client's own word");
        assert_eq!(of("10.0.0.1", &[("x-forwarded-for", "1.2.3.4, unknown")]), ("10.0.0.1".into(), false));
        assert_eq!(of("10.0.0.1", &[]), ("10.0.0.1".into(), false));
    }

    #[test]
    fn the_standard_header_counts_before_the_other() {
        let lines = [("forwarded", "for=\"[2001:db8::1]:80\";proto=https, for=10.2.2.2;proto=http")];
        assert_eq!(of("fd00::1", &lines), ("2001:db8::1".into(), true));
        let both = [("forwarded", "For=1.2.3.4;by=10.0.0.1"), ("x-forwarded-for", "6.6.6.6")];
        assert_eq!(of("10.0.0.1", &both), ("1.2.3.4".into(), false));
    }

    #[test]
    fn loopback_hosts() {
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "a.localhost."] {
            assert!(is_loopback_host(good), "{good}");
        }
        for bad in
            ["", "evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "10.0.0.1", "xlocalhost", "[::2]"]
        {
            assert!(!is_loopback_host(bad), "{bad}");
        }
    }

    #[test]
    fn names_in_a_query_are_decoded() {
        assert_eq!(query_value("a=1&%74oken=x", "token"), Some("x"));
        assert_eq!(query_value("token", "token"), Some(""));
        assert_eq!(query_value("tokens=1", "token"), None);
    }

    #[test]
    fn an_ipv6_host_counts_by_its_network() {
        let counted = |text: &str| super::counted(text.parse().unwrap()).to_string();
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(counted("192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn fuzzed() {
        use crate::http::credentials::bearer;
        use crate::protocol::wire::handshake;
        let good = [
            "10.0.0.1\nforwarded: for=\"[2001:db8::1]:80\";proto=https, for=10.2.2.2\nhost: localhost:80",
            "10.0.0.1\nx-forwarded-for: 6.6.6.6, 1.2.3.4:99\nx-forwarded-proto: https\nauthorization: Bearer a.b.c",
            "192.0.2.1\nupgrade: websocket\nconnection: keep-alive, Upgrade\nsec-websocket-version: 13\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\nsec-websocket-protocol: warren.v1, bearer.x",
        ];
        let words =
            [",", ";", "\"", "=", "for=", "[::ffff:10.0.0.1]", "10.9.9.9", "Basic ", "\t", "%74oken=", "&"];
        let trusted = TrustedProxies::parse("10.0.0.0/8, fd00::/8").unwrap();
        crate::tests::fuzz::fuzz("heads", &good.map(|text| text.as_bytes().to_vec()), &words, |input| {
            let text = String::from_utf8_lossy(input);
            let (peer, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let mut headers = HeaderMap::new();
            for (name, value) in rest.lines().filter_map(|line| line.split_once(": ")).take(64) {
                let name = warp::http::header::HeaderName::from_bytes(name.as_bytes());
                if let (Ok(name), Ok(value)) = (name, value.parse()) {
                    headers.append(name, value);
                }
            }
            let peer: IpAddr = peer.parse().unwrap_or(IpAddr::from([192, 0, 2, 1]));
            let client = Client::of(peer, false, &headers, &trusted);
            if !trusted.contains(canonical(peer)) {
                assert_eq!(
                    (client.address, client.is_https),
                    (canonical(peer), false),
                    "believed a stranger"
                );
            }
            let opened = handshake::check(&warp::http::Method::GET, warp::http::Version::HTTP_11, &headers);
            let opened = opened.map(|accepted| accepted.bearer.is_some()).map_err(|refused| refused.reason);
            let token = bearer(&headers).map(|token| token.is_some()).map_err(|error| error.reason());
            (
                client.is_proxy,
                client.is_https,
                opened,
                token,
                query_value(rest, "token").is_some(),
                is_loopback_host(rest),
            )
        });
    }
}
