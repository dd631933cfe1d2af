//! Bodies in AMQP 1.0's own types (OASIS AMQP 1.0 part 1, section 1.6, and part 3, sections 3.2.6 to 3.2.8).
//!
//! RabbitMQ hands a body of *data* sections on as plain bytes. One of *amqp-value* or *amqp-sequence* sections, which is
//! what many clients send by default, arrives encoded, with `amqp-1.0` as AMQP 0-9-1 `type`. This module reads it:
//! a string, bytes, or a JSON value.
//!
//! | AMQP 1.0 | JSON |
//! |---|---|
//! | null, boolean, every integer | the same |
//! | float, double | a number; infinities and NaN have no JSON |
//! | string, symbol, char | a string |
//! | timestamp | a number: milliseconds since 1970 |
//! | uuid | a string in the usual form |
//! | binary inside of a list or map | a string of base64 |
//! | list, array, sequence | an array; several sequences are one |
//! | map | an object, if all keys are different strings |
//!
//! Decimals, described values and other maps have none.

use std::collections::HashSet;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;

use crate::protocol::publish::PAYLOAD_DEPTH_MAX;

/// The AMQP 0-9-1 `type` (`content_type` in some releases) of an encoded body.
pub const ENCODED: &str = "amqp-1.0";

const DESCRIBED: u8 = 0x00;
const SMALL_ULONG: u8 = 0x53;
const DATA: u8 = 0x75;
const SEQUENCE: u8 = 0x76;
const VALUE: u8 = 0x77;
const FOOTER: u8 = 0x78;

/// What a body says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Text(String),
    Bytes(Vec<u8>),
    Json(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not sections of a body, or one that is cut short.
    #[error("not a body of AMQP 1.0")]
    Malformed,
    /// Sound, but JSON has nothing for it.
    #[error("no JSON for a value of AMQP 1.0")]
    NoJson,
    #[error("nested deeper than {PAYLOAD_DEPTH_MAX}")]
    Deep,
    /// A few bytes of AMQP can be many of JSON: an array of a billion nulls has 11 bytes.
    #[error("longer than {0} bytes as JSON")]
    Long(usize),
}

/// Reads the sections of a body; what comes of them has at most `bytes_max` bytes.
pub fn read(encoded: &[u8], bytes_max: usize) -> Result<Body, BodyError> {
    let mut input = Input(encoded);
    let mut data: Option<Vec<u8>> = None;
    let mut items: Option<Json> = None;
    let mut value = None;
    while !input.0.is_empty() {
        let section = input.descriptor()?;
        match (section, data.is_some(), items.is_some(), value.is_some()) {
            (DATA, _, false, false) => {
                let code = input.byte()?;
                let bytes = input.binary(code)?.ok_or(BodyError::Malformed)?;
                data.get_or_insert_default().extend_from_slice(bytes);
            }
            (SEQUENCE, false, _, false) => {
                let json = items.get_or_insert_with(|| Json::new(bytes_max));
                let code = input.byte()?;
                if !matches!(code, 0x45 | 0xc0 | 0xd0) {
                    return Err(BodyError::Malformed);
                }
                let (mut elements, count) = input.compound(code)?;
                for _ in 0..count {
                    json.item()?;
                    json.value(&mut elements, 1)?;
                }
                elements.end()?;
            }
            (VALUE, false, false, false) => value = Some(whole(&mut input, bytes_max)?),
            // Hashes and signatures for the receiver; the body ends before it.
            (FOOTER, ..) => break,
            _ => return Err(BodyError::Malformed),
        }
    }
    match (data, items, value) {
        (Some(data), ..) => Ok(Body::Bytes(data)),
        (_, Some(items), _) => items.array().map(Body::Json),
        (.., Some(value)) => Ok(value),
        _ => Err(BodyError::Malformed),
    }
}

/// The one value of an amqp-value section.
fn whole(input: &mut Input, bytes_max: usize) -> Result<Body, BodyError> {
    let code = *input.0.first().ok_or(BodyError::Malformed)?;
    if matches!(code, 0xa0 | 0xb0 | 0xa1 | 0xb1) {
        input.byte()?;
        let bytes = input.binary_or_text(code)?;
        return match code {
            0xa0 | 0xb0 => Ok(Body::Bytes(bytes.to_vec())),
            _ => Ok(Body::Text(utf8(bytes)?.to_owned())),
        };
    }
    let mut json = Json::new(bytes_max);
    json.value(input, 0)?;
    Ok(Body::Json(json.out))
}

