//! What every request is checked for before a route sees it: Host, address, method, origin, token in the URL, encoding.

use std::net::IpAddr;

use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::http::{Request, StatusCode, Version};
use warp::reply::Response;

use super::addresses::{Address, Kind, Listener};
use super::client::{is_loopback_host, query_value, Client};
use super::response;
use crate::config::{Origins, TrustedProxies};
use crate::error::{Code, Error};

/// Longest query string, in bytes.
const QUERY_BYTES_MAX: usize = 1024;
/// Names under which clients put tokens into URLs (RFC 6750 section 2.3), where logs keep them.
const TOKEN_PARAMETERS: [&str; 2] = ["token", "access_token"];

/// The rules of one listener.
#[derive(Debug, Clone)]
pub struct Guard {
    pub listener: Listener,
    pub origins: Origins,
    pub trusted: TrustedProxies,
    /// Connections of trusted proxies begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Everybody is believed because only this machine can connect: so the request must be meant for this machine,
    /// and not for a name that a page has had resolved to it (DNS rebinding).
    pub loopback_only: bool,
    /// The console is served here.
    pub console: bool,
    /// So are the transports of SockJS that are no WebSocket.
    pub sockjs_over_http: bool,
}

impl Guard {
    /// The client, or the refusal. `is_secure`: the connection has TLS.
    pub(super) fn check<B>(
        &self,
        peer: IpAddr,
        is_secure: bool,
        request: &Request<B>,
    ) -> Result<Client, Box<Response>> {
        let headers = request.headers();
        let host = host(request.version(), headers)?;
        let client = Client::of(peer, is_secure, headers, &self.trusted);
        // The routes are more lenient, for example with a slash at the end, and would take what is not checked here.
        let address = Address::of(request.uri().path(), self.listener, self.console);
        let address = address.filter(|address| address.kind != Kind::Transport || self.sockjs_over_http);
        let Some(address) = address else { return Err(Box::new(response::nothing_here())) };
        if !address.takes(request.method().as_str()) {
            return Err(Box::new(response::method_not_allowed(address.methods)));
        }
        if address.is_trusting() {
            if self.loopback_only && !host.is_some_and(is_loopback_host) {
                let message = "Host: an insecure node answers to localhost and loopback addresses only";
                return Err(refuse(Code::Forbidden, message));
            }
            if !self.origin_may(headers, host, client.is_https) {
                return Err(refuse(Code::Forbidden, "Origin: pages from this origin may not use this node"));
            }
            check_query(request.uri().query().unwrap_or_default())?;
        }
        Ok(client)
    }

    /// A request without an Origin does not come from a web page (RFC 6455 section 10.2).
    fn origin_may(&self, headers: &HeaderMap, host: Option<&str>, is_https: bool) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return true };
        let scheme = if is_https { "https" } else { "http" };
        origins.next().is_none()
            && origin.to_str().is_ok_and(|origin| self.origins.allow(origin, scheme, host))
    }
}

fn refuse(code: Code, message: &str) -> Box<Response> {
    Box::new(response::error(&Error::new(code, message)))
}

/// RFC 9112 section 3.2: HTTP/1.1 has exactly one Host.
fn host(version: Version, headers: &HeaderMap) -> Result<Option<&str>, Box<Response>> {
    let mut lines = headers.get_all(header::HOST).iter();
    let first = lines.next();
    if lines.next().is_some() {
        return Err(refuse(Code::BadRequest, "Host: more than one"));
    }
    match first.map(HeaderValue::to_str) {
        None if version == Version::HTTP_11 => Err(refuse(Code::BadRequest, "Host: missing")),
        None => Ok(None),
        Some(Ok(host)) => Ok(Some(host)),
        Some(Err(_)) => Err(refuse(Code::BadRequest, "Host: not ASCII")),
    }
}

fn check_query(query: &str) -> Result<(), Box<Response>> {
    if query.len() > QUERY_BYTES_MAX {
        return Err(refuse(Code::BadRequest, "the query is too long"));
    }
    match TOKEN_PARAMETERS.iter().any(|name| query_value(query, name).is_some()) {
        true => Err(refuse(Code::BadRequest, "a token does not belong in a URL")),
        false => Ok(()),
    }
}

/// Bodies are taken as they are (RFC 9110 section 15.5.16: the response names what would be accepted).
#[allow(clippy::result_large_err, reason = "the response is sent at once")]
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Response> {
    let lines = headers.get_all(header::CONTENT_ENCODING).iter();
    let is_identity =
        |line: &HeaderValue| line.to_str().is_ok_and(|text| text.eq_ignore_ascii_case("identity"));
    if lines.into_iter().all(is_identity) {
        return Ok(());
    }
    let error = Error::bad_request("Content-Encoding: compressed bodies are not accepted; send it as it is");
    let mut refusal = response::error_with(StatusCode::UNSUPPORTED_MEDIA_TYPE, &error);
    refusal.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_comes_exactly_once() {
        let headers = |hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            headers
        };
        assert!(host(Version::HTTP_11, &headers(&[])).is_err());
        assert!(host(Version::HTTP_10, &headers(&[])).is_ok());
        assert!(host(Version::HTTP_11, &headers(&["a", "a"])).is_err());
        assert_eq!(host(Version::HTTP_11, &headers(&["a"])).unwrap(), Some("a"));
    }
}
