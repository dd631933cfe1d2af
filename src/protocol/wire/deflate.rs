//! Messages to clients, compressed (RFC 7692 section 7.2.1): each on its own, so that all sockets which get it share it.

use std::cell::Cell;
use std::iter;

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};
use smallvec::SmallVec;

use super::encode::{frame, message_first};

/// Shorter payloads are sent as they are, in bytes: they fit into one packet with or without compression, and of the time
/// that a kilobyte takes two thirds do not depend on the length.
pub const DEFLATE_BYTES_MIN: usize = 256;
/// Longer payloads are sent as they are, in bytes: compressing holds up the other sockets of the thread. It is the largest
/// limit that an operator can set for a message of a client.
const DEFLATE_BYTES_MAX: usize = 1 << 20;
/// RSV1 of the first frame says that the message is compressed (section 6).
const RSV1: u8 = 0x40;
/// An empty block without compression ends what was flushed; it is not sent (section 7.2.1).
const TRAILER: [u8; 4] = [0, 0, 0xff, 0xff];
/// Of a block without compression (RFC 1951 section 3.2.4): three bits and padding, the length and its complement.
const STORED_HEADER_BYTES: usize = 5;

thread_local! {
    /// One for each thread that writes to sockets, made by the first message. Taken out while it is used.
    static COMPRESSOR: Cell<Option<Box<Compress>>> = const { Cell::new(None) };
}

/// The frame for sockets with compression: itself when it is short, or would not get shorter. `plain` is a whole frame of
/// [`super::message_frame`].
pub fn deflated_frame(plain: &Bytes) -> Bytes {
    let payload_at = match plain.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    let (Some(first), Some(payload)) = (plain.first(), plain.get(payload_at..)) else { return plain.clone() };
    match deflated(payload, 0) {
        Some(short) => frame(first | RSV1, &[&short]),
        None => plain.clone(),
    }
}

/// The end of a message, compressed so that any head can be put before it. `None`: that would not make it shorter.
pub fn deflated_tail(tail: &[u8]) -> Option<Bytes> {
    deflated(tail, STORED_HEADER_BYTES).map(|short| Bytes::copy_from_slice(&short))
}

/// A message of a head, which goes without compression, and of what [`deflated_tail`] made of the rest. `None`: the head
/// is too long for that.
pub fn headed_frame(is_binary: bool, head: &[&[u8]], tail: &[u8]) -> Option<Bytes> {
    let len = u16::try_from(head.iter().map(|part| part.len()).sum::<usize>()).ok()?;
    let ([a, b], [c, d]) = (len.to_le_bytes(), (!len).to_le_bytes());
    let stored = [0, a, b, c, d];
    let parts: SmallVec<[&[u8]; 4]> =
        iter::once(&stored[..]).chain(head.iter().copied()).chain([tail]).collect();
    Some(frame(message_first(is_binary) | RSV1, &parts))
}

/// The payload compressed. `None`: it is too short or too long for that, or would not lose more than so many bytes.
fn deflated(payload: &[u8], gain_bytes: usize) -> Option<Vec<u8>> {
    if !(DEFLATE_BYTES_MIN..=DEFLATE_BYTES_MAX).contains(&payload.len()) {
        return None;
    }
    let taken = COMPRESSOR.try_with(Cell::take).ok().flatten();
    let mut compressor = taken.unwrap_or_else(|| Box::new(Compress::new(Compression::fast(), false)));
    compressor.reset();
    // What fills all of this room is too long, and may not be all.
    let mut out = Vec::with_capacity(payload.len() + TRAILER.len() - gain_bytes);
    let status = compressor.compress_vec(payload, &mut out, FlushCompress::Sync);
    let is_whole = status.is_ok_and(|status| status == Status::Ok)
        && compressor.total_in() == payload.len() as u64
        && out.len() < payload.len() + TRAILER.len() - gain_bytes
        && out.ends_with(&TRAILER);
    let _ = COMPRESSOR.try_with(|cell| cell.set(Some(compressor)));
    if !is_whole {
        return None;
    }
    out.truncate(out.len() - TRAILER.len());
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::wire::inflate::inflated;
    use crate::protocol::wire::message_frame;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 21;

    fn plain(payload: &[u8]) -> Bytes {
        message_frame(true, &[payload])
    }

    /// What a client reads: the message of a frame.
    fn read(frame: &[u8]) -> Vec<u8> {
        let at = [2, 4, 10][usize::from(frame[1].max(125) - 125)];
        match frame[0] & RSV1 {
            0 => frame[at..].to_vec(),
            _ => inflated(&frame[at..], LIMIT, |message| message.to_vec()).unwrap(),
        }
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 7u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn what_gets_shorter_is_compressed_and_the_rest_is_sent_as_it_is() {
        for (payload, is_shorter) in [
            (vec![], false),
            (vec![b'a'; DEFLATE_BYTES_MIN - 1], false),
            (vec![b'a'; DEFLATE_BYTES_MIN], true),
            (vec![b'a'; 70_000], true),
            (vec![b'a'; DEFLATE_BYTES_MAX], true),
            (vec![b'a'; DEFLATE_BYTES_MAX + 1], false),
            (noise(300), false),
            (noise(100_000), false),
        ] {
            let frame = plain(&payload);
            let twin = deflated_frame(&frame);
            let len = payload.len();
            assert_eq!(
                (twin[0], twin.len() < frame.len()),
                (0x82 | if is_shorter { RSV1 } else { 0 }, is_shorter),
                "{len}"
            );
            assert_eq!(is_shorter, twin.as_ptr() != frame.as_ptr(), "{len} bytes are not copied");
            assert!(read(&twin) == payload, "{len}");
        }
        let text = deflated_frame(&message_frame(false, &[&[b'a'; 300]]));
        assert_eq!(text[0], 0xc1, "FIN, RSV1, text");
    }

    #[test]
    fn a_tail_is_compressed_once_for_every_head() {
        let tail = [b"to all of you: ".repeat(40), noise(20)].concat();
        let short = deflated_tail(&tail).unwrap();
        for head in [&b""[..], b"id:1\n", &noise(0xffff)] {
            let frame = headed_frame(false, &[head, b""], &short).unwrap();
            assert_eq!(frame[0], 0xc1);
            assert!(frame.ends_with(&short));
            assert!(read(&frame) == [head, &tail].concat());
        }
        assert_eq!(headed_frame(false, &[&noise(0xffff), b"x"], &short), None);
        assert_eq!((deflated_tail(b"short"), deflated_tail(&noise(400))), (None, None));
    }

    proptest! {
        #[test]
        fn any_message_is_read_back(
            words in prop::collection::vec("[a-z ]{0,12}|\\PC{0,8}", 0..200),
            times in 1..20usize,
        ) {
            let payload = words.concat().repeat(times);
            let frame = plain(payload.as_bytes());
            let twin = deflated_frame(&frame);
            prop_assert!(twin.len() <= frame.len());
            prop_assert_eq!(read(&twin), payload.as_bytes());
        }
    }
}
