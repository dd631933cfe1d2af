//! What other nodes send: messages, receipts, questions, gossip; and what backends broadcast directly.

use std::sync::Arc;

use tokio::sync::{mpsc, Semaphore};

use crate::bus::{Bus, Delivery, Via};
use crate::delivery::envelope::{self, kind, Answer, Ask, Envelope, EnvelopeError, Mail, Receipts};
use crate::directory::{GOSSIP_KIND, PROBE_KIND};
use crate::ingress::{backends, bury};
use crate::metrics::Metrics;
use crate::protocol::target::Target;
use crate::router::Router;

/// Questions answered at once. Overflow policy: the node queue waits.
const ASKS_MAX: usize = 64;

/// Works off the node queue until it is closed. One message at a time: that keeps their order.
pub async fn run_node(
    router: Arc<Router>,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
    mut inbox: mpsc::Receiver<Delivery>,
) {
    let asks = Arc::new(Semaphore::new(ASKS_MAX));
    while let Some(delivery) = inbox.recv().await {
        let from_node = bus.account().is_none_or(|account| {
            // The broker vouches for it.
            delivery.properties.user_id.as_deref() == Some(account)
        });
        match take(&router, &asks, &delivery, from_node).await {
            Ok(()) => delivery.ack.ack(),
            Err(reason) => bury(&*bus, &metrics, delivery, &reason).await,
        }
    }
}

/// Works off the control queue until it is closed.
pub async fn run_control(router: Arc<Router>, mut inbox: mpsc::Receiver<Delivery>) {
    while let Some(delivery) = inbox.recv().await {
        let heard = match delivery.properties.kind.as_deref() {
            _ if delivery.properties.unreadable.is_some() => Err("its properties cannot be read".to_owned()),
            Some(kind::MAIL) => parse::<Mail>(&delivery.body)
                .map(|mail| mail.users.iter().for_each(|user| router.mail_for(user))),
            _ => router.directory().on_gossip(&delivery.body).map_err(|error| error.to_string()),
        };
        if let Err(error) = heard {
            // Not worth the dead queue: what nodes say to all is repeated, or is a hint.
            tracing::warn!(%error, "gossip that cannot be understood");
        }
        delivery.ack.ack();
    }
}

/// What nodes say to each other counts only if a node said it: a backend that may broadcast could otherwise put
/// words into other mouths.
async fn take(
    router: &Arc<Router>,
    asks: &Arc<Semaphore>,
    delivery: &Delivery,
    from_node: bool,
) -> Result<(), String> {
    let properties = &delivery.properties;
    if let Some(why) = &properties.unreadable {
        return Err(why.clone());
    }
    let text = |error: EnvelopeError| error.to_string();
    match properties.kind.as_deref().filter(|_| from_node) {
        Some(kind::MESSAGE) => {
            let envelope = Envelope::from_delivery(properties, delivery.body.clone()).map_err(text)?;
            arrive(router, envelope).await;
        }
        Some(kind::RECEIPTS) => {
            let receipts: Receipts = parse(&delivery.body)?;
            for (tag, sessions) in receipts.receipts {
                router.receipt(tag, &receipts.from, sessions);
            }
        }
        Some(kind::ASK) => {
            let ask: Ask = parse(&delivery.body)?;
            let origin = envelope::origin(properties).map_err(text)?.ok_or("a question from nobody")?;
            let permit = asks.clone().acquire_owned().await;
            let router = router.clone();
            // Ends with its answer; the semaphore bounds how many there are.
            tokio::spawn(async move {
                router.asked(ask, origin).await;
                drop(permit);
            });
        }
        Some(kind::ANSWER) => {
            let origin = envelope::origin(properties).map_err(text)?.ok_or("an answer to nobody")?;
            let answer: Answer = parse(&delivery.body)?;
            router.answered(origin.tag, answer);
        }
        Some(kind::MAIL) => {
            let mail: Mail = parse(&delivery.body)?;
            mail.users.iter().for_each(|user| router.mail_for(user));
        }
        // It has arrived: that is all it is for.
        Some(PROBE_KIND) => {}
        Some(GOSSIP_KIND) => {
            router.directory().on_gossip(&delivery.body).map_err(|error| error.to_string())?
        }
        _ if delivery.via == Via::Broadcast => {
            let message = backends::message(delivery, Target::Broadcast)?;
            arrive(router, Envelope::of(&message)).await;
        }
        _ => return Err("not something that nodes send each other".into()),
    }
    Ok(())
}

fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// Waits for room: the node queue is the place where messages wait.
async fn arrive(router: &Arc<Router>, envelope: Envelope) {
    while let Err(full) = router.arrive(envelope.clone()) {
        router.hub().room(full).await;
    }
}
