//! Compressed messages of clients (RFC 7692 section 7.2.2): inflated whole, within a bound that is checked on the way.

use std::cell::Cell;

use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{decompress, DecompressorOxide};
use miniz_oxide::inflate::TINFLStatus;

use super::Violation;

/// What the client has cut off, to be put back; and a last empty block of this side, which can be read as one only if the
/// message ends with a block of its own, and so tells whether all of it has come.
const TRAILER: [u8; 6] = [0, 0, 0xff, 0xff, 0x03, 0x00];
/// Most blocks of one message. Eleven bytes make an empty block whose codes take five microseconds to set up, so that
/// 64 KiB of them would hold up a thread for tens of milliseconds. Compressors make a block of some thousand symbols, and
/// one or two more whenever they are flushed.
const BLOCKS_MAX: u32 = 256;
/// Room for the first piece of a message, in bytes; it doubles up to the limit.
const ROOM_BYTES_MIN: usize = 4 * 1024;

const BROKEN: Violation = Violation::Protocol("compressed data that is not DEFLATE");

thread_local! {
    /// One for each thread that reads from sockets, made by the first message. Taken out while it is used.
    static INFLATER: Cell<Option<Box<Inflater>>> = const { Cell::new(None) };
}

/// Between two messages nothing in it means anything. Its output is one piece of memory and not a window that wraps, so
/// that what refers to something before the message fails.
#[derive(Default)]
struct Inflater {
    stream: DecompressorOxide,
    /// As long as the longest message so far, and one byte more than the limit at most.
    out: Vec<u8>,
}

/// The longest payload of a message that is no longer than the limit when it is inflated. Compressing makes some messages
/// longer: by an eighth at most with the fixed codes of RFC 1951 section 3.2.6, and by a few bytes for its blocks.
pub(super) fn deflated_bytes_max(bytes_max: u32) -> u64 {
    const BLOCKS: u64 = 64;
    u64::from(bytes_max) + u64::from(bytes_max / 8) + BLOCKS
}

/// Hands the inflated message to `then`. Of one that would be longer than `bytes_max` no more is inflated than tells so.
///
/// Data that cannot be inflated breaks the protocol: RFC 7692 names no code for it, 1007 of RFC 6455 section 7.4.1 is about
/// what a message contains, and this is how it is sent.
pub(super) fn inflated<T>(
    data: &[u8],
    bytes_max: usize,
    then: impl FnOnce(&[u8]) -> T,
) -> Result<T, Violation> {
    let taken = INFLATER.try_with(Cell::take).ok().flatten();
    let mut inflater = taken.unwrap_or_default();
    let result = inflater.run(data, bytes_max).map(|len| then(inflater.out.get(..len).unwrap_or_default()));
    let _ = INFLATER.try_with(|cell| cell.set(Some(inflater)));
    result
}

impl Inflater {
    /// The length of the message, which lies at the start of `out`.
    fn run(&mut self, data: &[u8], bytes_max: usize) -> Result<usize, Violation> {
        self.stream.init();
        let (mut len, mut blocks) = (0, 0);
        for (mut rest, is_last) in [(data, false), (&TRAILER[..], true)] {
            loop {
                let (status, used, made) = self.step(rest, len, bytes_max);
                rest = rest.get(used..).unwrap_or_default();
                len += made;
                if len > bytes_max {
                    return Err(Violation::TooBig);
                }
                match status {
                    TINFLStatus::HasMoreOutput => continue,
                    TINFLStatus::NeedsMoreInput if !is_last => break,
                    TINFLStatus::Done if is_last && rest.is_empty() => break,
                    // A client may end a block as if it were the last one of a stream (section 7.2.3.4).
                    TINFLStatus::Done if !is_last => self.stream.init(),
                    TINFLStatus::BlockBoundary => {}
                    _ => return Err(BROKEN),
                }
                blocks += 1;
                if blocks > BLOCKS_MAX {
                    return Err(Violation::TooBig);
                }
            }
        }
        Ok(len)
    }

    /// Inflates into the room behind `len`, of which there is some: how many bytes were read, and how many came out.
    fn step(&mut self, input: &[u8], len: usize, bytes_max: usize) -> (TINFLStatus, usize, usize) {
        if len >= self.out.len() {
            let room = (2 * self.out.len()).clamp(ROOM_BYTES_MIN, ROOM_BYTES_MIN.max(bytes_max + 1));
            self.out.resize(room, 0);
        }
        const FLAGS: u32 = TINFL_FLAG_HAS_MORE_INPUT
            | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF
            | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        decompress(&mut self.stream, input, &mut self.out, len, FLAGS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::fuzz::fuzz;
    use flate2::{Compress, Compression, FlushCompress};

    /// As a client does it.
    fn compressed(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * message.len() + 100);
        Compress::new(Compression::best(), false)
            .compress_vec(message, &mut out, FlushCompress::Sync)
            .unwrap();
        out.truncate(out.len() - 4);
        out
    }

    fn read(data: &[u8], bytes_max: usize) -> Result<Vec<u8>, Violation> {
        inflated(data, bytes_max, |message| message.to_vec())
    }

    fn room() -> usize {
        let inflater = INFLATER.take().unwrap();
        let len = inflater.out.len();
        INFLATER.set(Some(inflater));
        len
    }

    #[test]
    fn the_examples_of_section_7_2_3() {
        for data in [
            &b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..],
            // Without compression.
            b"\x00\x05\x00\xfa\xffHello\x00",
            // With BFINAL.
            b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
            // In two blocks.
            b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
        ] {
            assert_eq!(read(data, 5), Ok(b"Hello".to_vec()), "{data:02x?}");
            assert_eq!(read(data, 4), Err(Violation::TooBig), "{data:02x?}");
        }
        assert_eq!(read(b"\x00", 5), Ok(vec![]));
        // The second "Hello" of a client that keeps its window, which none may here.
        assert_eq!(read(b"\xf2\x00\x11\x00\x00", 5), Err(BROKEN));
    }

