//! A backend with pika's place at the broker: what it gets and sends is recorded, with every property.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{json, Map, Value};
use tokio::time::timeout;

use crate::nodes::PATIENCE;
use crate::recording::Recording;

/// The properties of the class basic that are there, by their names, and the headers.
fn parts(properties: &BasicProperties) -> (Value, Value) {
    let mut all = Map::new();
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("user_id", properties.user_id()),
        ("app_id", properties.app_id()),
    ];
    for (name, text) in texts {
        all.extend(text.as_ref().map(|text| (name.to_owned(), text.as_str().into())));
    }
    all.extend(properties.delivery_mode().map(|mode| ("delivery_mode".to_owned(), mode.into())));
    all.extend(properties.timestamp().map(|seconds| ("timestamp".to_owned(), seconds.into())));
    all.extend(properties.priority().map(|priority| ("priority".to_owned(), priority.into())));
    let table = properties.headers().clone().unwrap_or_default();
    let headers: Map<String, Value> =
        table.inner().iter().map(|(name, value)| (name.to_string(), header(value))).collect();
    (all.into(), headers.into())
}

fn header(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::LongString(text) => text.to_string().into(),
        AMQPValue::LongLongInt(number) => (*number).into(),
        other => format!("{other:?}").into(),
    }
}

fn short(text: &str) -> ShortString {
    text.into()
}

/// A message that a backend got.
pub struct Got {
    pub exchange: String,
    pub key: String,
    pub properties: Value,
    pub headers: Value,
    pub body: Value,
}

impl From<Delivery> for Got {
    fn from(delivery: Delivery) -> Self {
        let (properties, headers) = parts(&delivery.properties);
        let (exchange, key) = (delivery.exchange.to_string(), delivery.routing_key.to_string());
        let body = serde_json::from_slice(&delivery.data).unwrap_or(Value::Null);
        Self { exchange, key, properties, headers, body }
    }
}

/// A queue and whoever takes from it.
pub struct Queue {
    pub name: String,
    consumer: Consumer,
}

impl Queue {
    pub async fn next(&mut self) -> Got {
        let next = timeout(PATIENCE, self.consumer.next()).await.expect("a message in time");
        next.expect("a consumer").unwrap().into()
    }

    /// What comes until nothing comes any more for a while.
    pub async fn rest(&mut self, quiet: Duration) -> Vec<Got> {
        let mut all = Vec::new();
        while let Ok(Some(Ok(delivery))) = timeout(quiet, self.consumer.next()).await {
            all.push(delivery.into());
        }
        all
    }
}

pub struct Backend {
    _connection: Connection,
    channel: Channel,
    recording: Recording,
}

impl Backend {
    pub async fn connect(recording: &Recording, url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel, recording: recording.clone() }
    }

    pub async fn consume(&self, queue: &str) -> Queue {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer =
            self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await;
        Queue { name: queue.to_owned(), consumer: consumer.unwrap() }
    }

    /// A queue of its own; with an exchange, bound to it. Nobody takes from it so far.
    pub async fn declare(&self, queue: &str, binding: Option<(&str, &str)>) {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        if let Some((exchange, key)) = binding {
            let options = QueueBindOptions::default();
            let bound = self.channel.queue_bind(
                queue.into(),
                exchange.into(),
                key.into(),
                options,
                FieldTable::default(),
            );
            bound.await.unwrap();
        }
    }

    async fn send(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions::default();
        let sent =
            self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
        assert!(sent.await.unwrap().is_ack());
    }

    /// Publishes for clients; schemas must allow the target and the properties.
    pub async fn publish(&self, target: &str, properties: BasicProperties, body: &[u8]) {
        self.recording.saw(("amqp", "routing_target"), target.into());
        self.recording.saw(("amqp", "publish_properties"), parts(&properties).0);
        self.send("warren.ingress", target, properties, body).await;
    }

    /// Publishes what the gateway refuses; the schema must refuse its target or its properties.
    pub async fn publish_badly(&self, target: &str, properties: BasicProperties, definition: &str) {
        let refused = if definition == "routing_target" { json!(target) } else { parts(&properties).0 };
        self.recording.refused(("amqp", definition), refused);
        self.send("warren.ingress", target, properties, b"{}").await;
    }

    /// Answers a request as any library does.
    pub async fn answer(&self, request: &Got, body: &[u8]) {
        let correlation = request.properties["correlation_id"].as_str().unwrap();
        let properties = BasicProperties::default().with_correlation_id(short(correlation));
        self.recording.saw(("amqp", "answer_properties"), parts(&properties).0);
        self.send("", request.properties["reply_to"].as_str().unwrap(), properties, body).await;
    }

    /// A message from `warren.app`.
    pub fn saw_application(&self, got: &Got) {
        assert_eq!(got.exchange, "warren.app");
        self.recording.saw(("values", "app_target"), format!("app.{}", got.key).into());
        self.recording.saw(("amqp", "application_properties"), got.properties.clone());
        self.recording.saw(("amqp", "application_headers"), got.headers.clone());
    }

    pub fn saw_settlement(&self, got: &Got) {
        self.recording.saw(("amqp", "settlement_properties"), got.properties.clone());
        self.recording.saw(("amqp", "settlement"), got.body.clone());
    }

    pub fn saw_event(&self, got: &Got) {
        assert_eq!((&*got.exchange, &got.body["event"]), ("warren.events", &json!(got.key)));
        assert_eq!(got.properties["type"], got.key);
        self.recording.saw(("amqp", "event_properties"), got.properties.clone());
        self.recording.saw_event(got.body.clone());
    }

    pub fn saw_dead_letter(&self, got: &Got) {
        assert_eq!(got.exchange, "warren.dead");
        self.recording.saw(("amqp", "dead_properties"), got.properties.clone());
        self.recording.saw(("amqp", "dead_headers"), got.headers.clone());
    }
}

/// The properties that a backend may give, all at once.
pub fn everything(reply_to: &str) -> BasicProperties {
    BasicProperties::default()
        .with_content_type(short("application/json"))
        .with_delivery_mode(2)
        .with_message_id(short("parcel-7"))
        .with_type(short("notice"))
        .with_app_id(short("parcels"))
        .with_user_id(short("guest"))
        .with_expiration(short("60000"))
        .with_reply_to(short(reply_to))
        .with_correlation_id(short("c-1"))
}

/// Only where the settlement goes.
pub fn answered_at(reply_to: &str) -> BasicProperties {
    BasicProperties::default().with_reply_to(short(reply_to))
}
