//! Markers in boxes: what they look like, and what a reader concludes from those that it finds.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Abandoned, Properties};
use crate::ids::UserKey;

/// AMQP `type` of a marker.
const KIND: &str = "warren.marker";

/// A message that a reader puts behind the mail of a box: it hands out mail of these users only after this came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The node that reads: for people who look into the box.
    pub node: String,
    /// The process that reads.
    pub life: u64,
    /// One reading of one box.
    pub reading: u64,
    /// Counts the markers of one reading, from 1.
    pub round: u32,
    pub users: Vec<UserKey>,
}

impl Marker {
    /// It outlives the mail before it, which the broker drops after the same time.
    pub fn properties(ttl: Duration) -> Properties {
        Properties {
            kind: Some(KIND.to_owned()),
            content_type: Some("application/json".to_owned()),
            expiration: Some(ttl.as_millis().to_string()),
            persistent: Some(true),
            ..Properties::default()
        }
    }

    pub fn body(&self) -> Bytes {
        // A struct of plain fields always becomes JSON.
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }

    /// `None`: it is mail. `account`: under which the nodes publish, where there are accounts.
    pub fn read(properties: &Properties, body: &[u8], account: Option<&str>) -> Option<Self> {
        if !is_marker(properties)
            || account.is_some_and(|account| properties.user_id.as_deref() != Some(account))
        {
            return None;
        }
        serde_json::from_slice(body).ok()
    }
}

pub fn is_marker(properties: &Properties) -> bool {
    properties.kind.as_deref() == Some(KIND)
}

/// What follows from one marker that came: delivery tags to acknowledge, and the end of a round.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub acks: Vec<u64>,
    pub round_end: Option<Vec<Abandoned>>,
}

/// One reading of one box: mail and markers by their delivery tags, which ascend in the order of the box.
#[derive(Debug)]
pub struct Rounds {
    node: String,
    life: u64,
    reading: u64,
    /// The newest round that was begun.
    round: u32,
    /// Mail handed over so far.
    mails: u64,
    /// Tags of mail that is not acknowledged.
    unsettled: BTreeSet<u64>,
    /// Tag of the newest own marker that came back.
    own: Option<(u32, u64)>,
    /// Markers of readings that did not end cleanly, by their tags; they lie before the first own one.
    left: Vec<(u64, Abandoned)>,
    /// Of `left`, what was acknowledged stays known: its mail may be out.
    removed: BTreeSet<u64>,
}

impl Rounds {
    pub fn new(node: String, life: u64, reading: u64) -> Self {
        Self {
            node,
            life,
            reading,
            round: 0,
            mails: 0,
            unsettled: BTreeSet::new(),
            own: None,
            left: Vec::new(),
            removed: BTreeSet::new(),
        }
    }

    /// Begins a round: the marker to publish.
    pub fn begin(&mut self, users: Vec<UserKey>) -> Marker {
        self.round += 1;
        Marker { node: self.node.clone(), life: self.life, reading: self.reading, round: self.round, users }
    }

    /// Mail came; its number.
    pub fn mail(&mut self, tag: u64) -> u64 {
        self.unsettled.insert(tag);
        self.mails += 1;
        self.mails
    }

    /// A marker came.
    pub fn marker(&mut self, tag: u64, marker: Marker) -> Found {
        if marker.reading == self.reading {
            return self.own(tag, marker.round);
        }
        // It was published when this reading had begun, so that its own reader never saw it come back, and showed
        // nothing because of it. And a marker without mail before it says nothing.
        if self.own.is_some() || self.unsettled.is_empty() {
            return Found { acks: vec![tag], round_end: None };
        }
        self.left.push((tag, Abandoned { behind: self.mails, users: marker.users }));
        Found::default()
    }

    fn own(&mut self, tag: u64, round: u32) -> Found {
        let mut found = Found::default();
        match self.own {
            // A publish that was thought to be lost.
            Some((newest, _)) if newest >= round => {
                found.acks.push(tag);
                return found;
            }
            Some((_, older)) => found.acks.push(older),
            None => {}
        }
        self.own = Some((round, tag));
        if round == self.round {
            found.round_end = Some(self.left.iter().map(|(_, abandoned)| abandoned.clone()).collect());
        }
        found
    }

