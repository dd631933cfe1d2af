//! The negotiation of permessage-deflate (RFC 7692 section 7.1): which of a client's offers is accepted, with which answer.

use std::borrow::Cow;

use hyper::header::SEC_WEBSOCKET_EXTENSIONS;
use hyper::HeaderMap;
use smallvec::SmallVec;

const NAME: &str = "permessage-deflate";
/// Each message is compressed on its own, in both directions: a session keeps no state of DEFLATE, and what many sessions
/// get is compressed once. A server may ask for both whether or not they were offered (sections 7.1.1.1 and 7.1.1.2).
const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
/// To a client that bounds the window of the server: the bound must be repeated (section 7.1.2.1).
const ANSWER_WITH_WINDOW: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";
/// Sizes of a window, as the logarithm of its bytes, that may be named (section 7.1.2). What is sent refers back by up to
/// 32 KiB, so that of the server only the last can be kept.
const WINDOW_BITS: [&str; 8] = ["8", "9", "10", "11", "12", "13", "14", "15"];

/// The header breaks its grammar, for which RFC 6455 section 9.1 demands that the handshake fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

#[derive(Debug, PartialEq, Eq)]
struct Offer<'a> {
    name: &'a str,
    parameters: SmallVec<[Parameter<'a>; 4]>,
}

type Parameter<'a> = (&'a str, Option<Cow<'a, str>>);

/// The value of `Sec-WebSocket-Extensions` in the response. `None`: nothing is offered that can be accepted, and the
/// socket is one without extensions. Offers stand in the order of the client's preference.
pub fn negotiate(headers: &HeaderMap) -> Result<Option<&'static str>, Malformed> {
    let mut accepted = None;
    for line in headers.get_all(SEC_WEBSOCKET_EXTENSIONS) {
        let mut cursor = Cursor { rest: line.to_str().map_err(|_| Malformed)? };
        // Read to the end although an offer was accepted: a mistake behind it is one.
        while let Some(offer) = cursor.offer()? {
            accepted = accepted.or_else(|| answer(&offer));
        }
    }
    Ok(accepted)
}

/// `None`: the offer is declined, since it asks for something else, or for what is unknown here (section 7.1).
fn answer(offer: &Offer<'_>) -> Option<&'static str> {
    if offer.name != NAME {
        return None;
    }
    let mut answer = ANSWER;
    for (at, (name, value)) in offer.parameters.iter().enumerate() {
        let is_again = offer.parameters.iter().take(at).any(|(other, _)| other == name);
        let bits = value.as_deref().map(|value| WINDOW_BITS.iter().position(|bits| *bits == value));
        match (*name, value) {
            _ if is_again => return None,
            ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
            ("server_max_window_bits", Some(value)) if value == "15" => answer = ANSWER_WITH_WINDOW,
            // What the client announces needs no answer: any window of a client can be read.
            ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(_)) if bits.flatten().is_some() => {}
            _ => return None,
        }
    }
    Some(answer)
}

/// Reads the grammar of RFC 6455 section 9.1 in one line of the header.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    /// The next offer; `None` at the end of the line. Elements of the list may be empty (RFC 9110 section 5.6.1.2).
    fn offer(&mut self) -> Result<Option<Offer<'a>>, Malformed> {
        while self.takes(',') {}
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut offer = Offer { name: self.token()?, parameters: SmallVec::new() };
        while self.takes(';') {
            let name = self.token()?;
            let value = if self.takes('=') { Some(self.value()?) } else { None };
            offer.parameters.push((name, value));
        }
        match self.rest.is_empty() || self.takes(',') {
            true => Ok(Some(offer)),
            false => Err(Malformed),
        }
    }

    /// Passes over blanks, and over this character if it is the next one.
    fn takes(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn token(&mut self) -> Result<&'a str, Malformed> {
        let rest = self.rest.trim_start_matches([' ', '\t']);
        let end = rest.find(|c| !is_token_char(c)).unwrap_or(rest.len());
        let (token, rest) = rest.split_at(end);
        self.rest = rest;
        match token {
            "" => Err(Malformed),
            token => Ok(token),
        }
    }

    /// A token, as it is or between quotes.
    fn value(&mut self) -> Result<Cow<'a, str>, Malformed> {
        if !self.takes('"') {
            return self.token().map(Cow::Borrowed);
        }
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            let c = match c {
                '"' if value.is_empty() => return Err(Malformed),
                '"' => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(Cow::Owned(value));
                }
                '\\' => chars.next().map(|(_, escaped)| escaped).ok_or(Malformed)?,
                c => c,
            };
            // "the value after quoted-string unescaping MUST conform to the 'token' ABNF".
            if !is_token_char(c) {
                return Err(Malformed);
            }
            value.push(c);
        }
        Err(Malformed)
    }
}

