//! Declaring the topology at the broker.

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeUnbindOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use super::connection::{within, LinkError};
use super::topology::{Argument, Binding, Exchange, ExchangeType, Queue, Topology};

/// Makes sure that the durable exchanges and queues exist. Looks first: a gateway with least privileges, whose
/// topology was imported from `amqp/definitions.json`, may use them but not configure them.
pub async fn durable(connection: &Connection, topology: &Topology) -> Result<(), LinkError> {
    let channel = within("opening a channel", connection.create_channel()).await?;
    match all_exist(&channel, topology).await {
        Err(error) if is(&error, AMQPSoftError::NOTFOUND) => {}
        answer => return answer,
    }
    // The miss closed that channel.
    let channel = within("opening a channel", connection.create_channel()).await?;
    for exchange in topology.exchanges() {
        declare_exchange(&channel, &exchange, false).await?;
    }
    for queue in topology.durable_queues() {
        declare_queue(&channel, &queue, false).await?;
    }
    let has_hash = exists(connection, &topology.ingress_hash()).await?;
    for binding in topology.durable_bindings() {
        // Behind the hash exchange the queue would get second copies.
        if !(has_hash && binding == topology.ingress_binding()) {
            bind(&channel, &binding).await?;
        }
    }
    Ok(())
}

/// On a channel of its own, which a miss takes.
pub async fn exists(connection: &Connection, exchange: &Exchange) -> Result<bool, LinkError> {
    let channel = within("opening a channel", connection.create_channel()).await?;
    let there = match declare_exchange(&channel, exchange, true).await {
        Ok(()) => true,
        Err(error) if is(&error, AMQPSoftError::NOTFOUND) => return Ok(false),
        Err(error) => return Err(error),
    };
    let _ = within("closing a channel", channel.close(200, "looked".into())).await;
    Ok(there)
}

async fn all_exist(channel: &Channel, topology: &Topology) -> Result<(), LinkError> {
    for exchange in topology.exchanges() {
        declare_exchange(channel, &exchange, true).await?;
    }
    for queue in topology.durable_queues() {
        declare_queue(channel, &queue, true).await?;
    }
    Ok(())
}

/// Whether the broker closed a channel for this reason.
pub fn is(error: &LinkError, reason: AMQPSoftError) -> bool {
    let LinkError::Amqp(error) = error else { return false };
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    *error.kind() == AMQPErrorKind::Soft(reason)
}

pub async fn declare_exchange(
    channel: &Channel,
    exchange: &Exchange,
    passive: bool,
) -> Result<(), LinkError> {
    let kind = match exchange.kind {
        ExchangeType::Fanout => ExchangeKind::Fanout,
        ExchangeType::Direct => ExchangeKind::Direct,
        ExchangeType::Topic => ExchangeKind::Topic,
        ExchangeType::ConsistentHash => ExchangeKind::Custom(exchange.kind.as_str().into()),
    };
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    let name = ShortString::try_new(exchange.name.as_str())?;
    within("declaring an exchange", channel.exchange_declare(name, kind, options, FieldTable::default()))
        .await
}

pub async fn declare_queue(channel: &Channel, queue: &Queue, passive: bool) -> Result<(), LinkError> {
    let options = QueueDeclareOptions {
        passive,
        durable: !queue.exclusive,
        exclusive: queue.exclusive,
        auto_delete: queue.exclusive,
        nowait: false,
    };
    let mut arguments = FieldTable::default();
    for (name, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt((*number).into()),
            Argument::Flag(flag) => AMQPValue::Boolean(*flag),
        };
        arguments.insert(ShortString::try_new(*name)?, value);
    }
    let name = ShortString::try_new(queue.name.as_str())?;
    within("declaring a queue", channel.queue_declare(name, options, arguments)).await?;
    Ok(())
}

pub async fn bind(channel: &Channel, binding: &Binding) -> Result<(), LinkError> {
    let (queue, exchange, key) = names(binding)?;
    let options = QueueBindOptions::default();
    within("binding", channel.queue_bind(queue, exchange, key, options, FieldTable::default())).await
}

pub async fn unbind(channel: &Channel, binding: &Binding) -> Result<(), LinkError> {
    let (queue, exchange, key) = names(binding)?;
    within("unbinding", channel.queue_unbind(queue, exchange, key, FieldTable::default())).await
}

/// What reaches the exchange `from` under the key goes on to the exchange `to`.
pub async fn bind_exchange(channel: &Channel, to: &str, from: &str, key: &str) -> Result<(), LinkError> {
    let (to, from, key) =
        (ShortString::try_new(to)?, ShortString::try_new(from)?, ShortString::try_new(key)?);
    let options = ExchangeBindOptions::default();
    within("binding", channel.exchange_bind(to, from, key, options, FieldTable::default())).await
}

pub async fn unbind_exchange(channel: &Channel, to: &str, from: &str, key: &str) -> Result<(), LinkError> {
    let (to, from, key) =
        (ShortString::try_new(to)?, ShortString::try_new(from)?, ShortString::try_new(key)?);
    let options = ExchangeUnbindOptions::default();
    within("unbinding", channel.exchange_unbind(to, from, key, options, FieldTable::default())).await
}

/// How many messages of a queue wait, and how many consumers it has.
pub async fn depth(channel: &Channel, queue: &Queue) -> Result<(u32, u32), LinkError> {
    let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    let name = ShortString::try_new(queue.name.as_str())?;
    let found =
        within("looking at a queue", channel.queue_declare(name, options, FieldTable::default())).await?;
    Ok((found.message_count(), found.consumer_count()))
}

fn names(binding: &Binding) -> Result<(ShortString, ShortString, ShortString), LinkError> {
    Ok((
        ShortString::try_new(binding.queue.as_str())?,
        ShortString::try_new(binding.exchange.as_str())?,
        ShortString::try_new(binding.key.as_str())?,
    ))
}
