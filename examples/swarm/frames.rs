//! As much of RFC 6455 as a well-behaved client needs: frames from a server in, masked frames out.

pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// Finds frames in what a socket brings. Keeps bytes only while a frame is cut in two.
#[derive(Debug, Default)]
pub struct Frames {
    rest: Vec<u8>,
}

impl Frames {
    /// Hands each whole frame to `sink`: its opcode and its payload.
    pub fn read(&mut self, input: &[u8], mut sink: impl FnMut(u8, &[u8])) {
        if self.rest.is_empty() {
            let used = whole_frames(input, &mut sink);
            self.rest.extend_from_slice(&input[used..]);
            return;
        }
        let mut joined = std::mem::take(&mut self.rest);
        joined.extend_from_slice(input);
        let used = whole_frames(&joined, &mut sink);
        if used < joined.len() {
            joined.drain(..used);
            self.rest = joined;
        }
    }
}

fn whole_frames(input: &[u8], sink: &mut impl FnMut(u8, &[u8])) -> usize {
    let mut used = 0;
    while let Some((head, len)) = header(&input[used..]) {
        let Some(payload) = input.get(used + head..used + head + len) else { break };
        sink(input[used] & 0x0f, payload);
        used += head + len;
    }
    used
}

/// The lengths of the first frame's header and payload. A server does not mask.
fn header(input: &[u8]) -> Option<(usize, usize)> {
    match input.get(1)? & 0x7f {
        126 => {
            let len: [u8; 2] = input.get(2..4)?.try_into().ok()?;
            Some((4, u16::from_be_bytes(len).into()))
        }
        127 => {
            let len: [u8; 8] = input.get(2..10)?.try_into().ok()?;
            Some((10, usize::try_from(u64::from_be_bytes(len)).ok()?))
        }
        len => Some((2, len.into())),
    }
}

/// A whole frame from a client. The mask is all zero, which costs nothing and is as valid as any other.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(0x80 | opcode);
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}
