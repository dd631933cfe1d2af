//! Mail of version 1, in queues as that version made them, moves into boxes.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use warren::bus::rabbit::{RabbitBus, RabbitSettings};
use warren::bus::{BoxNumber, Bus};
use warren::config::AmqpUrl;
use warren::ids::{UserId, UserKey};
use warren::migrate;

use crate::box_contract::{read, round, settings, U};
use crate::broker::vhost;
use crate::bus_contract::{node, ready};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_mail_moves_into_boxes() {
    let vhost = vhost().await;
    let connection = Connection::connect(&vhost.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mailbox = "warren.mailbox.zo~C3~AB";
    for name in [mailbox, "warren.mailbox.odd", "warren.mailbox.empty", "other"] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.into(), options, arguments).await.unwrap();
    }
    for n in 0..200 {
        let mut headers = FieldTable::default();
        headers.insert("warren-to".into(), AMQPValue::LongString("user.zo~C3~AB".into()));
        headers.insert("warren-scope".into(), AMQPValue::LongString("ff".into()));
        let id = format!("m-{n}");
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.as_str().into())
            .with_type("warren.message".into())
            .with_headers(headers);
        let body = format!(
            r#"{{"type":"message","id":"{id}","from":{{"user":"bob"}},"to":"user.zoë","payload":{n},"ts":7}}"#
        );
        let options = BasicPublishOptions::default();
        channel
            .basic_publish("".into(), mailbox.into(), options, body.as_bytes(), properties)
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let options = BasicPublishOptions::default();
    let odd = BasicProperties::default();
    channel
        .basic_publish("".into(), "warren.mailbox.odd".into(), options, b"junk", odd)
        .await
        .unwrap()
        .await
        .unwrap();

    let settings = RabbitSettings {
        boxes: settings(),
        ..RabbitSettings::new(vec![AmqpUrl::parse(&vhost.url()).unwrap()])
    };
    let names: Vec<_> = vhost.queues().await;
    let summary = migrate::move_all(settings.clone(), node("m"), &names).await.unwrap();
    assert_eq!((summary.queues, summary.moved, summary.left, summary.removed), (3, 200, 1, 2), "{summary}");
    let queues = vhost.queues().await;
    assert!(
        !queues.iter().any(|name| name == mailbox) && queues.iter().any(|name| name == "other"),
        "{queues:?}"
    );

    let (bus, _inboxes) = RabbitBus::start(settings, node("a"));
    let bus: std::sync::Arc<dyn Bus> = bus;
    ready(&*bus).await;
    let user = UserKey::of(&UserId::new("zoë").unwrap());
    let mut reader = read(&bus, BoxNumber::of(user, bus.boxes().boxes), &[U]).await;
    let (mails, _) = round(&mut reader).await;
    let bodies: Vec<_> = mails.iter().map(|mail| String::from_utf8(mail.body.to_vec()).unwrap()).collect();
    assert_eq!(bodies, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(mails[0].properties.header("warren-version"), Some("2"));
}
