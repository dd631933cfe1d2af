//! Bytes of a client in, frames out: a WebSocket message may hold several frames, and a frame may lie in several messages.

use std::ops::ControlFlow;

use super::frame::{unescape, Command, Frame, RawHeaders};
use super::Version;

/// Longest head of a frame (the command and all headers), in bytes; also the longest frame before a client is connected.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most headers of one frame.
pub const HEADERS_MAX: usize = 64;

/// Why the stream cannot go on. The text is fit to be shown to the client, and has no colon: clients show it as a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Violation {
    pub message: String,
    pub is_too_big: bool,
}

fn bad(message: impl Into<String>) -> Violation {
    Violation { message: message.into(), is_too_big: false }
}

fn too_big(message: String) -> Violation {
    Violation { message, is_too_big: true }
}

/// What is known of the frame that begins at the first held byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// No end of the head in so many bytes.
    Head(usize),
    /// The head ends there, the body has this length.
    Sized { head: usize, body: usize },
    /// The head ends there, and no NUL was found in so many bytes.
    ToNul { head: usize, seen: usize },
}

#[derive(Debug)]
pub struct Parser {
    version: Option<Version>,
    body_bytes_max: usize,
    /// A frame that waits for its rest.
    held: Vec<u8>,
    progress: Progress,
    /// Counts frames, so that the owner can tell one unfinished frame from the next.
    serial: u32,
    is_done: bool,
}

/// A piece of the stream.
enum Step {
    /// Line ends between frames.
    Skip(usize),
    /// A frame: its head and its body end there, NUL follows.
    Whole {
        head: usize,
        body_end: usize,
    },
    Partial,
}

impl Parser {
    pub fn new(body_bytes_max: u32) -> Self {
        let body_bytes_max = body_bytes_max as usize;
        let progress = Progress::Head(0);
        Self { version: None, body_bytes_max, held: Vec::new(), progress, serial: 0, is_done: false }
    }

    /// The client is connected: from now on frames are read as this version has them.
    pub fn connected(&mut self, version: Version) {
        self.version = Some(version);
    }

    /// Names the frame that waits for its rest. Two looks that see the same number see the same frame.
    pub fn unfinished(&self) -> Option<u32> {
        (!self.held.is_empty()).then_some(self.serial)
    }

    /// Reads everything in `input`, and hands each whole frame to `sink`, which may say that the stream is over, or which
    /// version is spoken from now on.
    pub fn read(
        &mut self,
        input: &[u8],
        sink: &mut impl FnMut(Frame<'_>) -> ControlFlow<(), Option<Version>>,
    ) -> Result<(), Violation> {
        if self.is_done {
            return Ok(());
        }
        let joined = match self.held.is_empty() {
            true => None,
            false => {
                let mut held = std::mem::take(&mut self.held);
                held.extend_from_slice(input);
                Some(held)
            }
        };
        let bytes = joined.as_deref().unwrap_or(input);
        let read = self.read_all(bytes, sink);
        let used = match read {
            Ok(Some(used)) => used,
            Ok(None) | Err(_) => {
                self.is_done = true;
                return read.map(|_| ());
            }
        };
        self.held = match joined {
            Some(held) if used == 0 => held,
            _ if used == bytes.len() => Vec::new(),
            _ => bytes[used..].to_vec(),
        };
        Ok(())
    }

    /// How many bytes were used; `None`: the sink has had enough.
    fn read_all(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(Frame<'_>) -> ControlFlow<(), Option<Version>>,
    ) -> Result<Option<usize>, Violation> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.step(rest)? {
                Step::Skip(bytes) => at += bytes,
                Step::Partial => break,
                Step::Whole { head, body_end } => {
                    let frame = self.frame(&rest[..head], &rest[head..body_end])?;
                    self.progress = Progress::Head(0);
                    self.serial = self.serial.wrapping_add(1);
                    at += body_end + 1;
                    match sink(frame) {
                        ControlFlow::Continue(Some(version)) => self.connected(version),
                        ControlFlow::Continue(None) => {}
                        ControlFlow::Break(()) => return Ok(None),
                    }
                }
            }
        }
        Ok(Some(at))
    }

