//! Method frames that carry names and texts from outside: the client library gives up the connection if one of
//! these is not UTF-8, so they are mended.

use super::properties::Reason;

#[derive(Debug, Clone, Copy)]
enum Field {
    Skip(usize),
    ShortString(&'static str),
}

use Field::{ShortString, Skip};

/// The methods that the filter looks into, by class and method id, with their fields.
fn fields(class: u16, method: u16) -> Option<&'static [Field]> {
    Some(match (class, method) {
        // connection.close, channel.close: the text may repeat a name, and end within a character.
        (10, 50) | (20, 40) => &[Skip(2), ShortString("reply text")],
        // basic.return
        (60, 50) => {
            &[Skip(2), ShortString("reply text"), ShortString("exchange"), ShortString("routing key")]
        }
        // basic.deliver
        (60, 60) => {
            &[ShortString("consumer tag"), Skip(9), ShortString("exchange"), ShortString("routing key")]
        }
        // basic.get-ok
        (60, 71) => &[Skip(9), ShortString("exchange"), ShortString("routing key")],
        _ => return None,
    })
}

/// Whether a method frame has to be held until it is there as a whole.
pub fn concerns(class: u16, method: u16) -> bool {
    fields(class, method).is_some() || is_tune(class, method) || is_open_ok(class, method)
}

/// connection.tune: the broker's proposal of limits.
pub fn is_tune(class: u16, method: u16) -> bool {
    (class, method) == (10, 30)
}

/// connection.open-ok: the end of the handshake.
pub fn is_open_ok(class: u16, method: u16) -> bool {
    (class, method) == (10, 41)
}

/// The largest frame that the broker proposes in `connection.tune`; 0 = no limit.
pub fn frame_max(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.get(6..10)?.try_into().ok()?))
}

/// A method whose texts are UTF-8, in place of one whose texts are not.
pub struct Mended {
    pub payload: Vec<u8>,
    pub reason: Reason,
}

/// `None` if the method is fine as it is.
pub fn mended(payload: &[u8], class: u16, method: u16) -> Option<Mended> {
    let fields = fields(class, method)?;
    if all_utf8(payload, fields)? {
        return None;
    }
    let mut mended = Mended { payload: payload[..4].to_vec(), reason: Reason::default() };
    let mut at = 4;
    for field in fields {
        match *field {
            Skip(count) => {
                mended.payload.extend_from_slice(payload.get(at..at + count)?);
                at += count;
            }
            ShortString(name) => {
                let text = text(payload, &mut at)?;
                let lossy = String::from_utf8_lossy(text);
                if std::str::from_utf8(text).is_err() {
                    mended.reason.add(name, "not UTF-8", text);
                }
                let mut end = lossy.len().min(255);
                while !lossy.is_char_boundary(end) {
                    end -= 1;
                }
                mended.payload.push(end as u8);
                mended.payload.extend_from_slice(&lossy.as_bytes()[..end]);
            }
        }
    }
    mended.payload.extend_from_slice(&payload[at..]);
    Some(mended)
}

/// `None` if the method is cut short: the broker's fault, which the client library reports.
fn all_utf8(payload: &[u8], fields: &[Field]) -> Option<bool> {
    let mut at = 4;
    let mut fine = true;
    for field in fields {
        match *field {
            Skip(count) => at += count,
            ShortString(_) => fine &= std::str::from_utf8(text(payload, &mut at)?).is_ok(),
        }
    }
    Some(fine)
}

fn text<'a>(payload: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let length = usize::from(*payload.get(*at)?);
    let text = payload.get(*at + 1..*at + 1 + length)?;
    *at += 1 + length;
    Some(text)
}
