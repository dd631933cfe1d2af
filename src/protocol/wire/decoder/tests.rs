//! Tests of the decoder, rule by rule and by properties.

use proptest::prelude::*;

use super::*;
use crate::tests::fuzz::fuzz;

mod deflated;

/// An event with its own payload.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Seen::Text(text.into()),
            Event::Binary(data) => Seen::Binary(data.into()),
            Event::Ping(data) => Seen::Ping(data.into()),
            Event::Pong(data) => Seen::Pong(data.into()),
            Event::Close(close) => Seen::Close(close.map(|(code, reason)| (code, reason.into()))),
        }
    }
}

const FIN: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

fn feed(decoder: &mut Decoder, bytes: &[u8]) -> (Vec<Seen>, Result<(), Violation>) {
    let mut seen = Vec::new();
    let mut scratch = bytes.to_vec();
    let result = decoder.decode(&mut scratch, &mut |event| {
        seen.push(event.into());
        Flow::Continue(())
    });
    (seen, result)
}

fn decode(frames: &[Vec<u8>]) -> (Vec<Seen>, Result<(), Violation>) {
    feed(&mut Decoder::new(MESSAGE_BYTES_MAX), &frames.concat())
}

fn text(text: &str) -> Seen {
    Seen::Text(text.into())
}

fn protocol_error(frames: &[Vec<u8>]) -> bool {
    matches!(decode(frames).1, Err(Violation::Protocol(_)))
}

#[test]
fn an_idle_socket_costs_next_to_nothing() {
    assert!(size_of::<Decoder>() <= 64);
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    let frame = client_frame(FIN | 1, b"hello");
    for cut in 0..=frame.len() {
        let _ = feed(&mut decoder, &frame[..cut]);
        assert_eq!(decoder.has_partial(), (1..frame.len()).contains(&cut));
        let _ = feed(&mut decoder, &frame[cut..]);
        assert_eq!((decoder.has_partial(), decoder.held_bytes()), (false, 0));
    }
}

#[test]
fn whole_frames_are_not_copied() {
    let mut input = client_frame(FIN | 1, b"hello");
    let range = input.as_ptr_range();
    let mut inside = false;
    let result = Decoder::new(100).decode(&mut input, &mut |event| {
        inside = matches!(event, Event::Text(text) if range.contains(&text.as_ptr()));
        Flow::Continue(())
    });
    assert!(result.is_ok() && inside);
}

#[test]
fn fragments_join_and_control_frames_come_between() {
    let frames = [
        client_frame(1, b"one "),
        client_frame(FIN | 9, b"ping"),
        client_frame(0, b""),
        client_frame(FIN | 10, b""),
        client_frame(FIN, b"two"),
        client_frame(FIN | 2, b"\xff"),
    ];
    let expected =
        [Seen::Ping(b"ping".to_vec()), Seen::Pong(vec![]), text("one two"), Seen::Binary(vec![0xff])];
    assert_eq!(decode(&frames), (expected.to_vec(), Ok(())));
}

#[test]
fn fragments_out_of_order_are_refused() {
    assert!(protocol_error(&[client_frame(FIN, b"x")]));
    assert!(protocol_error(&[client_frame(0, b"x")]));
    assert!(protocol_error(&[client_frame(1, b"x"), client_frame(FIN | 1, b"y")]));
    assert!(protocol_error(&[client_frame(1, b"x"), client_frame(2, b"y")]));
    assert!(protocol_error(&[client_frame(1, b"x"), client_frame(FIN, b"y"), client_frame(FIN, b"z")]));
}

