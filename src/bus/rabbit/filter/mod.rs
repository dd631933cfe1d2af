//! What stands between the broker's bytes and the client library: replaces what the library cannot decode, and
//! would give up the whole connection for, by something that it can.
//!
//! A backend may put any bytes into the properties of a message and into its routing key; the broker does not
//! look at them. The filter follows the frames (AMQP 0-9-1 section 4.2.3) and looks into content headers and
//! into the few methods that repeat such bytes. Everything else passes untouched. What is replaced carries the
//! header [`UNREADABLE_HEADER`], and so arrives as a delivery like any other.
//!
//! [`Filter`] is pure: bytes in, bytes out. [`stream`] puts it into a connection.

mod methods;
mod properties;
pub mod stream;
mod table;
#[cfg(test)]
mod tests;

use properties::Reason;
pub use properties::UNREADABLE_HEADER;

/// Frame type, channel and length of the payload.
const HEAD_BYTES: usize = 7;
/// With the byte that ends a frame.
const AROUND_BYTES: usize = HEAD_BYTES + 1;
const FRAME_END: u8 = 0xCE;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
/// The smallest frame size that a peer may ask for.
const FRAME_MIN_SIZE: u32 = 4096;
/// Longest content header that is held as a whole, in bytes. A broker sends one that is longer than the frames
/// of this connection only when its publisher was allowed longer ones. Of an even longer one only the
/// properties before the cut are kept.
const HELD_BYTES_MAX: usize = 4 << 20;

/// What to do with the frame that begins here.
enum Plan {
    /// Unknown until so many bytes of it are there.
    Await(usize),
    /// Let its so many bytes through.
    Pass(usize),
    /// Look into it when its so many bytes are there.
    Hold(usize),
}

/// The state of one connection's incoming bytes.
#[derive(Debug)]
pub struct Filter {
    /// The longest frame that the client library accepts, as far as it is known.
    frame_max: u32,
    /// The beginning of a frame that is not there as a whole.
    held: Vec<u8>,
    /// Bytes of the present frame that are let through as they come.
    passing: usize,
    /// Bytes of the present frame that are dropped.
    dropping: usize,
    /// Channels with a delivery whose method was mended, until its content header comes.
    mended: Vec<(u16, Reason)>,
    opened: bool,
}

impl Filter {
    /// `frame_max` is what the client will ask for in `connection.tune-ok`; 0 = no limit.
    pub fn new(frame_max: u32) -> Self {
        Self { frame_max, held: Vec::new(), passing: 0, dropping: 0, mended: Vec::new(), opened: false }
    }

    /// Whether the broker has opened the connection: the handshake is over.
    pub fn opened(&self) -> bool {
        self.opened
    }

    /// Takes bytes in the order in which they come, cut anywhere, and appends what is to be read in their place.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            if self.passing > 0 {
                let (passed, rest) = input.split_at(self.passing.min(input.len()));
                out.extend_from_slice(passed);
                self.passing -= passed.len();
                input = rest;
            } else if self.dropping > 0 {
                let dropped = self.dropping.min(input.len());
                self.dropping -= dropped;
                input = &input[dropped..];
            } else if self.held.is_empty() {
                input = self.begin(input, out);
            } else {
                input = self.go_on(input, out);
            }
        }
    }

    /// A frame begins with `input`. Returns what is left of it.
    fn begin<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        match plan(input) {
            Plan::Pass(total) => {
                self.passing = total;
                input
            }
            Plan::Hold(total) if total <= input.len() => {
                let (frame, rest) = input.split_at(total);
                self.judge(frame, false, out);
                rest
            }
            Plan::Await(_) | Plan::Hold(_) => {
                self.held.extend_from_slice(&input[..1]);
                &input[1..]
            }
        }
    }

    /// A frame of which the beginning is held goes on with `input`. Returns what is left of it.
    fn go_on<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let wanted = match plan(&self.held) {
            Plan::Await(wanted) => wanted,
            Plan::Hold(total) => total.min(HELD_BYTES_MAX),
            Plan::Pass(total) => {
                out.extend_from_slice(&self.held);
                self.passing = total - self.held.len();
                self.held.clear();
                return input;
            }
        };
        let missing = wanted.saturating_sub(self.held.len()).min(input.len());
        self.held.extend_from_slice(&input[..missing]);
        if let Plan::Hold(total) = plan(&self.held) {
            if self.held.len() == total.min(HELD_BYTES_MAX) {
                let frame = std::mem::take(&mut self.held);
                self.judge(&frame, frame.len() < total, out);
                self.dropping = total - frame.len();
            }
        }
        &input[missing..]
    }

    /// Looks into a frame; `cut` means that this is only its beginning.
    fn judge(&mut self, frame: &[u8], cut: bool, out: &mut Vec<u8>) {
        let end = if cut { frame.len() } else { frame.len() - 1 };
        let payload = &frame[HEAD_BYTES..end];
        let channel = u16::from_be_bytes([frame[1], frame[2]]);
        let replaced = if frame[0] == CONTENT_HEADER {
            let known = self.take_reason(channel);
            properties::rewritten(payload, known, self.payload_max(), cut)
        } else {
            self.method(channel, payload)
        };
        match replaced {
            None => out.extend_from_slice(frame),
            Some(payload) => {
                out.push(frame[0]);
                out.extend_from_slice(&channel.to_be_bytes());
                out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
                out.extend_from_slice(&payload);
                out.push(FRAME_END);
            }
        }
    }

    fn method(&mut self, channel: u16, payload: &[u8]) -> Option<Vec<u8>> {
        let (class, method) = ids(payload)?;
        if methods::is_tune(class, method) {
            self.negotiate(methods::frame_max(payload)?);
            return None;
        }
        self.opened |= methods::is_open_ok(class, method);
        let mended = methods::mended(payload, class, method)?;
        if class == 60 {
            self.mended.retain(|(other, _)| *other != channel);
            self.mended.push((channel, mended.reason));
        }
        Some(mended.payload)
    }

    fn take_reason(&mut self, channel: u16) -> Reason {
        match self.mended.iter().position(|(other, _)| *other == channel) {
            Some(index) => self.mended.swap_remove(index).1,
            None => Reason::default(),
        }
    }

    /// As lapin does: the smaller of the two proposals, where 0 is none, and never less than the minimum.
    fn negotiate(&mut self, proposed: u32) {
        if proposed != 0 && (self.frame_max == 0 || proposed < self.frame_max) {
            self.frame_max = proposed.max(FRAME_MIN_SIZE);
        }
    }

    fn payload_max(&self) -> usize {
        match self.frame_max {
            0 => usize::MAX,
            max => (max.max(FRAME_MIN_SIZE) as usize).saturating_sub(AROUND_BYTES),
        }
    }
}

fn ids(payload: &[u8]) -> Option<(u16, u16)> {
    match payload {
        [a, b, c, d, ..] => Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))),
        _ => None,
    }
}

fn plan(frame: &[u8]) -> Plan {
    let &[kind, _, _, a, b, c, d, ref payload @ ..] = frame else { return Plan::Await(HEAD_BYTES) };
    let size = u32::from_be_bytes([a, b, c, d]) as usize;
    let total = size + AROUND_BYTES;
    match kind {
        CONTENT_HEADER => Plan::Hold(total),
        METHOD if size >= 4 => match ids(payload) {
            None => Plan::Await(HEAD_BYTES + 4),
            Some((class, method)) if methods::concerns(class, method) => Plan::Hold(total),
            Some(_) => Plan::Pass(total),
        },
        _ => Plan::Pass(total),
    }
}