fn utf8(bytes: &[u8]) -> Result<&str, BodyError> {
    std::str::from_utf8(bytes).map_err(|_| BodyError::Malformed)
}

/// The bytes that are not read yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BodyError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BodyError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, BodyError> {
        Ok(self.take(1)?[0])
    }

    /// A big-endian number of at most 8 bytes.
    fn unsigned(&mut self, width: usize) -> Result<u64, BodyError> {
        Ok(self.take(width)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, width: usize) -> Result<i64, BodyError> {
        let unused = 64 - 8 * width as u32;
        Ok((self.unsigned(width)? << unused) as i64 >> unused)
    }

    fn length(&mut self, width: usize) -> Result<usize, BodyError> {
        usize::try_from(self.unsigned(width)?).map_err(|_| BodyError::Malformed)
    }

    /// The number of a section: the descriptor of a described type (section 3.2).
    fn descriptor(&mut self) -> Result<u8, BodyError> {
        if self.byte()? != DESCRIBED {
            return Err(BodyError::Malformed);
        }
        match self.byte()? {
            SMALL_ULONG => self.byte(),
            0x80 => u8::try_from(self.unsigned(8)?).map_err(|_| BodyError::Malformed),
            _ => Err(BodyError::Malformed),
        }
    }

    /// The bytes of a value of variable width: the low four bits of its code tell how its length is written.
    fn binary_or_text(&mut self, code: u8) -> Result<&'a [u8], BodyError> {
        let length = self.length(if code & 0xf0 == 0xa0 { 1 } else { 4 })?;
        self.take(length)
    }

    /// `None`: not a binary.
    fn binary(&mut self, code: u8) -> Result<Option<&'a [u8]>, BodyError> {
        match code {
            0xa0 | 0xb0 => self.binary_or_text(code).map(Some),
            _ => Ok(None),
        }
    }

    /// The elements of a list or map, and how many there are.
    fn compound(&mut self, code: u8) -> Result<(Input<'a>, usize), BodyError> {
        let width = match code & 0xf0 {
            0x40 => return Ok((Input(&[]), 0)),
            0xc0 | 0xe0 => 1,
            _ => 4,
        };
        let size = self.length(width)?;
        let mut elements = Input(self.take(size)?);
        let count = elements.length(width)?;
        Ok((elements, count))
    }

    fn end(&self) -> Result<(), BodyError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(BodyError::Malformed)
        }
    }
}

/// JSON as it is written, with its bound.
struct Json {
    out: Vec<u8>,
    bytes_max: usize,
}

impl Json {
    fn new(bytes_max: usize) -> Self {
        Self { out: Vec::new(), bytes_max }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        self.out.extend_from_slice(bytes);
        if self.out.len() > self.bytes_max {
            return Err(BodyError::Long(self.bytes_max));
        }
        Ok(())
    }

    /// Before each item of the outermost array.
    fn item(&mut self) -> Result<(), BodyError> {
        self.push(if self.out.is_empty() { b"[" } else { b"," })
    }

    /// Ends the outermost array.
    fn array(mut self) -> Result<Vec<u8>, BodyError> {
        if self.out.is_empty() {
            self.push(b"[")?;
        }
        self.push(b"]")?;
        Ok(self.out)
    }

    fn text(&mut self, text: &str) -> Result<(), BodyError> {
        let quoted = serde_json::to_vec(text).map_err(|_| BodyError::NoJson)?;
        self.push(&quoted)
    }

    fn value(&mut self, input: &mut Input, depth: usize) -> Result<(), BodyError> {
        let code = input.byte()?;
        self.value_of(code, input, depth)
    }

