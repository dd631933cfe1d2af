//! Where an identity provider publishes the keys of its tokens.

use std::net::IpAddr;
use std::time::Duration;

use hyper::Uri;

use super::reading::Reading;
use crate::tls::Connector;

/// A JWK Set (RFC 7517) at a URL that an operator names, and no token does (RFC 8725 section 3.10).
#[derive(Debug, Clone)]
pub struct KeySet {
    pub url: Uri,
    pub refresh: Duration,
    /// For authorities of its own; `None` = those that the machine trusts.
    pub connector: Option<Connector>,
}

pub(super) fn read(from: &mut Reading) -> Option<KeySet> {
    let connector = from.file("JWKS_CA_FILE").and_then(|pem| match Connector::private(&pem) {
        Ok(connector) => Some(connector),
        Err(why) => {
            from.mistake("JWKS_CA_FILE", None, why);
            None
        }
    });
    let refresh = from.millis("JWKS_REFRESH_MS");
    let text = from.text("JWKS_URL");
    if text.is_none() && from.has("JWKS_CA_FILE") {
        from.mistake("JWKS_CA_FILE", None, "needs WARREN_JWKS_URL");
    }
    match parse(&text?) {
        Ok(url) => Some(KeySet { url, refresh, connector }),
        Err(why) => {
            from.mistake("JWKS_URL", None, why);
            None
        }
    }
}

/// No error repeats the URL: there may be a password in it.
fn parse(text: &str) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_| "is no URL")?;
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err("must begin with https://");
    };
    if authority.as_str().contains('@') {
        return Err("must not hold a name or a password");
    }
    match scheme {
        "https" => Ok(url),
        "http" if is_loopback(authority.host()) => Ok(url),
        "http" => Err("must be https, unless it is on this machine: the server that answers decides which tokens are good"),
        _ => Err("must begin with https://"),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_private_on_the_way_and_holds_no_password() {
        for good in [
            "https://id.example/.well-known/jwks.json",
            "https://id.example:8443/keys?tenant=a",
            "http://127.0.0.1:8000/keys",
            "http://localhost/keys",
            "http://[::1]:80/keys",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "id.example/keys",
            "/keys",
            "http://id.example/keys",
            "http://localhost.example/keys",
            "ftp://id.example/keys",
            "https://name:CANARY@id.example/keys",
            "https://",
            "https://id example/keys",
        ] {
            let why = parse(bad).expect_err(bad);
            assert!(!why.contains("CANARY"));
        }
    }
}
