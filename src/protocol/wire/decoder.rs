//! Bytes from one socket in, complete messages out: framing, fragments and limits of RFC 6455 section 5.

use std::ops::ControlFlow;

use super::header::{parse, unmask, Header, Opcode, HEADER_BYTES_MAX};
use super::inflate::{deflated_bytes_max, inflated};
use super::utf8::valid_prefix;
use super::{Event, Violation};

/// Longest message, unless the owner sets another limit, in bytes.
pub const MESSAGE_BYTES_MAX: u32 = 65_536;
/// Most frames of one message. Without it empty fragments would keep a message open for ever at no cost.
pub const FRAGMENTS_MAX: u16 = 1_024;

/// What one socket needs to remember between two reads: nothing but 24 bytes while no frame is cut in two.
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: u32,
    /// Counts what was finished, so that the owner can tell one unfinished message from the next.
    serial: u32,
    /// After a close frame, a violation or a sink that had enough: the rest of the stream means nothing.
    done: bool,
    /// Compression was negotiated: RSV1 has a meaning.
    may_deflate: bool,
    unfinished: Option<Box<Unfinished>>,
}

/// Allocated when a read ends inside a frame or a message, freed when both are complete.
#[derive(Debug, Default)]
struct Unfinished {
    head: [u8; HEADER_BYTES_MAX],
    /// How much of `head` has arrived; 0 while no header is cut.
    head_len: usize,
    /// A frame whose header is known and whose payload is not all there.
    frame: Option<Frame>,
    /// The payload of a cut control frame. Apart from `message`: it may come between two fragments.
    control: Vec<u8>,
    message: Option<Message>,
}

#[derive(Debug)]
struct Frame {
    fin: bool,
    opcode: Opcode,
    /// Turned so that its first byte belongs to the next payload byte.
    mask: [u8; 4],
    /// Payload bytes that have not arrived.
    left: usize,
}

#[derive(Debug)]
struct Message {
    is_text: bool,
    /// `data` is what came, and becomes a message when all of it has come.
    deflated: bool,
    data: Vec<u8>,
    /// How much of `data` is known to be UTF-8 (all but the last three bytes at most); unused in binary and compressed
    /// messages.
    valid: usize,
    fragments: u16,
}

type Flow = ControlFlow<()>;

impl Decoder {
    pub fn new(message_bytes_max: u32) -> Self {
        Self { message_bytes_max, serial: 0, done: false, may_deflate: false, unfinished: None }
    }

    /// Of a socket with which compression was negotiated (RFC 7692), if it was.
    pub fn deflating(self, may_deflate: bool) -> Self {
        Self { may_deflate, ..self }
    }

