//! Between the bus's words and AMQP's: properties, headers and routing of a message.

use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString, ShortStringError};
use lapin::BasicProperties;

use super::filter::UNREADABLE_HEADER;
use super::topology::Topology;
use crate::bus::{Destination, Lane, Properties, Publish, EVENT_HEADER};
use crate::ids::encode;

/// Numbers a publish that may come back, so that its return is known by our own number.
const SEQUENCE_HEADER: &str = "x-warren-sequence";
/// RabbitMQ 4 refuses larger ones by closing the channel.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// A larger `expiration` makes the broker close the channel.
const EXPIRATION_MS_MAX: u64 = u32::MAX as u64;

/// Longest short string, in bytes (AMQP 0-9-1 section 4.2.5.3).
const SHORT_STRING_BYTES_MAX: usize = 255;
/// Where RabbitMQ puts the ids of AMQP 1.0 and MQTT 5 that are no short string, and where clients put them whose
/// protocol has no such property.
const MESSAGE_ID_HEADER: &str = "x-message-id";
const CORRELATION_ID_HEADER: &str = "x-correlation-id";

/// Names of RabbitMQ's direct reply-to: no queue, but the channel of whoever asked.
pub const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to.";

/// What `basic.publish` needs besides the body.
#[derive(Debug)]
pub struct Outgoing {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    /// Ask for the message back when no queue takes it.
    pub mandatory: bool,
    pub properties: BasicProperties,
}

/// Why a publish cannot be sent at all.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit;

impl From<ShortStringError> for Unfit {
    fn from(_: ShortStringError) -> Self {
        Unfit
    }
}

/// Writes a publish in AMQP's terms. `header_bytes_max` is what fits into one frame of the connection: the
/// broker closes a connection that sends more.
pub fn outgoing(
    publish: &Publish,
    topology: &Topology,
    sequence: u64,
    header_bytes_max: usize,
) -> Result<Outgoing, Unfit> {
    if publish.body.len() > BODY_BYTES_MAX {
        return Err(Unfit);
    }
    let (exchange, key, mandatory) = match &publish.to {
        Destination::Broadcast => (topology.broadcast(), String::new(), false),
        Destination::Control => (topology.control(), String::new(), false),
        Destination::Nodes(nodes) => (topology.direct(), encode(nodes.first().ok_or(Unfit)?.as_str()), true),
        Destination::Ingress(key) => (topology.ingress(), key.clone(), true),
        Destination::Application(key) => (topology.app(), key.as_str().to_owned(), true),
        // Nobody needs to listen.
        Destination::Event(key) => (topology.events(), key.clone(), false),
        Destination::Dead => (topology.dead(), String::new(), true),
        Destination::Queue(name) if !is_sound(name) => return Err(Unfit),
        // Answers go where strangers want them; the node's own probes go to its own queues.
        Destination::Queue(name) if publish.lane == Lane::Reply && topology.is_reserved(name) => {
            return Err(Unfit)
        }
        // The broker hands it over and yet calls it unroutable.
        Destination::Queue(name) => (String::new(), name.clone(), !name.starts_with(DIRECT_REPLY)),
        Destination::Box(number) => (String::new(), topology.box_name(*number), true),
    };
    let mut headers = FieldTable::default();
    let mut bytes = 0;
    for (name, value) in publish.properties.headers.iter().filter(|(name, _)| !reserved(name)) {
        bytes += name.len() + value.len() + 8;
        headers.insert(ShortString::try_new(name.as_str())?, AMQPValue::LongString(value.as_str().into()));
    }
    if let Destination::Nodes(nodes) = &publish.to {
        if nodes.len() > 1 {
            let others = nodes[1..].iter().map(|node| encode(node.as_str()));
            bytes += others.clone().map(|key| key.len() + 8).sum::<usize>();
            let others: Vec<_> = others.map(|key| AMQPValue::LongString(key.into())).collect();
            headers.insert("CC".into(), AMQPValue::FieldArray(FieldArray::from(others)));
        }
    }
    if mandatory {
        headers.insert(SEQUENCE_HEADER.into(), AMQPValue::LongLongInt(sequence as i64));
    }
    // The standard properties are short strings: at most 8 of 256 bytes.
    if bytes + 2048 + 64 > header_bytes_max {
        return Err(Unfit);
    }
    Ok(Outgoing {
        exchange: ShortString::try_new(exchange)?,
        routing_key: ShortString::try_new(key)?,
        mandatory,
        properties: properties_out(publish, headers, topology.account())?,
    })
}

/// RabbitMQ closes the whole connection (541) over a direct reply-to that it cannot decode. A real one is a process id in
/// base64, of some 40 characters, a dot and a key; what looks like one may still be none.
fn is_sound(queue: &str) -> bool {
    const ID_BYTES_MIN: usize = 16;
    let Some(rest) = queue.strip_prefix(DIRECT_REPLY) else { return true };
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte);
    rest.split_once('.').is_some_and(|(id, key)| {
        id.len() >= ID_BYTES_MIN && id.bytes().all(base64) && !key.is_empty() && !key.contains('.')
    })
}

