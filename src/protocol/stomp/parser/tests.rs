//! What the parser makes of frames, good and bad, however they are cut.

use super::*;
use proptest::prelude::*;

/// A frame without borrows.
type Owned = (Command, Vec<(String, String)>, Vec<u8>);

fn owned(frame: &Frame<'_>) -> Owned {
    let headers = frame.headers.iter().map(|(name, _)| {
        (unescape(name, frame.version).unwrap().into_owned(), frame.header(name).unwrap().into_owned())
    });
    (frame.command, headers.collect(), frame.body.to_vec())
}

/// What comes of the pieces of a stream; CONNECT is answered with `version`.
fn read(version: Option<Version>, pieces: &[&[u8]]) -> (Vec<Owned>, Result<(), Violation>, Parser) {
    let mut parser = Parser::new(1_000);
    if let Some(version) = version {
        parser.connected(version);
    }
    let mut frames = Vec::new();
    for piece in pieces {
        let read = parser.read(piece, &mut |frame| {
            frames.push(owned(&frame));
            ControlFlow::Continue((frame.command == Command::Connect).then_some(Version::V1_2))
        });
        if read.is_err() {
            return (frames, read, parser);
        }
    }
    (frames, Ok(()), parser)
}

fn one(version: Option<Version>, stream: &[u8]) -> Owned {
    let (mut frames, read, parser) = read(version, &[stream]);
    assert_eq!((read, frames.len(), parser.unfinished()), (Ok(()), 1, None), "{stream:?}");
    frames.remove(0)
}

