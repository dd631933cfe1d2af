//! Tests of the decoder with compression (RFC 7692).

use super::*;

const RSV1: u8 = 0x40;

fn decode_deflated(frames: &[Vec<u8>]) -> (Vec<Seen>, Result<(), Violation>) {
    feed(&mut Decoder::new(MESSAGE_BYTES_MAX).deflating(true), &frames.concat())
}

/// "Hello" as RFC 7692 section 7.2.3.1 has it.
const HELLO: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";

#[test]
fn compressed_messages_come_whole_in_fragments_and_beside_others() {
    let frames = [
        client_frame(FIN | RSV1 | 1, HELLO),
        client_frame(RSV1 | 2, &HELLO[..3]),
        client_frame(FIN | 9, b"?"),
        client_frame(0, b""),
        client_frame(FIN, &HELLO[3..]),
        client_frame(FIN | 1, b"plain"),
        client_frame(FIN | RSV1 | 1, b"\x00"),
    ];
    let expected =
        [text("Hello"), Seen::Ping(b"?".to_vec()), Seen::Binary(b"Hello".to_vec()), text("plain"), text("")];
    assert_eq!(decode_deflated(&frames), (expected.to_vec(), Ok(())));
    for cut in 1..20 {
        let mut decoder = Decoder::new(MESSAGE_BYTES_MAX).deflating(true);
        let seen: Vec<Seen> =
            frames.concat().chunks(cut).flat_map(|piece| feed(&mut decoder, piece).0).collect();
        assert_eq!((seen, decoder.held_bytes()), (expected.to_vec(), 0), "{cut}");
    }
}

#[test]
fn compression_is_refused_where_it_may_not_be() {
    let hello = client_frame(FIN | RSV1 | 1, HELLO);
    assert!(protocol_error(std::slice::from_ref(&hello)), "not negotiated");
    for frames in [
        vec![client_frame(FIN | RSV1 | 9, b"")],
        vec![client_frame(1, b"a"), client_frame(FIN | RSV1, HELLO)],
        vec![client_frame(RSV1 | 1, &HELLO[..3]), client_frame(FIN | RSV1, &HELLO[3..])],
        vec![client_frame(RSV1 | 1, &HELLO[..3]), hello.clone()],
        vec![client_frame(FIN | RSV1 | 0x20 | 1, HELLO)],
        vec![client_frame(FIN | RSV1 | 1, b"")],
        vec![client_frame(FIN | RSV1 | 1, &HELLO[..4])],
    ] {
        assert!(matches!(decode_deflated(&frames), (_, Err(Violation::Protocol(_)))), "{frames:02x?}");
    }
    // A block of one byte without compression: text is looked at when it is inflated.
    let wrong = client_frame(FIN | RSV1 | 1, b"\x00\x01\x00\xfe\xff\xff\x00");
    assert_eq!(decode_deflated(&[wrong]).1, Err(Violation::Utf8));
}

#[test]
fn the_limit_counts_for_what_is_inflated_and_nearly_for_what_comes() {
    let mut decoder = Decoder::new(5).deflating(true);
    assert_eq!(
        feed(&mut decoder, &client_frame(FIN | RSV1 | 1, HELLO)).0,
        [text("Hello")],
        "longer than the limit"
    );
    let mut decoder = Decoder::new(4).deflating(true);
    assert_eq!(feed(&mut decoder, &client_frame(FIN | RSV1 | 1, HELLO)).1, Err(Violation::TooBig));
    // Seen in the header.
    let header = [FIN | RSV1 | 2, 0xff, 0, 0, 0, 0, 0, 1, 0x40, 0, 0, 0, 0, 0];
    assert_eq!(decode_deflated(&[header.to_vec()]).1, Err(Violation::TooBig));
    let halves = [client_frame(RSV1 | 2, &[0; 60_000]), client_frame(FIN, &[0; 30_000])];
    assert_eq!(decode_deflated(&halves).1, Err(Violation::TooBig));
}

#[test]
fn fuzzed_with_compression() {
    let frames = [
        [client_frame(FIN | RSV1 | 1, HELLO), client_frame(FIN | 1, b"plain")].concat(),
        [client_frame(RSV1 | 2, &HELLO[..3]), client_frame(FIN | 9, b"?"), client_frame(FIN, &HELLO[3..])]
            .concat(),
    ];
    let good: Vec<Vec<u8>> = frames.iter().map(|frame| [&[7][..], frame].concat()).collect();
    fuzz("wire, compressed", &good, &[], |input| {
        let (size, bytes) = input.split_first().unwrap_or((&1, &[]));
        let cut = |size| feed_cut_to(Decoder::new(1_000).deflating(true), bytes, &[size]);
        let whole = cut(usize::MAX >> 1);
        assert_eq!(cut(usize::from(*size) % 60 + 1), whole);
        (format!("{:?}", whole.1), whole.0.len(), whole.0.last().map(std::mem::discriminant))
    });
}
