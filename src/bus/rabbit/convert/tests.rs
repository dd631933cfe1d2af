//! Tests of the translation to AMQP and back.

use super::*;
use crate::bus::BoxSettings;
use crate::ids::NodeId;
use bytes::Bytes;
use smallvec::smallvec;

fn publish(to: Destination, properties: Properties) -> Publish {
    Publish { to, properties, body: Bytes::from_static(b"x"), order_key: 0, lane: Lane::Bulk }
}

fn write(publish: &Publish) -> Result<Outgoing, Unfit> {
    outgoing(publish, &Topology::new("w", false, 1, BoxSettings::default()), 7, 128 << 10)
}

#[test]
fn properties_survive_the_way_out_and_back() {
    let properties = Properties {
        message_id: Some("m".into()),
        kind: Some("k".into()),
        content_type: Some("c".into()),
        correlation_id: Some("i".into()),
        reply_to: Some("r".into()),
        expiration: Some("100".into()),
        timestamp: Some(1),
        persistent: Some(true),
        app_id: Some("a".into()),
        user_id: None,
        headers: smallvec![("traceparent".into(), "00-1".into())],
        unreadable: None,
    };
    let out = write(&publish(Destination::Broadcast, properties.clone())).unwrap();
    assert_eq!(incoming(&out.properties), properties);
}

#[test]
fn what_steers_the_broker_is_dropped_both_ways() {
    let headers = smallvec![
        ("CC".into(), "a".into()),
        ("BCC".into(), "a".into()),
        ("x-death".into(), "a".into()),
        ("X-Delay".into(), "a".into()),
        ("fine".into(), "a".into())
    ];
    let out = write(&publish(Destination::Broadcast, Properties { headers, ..Default::default() })).unwrap();
    assert_eq!(out.properties.headers().as_ref().unwrap().inner().len(), 1);
    let mut table = FieldTable::default();
    table.insert("CC".into(), AMQPValue::LongString("a".into()));
    table.insert("x-a".into(), AMQPValue::LongString("a".into()));
    table.insert("number".into(), AMQPValue::LongInt(1));
    table.insert("nested".into(), AMQPValue::FieldTable(FieldTable::default()));
    table.insert("binary".into(), AMQPValue::LongString(vec![0xff].into()));
    table.insert("text".into(), AMQPValue::LongString("t".into()));
    let back = incoming(&BasicProperties::default().with_headers(table));
    assert_eq!(back.headers.as_slice(), [("text".to_owned(), "t".to_owned())]);
}

#[test]
fn ids_that_came_as_headers_are_ids() {
    let read = |name: &str, value: AMQPValue| {
        let mut table = FieldTable::default();
        table.insert(name.into(), value);
        incoming(&BasicProperties::default().with_headers(table))
    };
    for (value, expected) in [
        (AMQPValue::LongString("m-1".into()), "m-1"),
        (AMQPValue::ByteArray(b"m-1".to_vec().into()), "m-1"),
        (AMQPValue::ByteArray(vec![0xff, 0].into()), "ff00"),
        (AMQPValue::LongString(vec![0xff, 0].into()), "ff00"),
    ] {
        assert_eq!(read("x-message-id", value.clone()).message_id.as_deref(), Some(expected));
        assert_eq!(read("x-correlation-id", value).correlation_id.as_deref(), Some(expected));
    }
    assert_eq!(read("x-message-id", AMQPValue::LongInt(1)).message_id, None);
    assert_eq!(read(EVENT_HEADER, AMQPValue::LongString("e".into())).header(EVENT_HEADER), Some("e"));
    let long = read("x-message-id", AMQPValue::LongString("x".repeat(256).into()));
    assert_eq!(
        (long.message_id, long.unreadable.unwrap()),
        (None, "message_id: longer than 255 bytes".into())
    );
    let mut table = FieldTable::default();
    table.insert("x-message-id".into(), AMQPValue::LongString("header".into()));
    let both = BasicProperties::default().with_headers(table).with_message_id("property".into());
    assert_eq!(incoming(&both).message_id.as_deref(), Some("property"));
}

#[test]
fn several_nodes_are_one_publish() {
    let nodes = ["a", "b", "c"].iter().map(|n| NodeId::new(n).unwrap()).collect();
    let out = write(&publish(Destination::Nodes(nodes), Properties::default())).unwrap();
    assert_eq!((out.exchange.as_str(), out.routing_key.as_str(), out.mandatory), ("w.direct", "a", true));
    let headers = out.properties.headers().clone().unwrap();
    let AMQPValue::FieldArray(others) = headers.inner().get("CC").unwrap() else { panic!() };
    assert_eq!(others.as_slice().len(), 2);
    assert_eq!(sequence(&out.properties), Some(7));
    assert_eq!(*out.properties.delivery_mode(), Some(1));
}

#[test]
fn a_direct_reply_that_cannot_be_one_is_not_sent() {
    for (rest, sound) in [
        ("g1hkAA1yZXBseUBsb2NhbGhvc3Q=.key==", true),
        ("x.y", false),
        ("", false),
        ("g1hkAA1yZXBseUBsb2NhbGhvc3Q=", false),
        ("g1hkAA1yZXBseUBsb2NhbGhvc3Q=.", false),
        ("g1hkAA1yZXBseUBs b2NhbGhvc3Q=.key", false),
    ] {
        assert_eq!(is_sound(&format!("{DIRECT_REPLY}{rest}")), sound, "{rest}");
    }
    assert!(is_sound("replies"));
}

#[test]
fn only_a_node_itself_reaches_its_own_queues() {
    let probe = publish(Destination::Queue("w.control.n.1".into()), Properties::default());
    assert!(write(&probe).is_ok());
    assert!(write(&Publish { lane: Lane::Reply, ..probe }).is_err());
}

#[test]
fn what_the_broker_would_close_the_channel_for_is_never_sent() {
    let long = "x".repeat(256);
    assert!(write(&publish(Destination::Queue(long.clone()), Properties::default())).is_err());
    assert!(write(&publish(Destination::Nodes(smallvec![]), Properties::default())).is_err());
    let huge = Publish {
        body: Bytes::from(vec![0; BODY_BYTES_MAX + 1]),
        ..publish(Destination::Dead, Properties::default())
    };
    assert!(write(&huge).is_err());
    let fat = smallvec![("h".into(), "x".repeat(128 << 10))];
    assert!(write(&publish(Destination::Dead, Properties { headers: fat, ..Default::default() })).is_err());
    let odd =
        Properties { expiration: Some("-1".into()), user_id: Some("mallory".into()), ..Default::default() };
    let out = write(&publish(Destination::Dead, odd)).unwrap();
    assert_eq!((out.properties.expiration(), out.properties.user_id()), (&None, &None));
    assert_eq!(*out.properties.delivery_mode(), Some(2));
    for (text, fine) in
        [("0", true), ("4294967295", true), ("4294967296", false), ("", false), ("1.5", false)]
    {
        assert_eq!(is_expiration(text), fine, "{text:?}");
    }
}
