//! Ends a delivery from a backend: answers it, dead-letters it if nobody can be told, and then acknowledges it.
//!
//! Nothing here waits: what the broker does not take now is tried again later, and holds its place in the prefetch
//! window until then. A delivery whose channel is gone is dropped, since the broker hands it out again.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::mpsc;

use super::dead_letter;
use crate::bus::{Bus, Delivery, Destination, Lane, Outcome, Properties, Publish, INGRESS_WINDOW};
use crate::error::Error;
use crate::ids::MessageId;
use crate::metrics::Metrics;
use crate::protocol::message::{Message, Settlement};
use crate::protocol::reply::Settled;

/// A step that is to be tried again later.
pub(super) enum Again {
    /// Not settled: from the beginning.
    Accept(Box<Message>, Taken),
    /// Settled: the answer or the dead letter did not get through.
    Finish(Ending),
}

/// A delivery whose fate is known.
pub(super) struct Ending {
    pub(super) taken: Taken,
    /// The answer for the backend, as JSON; `None` once it is sent, or when nobody asked.
    pub(super) reply: Option<Vec<u8>>,
    pub(super) dead: DeadLetter,
}

/// Whether a delivery goes to the dead letters, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DeadLetter {
    No,
    /// Only if its backend cannot be told: it was rejected.
    UnlessTold(String),
    /// It is no message, and the answer alone would lose it.
    Always(String),
}

/// What endings need.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) metrics: Arc<Metrics>,
    /// What every queue of the gateway begins with: a backend must not have answers put there.
    pub(super) own_prefix: Arc<str>,
    /// As wide as the prefetch window, which bounds what can be in it.
    pub(super) again: mpsc::Sender<Again>,
    pub(super) window: Arc<Window>,
}

/// How much of the ingress window is taken.
#[derive(Debug, Default)]
pub(super) struct Window(AtomicUsize);

/// A delivery and its place in the window, which is free again when this is dropped.
pub(super) struct Taken {
    pub(super) delivery: Delivery,
    _place: Place,
}

struct Place(Arc<Window>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0 .0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(feature = "sabotage")]
impl Taken {
    pub(super) fn ack_early(self) -> Self {
        let delivery = Delivery { ack: self.delivery.ack.ack_early(), ..self.delivery };
        Self { delivery, _place: self._place }
    }
}

impl Window {
    pub(super) fn take(self: &Arc<Self>, delivery: Delivery) -> Taken {
        self.0.fetch_add(1, Ordering::Relaxed);
        Taken { delivery, _place: Place(self.clone()) }
    }

    pub(super) fn is_pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed) > usize::from(INGRESS_WINDOW) / 2
    }
}

/// The settlement as a backend gets it.
#[derive(Serialize)]
struct Reply<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Error>,
}

impl Ending {
    /// Of a message that was settled for good.
    pub(super) fn settled(taken: Taken, id: &MessageId, settlement: &Settlement) -> Self {
        let Settled { outcome, sessions, error, .. } = Settled::new(id, settlement);
        let reason = error.map(|error| format!("{}: {}", error.code.as_str(), error.message));
        let dead = reason.map_or(DeadLetter::No, DeadLetter::UnlessTold);
        Self::new(taken, &Reply { id: Some(id.as_str()), outcome, sessions, error }, dead)
    }

    /// Of a delivery that is no message.
    pub(super) fn unreadable(taken: Taken, reason: String) -> Self {
        let error = Error::bad_request(reason.clone());
        let id = taken.delivery.properties.message_id.clone();
        let reply = Reply { id: id.as_deref(), outcome: "rejected", sessions: None, error: Some(&error) };
        Self::new(taken, &reply, DeadLetter::Always(reason))
    }

    fn new(taken: Taken, reply: &Reply, dead: DeadLetter) -> Self {
        // Plain structs cannot fail to serialise.
        let body = serde_json::to_vec(reply).unwrap_or_default();
        let asked = taken.delivery.properties.reply_to.is_some();
        Self { taken, reply: asked.then_some(body), dead }
    }
}

impl Desk {
    pub(super) fn try_again(&self, again: Again) {
        // See the field: there is room. A closed channel means that the node stops; the broker keeps the message.
        let _ = self.again.try_send(again);
    }

