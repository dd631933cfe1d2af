//! Messages that the client library cannot decode, at every door: each arrives as a delivery that says so, and no
//! connection breaks.

use warren::bus::rabbit::{RabbitBus, RabbitSettings};
use warren::bus::{Destination, Inboxes, Outcome};
use warren::config::AmqpUrl;

use crate::broker::{self, Vhost};
use crate::bus_contract::{body, next, peer, send, to, Peer};
use crate::raw_amqp::{nested_tables, publish_raw, short_string, RawMessage};

const CONTENT_TYPE: u16 = 0x8000;
const HEADERS: u16 = 0x2000;
const MESSAGE_ID: u16 = 0x0080;

/// A name, flags and values.
fn kinds() -> Vec<(&'static str, u16, Vec<u8>)> {
    let table = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    vec![
        ("message_id", MESSAGE_ID, short_string(b"\xff\xfe\x00")),
        ("content_type", CONTENT_TYPE | MESSAGE_ID, [short_string(b"\xc3"), short_string(b"kept")].concat()),
        // A UUID as 16 bytes, as many libraries write it.
        ("message_id", MESSAGE_ID, short_string(&[0x9b; 16])),
        ("headers", HEADERS, table(b"\x02\xff\xfet\x01")),
        // Far more levels than the library's stack holds. RabbitMQ 4 needs time that grows with their square: 8 s for the
        // 21,000 that fit into a frame.
        ("headers", HEADERS | MESSAGE_ID, [nested_tables(3_000), short_string(b"kept")].concat()),
        ("headers", HEADERS, nested_tables(6_000)),
    ]
}

async fn start(vhost: &Vhost, quorum: bool) -> Peer {
    let settings =
        RabbitSettings { quorum, ..RabbitSettings::new(vec![AmqpUrl::parse(&vhost.url()).unwrap()]) };
    peer(
        &|node| {
            let (bus, inboxes) = RabbitBus::start(settings.clone(), node.clone());
            (bus, inboxes)
        },
        "a",
    )
    .await
}

/// Publishes each kind to a door, a sound message after each, and sees all of them arrive in order.
async fn all_kinds_arrive(
    vhost: &Vhost,
    peer: &mut Peer,
    exchange: &str,
    inbox: fn(&mut Inboxes) -> &mut tokio::sync::mpsc::Receiver<warren::bus::Delivery>,
    sound: Destination,
) {
    let before = *peer.bus.link().borrow();
    for (property, flags, values) in kinds() {
        let message = RawMessage { exchange, routing_key: b"user.1", flags, values, body: b"bad" };
        assert!(publish_raw(vhost.port(), &vhost.name, &message).await, "the broker takes it");
        assert_eq!(send(&peer.bus, sound.clone(), "good").await, Outcome::Confirmed);
        let delivery = next(inbox(&mut peer.inboxes)).await;
        let why = delivery.properties.unreadable.clone().unwrap();
        assert!(why.starts_with(property), "{why}");
        assert_eq!(body(&delivery), "bad");
        let kept = flags & MESSAGE_ID != 0 && property != "message_id";
        assert_eq!(delivery.properties.message_id.as_deref(), kept.then_some("kept"));
        delivery.ack.ack();
        let delivery = next(inbox(&mut peer.inboxes)).await;
        assert_eq!((body(&delivery).as_str(), &delivery.properties.unreadable), ("good", &None));
        delivery.ack.ack();
    }
    assert_eq!(*peer.bus.link().borrow(), before, "no link was disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_node_queue_and_on_control() {
    let vhost = broker::vhost().await;
    let mut a = start(&vhost, false).await;
    let broadcast = Destination::Broadcast;
    all_kinds_arrive(&vhost, &mut a, "warren.broadcast", |inboxes| &mut inboxes.node, broadcast).await;
    let control = Destination::Control;
    all_kinds_arrive(&vhost, &mut a, "warren.control", |inboxes| &mut inboxes.control, control).await;
    let own = to(&[&a.id]);
    let message = RawMessage {
        exchange: "warren.direct",
        routing_key: b"a",
        flags: MESSAGE_ID,
        values: short_string(b"\xff"),
        body: b"bad",
    };
    assert!(publish_raw(vhost.port(), &vhost.name, &message).await);
    assert!(next(&mut a.inboxes.node).await.properties.unreadable.is_some());
    assert_eq!(send(&a.bus, own, "good").await, Outcome::Confirmed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_ingress_of_each_queue_type() {
    for quorum in [false, true] {
        let vhost = broker::vhost().await;
        let mut a = start(&vhost, quorum).await;
        let ingress = || Destination::Ingress("user.1".into());
        all_kinds_arrive(&vhost, &mut a, "warren.ingress", |inboxes| &mut inboxes.ingress, ingress()).await;
        let message = RawMessage {
            exchange: "warren.ingress",
            routing_key: b"user.\xff",
            flags: 0,
            values: vec![],
            body: b"bad key",
        };
        assert!(publish_raw(vhost.port(), &vhost.name, &message).await);
        let delivery = next(&mut a.inboxes.ingress).await;
        let why = delivery.properties.unreadable.clone().unwrap();
        assert_eq!(why, "routing key: not UTF-8 (757365722eff)");
        delivery.ack.ack();
    }
}

/// Many in a row cost what any message costs: the sound one behind them is there at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_in_a_row_hold_nothing_up() {
    let vhost = broker::vhost().await;
    let mut a = start(&vhost, true).await;
    let before = *a.bus.link().borrow();
    let message = RawMessage {
        exchange: "warren.ingress",
        routing_key: b"user.1",
        flags: MESSAGE_ID,
        values: short_string(b"\xff"),
        body: b"bad",
    };
    for _ in 0..100 {
        assert!(publish_raw(vhost.port(), &vhost.name, &message).await);
    }
    for _ in 0..100 {
        let delivery = next(&mut a.inboxes.ingress).await;
        assert!(delivery.properties.unreadable.is_some() && !delivery.redelivered);
        delivery.ack.ack();
    }
    let started = std::time::Instant::now();
    assert_eq!(send(&a.bus, Destination::Ingress("user.1".into()), "good").await, Outcome::Confirmed);
    assert_eq!(body(&next(&mut a.inboxes.ingress).await), "good");
    assert!(started.elapsed() < std::time::Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(*a.bus.link().borrow(), before);
}

/// A header that is longer than the frames of this node's connections: its publisher's may be longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn longer_than_the_frames_of_this_connection() {
    let vhost = broker::vhost().await;
    let url = format!("{}?frame_max=8192", vhost.url());
    let mut a = peer(&|node| crate::contract::rabbit_bus(&url, node), "a").await;
    let before = *a.bus.link().borrow();
    let field = [&[1, b'h', b'S'][..], &60_000u32.to_be_bytes(), &[b'x'; 60_000]].concat();
    let table = [&(field.len() as u32).to_be_bytes()[..], &field].concat();
    let values = [table, short_string(b"kept")].concat();
    let flags = HEADERS | MESSAGE_ID;
    let message = RawMessage { exchange: "warren.broadcast", routing_key: b"", flags, values, body: b"bad" };
    assert!(publish_raw(vhost.port(), &vhost.name, &message).await);
    let delivery = next(&mut a.inboxes.node).await;
    assert!(delivery.properties.unreadable.clone().unwrap().contains("longer than a frame"));
    assert_eq!(delivery.properties.message_id.as_deref(), Some("kept"));
    delivery.ack.ack();
    assert_eq!(*a.bus.link().borrow(), before);
}
