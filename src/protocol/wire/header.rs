//! The header of a client frame and its mask (RFC 6455 sections 5.2 and 5.3).

use super::Violation;

/// Two bytes, a 64-bit length, the mask.
pub(super) const HEADER_BYTES_MAX: usize = 14;
/// Longest payload of a control frame (RFC 6455 section 5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    pub(super) fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    /// The message that begins here is compressed.
    pub(super) deflated: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: [u8; 4],
    pub(super) len: u64,
}

/// Reads a header from the start of `bytes`: the header and how many bytes it took, or `None` while bytes are
/// missing. Each rule is checked as soon as its byte is there and in the order of the bytes, so the verdict does
/// not depend on how the bytes were cut into reads. `may_deflate`: compression was negotiated.
pub(super) fn parse(bytes: &[u8], may_deflate: bool) -> Result<Option<(Header, usize)>, Violation> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (fin, deflated, opcode) = parse_first(first, may_deflate)?;
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(Violation::Protocol("client frame without a mask"));
    }
    let short = second & 0x7f;
    // An extended length says more than 125 or is not minimal: wrong in either case.
    if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
        return Err(Violation::Protocol("control frame with an extended length"));
    }
    let Some((len, mask_at)) = parse_len(short, bytes)? else { return Ok(None) };
    let Some(&mask) = bytes.get(mask_at..).and_then(|rest| rest.first_chunk::<4>()) else { return Ok(None) };
    Ok(Some((Header { fin, deflated, opcode, mask, len }, mask_at + 4)))
}

fn parse_first(byte: u8, may_deflate: bool) -> Result<(bool, bool, Opcode), Violation> {
    let fin = byte & 0x80 != 0;
    // RSV1 marks the first frame of a compressed message, and no other frame (RFC 7692 section 6). The other reserved
    // bits have no meaning here.
    let deflated = may_deflate && byte & 0x40 != 0 && matches!(byte & 0x0f, 0x1 | 0x2);
    if byte & 0x70 != 0 && !(deflated && byte & 0x30 == 0) {
        return Err(Violation::Protocol("reserved bit set"));
    }
    let opcode = match byte & 0x0f {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xa => Opcode::Pong,
        _ => return Err(Violation::Protocol("reserved opcode")),
    };
    if opcode.is_control() && !fin {
        return Err(Violation::Protocol("fragmented control frame"));
    }
    Ok((fin, deflated, opcode))
}

/// The payload length and where the mask starts.
fn parse_len(short: u8, bytes: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    let rest = bytes.get(2..).unwrap_or_default();
    let (len, minimum, mask_at) = match short {
        126 => match rest.first_chunk::<2>() {
            Some(raw) => (u64::from(u16::from_be_bytes(*raw)), 126, 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(raw) => (u64::from_be_bytes(*raw), 1 << 16, 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 0, 2),
    };
    if len >> 63 != 0 {
        return Err(Violation::Protocol("length with the top bit set"));
    }
    // "the minimal number of bytes MUST be used to encode the length" (section 5.2).
    if len < minimum {
        return Err(Violation::Protocol("length not minimal"));
    }
    Ok(Some((len, mask_at)))
}

/// Masks or unmasks in place and returns the mask for the byte that follows (RFC 6455 section 5.3).
pub(super) fn unmask(payload: &mut [u8], mask: [u8; 4]) -> [u8; 4] {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        // Always eight bytes here; the compiler turns the loop into vector instructions.
        if let Some(eight) = chunk.first_chunk_mut::<8>() {
            *eight = (u64::from_ne_bytes(*eight) ^ wide).to_ne_bytes();
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    let mut next = mask;
    next.rotate_left(payload.len() % 4);
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_section_5_7() {
        let mut frame = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let (header, used) = parse(&frame, false).unwrap().unwrap();
        assert_eq!((header.fin, header.opcode, header.len, used), (true, Opcode::Text, 5, 6));
        unmask(&mut frame[6..], header.mask);
        assert_eq!(&frame[6..], b"Hello");
    }

    #[test]
    fn unmask_in_pieces_equals_byte_by_byte() {
        let mask = [1, 2, 4, 8];
        for len in 0..40 {
            let plain: Vec<u8> = (0..len).map(|i: u8| i.wrapping_mul(7)).collect();
            let expected: Vec<u8> = plain.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            for cut in 0..=plain.len() {
                let mut pieces = plain.clone();
                let (head, tail) = pieces.split_at_mut(cut);
                let next = unmask(head, mask);
                unmask(tail, next);
                assert_eq!(pieces, expected);
            }
        }
    }

    #[test]
    fn lengths_use_their_shortest_form() {
        let not_minimal = Err(Violation::Protocol("length not minimal"));
        assert_eq!(parse(&[0x82, 0xfe, 0, 125, 0, 0, 0, 0], false), not_minimal);
        assert_eq!(parse(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0], false), not_minimal);
        let (header, used) = parse(&[0x82, 0xfe, 0, 126, 0, 0, 0, 0], false).unwrap().unwrap();
        assert_eq!((header.len, used), (126, 8));
        let (header, used) =
            parse(&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 9, 9, 9, 9], false).unwrap().unwrap();
        assert_eq!((header.len, used), (65_536, 14));
        let top_bit = parse(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], false);
        assert_eq!(top_bit, Err(Violation::Protocol("length with the top bit set")));
    }

    #[test]
    fn each_rule_fails_at_its_own_byte() {
        for (first, may_deflate) in (0..=255u8).flat_map(|first| [(first, false), (first, true)]) {
            let control = first & 0x08 != 0;
            let deflated = may_deflate && first & 0x70 == 0x40 && matches!(first & 0x0f, 1 | 2);
            let fine = (first & 0x70 == 0 || deflated)
                && matches!(first & 0x0f, 0 | 1 | 2 | 8 | 9 | 10)
                && (!control || first & 0x80 != 0);
            assert_eq!(parse(&[first], may_deflate).is_ok(), fine, "{first:#x} {may_deflate}");
            if fine {
                let (header, _) = parse(&[first, 0x80, 0, 0, 0, 0], may_deflate).unwrap().unwrap();
                assert_eq!(header.deflated, deflated, "{first:#x} {may_deflate}");
            }
        }
        assert!(parse(&[0x81, 0x05], false).is_err(), "no mask");
        assert!(parse(&[0x89, 0xfe], false).is_err(), "long ping");
        assert_eq!(parse(&[], false), Ok(None));
    }
}