#[test]
fn the_limit_is_exact_and_seen_in_the_header() {
    let limit = MESSAGE_BYTES_MAX as usize;
    let exact = "x".repeat(limit);
    assert_eq!(decode(&[client_frame(FIN | 1, exact.as_bytes())]), (vec![text(&exact)], Ok(())));
    let halves = [client_frame(1, &exact.as_bytes()[1..]), client_frame(FIN, b"x")];
    assert_eq!(decode(&halves), (vec![text(&exact)], Ok(())));

    let header = [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0];
    assert_eq!(decode(&[header.to_vec()]).1, Err(Violation::TooBig));
    let across = [client_frame(1, exact.as_bytes()), client_frame(FIN, b"x")];
    assert_eq!(decode(&across).1, Err(Violation::TooBig));

    // 64 KiB promised, nothing there: nothing allocated for it.
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    assert_eq!(feed(&mut decoder, &[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).1, Ok(()));
    assert!(decoder.held_bytes() < 256);
}

#[test]
fn empty_fragments_do_not_last_for_ever() {
    let mut frames = vec![client_frame(2, b"")];
    frames.resize(usize::from(FRAGMENTS_MAX) - 1, client_frame(0, b""));
    frames.push(client_frame(FIN, b"end"));
    assert_eq!(decode(&frames), (vec![Seen::Binary(b"end".to_vec())], Ok(())));
    frames.insert(1, client_frame(0, b""));
    assert_eq!(decode(&frames), (vec![], Err(Violation::TooBig)));
}

#[test]
fn wrong_text_fails_before_its_frame_is_complete() {
    let good = "κόσμε".as_bytes();
    let bad = [good, b"\xf4\x90\x80\x80", b"edited"].concat();
    let frame = client_frame(FIN | 1, &bad);
    let wrong_at = 6 + good.len() + 1;
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    for (at, byte) in frame.iter().enumerate() {
        let (_, result) = feed(&mut decoder, &[*byte]);
        if at < wrong_at {
            assert_eq!(result, Ok(()), "byte {at}");
        } else {
            assert_eq!(result, Err(Violation::Utf8), "byte {at}");
            break;
        }
    }
    assert!(decoder.is_done());
    // A character may be cut by a fragment, but not by the end of the message.
    let (head, tail) = good.split_at(1);
    assert_eq!(decode(&[client_frame(1, head), client_frame(FIN, tail)]), (vec![text("κόσμε")], Ok(())));
    assert_eq!(decode(&[client_frame(1, b"a"), client_frame(FIN, head)]).1, Err(Violation::Utf8));
    assert_eq!(decode(&[client_frame(FIN | 1, head)]).1, Err(Violation::Utf8));
}

#[test]
fn close_frames() {
    let close = |payload: &[u8]| decode(&[client_frame(FIN | 8, payload)]);
    assert_eq!(close(b""), (vec![Seen::Close(None)], Ok(())));
    assert_eq!(close(b"\x03\xe8bye"), (vec![Seen::Close(Some((1000, "bye".into())))], Ok(())));
    assert!(matches!(close(b"\x03").1, Err(Violation::Protocol(_))));
    assert_eq!(close(b"\x03\xe8\xff").1, Err(Violation::Utf8));
    for code in 0..=u16::MAX {
        let valid = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        assert_eq!(close(&code.to_be_bytes()).1.is_ok(), valid, "{code}");
    }
}

#[test]
fn nothing_is_read_after_the_end() {
    let after = client_frame(FIN | 1, b"late");
    let (seen, result) = decode(&[client_frame(FIN | 8, b""), after.clone(), vec![0xff]]);
    assert_eq!((seen, result), (vec![Seen::Close(None)], Ok(())));

    let mut decoder = Decoder::new(10);
    let mut calls = 0;
    let mut input = [after.clone(), after.clone()].concat();
    let result = decoder.decode(&mut input, &mut |_| {
        calls += 1;
        Flow::Break(())
    });
    assert_eq!((result, calls, decoder.is_done()), (Ok(()), 1, true));
    assert_eq!(feed(&mut decoder, &after), (vec![], Ok(())));
}

#[test]
fn the_owner_can_tell_one_unfinished_message_from_the_next() {
    let mut decoder = Decoder::new(100);
    let _ = feed(&mut decoder, &client_frame(1, b"never"));
    let first = decoder.unfinished();
    assert!(first.is_some());
    let ping = client_frame(FIN | 9, b"alive");
    let _ = feed(&mut decoder, &ping);
    let _ = feed(&mut decoder, &ping[..3]);
    assert_eq!(decoder.unfinished(), first, "pings do not keep a message alive");
    let _ = feed(&mut decoder, &ping[3..]);
    let _ = feed(&mut decoder, &[client_frame(FIN, b"done"), client_frame(1, b"next")].concat());
    assert!(decoder.unfinished().is_some_and(|now| Some(now) != first));
    let _ = feed(&mut decoder, &client_frame(FIN, b""));
    assert_eq!(decoder.unfinished(), None);
}

/// Frames of a message or a control frame, and what must be seen of them.
fn message() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Seen>)> {
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let body = prop_oneof![".{0,40}", ".{120,300}"];
    let data = (body, cuts, any::<bool>(), any::<bool>()).prop_map(|(body, cuts, is_text, ping)| {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(body.len());
        let (mut frames, mut at) = (Vec::new(), 0);
        for (i, cut) in cuts.iter().enumerate() {
            let opcode = if i > 0 { 0 } else { 2 - u8::from(is_text) };
            let fin = if i + 1 == cuts.len() { FIN } else { 0 };
            frames.push(client_frame(fin | opcode, &body.as_bytes()[at..*cut]));
            at = *cut;
        }
        let whole = if is_text { Seen::Text(body) } else { Seen::Binary(body.into_bytes()) };
        if !ping {
            return (frames, vec![whole]);
        }
        // Before the last frame: inside the message when it is fragmented.
        frames.insert(frames.len() - 1, client_frame(FIN | 9, b"?"));
        (frames, vec![Seen::Ping(b"?".to_vec()), whole])
    });
    let control = (prop::collection::vec(any::<u8>(), 0..=125), any::<bool>()).prop_map(|(payload, ping)| {
        let frame = client_frame(FIN | if ping { 9 } else { 10 }, &payload);
        (vec![frame], vec![if ping { Seen::Ping(payload) } else { Seen::Pong(payload) }])
    });
    prop_oneof![3 => data, 1 => control]
}