fn properties_out(
    publish: &Publish,
    headers: FieldTable,
    account: Option<&str>,
) -> Result<BasicProperties, Unfit> {
    let from = &publish.properties;
    let durable = matches!(
        publish.to,
        Destination::Ingress(_)
            | Destination::Application(_)
            | Destination::Event(_)
            | Destination::Dead
            | Destination::Queue(_)
            | Destination::Box(_)
    );
    let mode = if from.persistent.unwrap_or(durable) { 2 } else { 1 };
    let mut to = BasicProperties::default().with_delivery_mode(mode);
    if !headers.inner().is_empty() {
        to = to.with_headers(headers);
    }
    if let Some(text) = &from.message_id {
        to = to.with_message_id(ShortString::try_new(text.as_str())?);
    }
    if let Some(text) = &from.kind {
        to = to.with_type(ShortString::try_new(text.as_str())?);
    }
    if let Some(text) = &from.content_type {
        to = to.with_content_type(ShortString::try_new(text.as_str())?);
    }
    if let Some(text) = &from.correlation_id {
        to = to.with_correlation_id(ShortString::try_new(text.as_str())?);
    }
    if let Some(text) = &from.reply_to {
        to = to.with_reply_to(ShortString::try_new(text.as_str())?);
    }
    if let Some(text) = from.expiration.as_ref().filter(|text| is_expiration(text)) {
        to = to.with_expiration(ShortString::try_new(text.as_str())?);
    }
    if let Some(seconds) = from.timestamp {
        to = to.with_timestamp(seconds);
    }
    if let Some(text) = &from.app_id {
        to = to.with_app_id(ShortString::try_new(text.as_str())?);
    }
    // Only ever the connection's own: the broker closes the channel of whoever names another.
    let vouched = matches!(
        publish.to,
        Destination::Broadcast
            | Destination::Control
            | Destination::Nodes(_)
            | Destination::Box(_)
            | Destination::Application(_)
    );
    let named = from.user_id.as_deref().is_some_and(|user| Some(user) == account);
    if let Some(account) = account.filter(|_| vouched || named) {
        to = to.with_user_id(ShortString::try_new(account)?);
    }
    Ok(to)
}

/// The broker closes a channel over an expiration that is not a number of milliseconds.
fn is_expiration(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse().is_ok_and(|ms: u64| ms <= EXPIRATION_MS_MAX)
}

/// Headers that steer the broker: neither taken from outside nor passed on.
fn reserved(name: &str) -> bool {
    name == "CC" || name == "BCC" || name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("x-"))
}

/// The number that [`outgoing`] gave to a message that came back.
pub fn sequence(properties: &BasicProperties) -> Option<u64> {
    match properties.headers().as_ref()?.inner().get(SEQUENCE_HEADER)? {
        AMQPValue::LongLongInt(sequence) => u64::try_from(*sequence).ok(),
        _ => None,
    }
}

/// The properties of a delivery. Headers that are not plain text, and those that steer the broker, are left
/// out; so is whatever a publisher cannot have meant.
pub fn incoming(from: &BasicProperties) -> Properties {
    let text = |field: &Option<ShortString>| field.as_ref().map(|text| text.as_str().to_owned());
    let table = from.headers().as_ref().map(FieldTable::inner);
    let headers = table.into_iter().flatten();
    let mut unreadable = table.and_then(|table| flat(table.get(UNREADABLE_HEADER)?));
    let mut id = |property, name| {
        let id = id_in_header(table?.get(name)?)?;
        if id.len() <= SHORT_STRING_BYTES_MAX {
            return Some(id);
        }
        // A new id in its place would repeat what the publisher sends twice.
        unreadable.get_or_insert(format!("{property}: longer than {SHORT_STRING_BYTES_MAX} bytes"));
        None
    };
    let message_id = text(from.message_id()).or_else(|| id("message_id", MESSAGE_ID_HEADER));
    let correlation_id = text(from.correlation_id()).or_else(|| id("correlation_id", CORRELATION_ID_HEADER));
    Properties {
        message_id,
        kind: text(from.kind()),
        content_type: text(from.content_type()),
        correlation_id,
        reply_to: text(from.reply_to()),
        expiration: text(from.expiration()),
        timestamp: *from.timestamp(),
        persistent: match from.delivery_mode() {
            Some(1) => Some(false),
            Some(2) => Some(true),
            _ => None,
        },
        app_id: text(from.app_id()),
        user_id: text(from.user_id()),
        headers: headers
            .filter(|(name, _)| !reserved(name.as_str()) || name.as_str() == EVENT_HEADER)
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), flat(value)?)))
            .collect(),
        unreadable,
    }
}

/// An id as the broker puts it into a header: text that is too long for the property, or bytes, of which the text is
/// their hexadecimal digits unless they are text.
fn id_in_header(value: &AMQPValue) -> Option<String> {
    let bytes = match value {
        AMQPValue::LongString(text) => text.as_bytes(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice(),
        AMQPValue::ShortString(text) => return Some(text.as_str().to_owned()),
        _ => return None,
    };
    let hexadecimal = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(std::str::from_utf8(bytes).map_or_else(|_| hexadecimal(), str::to_owned))
}

fn flat(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
