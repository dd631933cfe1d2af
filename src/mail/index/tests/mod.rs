//! Tests of the mail index.

mod rules;
mod simulation;

use std::num::NonZeroU32;
use std::time::Instant;

use super::effect::Effect;
use super::gossip::{Deposit, Gossip};
use super::state::Index;
use super::MailLimits;
use crate::ids::{Life, NodeId, UserKey};

const BOXES: NonZeroU32 = NonZeroU32::MIN.saturating_add(7);
const LIMITS: MailLimits =
    MailLimits { messages: 20, bytes: 1_000, sender_messages: 50, sender_rate: 1_000, sender_burst: 1_000 };

fn node(number: usize) -> NodeId {
    NodeId::new(&format!("n-{number}")).unwrap()
}

fn index(number: usize, now: Instant) -> Index {
    Index::new(node(number), Life(number as u64 + 1), BOXES, LIMITS, now)
}

fn mail(user: u64, sender: u64, bytes: u64) -> Deposit {
    Deposit { user: UserKey(user), sender: Some(UserKey(sender)), bytes }
}

/// What a node tells now, with every publish confirmed.
fn told(index: &mut Index, now: Instant) -> Vec<Gossip> {
    let mut all = Vec::new();
    for effect in index.poll(now, Vec::new) {
        if let Effect::Publish { seq, body } = effect {
            all.push(Gossip::decode(&body).unwrap());
            carry_out(index.published(seq, true, now));
        }
    }
    all
}

fn carry_out(effect: Option<Effect>) {
    if let Some(Effect::Tell { announced, confirmed }) = effect {
        announced.into_iter().for_each(|announced| announced(confirmed));
    }
}
