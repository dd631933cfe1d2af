//! The exchange of the application in memory, and the demo service behind it.

use std::sync::{Arc, PoisonError};

use tokio::sync::{mpsc, watch};

use super::queue::{consume, Overflow, Queue};
use super::{MemoryBus, NODE_QUEUE_MAX, PREFETCH};
use crate::bus::{echo, Outcome};
use crate::ids::AppKey;

/// A binding key of a topic exchange: words between dots; `*` is any one word, `#` any number of them
/// (AMQP 0-9-1 section 3.1.3.3).
#[derive(Debug)]
pub(super) struct Pattern(Vec<String>);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.split('.').map(str::to_owned).collect())
    }

    fn matches(&self, key: &str) -> bool {
        let words: Vec<&str> = key.split('.').collect();
        match_words(&self.0, &words)
    }
}

fn match_words(pattern: &[String], words: &[&str]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return words.is_empty() };
    match first.as_str() {
        "#" => (0..=words.len()).any(|skipped| match_words(rest, &words[skipped..])),
        wanted => words
            .split_first()
            .is_some_and(|(word, others)| (wanted == "*" || wanted == *word) && match_words(rest, others)),
    }
}

/// A queue that gets what matches.
pub(super) struct Bound {
    pub(super) pattern: Pattern,
    pub(super) queue: Arc<Queue>,
}

/// Each queue once, however many of its bindings match.
pub(super) fn queues_for<'a>(bound: &'a [Bound], key: &'a AppKey) -> impl Iterator<Item = &'a Queue> {
    let matches = |bound: &Bound| bound.pattern.matches(key.as_str());
    bound.iter().enumerate().filter_map(move |(at, one)| {
        let is_repeat =
            bound[..at].iter().any(|other| Arc::ptr_eq(&other.queue, &one.queue) && matches(other));
        (matches(one) && !is_repeat).then(|| &*one.queue)
    })
}

/// `pushed`: for each queue that a message is for, whether it had room.
pub(super) fn outcome(pushed: impl Iterator<Item = bool>) -> Outcome {
    let all = pushed.fold(None, |all: Option<bool>, taken| Some(all.unwrap_or(true) && taken));
    match all {
        None => Outcome::Unroutable,
        Some(true) => Outcome::Confirmed,
        Some(false) => Outcome::Refused,
    }
}

impl MemoryBus {
    /// Answers requests for this key with their own payload, for as long as this bus lives.
    pub fn serve_echo(&self, key: &str) {
        let queue = Queue::new(NODE_QUEUE_MAX, Overflow::Refuse);
        self.broker.lock().bound.push(Bound { pattern: Pattern::new(key), queue: queue.clone() });
        let (sender, mut inbox) = mpsc::channel(PREFETCH);
        let broker = self.broker.clone();
        // The sender is never used: the queue is always active.
        let always = watch::Sender::new(true);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let active = always.subscribe();
        tasks.spawn(consume(queue, sender, PREFETCH, active));
        tasks.spawn(async move {
            let _always = always;
            while let Some(request) = inbox.recv().await {
                if let Some(publish) = echo::answer(&request) {
                    broker.route(publish);
                }
                request.ack.ack();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_as_in_a_topic_exchange() {
        for (pattern, key, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.*", "a", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#", "a.b", true),
            ("#.c", "a.b.c", true),
            ("#.c", "a.b", false),
            ("*", "a", true),
            ("a.#.c.*", "a.x.c.c.d", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn a_queue_that_is_bound_twice_gets_one_copy() {
        let queue = Queue::new(1, Overflow::Refuse);
        let bound = ["a", "#"].map(|key| Bound { pattern: Pattern::new(key), queue: queue.clone() });
        assert_eq!(queues_for(&bound, &AppKey::new("a").unwrap()).count(), 1);
        assert_eq!(queues_for(&bound[..1], &AppKey::new("b").unwrap()).count(), 0);
        for (pushed, expected) in [
            (&[][..], Outcome::Unroutable),
            (&[true, true], Outcome::Confirmed),
            (&[true, false], Outcome::Refused),
        ] {
            assert_eq!(outcome(pushed.iter().copied()), expected);
        }
    }
}