    /// Reads everything in `input`, which is unmasked in place and may be reused afterwards, and hands each
    /// complete message to `sink`. A frame that lies in `input` as a whole is handed out without a copy.
    ///
    /// A close frame, a violation and a sink that breaks end the stream: what follows is dropped unread, now and
    /// in later calls.
    pub fn decode(
        &mut self,
        input: &mut [u8],
        sink: &mut impl FnMut(Event<'_>) -> Flow,
    ) -> Result<(), Violation> {
        let mut at = 0;
        while !self.done {
            let Some(rest) = input.get_mut(at..).filter(|rest| !rest.is_empty()) else { break };
            match self.step(rest, sink) {
                Ok((used, Flow::Continue(()))) => at += used,
                Ok((_, Flow::Break(()))) => self.end(),
                Err(violation) => {
                    self.end();
                    return Err(violation);
                }
            }
        }
        if self.unfinished.as_ref().is_some_and(|unfinished| unfinished.is_empty()) {
            self.unfinished = None;
        }
        Ok(())
    }

    /// Whether a frame or a fragmented message waits for its rest.
    pub fn has_partial(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Names what waits for its rest. Two looks that see the same number see the same unfinished message,
    /// whatever came in between (control frames may): the owner closes when the looks are too far apart.
    pub fn unfinished(&self) -> Option<u32> {
        self.has_partial().then_some(self.serial)
    }

    /// Whether the stream has ended: nothing will be read any more.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Heap bytes held for an unfinished message: at most twice the bytes of it that arrived, and a constant.
    pub fn held_bytes(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| {
            let message = unfinished.message.as_ref().map_or(0, |message| message.data.capacity());
            size_of::<Unfinished>() + unfinished.control.capacity() + message
        })
    }

    fn end(&mut self) {
        self.done = true;
        self.unfinished = None;
    }

    /// Reads one frame, or what there is of it. Returns how many bytes it took: at least one.
    fn step(
        &mut self,
        input: &mut [u8],
        sink: &mut impl FnMut(Event<'_>) -> Flow,
    ) -> Result<(usize, Flow), Violation> {
        if let Some(frame) = self.unfinished.as_mut().and_then(|unfinished| unfinished.frame.take()) {
            return self.more_payload(frame, input, sink);
        }
        let Some((header, used)) = self.read_header(input)? else {
            return Ok((input.len(), Flow::Continue(())));
        };
        let len = self.admit(&header)?;
        let Some(payload) = input.get_mut(used..).and_then(|rest| rest.get_mut(..len)) else {
            self.open(&header, len);
            return Ok((used, Flow::Continue(())));
        };
        unmask(payload, header.mask);
        let flow = self.whole_frame(&header, payload, sink)?;
        Ok((used + len, flow))
    }

    /// The next header and how many bytes of `input` it took; `None` when it is cut, all of `input` is then kept.
    fn read_header(&mut self, input: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        let before = self.unfinished.as_ref().map_or(0, |unfinished| unfinished.head_len);
        if before == 0 {
            if let Some(found) = parse(input, self.may_deflate)? {
                return Ok(Some(found));
            }
        }
        let unfinished = self.unfinished.get_or_insert_default();
        let room = unfinished.head.get_mut(before..).unwrap_or_default();
        let taken = room.len().min(input.len());
        for (slot, byte) in room.iter_mut().zip(input) {
            *slot = *byte;
        }
        let arrived = before + taken;
        let found = parse(unfinished.head.get(..arrived).unwrap_or_default(), self.may_deflate)?;
        unfinished.head_len = if found.is_some() { 0 } else { arrived };
        Ok(found.map(|(header, used)| (header, used - before)))
    }

    /// Checks a header against the message it belongs to, before a byte of its payload is kept.
    fn admit(&self, header: &Header) -> Result<usize, Violation> {
        let message = self.unfinished.as_ref().and_then(|unfinished| unfinished.message.as_ref());
        let before = match (header.opcode, message) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(header.len as usize),
            (Opcode::Continuation, None) => {
                return Err(Violation::Protocol("continuation without a message"));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Violation::Protocol("new message inside a fragmented one"));
            }
            (Opcode::Continuation, Some(message)) if message.fragments >= FRAGMENTS_MAX => {
                return Err(Violation::TooBig);
            }
            (Opcode::Continuation, Some(message)) => message.data.len() as u64,
            (Opcode::Text | Opcode::Binary, None) => 0,
        };
        let deflated = header.deflated || message.is_some_and(|message| message.deflated);
        let bytes_max = arriving_bytes_max(self.message_bytes_max, deflated);
        // No overflow: the parser refuses lengths of 2^63 and more.
        if before + header.len > bytes_max {
            return Err(Violation::TooBig);
        }
        Ok(header.len as usize)
    }

