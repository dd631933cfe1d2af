//! The filter against the client library's own parser, with every cut of the bytes.

use amq_protocol::frame::{gen_frame, parse_frame, AMQPContentHeader, AMQPFrame, WriteContext};
use amq_protocol::protocol::{basic, AMQPClass};
use amq_protocol::types::{AMQPValue, FieldTable};
use lapin::BasicProperties;
use proptest::prelude::*;

use super::*;

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = payload.len() as u32;
    [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[FRAME_END]].concat()
}

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// A content header for a body of 5 bytes.
fn header(flags: u16, values: &[u8]) -> Vec<u8> {
    let payload = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], &flags.to_be_bytes(), values].concat();
    frame(CONTENT_HEADER, 1, &payload)
}

fn deliver(routing_key: &[u8]) -> Vec<u8> {
    let fields = [short(b"tag"), vec![0, 0, 0, 0, 0, 0, 0, 9, 0], short(b"exchange"), short(routing_key)];
    frame(METHOD, 1, &[&[0, 60, 0, 60][..], &fields.concat()].concat())
}

fn filtered(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Filter::new(131_072).push(bytes, &mut out);
    out
}

/// What the client library reads; it must be able to read all of it.
fn decoded(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).expect("the client library can decode it");
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn properties(frame: &AMQPFrame) -> &BasicProperties {
    let AMQPFrame::Header(1, header) = frame else { panic!("{frame:?}") };
    assert_eq!((header.class_id, header.body_size), (60, 5));
    &header.properties
}

