//! The client's side of frames: for a session whose client speaks another transport, and ends in this process. Pure.

use bytes::{Buf, Bytes, BytesMut};

use super::encode::{PING, PONG, TEXT};

/// RFC 6455 section 5.2: the bit that says that a mask follows the length.
const MASKED: u8 = 0x80;
/// Changes nothing: what is masked here leaves the process only as something else.
const NO_MASK: [u8; 4] = [0; 4];

/// A frame of [`super::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    Text(Bytes),
    Ping(Bytes),
    /// Of no concern to other transports.
    Other,
}

/// Takes out the first frame, if all of it is there.
pub fn take_frame(bytes: &mut BytesMut) -> Option<ServerFrame> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (head, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)).ok()?),
        short => (2, usize::from(short)),
    };
    if bytes.len() - head < length {
        return None;
    }
    bytes.advance(head);
    let payload = bytes.split_to(length).freeze();
    Some(match first {
        TEXT => ServerFrame::Text(payload),
        PING => ServerFrame::Ping(payload),
        _ => ServerFrame::Other,
    })
}

/// Adds a text message that lies in parts. The caller answers for its being UTF-8.
pub fn put_text(parts: &[&[u8]], out: &mut BytesMut) {
    put(TEXT, parts, out);
}

/// Adds the answer to a ping.
pub fn put_pong(payload: &[u8], out: &mut BytesMut) {
    put(PONG, &[payload], out);
}

fn put(first: u8, parts: &[&[u8]], out: &mut BytesMut) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(length + 14);
    out.extend_from_slice(&[first]);
    match length {
        0..=125 => out.extend_from_slice(&[MASKED | length as u8]),
        126..=0xffff => {
            out.extend_from_slice(&[MASKED | 126]);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[MASKED | 127]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&NO_MASK);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::protocol::wire::{close_frame, ping_frame, text_frame, Decoder, Event};

    #[test]
    fn frames_of_the_server_are_taken_wherever_they_are_cut() {
        let long = vec![b'a'; 70_000];
        let sent = [text_frame(b"o"), ping_frame(b"hi"), text_frame(&[b'b'; 300]), text_frame(&long)];
        let all = [&sent.concat()[..], &close_frame(1000, "bye")].concat();
        for step in [1, 7, 4_096, all.len()] {
            let (mut bytes, mut taken) = (BytesMut::new(), Vec::new());
            for part in all.chunks(step) {
                bytes.extend_from_slice(part);
                taken.extend(std::iter::from_fn(|| take_frame(&mut bytes)));
            }
            let text = |payload: &[u8]| ServerFrame::Text(Bytes::copy_from_slice(payload));
            let ping = ServerFrame::Ping(Bytes::from_static(b"hi"));
            assert_eq!(taken, [text(b"o"), ping, text(&[b'b'; 300]), text(&long), ServerFrame::Other]);
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn the_decoder_of_the_server_takes_what_is_put() {
        let mut out = BytesMut::new();
        let parts: Vec<String> = [0, 125, 126, 65_535, 65_536].map(|length| "x".repeat(length)).into();
        parts.iter().for_each(|part| put_text(&[b"[", part.as_bytes(), b"]"], &mut out));
        put_pong(b"hi", &mut out);
        let mut seen = Vec::new();
        let mut sink = |event: Event<'_>| {
            seen.push(match event {
                Event::Text(text) => text.to_owned(),
                other => format!("{other:?}"),
            });
            ControlFlow::Continue(())
        };
        Decoder::new(100_000).decode(&mut out, &mut sink).unwrap();
        let mut expected: Vec<String> = parts.iter().map(|part| format!("[{part}]")).collect();
        expected.push(format!("{:?}", Event::Pong(b"hi")));
        assert_eq!(seen, expected);
    }
}