    /// A frame that lies in the input as a whole, already unmasked.
    fn whole_frame(
        &mut self,
        header: &Header,
        payload: &[u8],
        sink: &mut impl FnMut(Event<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        match header.opcode {
            opcode if opcode.is_control() => self.control(opcode, payload, sink),
            opcode @ (Opcode::Text | Opcode::Binary) if header.fin => {
                self.message(opcode == Opcode::Text, header.deflated, payload, sink)
            }
            _ => {
                self.open_message(header);
                self.append(payload, if header.fin { payload.len() } else { usize::MAX })?;
                self.end_of_frame(header.fin, sink)
            }
        }
    }

    /// Remembers a frame whose payload is not all there.
    fn open(&mut self, header: &Header, len: usize) {
        if !header.opcode.is_control() {
            self.open_message(header);
        }
        let frame = Frame { fin: header.fin, opcode: header.opcode, mask: header.mask, left: len };
        self.unfinished.get_or_insert_default().frame = Some(frame);
    }

    /// Payload of a frame that began in an earlier read; the frame is put back unless this completes it.
    fn more_payload(
        &mut self,
        mut frame: Frame,
        input: &mut [u8],
        sink: &mut impl FnMut(Event<'_>) -> Flow,
    ) -> Result<(usize, Flow), Violation> {
        let (fin, opcode, left_before) = (frame.fin, frame.opcode, frame.left);
        let used = frame.left.min(input.len());
        let payload = input.get_mut(..used).unwrap_or_default();
        frame.mask = unmask(payload, frame.mask);
        frame.left -= used;
        let complete = frame.left == 0;
        let unfinished = self.unfinished.get_or_insert_default();
        if !complete {
            unfinished.frame = Some(frame);
        }
        let mut flow = Flow::Continue(());
        if opcode.is_control() {
            unfinished.control.extend_from_slice(payload);
            if complete {
                let payload = std::mem::take(&mut unfinished.control);
                flow = self.control(opcode, &payload, sink)?;
            }
        } else {
            self.append(payload, if fin { left_before } else { usize::MAX })?;
            if complete {
                flow = self.end_of_frame(fin, sink)?;
            }
        }
        Ok((used, flow))
    }

    /// Counts a data frame towards its message, which begins here unless the frame is a continuation.
    fn open_message(&mut self, header: &Header) {
        let (is_text, deflated) = (header.opcode == Opcode::Text, header.deflated);
        let new = || Message { is_text, deflated, data: Vec::new(), valid: 0, fragments: 0 };
        let message = self.unfinished.get_or_insert_default().message.get_or_insert_with(new);
        message.fragments += 1;
    }

    /// Adds arrived payload to the message. `most` is what can still come: the buffer grows by doubling, but
    /// neither beyond that nor beyond the limit, and never because of a length that was only declared.
    fn append(&mut self, payload: &[u8], most: usize) -> Result<(), Violation> {
        let Some(message) = self.unfinished.as_mut().and_then(|unfinished| unfinished.message.as_mut())
        else {
            return Ok(());
        };
        let limit = arriving_bytes_max(self.message_bytes_max, message.deflated) as usize;
        let len = message.data.len();
        if message.data.capacity() - len < payload.len() {
            let double = len.min(most).min(limit.saturating_sub(len));
            message.data.reserve_exact(double.max(payload.len()));
        }
        message.data.extend_from_slice(payload);
        if message.is_text && !message.deflated {
            message.valid += valid_prefix(message.data.get(message.valid..).unwrap_or_default())?;
        }
        Ok(())
    }

    fn end_of_frame(
        &mut self,
        fin: bool,
        sink: &mut impl FnMut(Event<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        if !fin {
            return Ok(Flow::Continue(()));
        }
        let message = self.unfinished.as_mut().and_then(|unfinished| unfinished.message.take());
        let Some(Message { is_text, deflated, data, .. }) = message else { return Ok(Flow::Continue(())) };
        self.message(is_text, deflated, &data, sink)
    }

    /// All of a message has come.
    fn message(
        &mut self,
        is_text: bool,
        deflated: bool,
        data: &[u8],
        sink: &mut impl FnMut(Event<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        self.serial = self.serial.wrapping_add(1);
        let mut hand_out = |data: &[u8]| match is_text {
            true => Ok(sink(Event::Text(std::str::from_utf8(data).map_err(|_| Violation::Utf8)?))),
            false => Ok(sink(Event::Binary(data))),
        };
        match deflated {
            true => inflated(data, self.message_bytes_max as usize, hand_out)?,
            false => hand_out(data),
        }
    }

    fn control(
        &mut self,
        opcode: Opcode,
        payload: &[u8],
        sink: &mut impl FnMut(Event<'_>) -> Flow,
    ) -> Result<Flow, Violation> {
        // A control frame between two fragments does not make the message any younger.
        if self.unfinished.as_ref().is_none_or(|unfinished| unfinished.message.is_none()) {
            self.serial = self.serial.wrapping_add(1);
        }
        match opcode {
            Opcode::Ping => Ok(sink(Event::Ping(payload))),
            Opcode::Pong => Ok(sink(Event::Pong(payload))),
            _ => {
                // Nothing is read after a close frame, whatever the sink wants (section 5.5.1).
                let _ = sink(Event::Close(close_payload(payload)?));
                Ok(Flow::Break(()))
            }
        }
    }
}

impl Unfinished {
    fn is_empty(&self) -> bool {
        self.head_len == 0 && self.frame.is_none() && self.message.is_none()
    }
}

/// Longest message as it comes; a compressed one is measured again when it is inflated.
fn arriving_bytes_max(message_bytes_max: u32, deflated: bool) -> u64 {
    match deflated {
        true => deflated_bytes_max(message_bytes_max),
        false => message_bytes_max.into(),
    }
}

/// The code and reason of a close frame (RFC 6455 sections 5.5.1 and 7.4).
fn close_payload(payload: &[u8]) -> Result<Option<(u16, &str)>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => Ok(None),
            _ => Err(Violation::Protocol("close frame with one byte")),
        };
    };
    let code = u16::from_be_bytes(*code);
    // 1004 has no meaning; 1005, 1006 and 1015 must not be sent; 1012 to 1014 were registered after the RFC.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol("close code not allowed"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
    Ok(Some((code, reason)))
}

#[cfg(test)]
mod tests;
