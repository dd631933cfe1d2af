//! Cases about single frames: lengths, pings, reserved bits, opcodes, fragments (RFC 6455 section 5).

use super::{
    close, refused, request, request_of, row, send, text, Row, Step, BAD_REQUEST, MESSAGE_BYTES_MAX,
};
use crate::support::raw_ws::{Length, RawFrame, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};

pub fn rows() -> Vec<Row> {
    [lengths(), pings(), reserved(), fragments(), fragment_order(), automatic_fragments()]
        .into_iter()
        .flatten()
        .collect()
}

fn lengths() -> Vec<Row> {
    let mut rows = Vec::new();
    for len in [125, 126, 127, 128, 65_535, MESSAGE_BYTES_MAX] {
        let frame = text(request_of("1", len));
        rows.push(row(format!("1: {len} bytes"), [send(std::slice::from_ref(&frame)), Step::Reply("1")]));
        let chopped = Step::Chopped(frame.bytes(), 997);
        rows.push(row(format!("1: {len} bytes chopped"), [chopped, Step::Reply("1")]));
        rows.push(refused(
            format!("1: {len} bytes binary"),
            &[RawFrame::new(BINARY, vec![0; len])],
            BAD_REQUEST,
        ));
    }
    let small = |length| RawFrame { length, ..text(request("1")) };
    let claimed = |len| RawFrame { length: Length::Claimed(len), ..RawFrame::new(TEXT, "") };
    rows.extend([
        row("1: no bytes", [send(&[text("")]), Step::NotUnderstood]),
        row("1: no bytes, binary", [send(&[RawFrame::new(BINARY, "")]), close(BAD_REQUEST)]),
        refused("1: limit + 1", &[text(request_of("1", MESSAGE_BYTES_MAX + 1))], 1009),
        refused("1: 64 MiB claimed", &[claimed(64 << 20)], 1009),
        refused("1: length with the top bit", &[claimed(1 << 63)], 1002),
        refused("1: 16-bit length not minimal", &[small(Length::Bits16)], 1002),
        refused("1: 64-bit length not minimal", &[small(Length::Bits64)], 1002),
        refused("1: no mask", &[RawFrame { mask: None, ..text(request("1")) }], 1002),
        row(
            "1: zero mask",
            [send(&[RawFrame { mask: Some([0; 4]), ..text(request("1")) }]), Step::Reply("1")],
        ),
    ]);
    rows
}

fn pings() -> Vec<Row> {
    let ping = |payload: &[u8]| RawFrame::new(PING, payload);
    let pong = |payload: &[u8]| Step::Pong(payload.to_vec());
    let binary = [0x00, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0x00, 0xff];
    let many: Vec<RawFrame> = (0..10).map(|i| ping(&[b'0' + i])).collect();
    let ten = |first: Step| {
        let pongs = (0..10).map(|i| Step::Pong(vec![b'0' + i]));
        std::iter::once(first).chain(pongs).collect::<Vec<Step>>()
    };
    let chopped_many = many.iter().flat_map(RawFrame::bytes).collect();
    vec![
        row("2: empty ping", [send(&[ping(b"")]), pong(b"")]),
        row("2: ping", [send(&[ping(b"Hello, world!")]), pong(b"Hello, world!")]),
        row("2: binary ping", [send(&[ping(&binary)]), pong(&binary)]),
        row("2: 125 bytes", [send(&[ping(&[0xfe; 125])]), pong(&[0xfe; 125])]),
        row("2: 125 bytes chopped", [Step::Chopped(ping(&[0xfe; 125]).bytes(), 1), pong(&[0xfe; 125])]),
        refused("2: 126 bytes", &[ping(&[0xfe; 126])], 1002),
        row("2: pong unasked", [send(&[RawFrame::new(PONG, ""), ping(b"x")]), pong(b"x")]),
        row("2: pong unasked with payload", [send(&[RawFrame::new(PONG, "y"), ping(b"x")]), pong(b"x")]),
        row("2: ten pings", ten(send(&many))),
        row("2: ten pings chopped", ten(Step::Chopped(chopped_many, 1))),
    ]
}

fn reserved() -> Vec<Row> {
    let mut rows = Vec::new();
    for rsv in 1..=7 {
        for (name, frame) in [
            ("text", text(request("1"))),
            ("ping", RawFrame::new(PING, "x")),
            ("close", RawFrame::new(CLOSE, "")),
        ] {
            rows.push(refused(format!("3: RSV {rsv:03b} in a {name}"), &[RawFrame { rsv, ..frame }], 1002));
        }
    }
    for opcode in (3..=7).chain(11..=15) {
        for payload in ["", "payload"] {
            let name = format!("4: opcode {opcode} with {} bytes", payload.len());
            rows.push(refused(name, &[RawFrame::new(opcode, payload)], 1002));
        }
    }
    rows
}