fn reason(properties: &BasicProperties) -> String {
    let table = properties.headers().clone().unwrap_or_default();
    match table.inner().get(UNREADABLE_HEADER) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

fn rewritten(flags: u16, values: &[u8]) -> BasicProperties {
    properties(&decoded(&filtered(&header(flags, values)))[0]).clone()
}

const HEADERS: u16 = 0x2000;
const MESSAGE_ID: u16 = 0x0080;
const REPLY_TO: u16 = 0x0200;

#[test]
fn an_unreadable_property_is_dropped_and_named_and_the_others_are_kept() {
    let table = long(&[&short(b"kept")[..], b"S", &long(b"yes")].concat());
    let values = [&table[..], &short(b"answers"), &short(b"\xff\xfe")].concat();
    let back = rewritten(HEADERS | REPLY_TO | MESSAGE_ID, &values);
    assert_eq!(reason(&back), "message_id: not UTF-8 (fffe)");
    assert_eq!(back.reply_to().as_ref().unwrap().as_str(), "answers");
    assert_eq!(back.message_id(), &None);
    assert_eq!(back.headers().as_ref().unwrap().inner().len(), 2);
}

#[test]
fn an_unreadable_table_is_dropped_and_what_stands_behind_it_is_kept() {
    let mut deep = Vec::new();
    for _ in 0..10_000 {
        deep = [&short(b"n")[..], b"F", &long(&deep)].concat();
    }
    for (table, why) in [
        (&deep[..], "headers: nested too deeply"),
        (&[1, 0xff, b't', 1][..], "headers: a name in it is not UTF-8"),
        (b"\x01az\x01", "headers: a value in it has an unknown type"),
        (b"\x09a", "headers: cut short"),
    ] {
        let back = rewritten(HEADERS | MESSAGE_ID, &[&long(table)[..], &short(b"id")].concat());
        assert_eq!(reason(&back), why);
        assert_eq!(back.message_id().as_ref().unwrap().as_str(), "id");
    }
}

#[test]
fn odd_flags_and_lengths_are_no_way_around() {
    for (flags, values, why) in [
        (MESSAGE_ID | 1, &b"\0\0\x02id"[..], "property flags: continued"),
        (MESSAGE_ID | 1, b"", "property flags: continued; message_id: cut short"),
        (MESSAGE_ID | 1, b"\0\x01\0\x01", "property flags: continued; message_id: cut short"),
        (MESSAGE_ID | 2, b"\x02id!", "content header: bytes left over (21)"),
        (MESSAGE_ID, b"\x05id", "message_id: cut short"),
        (HEADERS, b"\xff\xff\xff\xff", "headers: cut short"),
        (0, b"?", "content header: bytes left over (3f)"),
    ] {
        assert_eq!(reason(&rewritten(flags, values)), why);
    }
    let cut = filtered(&frame(CONTENT_HEADER, 1, &[0, 60, 0]));
    let AMQPFrame::Header(1, cut) = &decoded(&cut)[0] else { panic!() };
    assert_eq!(reason(&cut.properties), "content header: cut short");
    // What the publisher wrote under our name does not count.
    let own = [&short(UNREADABLE_HEADER.as_bytes())[..], b"S", &long(b"mine")].concat();
    assert_eq!(
        reason(&rewritten(HEADERS | MESSAGE_ID, &[&long(&own)[..], b"\x01\xff"].concat())),
        "message_id: not UTF-8 (ff)"
    );
}

#[test]
fn a_header_that_is_longer_than_a_frame_is_cut_down() {
    let table = long(&[&short(b"fat")[..], b"S", &long(&[b'x'; 100_000])].concat());
    let fine = header(HEADERS | MESSAGE_ID, &[&table[..], &short(b"id")].concat());
    assert_eq!(filtered(&fine), fine);
    let mut filter = Filter::new(131_072);
    let tune = frame(METHOD, 0, &[&[0, 10, 0, 30, 7, 0xff][..], &8192u32.to_be_bytes(), &[0, 0]].concat());
    let mut out = Vec::new();
    filter.push(&tune, &mut out);
    assert_eq!(out, tune);
    out.clear();
    filter.push(&fine, &mut out);
    assert!(out.len() <= 8192);
    let frames = decoded(&out);
    let back = properties(&frames[0]);
    assert_eq!(reason(back), "headers: longer than a frame of this connection");
    assert_eq!(back.message_id().as_ref().unwrap().as_str(), "id");
    // Sound headers go only when the reason does not fit beside them.
    let near = long(&[&short(b"fat")[..], b"S", &long(&[b'x'; 8_140])].concat());
    out.clear();
    filter.push(&header(HEADERS | MESSAGE_ID, &[&near[..], b"\x01\xff"].concat()), &mut out);
    assert!(out.len() <= 8192);
    assert_eq!(
        reason(properties(&decoded(&out)[0])),
        "message_id: not UTF-8 (ff); headers: dropped to make room for this reason"
    );
}

#[test]
fn a_huge_header_takes_no_more_memory_than_it_may_and_its_stream_goes_on() {
    let table = long(&vec![0; HELD_BYTES_MAX + 1000]);
    let huge = header(HEADERS | 0x8000, &[&short(b"text/plain")[..], &table].concat());
    let after = header(MESSAGE_ID, &short(b"next"));
    let mut filter = Filter::new(131_072);
    let mut out = Vec::new();
    for piece in [huge, after.clone()].concat().chunks(60_000) {
        filter.push(piece, &mut out);
        assert!(filter.held.len() <= HELD_BYTES_MAX);
    }
    let frames = decoded(&out);
    assert_eq!(properties(&frames[0]).content_type().as_ref().unwrap().as_str(), "text/plain");
    assert!(reason(properties(&frames[0])).contains("longer than a frame"));
    assert_eq!(properties(&frames[1]).message_id().as_ref().unwrap().as_str(), "next");
}

#[test]
fn an_unreadable_routing_key_makes_its_delivery_unreadable_and_no_other() {
    let bytes =
        [deliver(b"user.\xff"), header(MESSAGE_ID, &short(b"id")), deliver(b"user.1"), header(0, b"")];
    let frames = decoded(&filtered(&bytes.concat()));
    let AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Deliver(first))) = &frames[0] else {
        panic!()
    };
    assert_eq!((first.routing_key.as_str(), first.delivery_tag), ("user.\u{fffd}", 9));
    assert_eq!(reason(properties(&frames[1])), "routing key: not UTF-8 (757365722eff)");
    assert_eq!(properties(&frames[1]).message_id().as_ref().unwrap().as_str(), "id");
    assert_eq!(properties(&frames[3]).headers(), &None);
    let long_key = [&[b'k'; 254][..], b"\xff"].concat();
    decoded(&filtered(&[deliver(&long_key), header(0, b"")].concat()));
    // A text of the broker's that ends within a character.
    let close =
        frame(METHOD, 1, &[&[0, 20, 0, 40, 1, 0x94][..], &short(b"no queue '\xc3"), &[0; 4]].concat());
    decoded(&filtered(&close));
}

fn any_value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        Just(AMQPValue::Void),
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        any::<f64>().prop_map(AMQPValue::Double),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
    ];
    leaf.prop_recursive(4, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| AMQPValue::FieldArray(values.into())),
            prop::collection::vec(("[a-zé]{0,6}", inner), 0..4).prop_map(|fields| {
                let mut table = FieldTable::default();
                fields.into_iter().for_each(|(name, value)| {
                    table.insert(name.into(), value);
                });
                AMQPValue::FieldTable(table)
            }),
        ]
    })
}

prop_compose! {
    fn any_header()(
        texts in prop::collection::vec(prop::option::of("[a-zé]{0,9}"), 6),
        mode in prop::option::of(any::<u8>()),
        time in prop::option::of(any::<u64>()),
        fields in prop::option::of(prop::collection::vec(("[a-zé]{0,6}", any_value()), 0..5)),
    ) -> Vec<u8> {
        let mut all = BasicProperties::default();
        let mut texts = texts.into_iter().flatten();
        if let Some(text) = texts.next() { all = all.with_message_id(text.into()); }
        if let Some(text) = texts.next() { all = all.with_content_type(text.into()); }
        if let Some(text) = texts.next() { all = all.with_reply_to(text.into()); }
        if let Some(text) = texts.next() { all = all.with_user_id(text.into()); }
        if let Some(text) = texts.next() { all = all.with_cluster_id(text.into()); }
        if let Some(mode) = mode { all = all.with_delivery_mode(mode); }
        if let Some(time) = time { all = all.with_timestamp(time); }
        if let Some(fields) = fields {
            let mut table = FieldTable::default();
            fields.into_iter().for_each(|(name, value)| { table.insert(name.into(), value); });
            all = all.with_headers(table);
        }
        let header = AMQPContentHeader { class_id: 60, body_size: 5, properties: all };
        let frame = AMQPFrame::Header(1, header);
        let written = gen_frame(&frame)(WriteContext::from(Vec::new())).unwrap().into_inner().0;
        written
    }
}