    /// Answers, then dead-letters, then acknowledges; each only after the broker has confirmed the one before.
    pub(super) fn finish(&self, mut ending: Ending) {
        if ending.taken.delivery.ack.is_void() {
            return;
        }
        let Some(body) = ending.reply.take() else { return self.dead_letter(ending) };
        let Some(publish) = self.reply(&ending.taken.delivery.properties, &body) else {
            if ending.dead == DeadLetter::No {
                ending.dead = DeadLetter::Always("reply_to: names a queue of the gateway".to_owned());
            }
            return self.dead_letter(ending);
        };
        let desk = self.clone();
        let done = move |outcome| match outcome {
            Outcome::Confirmed if !matches!(ending.dead, DeadLetter::Always(_)) => {
                ending.taken.delivery.ack.ack();
            }
            Outcome::Confirmed | Outcome::Unroutable | Outcome::Refused => desk.dead_letter(ending),
            Outcome::Overloaded | Outcome::Unavailable => {
                ending.reply = Some(body);
                desk.try_again(Again::Finish(ending));
            }
        };
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("settle-twice") {
            self.bus.publish(publish.clone(), Box::new(|_| ()));
        }
        self.bus.publish(publish, Box::new(done));
    }

    /// `None`: the name is one of the gateway's own queues.
    fn reply(&self, properties: &Properties, body: &[u8]) -> Option<Publish> {
        let to = reply_queue(properties.reply_to.as_deref().unwrap_or_default());
        let own = to.strip_prefix(&*self.own_prefix).is_some_and(|rest| rest.starts_with('.'));
        let properties = Properties {
            correlation_id: properties.correlation_id.clone(),
            content_type: Some("application/json".to_owned()),
            ..Properties::default()
        };
        let body = body.to_vec().into();
        let publish = Publish {
            to: Destination::Queue(to.into_owned()),
            properties,
            body,
            order_key: 0,
            lane: Lane::Reply,
        };
        (!own).then_some(publish)
    }

    fn dead_letter(&self, ending: Ending) {
        let reason = match &ending.dead {
            DeadLetter::No => {
                ending.taken.delivery.ack.ack();
                return;
            }
            DeadLetter::UnlessTold(reason) | DeadLetter::Always(reason) => reason.clone(),
        };
        let publish = dead_letter::publish(&ending.taken.delivery, &reason);
        let desk = self.clone();
        let done = move |outcome| match outcome {
            Outcome::Confirmed => {
                tracing::warn!(via = ?ending.taken.delivery.via, reason, "dead-lettered a message");
                desk.metrics.message_dead();
                ending.taken.delivery.ack.ack();
            }
            // The dead queue is being declared again, or the broker takes nothing now.
            _ => desk.try_again(Again::Finish(ending)),
        };
        self.bus.publish(publish, Box::new(done));
    }
}

/// The name of the queue in an address of another protocol, which the broker may hand on as its client wrote it: AMQP 1.0
/// in RabbitMQ 4 (`/queues/`, percent-encoded), and STOMP.
fn reply_queue(address: &str) -> Cow<'_, str> {
    if let Some(name) = address.strip_prefix("/queues/") {
        return percent_decode_str(name).decode_utf8_lossy();
    }
    let name = address.strip_prefix("/queue/").or_else(|| address.strip_prefix("/amq/queue/"));
    Cow::Borrowed(name.unwrap_or(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::memory::MemoryBroker;
    use crate::ids::NodeId;

    #[test]
    fn addresses_of_other_protocols_name_queues() {
        for (address, queue) in [
            ("replies", "replies"),
            ("/queues/replies", "replies"),
            ("/queues/my%20replies%2Fto", "my replies/to"),
            ("/queue/replies%20", "replies%20"),
            ("/amq/queue/replies", "replies"),
            ("/exchanges/x/y", "/exchanges/x/y"),
            ("", ""),
        ] {
            assert_eq!(reply_queue(address), queue);
        }
    }

    #[tokio::test]
    async fn no_spelling_reaches_a_queue_of_the_gateway() {
        let (bus, _inboxes) = MemoryBroker::new().attach(NodeId::new("n").unwrap());
        let desk = Desk {
            bus,
            metrics: Arc::new(Metrics::new()),
            own_prefix: "warren".into(),
            again: mpsc::channel(1).0,
            window: Arc::default(),
        };
        let reply = |address: &str| {
            let properties = Properties { reply_to: Some(address.to_owned()), ..Properties::default() };
            desk.reply(&properties, b"{}").map(|publish| publish.to)
        };
        for address in
            ["warren.dead", "/queues/warren.dead", "/queues/warren%2Edead", "/queues/%77arren.dead"]
        {
            assert_eq!(reply(address), None, "{address}");
        }
        assert_eq!(reply("/queues/warrens"), Some(Destination::Queue("warrens".into())));
    }
}
