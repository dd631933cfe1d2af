//! Cases about what frames carry: UTF-8 in texts, and the closing handshake (RFC 6455 sections 7 and 8).

use super::{close, refused, request, row, send, text, Row, Step};
use crate::support::raw_ws::{close_payload, RawFrame, CLOSE, CONTINUATION, PING};

pub fn rows() -> Vec<Row> {
    [valid_text(), invalid_text(), fail_fast(), closing(), close_codes()].into_iter().flatten().collect()
}

/// The request with `note` in a field that the gateway ignores.
fn noted(note: &str) -> String {
    format!(r#"{{"type":"ping","id":"1","note":"{note}"}}"#)
}

fn valid_text() -> Vec<Row> {
    // First and last character of each length, around the surrogates, non-characters.
    let notes = [
        "Hello-µ@ßöäüàá-UTF-8!!",
        "κόσμε",
        "\u{20}\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}",
        "\u{d7ff}\u{e000}\u{fffd}",
        "\u{fffe}\u{ffff}\u{1fffe}\u{10fffe}",
    ];
    let mut rows = Vec::new();
    for note in notes {
        let payload = noted(note).into_bytes();
        let name = note.escape_unicode();
        rows.push(row(format!("6: {name}"), [send(&[text(payload.clone())]), Step::Reply("1")]));
        let chopped = Step::Chopped(text(payload.clone()).bytes(), 1);
        rows.push(row(format!("6: {name} chopped"), [chopped, Step::Reply("1")]));
        let mut fragments: Vec<RawFrame> =
            payload.chunks(1).map(|byte| RawFrame::new(CONTINUATION, byte).more()).collect();
        fragments.insert(0, text("").more());
        fragments.push(RawFrame::new(CONTINUATION, ""));
        rows.push(row(format!("6: {name} byte by byte"), [send(&fragments), Step::Reply("1")]));
    }
    rows
}

/// Sequences that are wrong wherever they stand.
const INVALID: &[&[u8]] = &[
    b"\x80",
    b"\xbf\xbf",
    b"\xc0\xaf",
    b"\xc1\xbf",
    b"\xe0\x80\xaf",
    b"\xe0\x9f\xbf",
    b"\xf0\x80\x80\xaf",
    b"\xf0\x8f\xbf\xbf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xf4\x90\x80\x80",
    b"\xf7\xbf\xbf\xbf",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xfe",
    b"\xff",
    b"\xc2 ",
    b"\xe2\x82 ",
    b"\xf0\x9d\x84 ",
];

fn invalid_text() -> Vec<Row> {
    let mut rows = Vec::new();
    for bytes in INVALID {
        let payload = [noted("κόσμε").as_bytes(), bytes, b"edited"].concat();
        let name = format!("6: {bytes:02x?}");
        rows.push(refused(format!("{name} whole"), &[text(payload.clone())], 1007));
        let cut = payload.len() - 7;
        let fragments = [text(&payload[..cut]).more(), RawFrame::new(CONTINUATION, &payload[cut..])];
        rows.push(refused(format!("{name} in fragments"), &fragments, 1007));
    }
    for end in 1..4 {
        let cut = &"𝄞".as_bytes()[..end];
        rows.push(refused(format!("6: message ends {end} bytes into a character"), &[text(cut)], 1007));
    }
    rows
}

/// The answer must come although the message, or even its frame, is not complete.
fn fail_fast() -> Vec<Row> {
    let good = "κόσμε".as_bytes();
    let mut rows = Vec::new();
    for bytes in INVALID {
        let bad = [good, bytes].concat();
        let unfinished = [text(good).more(), RawFrame::new(CONTINUATION, *bytes).more()];
        rows.push(refused(format!("6: {bytes:02x?} in an unfinished message"), &unfinished, 1007));
        // The frame promises more payload than is ever sent.
        let whole = text([bad.as_slice(), b"edited"].concat()).bytes();
        let part = whole[..6 + bad.len()].to_vec();
        let name = format!("6: {bytes:02x?} in an unfinished frame");
        rows.push(row(name, [Step::Chopped(part, good.len() + 6), close(1007)]));
    }
    rows
}

fn closing() -> Vec<Row> {
    let bye = || RawFrame::new(CLOSE, close_payload(1000, b""));
    let reason = |bytes: &[u8]| RawFrame::new(CLOSE, close_payload(1000, bytes));
    let closed = |name: &str, frames: &[RawFrame]| row(name, [send(frames), close(1000)]);
    vec![
        row("7: request, then close", [send(&[text(request("1")), bye()]), Step::Reply("1"), close(1000)]),
        closed("7: two close frames", &[bye(), bye()]),
        closed("7: ping after close", &[bye(), RawFrame::new(PING, "late")]),
        closed("7: request after close", &[bye(), text(request("late"))]),
        closed("7: garbage after close", &[bye(), RawFrame { rsv: 7, ..text("late") }]),
        closed("7: close inside a message", &[text("{").more(), bye(), RawFrame::new(CONTINUATION, "}")]),
        closed("7: no payload", &[RawFrame::new(CLOSE, "")]),
        closed("7: reason", &[reason("Hello World €".as_bytes())]),
        closed("7: longest reason", &[reason(&[b'*'; 123])]),
        row("7: chopped", [Step::Chopped(reason(b"bye").bytes(), 1), close(1000)]),
        refused("7: one byte", &[RawFrame::new(CLOSE, "x")], 1002),
        refused("7: reason too long", &[reason(&[b'*'; 124])], 1002),
        refused("7: reason not UTF-8", &[reason(b"\xce\xba\xed\xa0\x80")], 1007),
        refused("7: reason ends inside a character", &[reason(b"\xce")], 1007),
    ]
}

fn close_codes() -> Vec<Row> {
    let frame = |code: u16, reason: &[u8]| RawFrame::new(CLOSE, close_payload(code, reason));
    let mut rows = Vec::new();
    let valid =
        [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999];
    for code in valid {
        // The server may echo the code or say its own goodbye.
        rows.push(row(format!("7: code {code}"), [send(&[frame(code, b"")]), Step::Close(vec![1000, code])]));
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        rows.push(refused(format!("7: code {code}"), &[frame(code, b"")], 1002));
        rows.push(refused(format!("7: code {code} with a reason"), &[frame(code, b"reason")], 1002));
    }
    rows
}
