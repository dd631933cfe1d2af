//! The decoder against another implementation: the same bytes give the same messages and the same verdict.
//!
//! Deliberate differences, the only ones that these tests let pass:
//! - a length that is not in its shortest form is refused (RFC 6455 section 5.2), in a control frame by its first
//!   byte (5.5); tungstenite reads it;
//! - a close code that must not be sent is a violation (section 7.4); tungstenite reports a close frame with 1002;
//! - close code 1014 is allowed (registered after the RFC); tungstenite counts it among the forbidden ones;
//! - a violation is seen at the byte that commits it; tungstenite waits for the whole frame;
//! - a message has at most 1,024 fragments (out of reach of these streams).

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use proptest::prelude::*;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};
use warren::protocol::wire::{Decoder, Event, Violation};

use crate::support::raw_ws::{Length, RawFrame, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};

const LIMIT: u32 = 600;

#[derive(Debug, PartialEq)]
enum Verdict<E> {
    /// All bytes were read and none was wrong so far.
    Open,
    /// The client closed properly.
    Closed,
    Failed(E),
}

type Ours = (Vec<Message>, Verdict<Violation>);
type Theirs = (Vec<Message>, Verdict<Error>);

fn close_message(code: u16, reason: &str) -> Message {
    Message::Close(Some(tungstenite::protocol::CloseFrame { code: code.into(), reason: reason.into() }))
}

fn ours(bytes: &[u8], cut: usize) -> Ours {
    let (mut decoder, mut seen) = (Decoder::new(LIMIT), Vec::new());
    for piece in bytes.chunks(cut) {
        let result = decoder.decode(&mut piece.to_vec(), &mut |event| {
            seen.push(match event {
                Event::Text(text) => Message::text(text),
                Event::Binary(data) => Message::binary(data.to_vec()),
                Event::Ping(data) => Message::Ping(data.to_vec().into()),
                Event::Pong(data) => Message::Pong(data.to_vec().into()),
                Event::Close(None) => Message::Close(None),
                // As tungstenite puts it: the list of differences above.
                Event::Close(Some((1014, _))) => close_message(1002, "Protocol violation"),
                Event::Close(Some((code, reason))) => close_message(code, reason),
            });
            ControlFlow::Continue(())
        });
        if let Err(violation) = result {
            return (seen, Verdict::Failed(violation));
        }
    }
    (seen, if decoder.is_done() { Verdict::Closed } else { Verdict::Open })
}

/// The input as a socket that would block at its end, and that swallows what is written to it.
struct Wire<'a> {
    rest: &'a [u8],
    cut: usize,
}

impl Read for Wire<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min(self.cut).min(self.rest.len());
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (now, rest) = self.rest.split_at(n);
        buf[..n].copy_from_slice(now);
        self.rest = rest;
        Ok(n)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn theirs(bytes: &[u8], cut: usize) -> Theirs {
    let limit = Some(LIMIT as usize);
    let config = WebSocketConfig::default()
        .read_buffer_size(1_024)
        .write_buffer_size(0)
        .max_frame_size(limit)
        .max_message_size(limit);
    let mut context = WebSocketContext::new(Role::Server, Some(config));
    let mut wire = Wire { rest: bytes, cut };
    let mut seen = Vec::new();
    loop {
        match context.read(&mut wire) {
            Ok(message) => seen.push(message),
            Err(Error::ConnectionClosed) => return (seen, Verdict::Closed),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (seen, Verdict::Open)
            }
            Err(error) => return (seen, Verdict::Failed(error)),
        }
    }
}