    /// Writes the value that follows its code. `depth` is the number of arrays and objects around it.
    fn value_of(&mut self, code: u8, input: &mut Input, depth: usize) -> Result<(), BodyError> {
        match code {
            0x40 => self.push(b"null"),
            0x41 => self.push(b"true"),
            0x42 => self.push(b"false"),
            0x56 => match input.byte()? {
                0 => self.push(b"false"),
                1 => self.push(b"true"),
                _ => Err(BodyError::Malformed),
            },
            0x43 | 0x44 => self.push(b"0"),
            0x50 | 0x52 | 0x53 => self.integer(input.unsigned(1)?),
            0x60 => self.integer(input.unsigned(2)?),
            0x70 => self.integer(input.unsigned(4)?),
            0x80 => self.integer(input.unsigned(8)?),
            0x51 | 0x54 | 0x55 => self.integer(input.signed(1)?),
            0x61 => self.integer(input.signed(2)?),
            0x71 => self.integer(input.signed(4)?),
            0x81 | 0x83 => self.integer(input.signed(8)?),
            0x72 => self.float(f32::from_bits(input.unsigned(4)? as u32)),
            0x82 => self.float(f64::from_bits(input.unsigned(8)?)),
            0x73 => {
                let char = char::from_u32(input.unsigned(4)? as u32).ok_or(BodyError::Malformed)?;
                self.text(char.encode_utf8(&mut [0; 4]))
            }
            0x98 => self.text(&uuid::Uuid::from_slice(input.take(16)?).unwrap_or_default().to_string()),
            0xa0 | 0xb0 => self.text(&STANDARD.encode(input.binary_or_text(code)?)),
            0xa1 | 0xb1 | 0xa3 | 0xb3 => self.text(utf8(input.binary_or_text(code)?)?),
            0x45 | 0xc0 | 0xd0 => self.list(code, input, depth + 1),
            0xc1 | 0xd1 => self.map(code, input, depth + 1),
            0xe0 | 0xf0 => self.array_of(code, input, depth + 1),
            // A described value, or a decimal.
            DESCRIBED | 0x74 | 0x84 | 0x94 => Err(BodyError::NoJson),
            _ => Err(BodyError::Malformed),
        }
    }

    fn integer(&mut self, number: impl std::fmt::Display) -> Result<(), BodyError> {
        self.push(number.to_string().as_bytes())
    }

    fn float(&mut self, number: impl serde::Serialize + Into<f64> + Copy) -> Result<(), BodyError> {
        if !number.into().is_finite() {
            return Err(BodyError::NoJson);
        }
        let written = serde_json::to_vec(&number).map_err(|_| BodyError::NoJson)?;
        self.push(&written)
    }

    fn list(&mut self, code: u8, input: &mut Input, depth: usize) -> Result<(), BodyError> {
        check_depth(depth)?;
        let (mut elements, count) = input.compound(code)?;
        self.push(b"[")?;
        for index in 0..count {
            if index > 0 {
                self.push(b",")?;
            }
            self.value(&mut elements, depth)?;
        }
        elements.end()?;
        self.push(b"]")
    }

    /// All elements have the one code that stands before them (section 1.6.24).
    fn array_of(&mut self, code: u8, input: &mut Input, depth: usize) -> Result<(), BodyError> {
        check_depth(depth)?;
        let (mut elements, count) = input.compound(code)?;
        let of = elements.byte()?;
        self.push(b"[")?;
        for index in 0..count {
            if index > 0 {
                self.push(b",")?;
            }
            self.value_of(of, &mut elements, depth)?;
        }
        elements.end()?;
        self.push(b"]")
    }

    fn map(&mut self, code: u8, input: &mut Input, depth: usize) -> Result<(), BodyError> {
        check_depth(depth)?;
        let (mut elements, count) = input.compound(code)?;
        if count % 2 == 1 {
            return Err(BodyError::Malformed);
        }
        let mut keys = HashSet::new();
        self.push(b"{")?;
        for index in 0..count / 2 {
            if index > 0 {
                self.push(b",")?;
            }
            let key = match elements.byte()? {
                code @ (0xa1 | 0xb1 | 0xa3 | 0xb3) => utf8(elements.binary_or_text(code)?)?,
                _ => return Err(BodyError::NoJson),
            };
            if !keys.insert(key) {
                return Err(BodyError::NoJson);
            }
            self.text(key)?;
            self.push(b":")?;
            self.value(&mut elements, depth)?;
        }
        elements.end()?;
        self.push(b"}")
    }
}

fn check_depth(depth: usize) -> Result<(), BodyError> {
    if depth > PAYLOAD_DEPTH_MAX {
        return Err(BodyError::Deep);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