    fn step(&mut self, bytes: &[u8]) -> Result<Step, Violation> {
        if let Progress::Head(seen) = self.progress {
            match bytes {
                [b'\n', ..] => return Ok(Step::Skip(1)),
                [b'\r', b'\n', ..] => return Ok(Step::Skip(2)),
                [b'\r'] => return Ok(Step::Partial),
                [b'\r', ..] => return Err(bad("a carriage return without a line feed between frames")),
                _ => {}
            }
            let Some(head) = head_end(bytes, seen)? else {
                self.progress = Progress::Head(bytes.len());
                return Ok(Step::Partial);
            };
            self.progress = self.body_of(&bytes[..head])?;
        }
        match &mut self.progress {
            Progress::Sized { head, body } => {
                let (head, body_end) = (*head, *head + *body);
                match bytes.get(body_end) {
                    Some(0) => Ok(Step::Whole { head, body_end }),
                    Some(_) => Err(bad("no NUL after content-length bytes of body")),
                    None => Ok(Step::Partial),
                }
            }
            Progress::ToNul { head, seen } => {
                let (head, from) = (*head, *seen);
                let nul = bytes[from..].iter().position(|byte| *byte == 0);
                let body_end = nul.map_or(bytes.len(), |nul| from + nul);
                *seen = body_end;
                let limit = self.body_limit(&bytes[..head]);
                if body_end - head > limit {
                    return Err(self.too_long(limit));
                }
                Ok(nul.map_or(Step::Partial, |_| Step::Whole { head, body_end }))
            }
            Progress::Head(_) => Ok(Step::Partial),
        }
    }

    /// Only SEND may have a body, and nobody may send one before CONNECTED.
    fn body_limit(&self, head: &[u8]) -> usize {
        match self.version {
            Some(_) if head.starts_with(b"SEND\n") || head.starts_with(b"SEND\r\n") => self.body_bytes_max,
            _ => 0,
        }
    }

    fn too_long(&self, limit: usize) -> Violation {
        match limit {
            0 => bad("a body in a frame that has none; only SEND has one, after CONNECTED"),
            _ => too_big(format!("the body is longer than {limit} bytes")),
        }
    }

    /// How the body of a frame ends. A head that cannot be read is refused here, before its body has come.
    fn body_of(&self, head: &[u8]) -> Result<Progress, Violation> {
        let end = head.len();
        let length = self.frame(head, &[])?.raw("content-length").map(str::to_owned);
        let Some(length) = length else { return Ok(Progress::ToNul { head: end, seen: end }) };
        let length = length.trim().parse::<usize>().map_err(|_| bad("content-length is no number"))?;
        let limit = self.body_limit(head);
        if length > limit {
            return Err(self.too_long(limit));
        }
        Ok(Progress::Sized { head: end, body: length })
    }

    fn frame<'a>(&self, head: &'a [u8], body: &'a [u8]) -> Result<Frame<'a>, Violation> {
        let head = std::str::from_utf8(head).map_err(|_| bad("the head of a frame is not UTF-8"))?;
        let mut lines = head.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        let name = lines.next().unwrap_or_default();
        let command = Command::parse(name).ok_or_else(|| {
            let name: String = name.chars().filter(|c| c.is_ascii_graphic() && *c != ':').take(32).collect();
            bad(format!("{name:?} is no command of a client; commands are upper-case, as CONNECT and SEND"))
        })?;
        let mut headers = RawHeaders::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            if headers.len() == HEADERS_MAX {
                return Err(too_big(format!("{name} has more than {HEADERS_MAX} headers")));
            }
            headers.push(self.header(name, line)?);
        }
        Ok(Frame { command, version: self.version, headers, body })
    }

    fn header<'a>(&self, command: &str, line: &'a str) -> Result<(&'a str, &'a str), Violation> {
        // Clients that do not escape send colons in values.
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| bad(format!("a line of {command} is no header, it has no colon")))?;
        if name.is_empty() {
            return Err(bad(format!("a header of {command} has no name")));
        }
        if [name, value].iter().any(|text| unescape(text, self.version).is_none()) {
            return Err(bad(format!("a header of {command} has an escape that STOMP 1.2 does not know")));
        }
        // Clients of 1.0 pad.
        match self.version {
            Some(Version::V1_0) | None => Ok((name.trim_end(), value.trim())),
            Some(Version::V1_1 | Version::V1_2) => Ok((name, value)),
        }
    }
}

/// Where the head of a frame ends, behind its empty line. Nothing was found in the first `seen` bytes.
fn head_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Violation> {
    // An end may have begun in what was seen.
    let from = seen.saturating_sub(2);
    for at in from..bytes.len() {
        match bytes[at] {
            0 => return Err(bad("a NUL in the head of a frame; an empty line ends the headers")),
            b'\n' if bytes[at + 1..].first() == Some(&b'\n') => return checked_head(at + 2),
            b'\n' if bytes[at + 1..].starts_with(b"\r\n") => return checked_head(at + 3),
            _ => {}
        }
    }
    match bytes.len() > HEAD_BYTES_MAX {
        true => checked_head(bytes.len()),
        false => Ok(None),
    }
}

fn checked_head(end: usize) -> Result<Option<usize>, Violation> {
    match end > HEAD_BYTES_MAX {
        true => Err(too_big(format!("the head of a frame is longer than {HEAD_BYTES_MAX} bytes"))),
        false => Ok(Some(end)),
    }
}

#[cfg(test)]
mod tests;
