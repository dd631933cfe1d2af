//! The framing of SockJS inside of WebSocket messages: `o`, `h`, `a["…"]` and `c[code,"reason"]` to clients, an array of
//! strings from them. Pure. Over HTTP the same frames come in responses of their own. (sockjs-protocol 0.3.3.)

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::close::CloseCode;

/// The session is open.
pub const OPEN: &[u8] = b"o";
pub const HEART_BEAT: &[u8] = b"h";

/// To a second receiver of a session that has one.
pub const ANOTHER_OPEN: &[u8] = b"c[2010,\"Another connection still open\"]";
/// To a receiver that asks for a session whose receiver was cut.
pub const INTERRUPTED: &[u8] = b"c[1002,\"Connection interrupted\"]";

/// One message of the application.
pub fn message(parts: &[&str]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 16);
    out.extend_from_slice(b"a[\"");
    parts.iter().for_each(|part| escape(part, &mut out));
    out.extend_from_slice(b"\"]");
    out
}

/// The session is over. It is what keeps a client from trying its other transports.
pub fn close(code: CloseCode) -> Vec<u8> {
    // Reasons need no escapes.
    format!("c[{},\"{}\"]", code.code(), code.reason()).into_bytes()
}

/// As JSON text (RFC 8259 section 7), and beyond it what browsers and proxies were seen to change on the way
/// (sockjs-protocol, "JSON unicode encoding").
fn escape(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\0'..='\x1f'
            | '\u{200c}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff0}'..='\u{ffff}' => out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes()),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The messages that a client sent in one WebSocket message: an array of strings, or one string; an empty message has
/// none. `None`: it is neither.
pub fn messages(text: &str) -> Option<Vec<Cow<'_, str>>> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    match text.as_bytes().first() {
        None => Some(Vec::new()),
        Some(b'[') => serde_json::from_str::<Vec<Text>>(text)
            .ok()
            .map(|all| all.into_iter().map(|text| text.0).collect()),
        Some(_) => serde_json::from_str::<Text>(text).ok().map(|text| vec![text.0]),
    }
}

/// [`messages`] as the client has written each, with its quotes.
pub fn quoted(text: &str) -> Option<Vec<&str>> {
    messages(text)?;
    match text.as_bytes().first() {
        None => Some(Vec::new()),
        Some(b'[') => {
            let all: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            Some(all.into_iter().map(RawValue::get).collect())
        }
        Some(_) => Some(vec![text]),
    }
}

/// What a message frame holds, without its brackets; several of them make one frame. `None`: another frame.
pub fn inside(frame: &[u8]) -> Option<&[u8]> {
    frame.strip_prefix(b"a[")?.strip_suffix(b"]")
}

/// The frame ends the session for its client.
pub fn is_close(frame: &[u8]) -> bool {
    frame.first() == Some(&b'c')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(text: &str) -> Option<Vec<String>> {
        messages(text).map(|all| all.into_iter().map(Cow::into_owned).collect())
    }

    #[test]
    fn what_clients_send() {
        assert_eq!(texts(""), Some(vec![]));
        assert_eq!(texts("[]"), Some(vec![]));
        assert_eq!(texts(r#"["a","b\n\u0000"]"#), Some(vec!["a".into(), "b\n\0".into()]));
        assert_eq!(texts(r#""a""#), Some(vec!["a".into()]));
        for bad in ["[", "[1]", "{}", "x", r#"["a""#, r#"["a"] x"#, "null"] {
            assert_eq!(texts(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_clients_get() {
        assert_eq!(
            message(&["a\"\\", "\n\0é\u{2028}\u{ffff}"]),
            "a[\"a\\\"\\\\\\n\\u0000é\\u2028\\uffff\"]".as_bytes()
        );
        assert_eq!(close(CloseCode::Unauthorized), b"c[4001,\"unauthorized\"]");
        for code in CloseCode::ALL {
            let frame = close(*code);
            serde_json::from_slice::<(u16, String)>(&frame[1..]).unwrap();
        }
    }

    #[test]
    fn messages_are_taken_apart_as_they_are_written() {
        assert_eq!(quoted(r#" ["a"]"#), None, "an array begins at once");
        assert_eq!(quoted(r#"[ "a" , "\u0062\n"]"#), Some(vec![r#""a""#, r#""\u0062\n""#]));
        assert_eq!((quoted(""), quoted("[]")), (Some(vec![]), Some(vec![])));
        assert_eq!(quoted(r#""a""#), Some(vec![r#""a""#]));
        for bad in ["[", "[1]", "{}", r#"["\ud800"]"#] {
            assert_eq!(quoted(bad), None, "{bad}");
        }
        assert_eq!(inside(&message(&["a"])), Some(&b"\"a\""[..]));
        assert_eq!((inside(OPEN), inside(HEART_BEAT), inside(INTERRUPTED)), (None, None, None));
        assert!(is_close(INTERRUPTED) && is_close(ANOTHER_OPEN) && !is_close(OPEN));
    }

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let frame = String::from_utf8(message(&[&text])).unwrap();
            prop_assert_eq!(texts(&frame[1..]), Some(vec![text]));
        }
    }
}
