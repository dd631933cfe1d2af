//! The task that lets the mail index run: it keeps the timers, follows the link and carries out effects.

use std::time::Instant;

use bytes::Bytes;
use tokio::time::sleep_until;

use super::effect::Effect;
use super::gossip::MAIL_INDEX_KIND;
use super::MailIndex;
use crate::bus::{Destination, Lane, Outcome, Properties, Publish};

/// All gossip has one order key: a reading must not overtake the deposits that it counted.
const ORDER_KEY: u64 = 0x6d61_696c;

/// Reports what is not announced at the end of the service, by itself or because it is dropped.
struct Unannounced(MailIndex);

impl Drop for Unannounced {
    fn drop(&mut self) {
        let effect = self.0.lock().end();
        self.0.carry_out(effect);
    }
}

/// Until the bus is closed for good.
pub(super) async fn run(index: MailIndex) {
    let _unannounced = Unannounced(index.clone());
    let mut links = index.shared.bus.link();
    let mut unsure_since = Some(Instant::now());
    loop {
        let link = *links.borrow_and_update();
        let now = Instant::now();
        let (effects, next, is_complete) = {
            let mut state = index.lock();
            state.link_is(link.incarnation, now);
            (state.poll(now, &*index.shared.peers), state.next_poll(now), state.is_complete())
        };
        match (unsure_since, is_complete) {
            (Some(since), true) => {
                unsure_since = None;
                let after_ms = now.saturating_duration_since(since).as_millis();
                tracing::info!(after_ms, "it is known again whose mail is in which box");
            }
            (None, false) => unsure_since = Some(now),
            _ => {}
        }
        for effect in effects {
            index.carry_out(effect);
        }
        tokio::select! {
            changed = links.changed() => {
                if changed.is_err() {
                    return; // The bus is closed for good.
                }
            }
            () = index.shared.wake.notified() => {}
            () = async { if let Some(at) = next { sleep_until(at.into()).await } }, if next.is_some() => {}
        }
    }
}

impl MailIndex {
    /// To be called without the lock: callbacks and the bus may call back.
    pub(super) fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::Publish { seq, body } => {
                let index = self.clone();
                let done = move |outcome| {
                    let effect = index.lock().published(seq, outcome == Outcome::Confirmed, Instant::now());
                    match effect {
                        Some(effect) => index.carry_out(effect),
                        None => index.shared.wake.notify_one(),
                    }
                };
                self.shared.bus.publish(publish(Destination::Control, body), Box::new(done));
            }
            Effect::Ask { body } => {
                self.shared.bus.publish(publish(Destination::Control, body), Box::new(log_if_unconfirmed));
            }
            Effect::Send { node, body } => {
                let to = Destination::Nodes([node].into_iter().collect());
                self.shared.bus.publish(publish(to, body), Box::new(log_if_unconfirmed));
            }
            Effect::Tell { announced, confirmed } => {
                for announced in announced {
                    announced(confirmed);
                }
            }
        }
    }
}

/// A lost question or answer is noticed by the node that asked.
fn log_if_unconfirmed(outcome: Outcome) {
    if outcome != Outcome::Confirmed {
        tracing::debug!(?outcome, "mail gossip was not confirmed");
    }
}

fn publish(to: Destination, body: Bytes) -> Publish {
    let properties = Properties {
        kind: Some(MAIL_INDEX_KIND.to_owned()),
        content_type: Some("application/json".to_owned()),
        persistent: Some(false),
        ..Properties::default()
    };
    Publish { to, properties, body, order_key: ORDER_KEY, lane: Lane::Urgent }
}