    #[test]
    fn what_is_not_deflate_is_refused() {
        let whole = compressed(&b"some words, some more words, and words again".repeat(9));
        for end in 0..whole.len() {
            assert!(read(&whole[..end], 1_000).is_err(), "cut after {end} bytes");
        }
        for data in
            [&b""[..], b"\x07", b"\xff\xff", b"\x00\x05\x00\xfa\xfeHello\x00", b"\x00\x05\x00\xfa\xffHell"]
        {
            assert_eq!(read(data, 1_000), Err(BROKEN), "{data:02x?}");
        }
        // One octet short of the example with BFINAL.
        assert_eq!(read(b"\xf3\x48\xcd\xc9\xc9\x07\x00", 5), Err(BROKEN));
    }

    #[test]
    fn a_message_at_the_limit_is_read_and_one_beyond_is_not() {
        for len in [0, 1, ROOM_BYTES_MIN - 1, ROOM_BYTES_MIN, ROOM_BYTES_MIN + 1, 65_536] {
            let message = vec![b'x'; len];
            let data = compressed(&message);
            assert!(read(&data, len) == Ok(message), "{len}");
            if len > 0 {
                assert_eq!(read(&data, len - 1), Err(Violation::TooBig), "{len}");
            }
        }
        // What does not get shorter may be longer than its message.
        let noise: Vec<u8> =
            (0..65_536u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let fixed_codes = 65_536 + 65_536 / 8;
        assert!(compressed(&noise).len() <= fixed_codes && deflated_bytes_max(65_536) >= fixed_codes as u64);
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let bomb = compressed(&vec![b' '; 64 << 20]);
        assert!(bomb.len() < 80_000, "{}", bomb.len());
        for _ in 0..3 {
            assert_eq!(read(&bomb, 65_536), Err(Violation::TooBig));
            assert_eq!(room(), 65_537);
        }
        assert_eq!(read(&compressed(b"next"), 65_536), Ok(b"next".to_vec()), "and the next one is read");
    }

    #[test]
    fn the_blocks_of_a_message_are_bounded() {
        // One with BFINAL, one without compression, and four with codes of their own, which end at a byte: all empty. The
        // trailer is another block.
        let own_codes =
            b"\x04\xc0\x81\x00\x00\x00\x00\x00\x90\xff\x6b\x10\x00\x07\x02\x00\x00\x00\x00\x40\xfe\xaf\
            \x41\x00\x1c\x08\x00\x00\x00\x00\x00\xf9\xbf\x06\x01\x70\x20\x00\x00\x00\x00\x00\xe4\xff\x1a";
        for block in [&b"\x03\x00"[..], b"\x00\x00\x00\xff\xff"] {
            let blocks = |count: u32| [block.repeat(count as usize), b"\x00".to_vec()].concat();
            assert_eq!(read(&blocks(BLOCKS_MAX - 1), 5), Ok(vec![]), "{block:02x?}");
            assert_eq!(read(&blocks(BLOCKS_MAX), 5), Err(Violation::TooBig), "{block:02x?}");
        }
        let four = |count: u32| [own_codes.repeat(count as usize), b"\x00".to_vec()].concat();
        assert_eq!(read(&four(BLOCKS_MAX / 4 - 1), 5), Ok(vec![]));
        assert_eq!(read(&four(BLOCKS_MAX / 4), 5), Err(Violation::TooBig));
        // As a client flushes that sends each word when it has it.
        let mut flushed = Vec::with_capacity(10_000);
        let mut compressor = Compress::new(Compression::fast(), false);
        for _ in 0..100 {
            compressor.compress_vec(b"word ", &mut flushed, FlushCompress::Sync).unwrap();
        }
        flushed.truncate(flushed.len() - 4);
        assert_eq!(read(&flushed, 500), Ok(b"word ".repeat(100)));
    }

    #[test]
    fn fuzzed() {
        let good = [
            compressed(b"{\"type\":\"ping\"}"),
            compressed(&b"words and words ".repeat(40)),
            b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00".to_vec(),
            b"\x00\x05\x00\xfa\xffHello\x00".to_vec(),
        ];
        const LIMIT: usize = 2_000;
        fuzz("inflate", &good, &[], |input| {
            let first = read(input, LIMIT);
            assert!(first.as_ref().map_or(0, Vec::len) <= LIMIT && room() <= ROOM_BYTES_MIN);
            // Nothing is left of the message before.
            assert_eq!(read(input, LIMIT), first);
            if let Ok(message) = &first {
                assert_eq!(read(&compressed(message), LIMIT).as_ref(), Ok(message));
            }
            (
                first.as_ref().err().copied().map(|error| error.to_string()),
                first.map_or(0, |message| message.len() / 16),
            )
        });
    }
}
