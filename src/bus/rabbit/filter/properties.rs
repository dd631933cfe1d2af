//! Content headers (AMQP 0-9-1 section 4.2.6.1): checks one, and rewrites one that the client library cannot
//! decode, so that its readable properties arrive together with a header that says what is wrong with the rest.

use std::ops::Range;

use super::table;

/// The header that tells what could not be read, and why.
pub const UNREADABLE_HEADER: &str = "x-warren-unreadable";
/// Longest reason, in bytes. Thirteen short strings, this and the frame around them fit into 4 KiB, the
/// smallest frame size of AMQP, so that a rewritten header fits into a frame of every connection.
const REASON_BYTES_MAX: usize = 200;
/// How much of an undecodable value a reason repeats, as hexadecimal digits of so many bytes.
const SAMPLE_BYTES: usize = 16;
/// Class, weight and body size, which stand before the property flags.
const FIXED_BYTES: usize = 12;
const CONTINUED: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ShortString,
    Table,
    Octet,
    LongLong,
}

/// The properties of the class `basic`, in their order; the first has the highest bit of the flags.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content_type", Kind::ShortString),
    ("content_encoding", Kind::ShortString),
    ("headers", Kind::Table),
    ("delivery_mode", Kind::Octet),
    ("priority", Kind::Octet),
    ("correlation_id", Kind::ShortString),
    ("reply_to", Kind::ShortString),
    ("expiration", Kind::ShortString),
    ("message_id", Kind::ShortString),
    ("timestamp", Kind::LongLong),
    ("type", Kind::ShortString),
    ("user_id", Kind::ShortString),
    ("app_id", Kind::ShortString),
    ("cluster_id", Kind::ShortString),
];
const HEADERS: usize = 2;