/// The payload in fragments that end at `cuts`, and a last one.
fn fragmented(payload: &str, cuts: &[usize]) -> Vec<RawFrame> {
    let ends = cuts.iter().copied().chain([payload.len()]);
    let mut frames = Vec::new();
    let mut start = 0;
    for end in ends {
        let opcode = if frames.is_empty() { TEXT } else { CONTINUATION };
        frames.push(RawFrame::new(opcode, &payload.as_bytes()[start..end]).more());
        start = end;
    }
    if let Some(last) = frames.last_mut() {
        last.fin = true;
    }
    frames
}

fn fragments() -> Vec<Row> {
    let two = fragmented(&request("1"), &[5]);
    let with_pings: Vec<RawFrame> = fragmented(&request("1"), &[2, 4, 9, 12])
        .into_iter()
        .flat_map(|fragment| [RawFrame::new(PING, "p"), fragment])
        .collect();
    let mut with_pings_steps = vec![send(&with_pings)];
    with_pings_steps.extend((0..5).map(|_| Step::Pong(b"p".to_vec())));
    with_pings_steps.push(Step::Reply("1"));
    let chopped = Step::Chopped(two.iter().flat_map(RawFrame::bytes).collect(), 1);
    let with_pong = [two[0].clone(), RawFrame::new(PONG, "p"), two[1].clone()];
    let all_cuts: Vec<usize> = (1..request("1").len()).collect();
    // Empty fragments up to the number that one message may have, and one more.
    let most = fragmented(&request("1"), &[0; 1_023]);
    let too_many = fragmented(&request("1"), &[0; 1_024]);
    vec![
        refused(
            "5: fragmented ping",
            &[RawFrame::new(PING, "x").more(), RawFrame::new(CONTINUATION, "y")],
            1002,
        ),
        refused(
            "5: fragmented pong",
            &[RawFrame::new(PONG, "x").more(), RawFrame::new(CONTINUATION, "y")],
            1002,
        ),
        refused("5: fragmented close", &[RawFrame::new(CLOSE, "").more()], 1002),
        row("5: two fragments", [send(&two), Step::Reply("1")]),
        row("5: two fragments in two writes", [send(&two[..1]), send(&two[1..]), Step::Reply("1")]),
        row("5: two fragments chopped", [chopped, Step::Reply("1")]),
        row("5: pings between fragments", with_pings_steps),
        row("5: pong between fragments", [send(&with_pong), Step::Reply("1")]),
        row("5: fragments of one byte", [send(&fragmented(&request("1"), &all_cuts)), Step::Reply("1")]),
        row("5: empty fragments", [send(&fragmented(&request("1"), &[0, 0, 3, 3])), Step::Reply("1")]),
        row("5: 1,024 fragments", [send(&most), Step::Reply("1")]),
        refused("5: 1,025 fragments", &too_many, 1009),
        row(
            "5: close between fragments",
            [send(&two[..1]), send(&[RawFrame::new(CLOSE, "")]), Step::Close(vec![1000])],
        ),
    ]
}

fn fragment_order() -> Vec<Row> {
    let good = text(request("1"));
    let first = text("{").more();
    let next = RawFrame::new(CONTINUATION, "x");
    vec![
        refused("5: continuation first", &[next.clone(), good.clone()], 1002),
        refused("5: unfinished continuation first", &[next.clone().more(), good.clone()], 1002),
        refused("5: continuation after the end", std::slice::from_ref(&next), 1002),
        refused("5: text inside a text", &[first.clone(), good.clone()], 1002),
        refused("5: unfinished text inside a text", &[first.clone(), first.clone()], 1002),
        refused("5: binary inside a text", &[first, RawFrame::new(BINARY, "x")], 1002),
        refused("5: text inside a binary", &[RawFrame::new(BINARY, "x").more(), good], 1002),
    ]
}

/// A long message as a proxy or a library would cut it.
fn automatic_fragments() -> Vec<Row> {
    let payload = request_of("1", MESSAGE_BYTES_MAX);
    let cuts: Vec<usize> = (1..=MESSAGE_BYTES_MAX / 1_300).map(|i| i * 1_300).collect();
    let bytes: Vec<u8> = fragmented(&payload, &cuts).iter().flat_map(RawFrame::bytes).collect();
    let over: Vec<RawFrame> = fragmented(&request_of("1", MESSAGE_BYTES_MAX + 1), &cuts);
    vec![
        row("10: fragments of 1,300 bytes", [Step::Send(bytes.clone()), Step::Reply("1")]),
        row("10: fragments of 1,300 bytes chopped", [Step::Chopped(bytes, 997), Step::Reply("1")]),
        refused("10: fragments beyond the limit", &over, 1009),
    ]
}