/// Feeds `bytes` in reads of the given sizes, in turn, and checks the memory after each.
fn feed_cut(bytes: &[u8], sizes: &[usize], limit: u32) -> (Vec<Seen>, Result<(), Violation>) {
    feed_cut_to(Decoder::new(limit), bytes, sizes)
}

fn feed_cut_to(mut decoder: Decoder, bytes: &[u8], sizes: &[usize]) -> (Vec<Seen>, Result<(), Violation>) {
    let (mut all, mut arrived, mut sizes) = (Vec::new(), 0, sizes.iter().cycle());
    while arrived < bytes.len() {
        let end = bytes.len().min(arrived + sizes.next().map_or(1, |size| *size));
        let (seen, result) = feed(&mut decoder, &bytes[arrived..end]);
        all.extend(seen);
        arrived = end;
        assert!(decoder.held_bytes() <= 2 * arrived + 256, "{} of {arrived}", decoder.held_bytes());
        if result.is_err() {
            return (all, result);
        }
    }
    (all, Ok(()))
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_events(
        messages in prop::collection::vec(message(), 1..6),
        sizes in prop::collection::vec(1..200usize, 1..8),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|(frames, _)| frames.concat()).collect();
        let expected: Vec<Seen> = messages.into_iter().flat_map(|(_, seen)| seen).collect();
        prop_assert_eq!(feed_cut(&bytes, &[usize::MAX >> 1], MESSAGE_BYTES_MAX), (expected.clone(), Ok(())));
        prop_assert_eq!(feed_cut(&bytes, &[1], MESSAGE_BYTES_MAX), (expected.clone(), Ok(())));
        prop_assert_eq!(feed_cut(&bytes, &sizes, MESSAGE_BYTES_MAX), (expected, Ok(())));
    }

    #[test]
    fn any_bytes_get_one_verdict(
        messages in prop::collection::vec(message(), 0..4),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..60),
        sizes in prop::collection::vec(1..50usize, 1..8),
    ) {
        let mut bytes: Vec<u8> = messages.iter().flat_map(|(frames, _)| frames.concat()).collect();
        bytes.extend(tail);
        for (at, value) in noise {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let whole = feed_cut(&bytes, &[usize::MAX >> 1], 1_000);
        prop_assert_eq!(&feed_cut(&bytes, &[1], 1_000), &whole);
        prop_assert_eq!(&feed_cut(&bytes, &sizes, 1_000), &whole);
    }
}

#[test]
fn fuzzed() {
    let frames = [
        client_frame(FIN | 1, b"{\"type\":\"ping\"}"),
        [client_frame(1, "zo\u{eb}".as_bytes()), client_frame(FIN | 9, b"?"), client_frame(FIN, b"!")]
            .concat(),
        client_frame(FIN | 2, &[0xff; 300]),
        [client_frame(FIN | 10, b""), client_frame(FIN | 8, b"\x03\xe8bye")].concat(),
    ];
    let good: Vec<Vec<u8>> = frames.iter().map(|frame| [&[7][..], frame].concat()).collect();
    // The first byte says how the rest is cut.
    fuzz("wire", &good, &[], |input| {
        let (size, bytes) = input.split_first().unwrap_or((&1, &[]));
        let whole = feed_cut(bytes, &[usize::MAX >> 1], 1_000);
        assert_eq!(feed_cut(bytes, &[usize::from(*size) % 60 + 1], 1_000), whole);
        (format!("{:?}", whole.1), whole.0.len(), whole.0.last().map(std::mem::discriminant))
    });
}
