//! Frames from the server: never masked (RFC 6455 section 5.1), never fragmented, ready to be written.

use bytes::Bytes;

/// Longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// FIN, and the opcode of each kind of frame.
pub(super) const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
pub(super) const PING: u8 = 0x89;
pub(super) const PONG: u8 = 0x8a;

/// A text message. Header and payload lie in one allocation of exactly their length, which all sockets that get
/// the message share. The caller answers for `payload` being UTF-8.
pub fn text_frame(payload: &[u8]) -> Bytes {
    frame(TEXT, &[payload])
}

/// A text or binary message whose payload lies in parts. The caller answers for a text being UTF-8.
pub fn message_frame(is_binary: bool, parts: &[&[u8]]) -> Bytes {
    frame(message_first(is_binary), parts)
}

/// The first byte of a message in one frame.
pub(super) fn message_first(is_binary: bool) -> u8 {
    if is_binary {
        BINARY
    } else {
        TEXT
    }
}

/// A ping; what exceeds the 125 bytes of a control frame is cut off.
pub fn ping_frame(payload: &[u8]) -> Bytes {
    frame(PING, &[control(payload)])
}

/// The answer to a ping, with the ping's payload.
pub fn pong_frame(payload: &[u8]) -> Bytes {
    frame(PONG, &[control(payload)])
}

/// A close frame. A reason of more than 123 bytes is cut at a character.
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = Vec::with_capacity(2 + end);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.get(..end).unwrap_or_default().as_bytes());
    frame(CLOSE, &[&payload])
}

fn control(payload: &[u8]) -> &[u8] {
    payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload)
}

/// A frame with this first byte; header and payload lie in one allocation of exactly their length.
pub(super) fn frame(first: u8, parts: &[&[u8]]) -> Bytes {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    let header_len = match len {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    let mut out = Vec::with_capacity(header_len + len);
    out.push(first);
    match header_len {
        2 => out.push(len as u8),
        4 => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_has_its_shortest_form() {
        let start = |len: usize, n: usize| text_frame(&vec![b'a'; len])[..n].to_vec();
        assert_eq!(start(0, 2), [0x81, 0]);
        assert_eq!(start(125, 2), [0x81, 125]);
        assert_eq!(start(126, 4), [0x81, 126, 0, 126]);
        assert_eq!(start(65_535, 4), [0x81, 126, 0xff, 0xff]);
        assert_eq!(start(65_536, 10), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        for len in [0, 125, 126, 65_535, 65_536] {
            let frame = text_frame(&vec![b'a'; len]);
            assert!(frame.ends_with(&vec![b'a'; len]));
            let len = frame.len();
            assert_eq!(Vec::from(frame).capacity(), len, "no slack");
        }
    }

    #[test]
    fn control_frames_stay_short() {
        assert_eq!(&ping_frame(b"hi")[..], b"\x89\x02hi");
        assert_eq!(&pong_frame(b"")[..], b"\x8a\x00");
        assert_eq!(pong_frame(&[0; 200]).len(), 2 + 125);
        assert_eq!(&close_frame(1000, "bye")[..], b"\x88\x05\x03\xe8bye");
        // 62 characters of two bytes: the 62nd does not fit into 123 bytes.
        let cut = close_frame(1002, &"é".repeat(62));
        assert_eq!(cut.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&cut[4..]).is_ok());
    }
}