/// RFC 9110 section 5.6.2.
fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::fuzz::fuzz;
    use hyper::header::HeaderValue;

    fn of(lines: &[&[u8]]) -> Result<Option<&'static str>, Malformed> {
        let mut headers = HeaderMap::new();
        for line in lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok()) {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, line);
        }
        negotiate(&headers)
    }

    fn negotiated(line: &str) -> Result<Option<&'static str>, Malformed> {
        of(&[line.as_bytes()])
    }

    #[test]
    fn what_is_accepted() {
        for offer in [
            "permessage-deflate",
            // Browsers.
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;client_max_window_bits=8",
            "permessage-deflate ;\tclient_max_window_bits = \"15\"",
            "permessage-deflate; client_max_window_bits=\"1\\0\"",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; client_no_context_takeover; client_max_window_bits=10",
            // Others before and after it.
            "x-webkit-deflate-frame, permessage-deflate, permessage-bzip2; a=b",
            ", permessage-deflate ,, ",
            // The first that can be accepted counts.
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            "permessage-deflate; unknown, permessage-deflate; client_max_window_bits",
            "permessage-deflate, permessage-deflate; server_max_window_bits=15",
        ] {
            assert_eq!(negotiated(offer), Ok(Some(ANSWER)), "{offer}");
        }
        for offer in [
            "permessage-deflate; server_max_window_bits=15",
            "permessage-deflate; server_max_window_bits=\"15\"; client_max_window_bits=9",
            "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=15",
        ] {
            assert_eq!(negotiated(offer), Ok(Some(ANSWER_WITH_WINDOW)), "{offer}");
        }
        let lines: [&[u8]; 2] = [b"permessage-bzip2", b"permessage-deflate"];
        assert_eq!(of(&lines), Ok(Some(ANSWER)), "the list may be spread over lines");
    }

    #[test]
    fn what_is_declined() {
        for offer in [
            "",
            " , ",
            "permessage-bzip2",
            "Permessage-Deflate",
            "permessage-deflate-2",
            "permessage-deflate; server_max_window_bits=14",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=015",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=+9",
            "permessage-deflate; client_max_window_bits=09",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; mode=fast",
            "permessage-deflate; client_max_window_bits; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=9; client_max_window_bits=9",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        ] {
            assert_eq!(negotiated(offer), Ok(None), "{offer}");
        }
    }

    #[test]
    fn what_breaks_the_grammar() {
        for offer in [
            ";",
            "permessage-deflate;",
            "permessage-deflate; ,",
            "permessage-deflate; =9",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits=\"9",
            "permessage-deflate; client_max_window_bits=\"\"",
            "permessage-deflate; client_max_window_bits=\"9\\",
            "permessage-deflate; client_max_window_bits=\"1 0\"",
            "permessage-deflate; client_max_window_bits=\"9\"x",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate, a b",
            "permessage-deflate; a/b",
            "é",
        ] {
            assert_eq!(negotiated(offer), Err(Malformed), "{offer}");
        }
    }

    #[test]
    fn fuzzed() {
        let good = [
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_max_window_bits=\"15\", permessage-deflate;client_no_context_takeover",
            "a, b;c=d;e=\"f\\g\"",
        ];
        let good: Vec<Vec<u8>> = good.iter().map(|offer| offer.as_bytes().to_vec()).collect();
        let words = ["permessage-deflate", ";", ",", "=", "\"", "\\", "client_max_window_bits", "15"];
        fuzz("extensions", &good, &words, |input| {
            let lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
            let negotiated = of(&lines);
            // Where each line is good, they are one list.
            if negotiated.is_ok() && input.is_ascii() {
                assert_eq!(of(&[lines.join(&b", "[..]).as_slice()]), negotiated);
            }
            format!("{negotiated:?}")
        });
    }
}
