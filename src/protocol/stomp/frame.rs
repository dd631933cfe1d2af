//! One frame of a client: its command, its headers and their escapes.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::Version;

/// What clients may send. CONNECT and STOMP are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Connect,
    Send,
    Subscribe,
    Unsubscribe,
    Ack,
    Nack,
    Begin,
    Commit,
    Abort,
    Disconnect,
}

impl Command {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "CONNECT" | "STOMP" => Command::Connect,
            "SEND" => Command::Send,
            "SUBSCRIBE" => Command::Subscribe,
            "UNSUBSCRIBE" => Command::Unsubscribe,
            "ACK" => Command::Ack,
            "NACK" => Command::Nack,
            "BEGIN" => Command::Begin,
            "COMMIT" => Command::Commit,
            "ABORT" => Command::Abort,
            "DISCONNECT" => Command::Disconnect,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Command::Connect => "CONNECT",
            Command::Send => "SEND",
            Command::Subscribe => "SUBSCRIBE",
            Command::Unsubscribe => "UNSUBSCRIBE",
            Command::Ack => "ACK",
            Command::Nack => "NACK",
            Command::Begin => "BEGIN",
            Command::Commit => "COMMIT",
            Command::Abort => "ABORT",
            Command::Disconnect => "DISCONNECT",
        }
    }
}

/// Names and values as the client wrote them.
pub type RawHeaders<'a> = SmallVec<[(&'a str, &'a str); 8]>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    pub command: Command,
    /// `None` before the client is connected: nothing is escaped then.
    pub version: Option<Version>,
    pub headers: RawHeaders<'a>,
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The value as the client wrote it: what is sent back to it in this form means the same to it, also if it does not
    /// know of escapes. Of repeated headers the first counts.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(of, _)| *of == name).map(|(_, value)| *value)
    }

    /// What the value means.
    pub fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        let raw = self.raw(name)?;
        // Escapes were checked when the frame was read.
        Some(unescape(raw, self.version).unwrap_or(Cow::Borrowed(raw)))
    }

    /// [`Frame::header`] for names that clients write in any case.
    pub fn header_in_any_case(&self, name: &str) -> Option<Cow<'a, str>> {
        let (_, raw) = self.headers.iter().find(|(of, _)| of.eq_ignore_ascii_case(name))?;
        Some(unescape(raw, self.version).unwrap_or(Cow::Borrowed(raw)))
    }
}

/// What an escaped text means. `None`: an escape that the version does not have; in 1.1 it is taken literally, since
/// clients of that version often do not escape at all.
pub fn unescape(raw: &str, version: Option<Version>) -> Option<Cow<'_, str>> {
    let Some(version @ (Version::V1_1 | Version::V1_2)) = version else { return Some(Cow::Borrowed(raw)) };
    if !raw.contains('\\') {
        return Some(Cow::Borrowed(raw));
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('c') => out.push(':'),
            Some('\\') => out.push('\\'),
            _ if version == Version::V1_2 => return None,
            other => {
                out.push('\\');
                out.extend(other);
            }
        }
    }
    Some(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_belong_to_versions() {
        let of = |raw, version| unescape(raw, version).map(Cow::into_owned);
        let text = |text: &str| Some(text.to_owned());
        for version in [None, Some(Version::V1_0)] {
            assert_eq!(of(r"a\nb\c\\\x", version), text(r"a\nb\c\\\x"));
        }
        for version in [Some(Version::V1_1), Some(Version::V1_2)] {
            assert_eq!(of(r"a\nb\c\\n\r", version), text("a\nb:\\n\r"));
        }
        assert_eq!(of(r"C:\x\t\", Some(Version::V1_1)), text(r"C:\x\t\"));
        assert_eq!(of(r"\t", Some(Version::V1_2)), None);
        assert_eq!(of(r"a\", Some(Version::V1_2)), None);
    }
}
