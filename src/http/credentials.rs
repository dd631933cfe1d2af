//! The token or the ticket of a request, and whose it is; and how often an address may come with a bad one.

use std::net::IpAddr;
use std::time::Instant;

use percent_encoding::percent_decode_str;
use warp::http::header::{HeaderMap, HeaderValue, AUTHORIZATION};

use super::client::{counted, query_value, Client};
use super::AppState;
use crate::auth::{AuthError, Identity, Ticket};
use crate::error::{Code, Error};
use crate::router::tickets::Redeemed;

/// The token of the one `Authorization` line with the scheme Bearer (RFC 6750 section 2.1). Other schemes are for
/// somebody else, such as a proxy with Basic, and are passed over.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, AuthError> {
    let mut found = None;
    for line in headers.get_all(AUTHORIZATION) {
        let Some(token) = parse_bearer(line)? else { continue };
        if found.replace(token).is_some() {
            return Err(AuthError::Invalid("twice"));
        }
    }
    Ok(found)
}

/// `None`: another scheme.
fn parse_bearer(line: &HeaderValue) -> Result<Option<&str>, AuthError> {
    let bytes = line.as_bytes();
    let scheme = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    let line = line.to_str().map_err(|_| AuthError::Invalid("malformed"))?;
    Ok(Some(line[scheme.len()..].trim()))
}

/// Who opens a session. `None`: neither a token nor a ticket came with the request, so the first frame must bring a token.
pub(super) async fn identify(
    state: &AppState,
    client: Client,
    headers: &HeaderMap,
    offered: Option<&str>,
    query: &str,
) -> Result<Option<Identity>, Error> {
    let verifier = &state.verifier;
    let refused = |error| refusal(state, Some(client), error);
    let token = bearer(headers).map_err(refused)?.or(offered);
    match (token, query_value(query, "ticket"), query_value(query, "user")) {
        (Some(_), Some(_), _) => Err(refused(AuthError::Invalid("twice"))),
        (Some(token), None, _) => verifier.verify(token).map(Some).map_err(refused),
        (None, Some(ticket), _) => redeem(state, client, ticket).await.map(Some),
        (None, None, Some(user)) if verifier.is_insecure() => {
            let user = percent_decode_str(user).decode_utf8().map_err(|_| refused(AuthError::Missing))?;
            verifier.verify(&user).map(Some).map_err(refused)
        }
        (None, None, _) => Ok(None),
    }
}

/// Takes a ticket back from whoever issued it.
async fn redeem(state: &AppState, client: Client, text: &str) -> Result<Identity, Error> {
    let refused = || refusal(state, Some(client), AuthError::Invalid("ticket"));
    let text = percent_decode_str(text).decode_utf8().map_err(|_| refused())?;
    let ticket: Ticket = text.parse().map_err(|_| refused())?;
    // Another node is not asked for an address that guesses.
    let guesses = |address| !state.bad_tokens.has_one(&address, Instant::now());
    if !state.router.is_own_ticket(&ticket) && address(client).is_some_and(guesses) {
        return Err(refused());
    }
    match state.router.redeem_ticket(&ticket).await {
        Redeemed::By(identity) => match state.verifier.revocations().covers(&identity) {
            true => Err(refusal(state, Some(client), AuthError::Revoked)),
            false => Ok(*identity),
        },
        Redeemed::Refused => Err(refused()),
        Redeemed::Unanswered => {
            let message = "the node that issued this ticket does not answer; ask for another one";
            Err(Error::new(Code::Unavailable, message))
        }
    }
}

/// As which a client counts; `None`: a proxy, which speaks for many.
fn address(client: Client) -> Option<IpAddr> {
    (!client.is_proxy).then(|| counted(client.address))
}

/// What is said to bad credentials. Good ones are taken from every address, since many clients may share one: only what
/// fails is counted, and not tokens that have expired or were revoked, which were good and are renewed by whoever hears so.
pub(super) fn refusal(state: &AppState, client: Option<Client>, error: AuthError) -> Error {
    if error == AuthError::NoKeysYet {
        return Error::new(Code::Unavailable, error.to_string());
    }
    let address = client.and_then(address);
    let is_bad = matches!(error, AuthError::Invalid(_));
    tracing::debug!(?address, reason = error.reason(), "credentials refused");
    match address {
        Some(address) if is_bad && !state.bad_tokens.take(&address, 1, Instant::now()) => {
            Error::new(Code::RateLimited, "too many bad credentials from this address; slow down")
        }
        _ => Error::new(Code::Unauthorized, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&[u8]]) -> Result<Option<String>, AuthError> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(line).unwrap());
        }
        bearer(&headers).map(|token| token.map(str::to_owned))
    }

    #[test]
    fn other_schemes_are_passed_over() {
        let token = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[b"Basic dXNlcg=="]), Ok(None));
        assert_eq!(of(&[b"\xff\xff"]), Ok(None));
        assert_eq!(of(&[b"Bearer abc"]), token("abc"));
        assert_eq!(of(&[b"bEARER  abc "]), token("abc"));
        assert_eq!(of(&[b"Basic dXNlcg==", b"Bearer abc"]), token("abc"));
        assert_eq!(of(&[b"Bearer"]), token(""));
        assert_eq!(of(&[b"Bearers abc"]), Ok(None));
        assert_eq!(of(&[b"Bearer a", b"Bearer a"]), Err(AuthError::Invalid("twice")));
        assert_eq!(of(&[b"Bearer \xff"]), Err(AuthError::Invalid("malformed")));
    }
}