fn headers(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

const V12: Option<Version> = Some(Version::V1_2);

/// The frames of clients in the text of the specification of 1.2, byte for byte.
#[test]
fn the_frames_of_the_specification() {
    for (stream, command, expected, body) in [
        (
            "CONNECT\naccept-version:1.2\nhost:stomp.github.org\n\n\0",
            Command::Connect,
            &[("accept-version", "1.2"), ("host", "stomp.github.org")][..],
            "",
        ),
        (
            "STOMP\naccept-version:1.0,1.1,2.0\nhost:stomp.github.org\n\n\0",
            Command::Connect,
            &[("accept-version", "1.0,1.1,2.0"), ("host", "stomp.github.org")],
            "",
        ),
        (
            "SEND\ndestination:/queue/a\ncontent-type:text/plain\n\nhello queue a\n\0",
            Command::Send,
            &[("destination", "/queue/a"), ("content-type", "text/plain")],
            "hello queue a\n",
        ),
        (
            "SUBSCRIBE\nid:0\ndestination:/queue/foo\nack:client\n\n\0",
            Command::Subscribe,
            &[("id", "0"), ("destination", "/queue/foo"), ("ack", "client")],
            "",
        ),
        ("UNSUBSCRIBE\nid:0\n\n\0", Command::Unsubscribe, &[("id", "0")], ""),
        (
            "ACK\nid:12345\ntransaction:tx1\n\n\0",
            Command::Ack,
            &[("id", "12345"), ("transaction", "tx1")],
            "",
        ),
        ("NACK\nid:12345\n\n\0", Command::Nack, &[("id", "12345")], ""),
        ("BEGIN\ntransaction:tx1\n\n\0", Command::Begin, &[("transaction", "tx1")], ""),
        ("COMMIT\ntransaction:tx1\n\n\0", Command::Commit, &[("transaction", "tx1")], ""),
        ("ABORT\ntransaction:tx1\n\n\0", Command::Abort, &[("transaction", "tx1")], ""),
        ("DISCONNECT\nreceipt:77\n\n\0", Command::Disconnect, &[("receipt", "77")], ""),
    ] {
        let expected: Owned = (command, headers(expected), body.into());
        assert_eq!(one(V12, stream.as_bytes()), expected);
        // With the line ends that 1.2 allows, in the head.
        let (head, body) = stream.split_once("\n\n").unwrap();
        let crlf = format!("{}\r\n\r\n{body}", head.replace('\n', "\r\n"));
        assert_eq!(one(V12, crlf.as_bytes()), expected);
    }
}

#[test]
fn a_body_ends_with_its_length_or_with_nul() {
    let body = |stream: &[u8]| one(V12, stream).2;
    assert_eq!(body(b"SEND\ndestination:/x\n\na\nb\0"), b"a\nb");
    assert_eq!(body(b"SEND\ndestination:/x\ncontent-length:3\n\na\0b\0"), b"a\0b");
    assert_eq!(body(b"SEND\ncontent-length:0\n\n\0"), b"");
    assert_eq!(body(b"SEND\ncontent-length: 2\n\nab\0\n\n\r\n"), b"ab");
    // Of repeated headers the first counts.
    assert_eq!(body(b"SEND\ncontent-length:1\ncontent-length:9\n\na\0"), b"a");
    assert_eq!(
        body(&[b"SEND\n\n".as_slice(), &[0xff, 0xfe], b"\0"].concat()),
        [0xff, 0xfe],
        "bytes are no text"
    );
}

#[test]
fn spaces_are_padding_in_1_0_only_and_escapes_are_from_1_1_on() {
    let stream = b"SUBSCRIBE\nid: a\\cb \ndestination:/topic/a:b\n\n\0";
    let of = |version| one(version, stream).1;
    let expected = |id| headers(&[("id", id), ("destination", "/topic/a:b")]);
    assert_eq!(of(Some(Version::V1_0)), expected("a\\cb"));
    assert_eq!(of(Some(Version::V1_1)), expected(" a:b "));
    assert_eq!(of(V12), expected(" a:b "));
    assert_eq!(one(V12, b"SEND\na\\cb:c\n\n\0").1, headers(&[("a:b", "c")]), "names as well");
    assert_eq!(one(Some(Version::V1_1), b"SEND\na:C:\\x\n\n\0").1, headers(&[("a", "C:\\x")]));
}

#[test]
fn bad_frames_are_refused_with_a_reason() {
    for (version, stream, part) in [
        (V12, &b"send\n\n\0"[..], "is no command"),
        (V12, b"MESSAGE\n\n\0", "is no command"),
        (V12, b"\x01\x02:\n\n\0", "is no command"),
        (V12, b"{\"type\":\"ping\"}\n\n\0", "is no command"),
        (V12, b"SEND\nno colon\n\n\0", "no colon"),
        (V12, b"SEND\n:x\n\n\0", "has no name"),
        (V12, b"SEND\na:\\t\n\n\0", "escape"),
        (V12, b"SEND\na:b\\\n\n\0", "escape"),
        (V12, b"SEND\na:b\0", "NUL in the head"),
        (V12, b"SEND\n\xff:b\n\n\0", "not UTF-8"),
        (V12, b"\rSEND\n\n\0", "carriage return"),
        (V12, b"SEND\ncontent-length:2\n\nabc\0", "no NUL after"),
        (V12, b"SEND\ncontent-length:x\n\n\0", "no number"),
        (V12, b"SEND\ncontent-length:-1\n\n\0", "no number"),
        (V12, b"SEND\ncontent-length:99999999999999999999\n\n\0", "no number"),
        (V12, b"SUBSCRIBE\nid:1\n\nbody\0", "body in a frame that has none"),
        (V12, b"SUBSCRIBE\ncontent-length:4\n\nbody\0", "body in a frame that has none"),
        (None, b"SEND\ndestination:/x\n\nbody\0", "after CONNECTED"),
        (None, b"GET / HTTP/1.1\r\n\r\n", "is no command"),
    ] {
        let (_, read, _) = read(version, &[stream, b"SEND\n\n\0"]);
        let violation = read.unwrap_err();
        assert!(violation.message.contains(part) && !violation.is_too_big, "{stream:?}: {violation}");
        assert!(!violation.message.contains(':'), "{violation}");
    }
}

#[test]
fn limits_are_exact_and_noticed_before_the_bytes_are_held() {
    let is_too_big = |stream: &[u8]| match read(V12, &[stream]).1 {
        Ok(()) => false,
        Err(violation) => violation.is_too_big,
    };
    let headers = |count: usize| format!("SEND\n{}\n\0", "a:b\n".repeat(count));
    assert!(!is_too_big(headers(HEADERS_MAX).as_bytes()) && is_too_big(headers(HEADERS_MAX + 1).as_bytes()));
    let head = |bytes: usize| format!("SEND\na:{}\n\n\0", "x".repeat(bytes - 9));
    assert!(!is_too_big(head(HEAD_BYTES_MAX).as_bytes()) && is_too_big(head(HEAD_BYTES_MAX + 1).as_bytes()));
    assert!(is_too_big("x".repeat(HEAD_BYTES_MAX + 1).as_bytes()));
    for body in ["x".repeat(1_000), "x".repeat(1_001)] {
        let expected = body.len() > 1_000;
        assert_eq!(is_too_big(format!("SEND\n\n{body}\0").as_bytes()), expected);
        assert_eq!(is_too_big(format!("SEND\n\n{body}").as_bytes()), expected);
        assert_eq!(is_too_big(format!("SEND\ncontent-length:{}\n\n", body.len()).as_bytes()), expected);
    }
}

#[test]
fn an_unfinished_frame_has_a_number_of_its_own() {
    let (_, read, parser) = read(V12, &[b"SEND\n\n\0\nSEND\nde"]);
    assert_eq!((read, parser.unfinished()), (Ok(()), Some(1)));
    let mut parser = parser;
    let mut frames = 0;
    let mut on_frame = |_: Frame<'_>| {
        frames += 1;
        ControlFlow::Continue(None)
    };
    for piece in [&b"stination:/x\n"[..], b"\nbody", b"\0"] {
        assert_eq!(parser.unfinished(), Some(1));
        parser.read(piece, &mut on_frame).unwrap();
    }
    assert_eq!((parser.unfinished(), frames), (None, 1));
}

