//! Whether a field table can be decoded, found out without recursion (AMQP 0-9-1 section 4.2.5.5).

/// Deepest nesting of tables and arrays that is passed on; the headers table itself is level 1. lapin decodes
/// each level with some kilobytes of stack. RabbitMQ's own `x-death` and `CC` need two levels.
pub const DEPTH_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFlaw {
    /// Something reaches beyond the table that it is in.
    CutShort,
    /// A field's name is not UTF-8.
    Name,
    /// A field's type is none that AMQP and RabbitMQ know.
    Type,
    /// More than [`DEPTH_MAX`] levels.
    Deep,
}

impl TableFlaw {
    pub fn why(self) -> &'static str {
        match self {
            TableFlaw::CutShort => "cut short",
            TableFlaw::Name => "a name in it is not UTF-8",
            TableFlaw::Type => "a value in it has an unknown type",
            TableFlaw::Deep => "nested too deeply",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Level {
    end: usize,
    /// The fields of a table have names, the elements of an array do not.
    named: bool,
}

/// Checks what is in a table, without its length.
pub fn check(bytes: &[u8]) -> Result<(), TableFlaw> {
    let mut levels = [Level { end: bytes.len(), named: true }; DEPTH_MAX];
    let mut depth = 1;
    let mut at = 0;
    while depth > 0 {
        let Level { end, named } = levels[depth - 1];
        if at == end {
            depth -= 1;
            continue;
        }
        if named {
            let name = short_string(bytes, &mut at, end)?;
            std::str::from_utf8(name).map_err(|_| TableFlaw::Name)?;
        }
        let kind = *take(bytes, &mut at, 1, end)?.first().ok_or(TableFlaw::CutShort)?;
        match kind {
            b'F' | b'A' => {
                let length = length(bytes, &mut at, end)?;
                if length > end - at {
                    return Err(TableFlaw::CutShort);
                }
                let inner = levels.get_mut(depth).ok_or(TableFlaw::Deep)?;
                *inner = Level { end: at + length, named: kind == b'F' };
                depth += 1;
            }
            b'S' | b'x' => {
                let length = length(bytes, &mut at, end)?;
                take(bytes, &mut at, length, end)?;
            }
            _ => {
                take(bytes, &mut at, fixed_size(kind).ok_or(TableFlaw::Type)?, end)?;
            }
        }
    }
    Ok(())
}

/// The bytes of a value of this type; `None` if the type is not known, or its values vary in length.
fn fixed_size(kind: u8) -> Option<usize> {
    Some(match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        _ => return None,
    })
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, count: usize, end: usize) -> Result<&'a [u8], TableFlaw> {
    if count > end - *at {
        return Err(TableFlaw::CutShort);
    }
    let taken = &bytes[*at..*at + count];
    *at += count;
    Ok(taken)
}

fn short_string<'a>(bytes: &'a [u8], at: &mut usize, end: usize) -> Result<&'a [u8], TableFlaw> {
    let length = *take(bytes, at, 1, end)?.first().ok_or(TableFlaw::CutShort)?;
    take(bytes, at, length.into(), end)
}

fn length(bytes: &[u8], at: &mut usize, end: usize) -> Result<usize, TableFlaw> {
    let length = take(bytes, at, 4, end)?.try_into().map_err(|_| TableFlaw::CutShort)?;
    Ok(u32::from_be_bytes(length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &[u8], kind: u8, value: &[u8]) -> Vec<u8> {
        [&[name.len() as u8][..], name, &[kind], value].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn nested(levels: usize, kind: u8) -> Vec<u8> {
        (1..levels).fold(Vec::new(), |inner, level| match kind {
            b'A' if level < levels - 1 => [&[b'A'][..], &long(&inner)].concat(),
            _ => field(b"n", kind, &long(&inner)),
        })
    }

    #[test]
    fn each_flaw_is_told_apart() {
        for (table, verdict) in [
            (vec![], Ok(())),
            (field(b"a", b'S', &long(b"\xff")), Ok(())),
            (field(b"", b'V', b""), Ok(())),
            (field(b"a", b'A', &long(b"VVt\x01")), Ok(())),
            (field(b"\xff", b't', b"\x01"), Err(TableFlaw::Name)),
            (field(b"a", b'z', b"\x01"), Err(TableFlaw::Type)),
            (field(b"a", b'I', b"\x01"), Err(TableFlaw::CutShort)),
            (field(b"a", b'S', b"\xff\xff\xff\xff"), Err(TableFlaw::CutShort)),
            (field(b"a", b'F', b"\0\0\0\x05"), Err(TableFlaw::CutShort)),
            (vec![9, b'a'], Err(TableFlaw::CutShort)),
            (vec![1, b'a'], Err(TableFlaw::CutShort)),
        ] {
            assert_eq!(check(&table), verdict, "{table:?}");
        }
    }

    #[test]
    fn depth_is_bounded_and_costs_no_stack() {
        for kind in [b'F', b'A'] {
            assert_eq!(check(&nested(DEPTH_MAX, kind)), Ok(()));
        }
        assert_eq!(check(&nested(DEPTH_MAX + 1, b'F')), Err(TableFlaw::Deep));
        assert_eq!(check(&nested(10_000, b'F')), Err(TableFlaw::Deep));
    }
}