proptest! {
    #[test]
    fn what_the_library_can_decode_passes_unchanged(header in any_header()) {
        prop_assert_eq!(filtered(&header), header);
    }

    /// Sound headers with some bytes changed: what comes out can always be decoded, and is what went in if that
    /// could be decoded (the generated tables are never too deep).
    #[test]
    fn whatever_comes_out_can_be_decoded(
        header in any_header(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = header;
        let end = bytes.len() - 1;
        for (at, byte) in changes {
            // The body size, class and frame are the broker's own and sound.
            if end > 19 {
                bytes[19 + at.index(end - 19)] = byte;
            }
        }
        let out = filtered(&bytes);
        let frames = decoded(&out);
        prop_assert_eq!(frames.len(), 1);
        properties(&frames[0]);
        let continued = bytes[20] & 1 == 1;
        match parse_frame(&bytes[..]) {
            Ok((rest, _)) if rest.is_empty() && !continued => prop_assert_eq!(out, bytes),
            _ => { reason(properties(&frames[0])); }
        }
    }

    /// Any frames, cut anywhere: the same comes out, and bodies are never touched.
    #[test]
    fn cuts_make_no_difference(
        parts in prop::collection::vec(prop_oneof![
            any_header(),
            (any::<u16>(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(flags, values)| header(flags, &values)),
            prop::collection::vec(any::<u8>(), 0..12).prop_map(|key| deliver(&key)),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|body| frame(3, 1, &body)),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|payload| frame(METHOD, 1, &payload)),
            Just(frame(8, 0, b"")),
        ], 1..8),
        sizes in prop::collection::vec(1..30usize, 1..20),
    ) {
        let bytes = parts.concat();
        let whole = filtered(&bytes);
        let mut filter = Filter::new(131_072);
        let (mut out, mut rest) = (Vec::new(), &bytes[..]);
        for size in sizes.iter().cycle() {
            let (piece, behind) = rest.split_at((*size).min(rest.len()));
            filter.push(piece, &mut out);
            rest = behind;
            if rest.is_empty() { break; }
        }
        prop_assert_eq!(&out, &whole);
        let mut single = Filter::new(131_072);
        let mut out = Vec::new();
        bytes.iter().for_each(|byte| single.push(std::slice::from_ref(byte), &mut out));
        prop_assert_eq!(&out, &whole);
        for part in parts.iter().filter(|part| part[0] == 3) {
            prop_assert!(whole.windows(part.len()).any(|window| window == &part[..]));
        }
    }
}

#[test]
fn fuzzed() {
    let mut table = FieldTable::default();
    table.insert("x-warren-event".into(), AMQPValue::LongString("e".into()));
    table.insert("message-id".into(), AMQPValue::ByteArray(vec![0xff, 1].into()));
    let sound = BasicProperties::default()
        .with_headers(table)
        .with_message_id("m-1".into())
        .with_expiration("900".into())
        .with_delivery_mode(2)
        .with_user_id("warren".into());
    let header_of = |properties: BasicProperties| {
        let header = AMQPContentHeader { class_id: 60, body_size: 5, properties };
        let frame = AMQPFrame::Header(1, header);
        let written = gen_frame(&frame)(WriteContext::from(Vec::new())).unwrap();
        written.into_inner().0
    };
    // Flags and values of a header, behind a byte that says how it is cut.
    let good = [sound, BasicProperties::default()]
        .map(|properties| [&[9][..], &header_of(properties)[19..]].concat());
    crate::tests::fuzz::fuzz("AMQP headers", &good, &["x-", "F", "S", "A"], |input| {
        let (size, rest) = input.split_first().unwrap_or((&1, &[]));
        let (flags, values) = rest.split_at(rest.len().min(2));
        let flags = flags.iter().fold(0, |flags, byte| flags << 8 | u16::from(*byte));
        let bytes = header(flags, values.strip_suffix(&[FRAME_END]).unwrap_or(values));
        let whole = filtered(&bytes);
        let (mut cut, mut out) = (Filter::new(131_072), Vec::new());
        bytes.chunks(usize::from(*size) % 50 + 1).for_each(|piece| cut.push(piece, &mut out));
        assert_eq!(out, whole);
        let frames = decoded(&whole);
        let read = crate::bus::rabbit::convert::incoming(properties(&frames[0]));
        assert!(read.headers.iter().all(|(name, _)| name != "CC" && name != "BCC"));
        (read.unreadable, read.headers.len(), read.expiration.is_some(), read.persistent)
    });
}