#[test]
fn after_an_error_and_after_enough_nothing_is_read() {
    let mut parser = Parser::new(10);
    let mut frames = 0;
    for (piece, is_ok) in [(&b"ACK\nid:1\n\n\0bad\n\n\0"[..], false), (b"ACK\nid:1\n\n\0", true)] {
        let read = parser.read(piece, &mut |_| {
            frames += 1;
            ControlFlow::Continue(None)
        });
        assert_eq!(read.is_ok(), is_ok);
    }
    assert_eq!((frames, parser.unfinished()), (1, None));
    let mut parser = Parser::new(10);
    for _ in 0..2 {
        parser
            .read(b"ACK\nid:1\n\n\0ACK\nid:1\n\n\0ACK", &mut |_| {
                frames += 1;
                ControlFlow::Break(())
            })
            .unwrap();
    }
    assert_eq!((frames, parser.unfinished()), (2, None));
}

/// A stream of frames and line ends, some of which are broken.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let token = "[a-z\\\\nc:]{0,6}";
    let frame = (
        prop::sample::select(vec!["SEND", "ACK", "SUBSCRIBE", "CONNECT", "DISCONNECT", "send"]),
        prop::collection::vec((token, token), 0..3),
        prop::collection::vec(prop::sample::select(vec![0u8, b'\n', b'\r', b'a', 0xc3, 0xa9]), 0..6),
        any::<bool>(),
        prop::sample::select(vec!["\n", "\r\n"]),
        prop::sample::select(vec!["", "\n", "\r\n\n", "\r"]),
    );
    let frame = frame.prop_map(|(command, headers, body, sized, eol, after)| {
        let mut out = format!("{command}{eol}").into_bytes();
        headers
            .iter()
            .for_each(|(name, value)| out.extend_from_slice(format!("{name}:{value}{eol}").as_bytes()));
        if sized {
            out.extend_from_slice(format!("content-length:{}{eol}", body.len()).as_bytes());
        }
        out.extend_from_slice(eol.as_bytes());
        out.extend_from_slice(&body);
        out.push(0);
        out.extend_from_slice(after.as_bytes());
        out
    });
    prop::collection::vec(frame, 0..5).prop_map(|frames| frames.concat())
}

proptest! {
    /// However a stream is cut into messages, the same comes of it, and nothing is held beyond what is unfinished.
    #[test]
    fn cuts_do_not_matter(stream in streams(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let whole = read(None, &[&stream]);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        let cut = read(None, &pieces);
        prop_assert_eq!(&whole.0, &cut.0);
        prop_assert_eq!(&whole.1, &cut.1);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        let single = read(None, &bytes);
        prop_assert_eq!(&whole.0, &single.0);
        prop_assert_eq!(&whole.1, &single.1);
        prop_assert!(single.2.held.len() <= HEAD_BYTES_MAX + 1_001);
    }

    #[test]
    fn no_bytes_make_it_panic(stream in prop::collection::vec(any::<u8>(), 0..300), size in 1usize..40) {
        let pieces: Vec<&[u8]> = stream.chunks(size).collect();
        let _ = read(V12, &pieces);
        let with_command = [b"SEND\n".as_slice(), &stream].concat();
        let pieces: Vec<&[u8]> = with_command.chunks(size).collect();
        let _ = read(V12, &pieces);
    }
}
