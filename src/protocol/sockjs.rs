//! The framing of SockJS inside of WebSocket messages: `o`, `h`, `a["…"]` and `c[code,"reason"]` to clients, an array of
//! strings from them. Pure. (sockjs-protocol 0.3.3.)

use std::borrow::Cow;

use serde::Deserialize;

use super::close::CloseCode;

/// The session is open.
pub const OPEN: &[u8] = b"o";
pub const HEART_BEAT: &[u8] = b"h";

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

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let frame = String::from_utf8(message(&[&text])).unwrap();
            prop_assert_eq!(texts(&frame[1..]), Some(vec![text]));
        }
    }
}