/// What is wrong with a message, in words for a person.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// Adds a flaw, and the bytes that are wrong.
    pub fn add(&mut self, property: &str, why: &str, sample: &[u8]) {
        if !self.0.is_empty() {
            self.0.push_str("; ");
        }
        self.0.push_str(property);
        self.0.push_str(": ");
        self.0.push_str(why);
        if !sample.is_empty() {
            self.0.push_str(" (");
            for byte in sample.iter().take(SAMPLE_BYTES) {
                for digit in [byte >> 4, byte & 15] {
                    self.0.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
                }
            }
            self.0.push_str(if sample.len() > SAMPLE_BYTES { "...)" } else { ")" });
        }
        // All of it is ASCII, so that any byte is a character's end.
        self.0.truncate(REASON_BYTES_MAX);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The properties that are sound: where their values stand in the payload.
#[derive(Debug, Default)]
struct Sound {
    values: [Option<Range<usize>>; PROPERTIES.len()],
}

/// Checks the payload of a content-header frame. `None`: the client library can decode it. Otherwise the payload
/// to put in its place. `known` is what is wrong with the message already; `limit` is the longest payload that
/// the client library accepts, and `cut` says that the payload is longer than what is here.
pub fn rewritten(payload: &[u8], known: Reason, limit: usize, cut: bool) -> Option<Vec<u8>> {
    let mut reason = known;
    let mut sound = read(payload, &mut reason);
    if cut || payload.len() > limit {
        sound.values[HEADERS] = None;
        reason.add("headers", "longer than a frame of this connection", &[]);
    }
    if reason.is_empty() {
        return None;
    }
    let written = write(payload, &sound, &reason);
    if written.len() <= limit {
        return Some(written);
    }
    sound.values[HEADERS] = None;
    reason.add("headers", "dropped to make room for this reason", &[]);
    Some(write(payload, &sound, &reason))
}

/// Reads all properties, adds to `reason` what is wrong with them, and tells the sound ones.
fn read(payload: &[u8], reason: &mut Reason) -> Sound {
    let mut sound = Sound::default();
    let Some(flags) = flags(payload) else {
        reason.add("content header", "cut short", &[]);
        return sound;
    };
    let mut at = FIXED_BYTES + 2;
    if flags & CONTINUED != 0 {
        // No property has its flag in a second word; those that are meant for one have values of unknown length
        // behind all known ones.
        reason.add("property flags", "continued", &[]);
        while more_flags(payload, &mut at) {}
    }
    for (index, (name, kind)) in PROPERTIES.into_iter().enumerate() {
        if flags & (0x8000 >> index) == 0 {
            continue;
        }
        let Some(value) = extent(payload, at, kind) else {
            reason.add(name, "cut short", &[]);
            return sound;
        };
        at = value.end;
        let flaw = match kind {
            Kind::ShortString if std::str::from_utf8(&payload[value.start + 1..value.end]).is_err() => {
                Some(("not UTF-8", &payload[value.start + 1..value.end]))
            }
            Kind::Table => {
                table::check(&payload[value.start + 4..value.end]).err().map(|flaw| (flaw.why(), &[][..]))
            }
            _ => None,
        };
        match flaw {
            Some((why, sample)) => reason.add(name, why, sample),
            None => sound.values[index] = Some(value),
        }
    }
    if at < payload.len() {
        reason.add("content header", "bytes left over", &payload[at..]);
    }
    sound
}

fn flags(payload: &[u8]) -> Option<u16> {
    let bytes = payload.get(FIXED_BYTES..FIXED_BYTES + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Skips one further word of flags, and tells whether another one follows.
fn more_flags(payload: &[u8], at: &mut usize) -> bool {
    let Some(Ok(word)) = payload.get(*at..*at + 2).map(<[u8; 2]>::try_from) else { return false };
    *at += 2;
    u16::from_be_bytes(word) & CONTINUED != 0
}

/// Where a value that begins at `at` stands, its length included.
fn extent(payload: &[u8], at: usize, kind: Kind) -> Option<Range<usize>> {
    let size = match kind {
        Kind::Octet => 1,
        Kind::LongLong => 8,
        Kind::ShortString => 1 + usize::from(*payload.get(at)?),
        Kind::Table => {
            let length: [u8; 4] = payload.get(at..at + 4)?.try_into().ok()?;
            4 + u32::from_be_bytes(length) as usize
        }
    };
    let value = at..at + size;
    payload.get(value.clone())?;
    Some(value)
}

fn write(payload: &[u8], sound: &Sound, reason: &Reason) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + UNREADABLE_HEADER.len() + REASON_BYTES_MAX + 32);
    let mut fixed = [0; FIXED_BYTES];
    let there = payload.len().min(FIXED_BYTES);
    fixed[..there].copy_from_slice(&payload[..there]);
    out.extend_from_slice(&fixed);
    let mut flags = 0x8000 >> HEADERS;
    for (index, value) in sound.values.iter().enumerate() {
        if value.is_some() {
            flags |= 0x8000 >> index;
        }
    }
    out.extend_from_slice(&u16::to_be_bytes(flags));
    for (index, value) in sound.values.iter().enumerate() {
        if index == HEADERS {
            let fields = value.clone().map_or(&[][..], |value| &payload[value.start + 4..value.end]);
            write_headers(&mut out, fields, reason);
        } else if let Some(value) = value {
            out.extend_from_slice(&payload[value.clone()]);
        }
    }
    out
}

/// Ours stands last, so that it counts whatever a publisher wrote under its name.
fn write_headers(out: &mut Vec<u8>, fields: &[u8], reason: &Reason) {
    let added = 1 + UNREADABLE_HEADER.len() + 1 + 4 + reason.0.len();
    out.extend_from_slice(&((fields.len() + added) as u32).to_be_bytes());
    out.extend_from_slice(fields);
    out.push(UNREADABLE_HEADER.len() as u8);
    out.extend_from_slice(UNREADABLE_HEADER.as_bytes());
    out.push(b'S');
    out.extend_from_slice(&(reason.0.len() as u32).to_be_bytes());
    out.extend_from_slice(reason.0.as_bytes());
}
