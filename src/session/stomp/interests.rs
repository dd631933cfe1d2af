//! The subscriptions of one session that speaks STOMP, and the messages that it has yet to acknowledge. Pure.

use std::borrow::Cow;
use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::ids::{ChannelName, MessageId};
use crate::protocol::stomp::destination::{path_of_event, Interest};
use crate::protocol::stomp::render::{ack_line, message_head};
use crate::protocol::stomp::Version;

/// How the messages of a subscription are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AckMode {
    /// By being written.
    Auto,
    /// Each ACK is for all messages of the subscription up to one.
    Cumulative,
    Individual,
}

impl AckMode {
    pub(super) fn parse(header: Option<&str>) -> Option<Self> {
        match header {
            None | Some("auto") => Some(AckMode::Auto),
            Some("client") => Some(AckMode::Cumulative),
            Some("client-individual") => Some(AckMode::Individual),
            Some(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Subscription {
    /// Unique within the session.
    pub(super) number: u32,
    /// In the client's own words; only a client of 1.0 may leave it out.
    pub(super) id: Option<Box<str>>,
    pub(super) destination: Box<str>,
    pub(super) interest: Interest,
    pub(super) ack: AckMode,
    /// The first lines of its MESSAGE frames.
    pub(super) head: Box<str>,
}

impl Subscription {
    /// Whether messages count in it when the client acknowledges them: those for its user do, those for everybody have
    /// nothing that waits for them.
    pub(super) fn acknowledges(&self) -> bool {
        self.ack != AckMode::Auto && self.is_own()
    }

    pub(super) fn is_own(&self) -> bool {
        matches!(self.interest, Interest::Own(_) | Interest::AnyOwn)
    }
}

/// A message that the client has yet to acknowledge.
#[derive(Debug)]
struct Owed {
    number: u64,
    subscription: u32,
    mode: AckMode,
    id: MessageId,
}

/// What an ACK or NACK names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named<'a> {
    /// Of 1.2: the header `ack` of the MESSAGE.
    Number(u64),
    /// Before 1.2: its `message-id`, and the subscription if the client says so.
    Message { id: Cow<'a, str>, subscription: Option<&'a str> },
}

/// `ack` of messages for which nothing waits.
const NOTHING_OWED: u64 = 0;

#[derive(Debug, Default)]
pub(super) struct Interests {
    all: Vec<Subscription>,
    subscriptions: u32,
    owed: VecDeque<Owed>,
    /// The last number given.
    owed_last: u64,
    /// Messages of channels that the client may acknowledge, which means nothing.
    courtesies: u32,
}

impl Interests {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn has(&self, id: Option<&str>, destination: &str) -> bool {
        self.all.iter().any(|of| match id {
            Some(_) => of.id.as_deref() == id,
            None => of.id.is_none() && *of.destination == *destination,
        })
    }

    /// `id` and `destination` in the client's own words. The client has no such subscription yet.
    pub(super) fn add(
        &mut self,
        version: Version,
        id: Option<&str>,
        destination: &str,
        interest: Interest,
        ack: AckMode,
    ) -> &Subscription {
        self.subscriptions = self.subscriptions.wrapping_add(1);
        let mut head = message_head(id, destination);
        let subscription = Subscription {
            number: self.subscriptions,
            id: id.map(Into::into),
            destination: destination.into(),
            interest,
            ack,
            head: Box::default(),
        };
        if version == Version::V1_2 && ack != AckMode::Auto && !subscription.is_own() {
            head.push_str(&ack_line(NOTHING_OWED));
        }
        let at = self.all.len();
        self.all.push(Subscription { head: head.into(), ..subscription });
        &self.all[at]
    }

    /// Takes out a subscription: by its id, or in 1.0 by its destination.
    pub(super) fn remove(&mut self, id: Option<&str>, destination: Option<&str>) -> Option<Subscription> {
        let is_meant = |of: &Subscription| match id {
            Some(_) => of.id.as_deref() == id,
            None => Some(&*of.destination) == destination,
        };
        let at = self.all.iter().position(is_meant)?;
        Some(self.all.remove(at))
    }

    /// Takes out all subscriptions of a channel.
    pub(super) fn remove_channel(&mut self, channel: &ChannelName) -> Vec<Subscription> {
        let is_of =
            |of: &mut Subscription| matches!(&of.interest, Interest::Channel(name) if name == channel);
        self.all.extract_if(.., is_of).collect()
    }

    pub(super) fn of_channel<'a>(
        &'a self,
        channel: &'a ChannelName,
    ) -> impl Iterator<Item = &'a Subscription> {
        self.all.iter().filter(move |of| matches!(&of.interest, Interest::Channel(name) if name == channel))
    }

    pub(super) fn of_broadcast(&self) -> impl Iterator<Item = &Subscription> {
        self.all.iter().filter(|of| of.interest == Interest::Broadcast)
    }

    /// Whether the session takes messages of its user at all.
    pub(super) fn takes_own(&self) -> bool {
        self.all.iter().any(Subscription::is_own)
    }

    /// The subscriptions that ask for a message of the session's user; else those that take any. Empty: it is not wanted.
    pub(super) fn of_own(&self, event: Option<&str>) -> SmallVec<[&Subscription; 1]> {
        let path = path_of_event(event);
        let names = |of: &&Subscription| matches!(&of.interest, Interest::Own(own) if **own == *path);
        let named: SmallVec<[_; 1]> = self.all.iter().filter(names).collect();
        match named.is_empty() {
            false => named,
            true => self.all.iter().filter(|of| of.interest == Interest::AnyOwn).collect(),
        }
    }

    /// The subscriptions of exactly this path of the session's user.
    pub(super) fn named<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Subscription> {
        self.all.iter().filter(move |of| matches!(&of.interest, Interest::Own(own) if **own == *path))
    }

    // ---- acknowledgements ----

    /// The next number of a message that the client will owe.
    pub(super) fn next_number(&self) -> u64 {
        self.owed_last + 1
    }

    /// A message of a subscription goes out under [`Interests::next_number`].
    pub(super) fn owe(&mut self, subscription: u32, mode: AckMode, id: &MessageId) {
        self.owed_last += 1;
        self.owed.push_back(Owed { number: self.owed_last, subscription, mode, id: id.clone() });
    }

    /// So many messages of channels went out that the client will acknowledge.
    pub(super) fn expect_courtesies(&mut self, count: usize) {
        self.courtesies = self.courtesies.saturating_add(count as u32);
    }

    /// Whether an acknowledgement that is owed to nobody was to be expected.
    pub(super) fn is_courtesy(&mut self) -> bool {
        let left = self.courtesies.checked_sub(1);
        self.courtesies = left.unwrap_or_default();
        left.is_some()
    }

    /// The messages that an ACK or NACK is for; they are owed no longer.
    pub(super) fn settle(&mut self, named: Named) -> Vec<MessageId> {
        let by_id = |id: &str| self.all.iter().find(|of| of.id.as_deref() == Some(id)).map(|of| of.number);
        let at = self.owed.iter().position(|owed| match &named {
            Named::Number(number) => owed.number == *number,
            Named::Message { id, subscription } => {
                owed.id.as_str() == id.as_ref()
                    && subscription.is_none_or(|of| by_id(of) == Some(owed.subscription))
            }
        });
        let Some(at) = at else { return Vec::new() };
        if self.owed[at].mode == AckMode::Individual {
            return self.owed.remove(at).map(|owed| owed.id).into_iter().collect();
        }
        let (last, subscription) = (self.owed[at].number, self.owed[at].subscription);
        self.take_owed(|owed| owed.subscription == subscription && owed.number <= last)
    }

    /// The messages that are owed for a subscription that has ended.
    pub(super) fn settle_all_of(&mut self, subscription: u32) -> Vec<MessageId> {
        self.take_owed(|owed| owed.subscription == subscription)
    }

    fn take_owed(&mut self, is_meant: impl Fn(&Owed) -> bool) -> Vec<MessageId> {
        let mut ids = Vec::new();
        self.owed.retain(|owed| {
            let meant = is_meant(owed);
            if meant {
                ids.push(owed.id.clone());
            }
            !meant
        });
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(interests: &mut Interests, id: &str, destination: &str, ack: AckMode) -> u32 {
        let interest = Interest::parse(destination).unwrap();
        interests.add(Version::V1_2, Some(id), destination, interest, ack).number
    }

    fn heads(interests: &Interests, event: Option<&str>) -> Vec<String> {
        interests.of_own(event).iter().map(|of| of.id.clone().unwrap_or_default().into()).collect()
    }

    #[test]
    fn a_message_goes_to_whoever_names_it_or_else_to_whoever_takes_any() {
        let mut interests = Interests::default();
        add(&mut interests, "t", "/topic/x", AckMode::Auto);
        assert!(!interests.takes_own() && heads(&interests, None).is_empty());
        add(&mut interests, "a", "/user/queue/a", AckMode::Auto);
        add(&mut interests, "b", "/user/queue/a", AckMode::Auto);
        for event in ["a", "queue.a", "/queue/a"] {
            assert_eq!(heads(&interests, Some(event)), ["a", "b"]);
        }
        assert!(heads(&interests, Some("other")).is_empty() && heads(&interests, None).is_empty());
        add(&mut interests, "any", "/user/queue/messages", AckMode::Auto);
        assert_eq!(heads(&interests, Some("other")), ["any"]);
        assert_eq!(heads(&interests, None), ["any"]);
        assert_eq!(interests.remove(Some("a"), None).map(|of| of.destination), Some("/user/queue/a".into()));
        assert_eq!(heads(&interests, Some("a")), ["b"]);
        assert!(interests.remove(Some("a"), None).is_none());
        let channel = ChannelName::new("x").unwrap();
        assert_eq!(interests.of_channel(&channel).count(), 1);
        assert_eq!(interests.remove_channel(&channel).len(), 1);
        assert_eq!((interests.of_channel(&channel).count(), interests.len()), (0, 2));
    }

    #[test]
    fn a_cumulative_ack_is_for_its_subscription_alone() {
        let id = |n: u64| MessageId::new(&format!("m{n}")).unwrap();
        let mut interests = Interests::default();
        let all = add(&mut interests, "all", "/user/queue/a", AckMode::Cumulative);
        let each = add(&mut interests, "each", "/user/queue/b", AckMode::Individual);
        for n in 1..=6 {
            assert_eq!(interests.next_number(), n);
            match n % 2 {
                1 => interests.owe(all, AckMode::Cumulative, &id(n)),
                _ => interests.owe(each, AckMode::Individual, &id(n)),
            }
        }
        assert_eq!(interests.settle(Named::Number(3)), [id(1), id(3)]);
        assert_eq!(interests.settle(Named::Number(3)), []);
        assert_eq!(interests.settle(Named::Number(4)), [id(4)]);
        let named = |id: &'static str, subscription| Named::Message { id: id.into(), subscription };
        assert_eq!(interests.settle(named("m6", Some("all"))), []);
        assert_eq!(interests.settle(named("m6", Some("each"))), [id(6)]);
        assert_eq!(interests.settle(named("m5", None)), [id(5)]);
        assert_eq!(interests.settle_all_of(each), [id(2)]);
        assert!(interests.owed.is_empty());
    }

    #[test]
    fn acknowledgements_of_channels_are_expected_as_often_as_messages_went_out() {
        let mut interests = Interests::default();
        interests.expect_courtesies(2);
        assert_eq!([(); 3].map(|()| interests.is_courtesy()), [true, true, false]);
    }
}