    /// Mail was acknowledged: the tags of markers that say nothing any more.
    pub fn settled(&mut self, tags: impl Iterator<Item = u64>) -> Vec<u64> {
        for tag in tags {
            self.unsettled.remove(&tag);
        }
        let first = self.unsettled.first().copied().unwrap_or(u64::MAX);
        let removed = &mut self.removed;
        self.left.iter().map(|(tag, _)| *tag).filter(|tag| *tag < first && removed.insert(*tag)).collect()
    }

    /// Whether the marker of the newest round has come back.
    pub fn is_back(&self) -> bool {
        self.own.is_some_and(|(round, _)| round == self.round)
    }

    /// Everything that was shown has been acknowledged: the tag of the marker to remove.
    pub fn close_cleanly(&mut self) -> Option<u64> {
        self.own.take().map(|(_, tag)| tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds() -> Rounds {
        Rounds::new("a".into(), 1, 7)
    }

    fn foreign(users: &[u64]) -> Marker {
        Marker {
            node: "b".into(),
            life: 2,
            reading: 8,
            round: 1,
            users: users.iter().copied().map(UserKey).collect(),
        }
    }

    #[test]
    fn a_marker_survives_the_way_and_cannot_be_forged() {
        let marker = foreign(&[1, u64::MAX]);
        let mut properties = Marker::properties(Duration::from_secs(1));
        assert_eq!(Marker::read(&properties, &marker.body(), None), Some(marker.clone()));
        assert_eq!(Marker::read(&properties, &marker.body(), Some("gateway")), None);
        properties.user_id = Some("gateway".into());
        assert_eq!(Marker::read(&properties, &marker.body(), Some("gateway")), Some(marker.clone()));
        assert_eq!(Marker::read(&properties, b"{}", None), None);
        assert_eq!(Marker::read(&Properties::default(), &marker.body(), None), None);
    }

    #[test]
    fn a_round_ends_with_its_own_marker_and_names_those_that_were_left() {
        let mut rounds = rounds();
        let first = rounds.begin(vec![]);
        assert_eq!((rounds.mail(1), rounds.mail(2)), (1, 2));
        assert_eq!(rounds.marker(3, foreign(&[5])), Found::default());
        assert_eq!(rounds.mail(4), 3);
        assert!(!rounds.is_back());
        let left = Abandoned { behind: 2, users: vec![UserKey(5)] };
        let found = rounds.marker(5, first.clone());
        assert_eq!(found, Found { acks: vec![], round_end: Some(vec![left.clone()]) });
        // A repeat of its own, and a marker behind it, say nothing.
        assert_eq!(rounds.marker(6, first), Found { acks: vec![6], round_end: None });
        assert_eq!(rounds.marker(7, foreign(&[6])), Found { acks: vec![7], round_end: None });
        let second = rounds.begin(vec![]);
        assert!(!rounds.is_back());
        assert_eq!(rounds.marker(8, second), Found { acks: vec![5], round_end: Some(vec![left]) });
        assert_eq!(rounds.close_cleanly(), Some(8));
    }

    #[test]
    fn only_the_newest_round_ends() {
        let mut rounds = rounds();
        let (first, second) = (rounds.begin(vec![]), rounds.begin(vec![]));
        assert_eq!(rounds.marker(1, first), Found::default());
        assert!(!rounds.is_back());
        assert_eq!(rounds.marker(2, second), Found { acks: vec![1], round_end: Some(vec![]) });
    }

    #[test]
    fn a_marker_without_mail_before_it_goes() {
        let mut rounds = rounds();
        assert_eq!(rounds.marker(1, foreign(&[5])), Found { acks: vec![1], round_end: None });
        rounds.mail(2);
        rounds.mail(3);
        rounds.marker(4, foreign(&[5]));
        rounds.mail(5);
        assert_eq!(rounds.settled([3, 5].into_iter()), [0; 0]);
        assert_eq!(rounds.settled([2].into_iter()), [4]);
        assert_eq!(rounds.settled([].into_iter()), [0; 0], "once");
    }
}