/// Where they differ, it must be one of the listed ways; `whole` says that the stream ends with a whole frame,
/// so that waiting for the rest of a frame is no excuse.
fn compare(bytes: &[u8], cut: usize, whole: bool) -> Result<(), TestCaseError> {
    let (seen, verdict) = ours(bytes, cut);
    let (their_seen, their_verdict) = theirs(bytes, cut);
    let stricter = matches!(
        verdict,
        Verdict::Failed(Violation::Protocol("length not minimal" | "control frame with an extended length"))
    );
    let code = matches!(verdict, Verdict::Failed(Violation::Protocol("close code not allowed")));
    let common = their_seen.get(..seen.len());
    prop_assert_eq!(common, Some(&seen[..]), "our messages, then {:?} and {:?}", verdict, their_verdict);
    let beyond = &their_seen[seen.len()..];
    match (&verdict, &their_verdict) {
        _ if stricter => {}
        (Verdict::Failed(_), _) if code => {
            // Either they call it 1002, or they fail as well: the reason may not be UTF-8.
            let as_1002 = matches!(beyond, [Message::Close(Some(close))] if u16::from(close.code) == 1002);
            let failed = beyond.is_empty() && matches!(their_verdict, Verdict::Failed(_));
            prop_assert!(as_1002 || failed, "{their_seen:?} {their_verdict:?}");
        }
        (Verdict::Failed(_), Verdict::Failed(_))
        | (Verdict::Open, Verdict::Open)
        | (Verdict::Closed, Verdict::Closed) => prop_assert!(beyond.is_empty(), "more: {beyond:?}"),
        (Verdict::Failed(_), Verdict::Open) if !whole => prop_assert!(beyond.is_empty(), "more: {beyond:?}"),
        _ => prop_assert!(false, "we say {verdict:?}, they say {their_verdict:?}"),
    }
    Ok(())
}

/// Bytes that a failing test prints in a form to be read.
#[derive(Clone)]
struct Hex(Vec<u8>);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x} "))
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => ".{0,20}".prop_map(String::into_bytes),
        3 => prop::collection::vec(any::<u8>(), 0..40),
        2 => (120..130usize).prop_map(|len| vec![b'x'; len]),
        1 => (595..605usize).prop_map(|len| vec![b'x'; len]),
        // Halves of characters: two such fragments may make a whole one.
        1 => Just("€".as_bytes()[..2].to_vec()),
        1 => Just("€".as_bytes()[2..].to_vec()),
        3 => (prop_oneof![990..1_020u16, 2_995..3_005u16, any::<u16>()], ".{0,5}")
            .prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
    ]
}

/// Mostly right; each field is wrong now and then.
fn frame() -> impl Strategy<Value = RawFrame> {
    let opcode = prop_oneof![
        6 => Just(TEXT),
        4 => Just(BINARY),
        6 => Just(CONTINUATION),
        2 => Just(PING),
        2 => Just(PONG),
        2 => Just(CLOSE),
        1 => 0..16u8,
    ];
    let rsv = prop_oneof![40 => Just(0), 1 => 1..8u8];
    let mask = prop_oneof![40 => any::<[u8; 4]>().prop_map(Some), 1 => Just(None)];
    let length = prop_oneof![
        40 => Just(Length::Minimal),
        1 => Just(Length::Bits16),
        1 => Just(Length::Bits64),
    ];
    (any::<bool>(), rsv, opcode, mask, length, payload()).prop_map(
        |(fin, rsv, opcode, mask, length, payload)| RawFrame { fin, rsv, opcode, mask, length, payload },
    )
}

/// Frames in an order that mostly makes sense, so that streams live long enough to reach the rare cases.
fn stream() -> impl Strategy<Value = Hex> {
    (prop::collection::vec(frame(), 1..12), prop::bool::weighted(0.8)).prop_map(|(mut frames, repair)| {
        let mut open = false;
        for frame in frames.iter_mut().filter(|_| repair) {
            if frame.opcode >= CLOSE {
                frame.fin = true;
                if frame.opcode == PING || frame.opcode == PONG {
                    frame.payload.truncate(125);
                }
                continue;
            }
            match (open, frame.opcode) {
                (true, TEXT | BINARY) => frame.opcode = CONTINUATION,
                (false, CONTINUATION) => frame.opcode = TEXT,
                _ => {}
            }
            open = !frame.fin;
        }
        Hex(frames.iter().flat_map(RawFrame::bytes).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2_000), ..ProptestConfig::default() })]

    #[test]
    fn frames_right_and_wrong_get_the_same_verdict(bytes in stream(), cut in 1..700usize) {
        compare(&bytes.0, cut, true)?;
    }

    #[test]
    fn damaged_streams_get_the_same_verdict(
        Hex(mut bytes) in stream(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        end in any::<prop::sample::Index>(),
        cut in 1..100usize,
    ) {
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(end.index(bytes.len()) + 1);
        compare(&bytes, cut, false)?;
    }
}
