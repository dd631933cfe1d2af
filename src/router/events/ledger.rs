//! Who is online and which channels are occupied in the whole cluster, and what backends were told of it. Pure.
//!
//! Every node that tells events keeps the same ledger, fed by the directory (which knows hashes) and by names that nodes
//! tell each other; one of them speaks. Time is the duration since the ledger was made.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::event::{parts, Event};
use crate::config::EventKinds;
use crate::directory::Key;
use crate::ids::{ChannelName, UserId};

/// A user who has no session anywhere for so long is offline: one who moves, or whose node gets a new link, is not.
pub const GRACE: Duration = Duration::from_secs(1);
/// A name that did not come with its key is asked for again after this long, then after twice as long, and so on.
pub const ASK_AFTER: Duration = Duration::from_millis(300);
/// The longest such time is `ASK_AFTER` doubled so often: a node that tells no events has no names to give.
const DOUBLED_MAX: u32 = 7;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    User(UserId),
    Channel(ChannelName),
}

impl Name {
    pub fn key(&self) -> Key {
        match self {
            Name::User(user) => Key::user(user),
            Name::Channel(channel) => Key::channel(channel),
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    name: Option<Name>,
    /// Backends were told that it is there.
    is_told: bool,
    gone_since: Option<Duration>,
    /// How often its name was asked for.
    asked: u32,
    due: Option<Duration>,
}

#[derive(Debug)]
pub struct Ledger {
    kinds: EventKinds,
    entries: HashMap<Key, Entry>,
    agenda: BTreeSet<(Duration, Key)>,
    /// Keys that some node has, and whose names are not known.
    nameless: HashSet<Key>,
}

/// What came of a look at what is due.
#[derive(Debug, Default)]
pub struct Findings {
    pub events: Vec<Event>,
    /// Whose names are to be asked for.
    pub nameless: Vec<Key>,
}

impl Ledger {
    pub fn new(kinds: EventKinds) -> Self {
        Self { kinds, entries: HashMap::new(), agenda: BTreeSet::new(), nameless: HashSet::new() }
    }

    fn schedule(&mut self, key: Key, at: Duration) {
        let entry = self.entries.entry(key).or_default();
        if entry.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(due) = entry.due.replace(at) {
            self.agenda.remove(&(due, key));
        }
        self.agenda.insert((at, key));
    }

    /// Some node may have the key now, or no longer.
    pub fn touch(&mut self, key: Key, now: Duration) {
        self.schedule(key, now);
    }

    pub fn touch_all(&mut self, held: impl IntoIterator<Item = Key>, now: Duration) {
        let known: Vec<_> = self.entries.keys().copied().collect();
        known.into_iter().chain(held).for_each(|key| self.touch(key, now));
    }

    pub fn name(&mut self, name: Name, now: Duration) {
        let key = name.key();
        self.entries.entry(key).or_default().name.get_or_insert(name);
        self.touch(key, now);
    }

    pub fn name_of(&self, key: Key) -> Option<&Name> {
        self.entries.get(&key)?.name.as_ref()
    }

    /// Looks at what is due by `now`. `is_held`: some live node has the key.
    pub fn poll(&mut self, now: Duration, is_held: impl Fn(Key) -> bool) -> Findings {
        let mut findings = Findings::default();
        while self.agenda.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, key)) = self.agenda.pop_first() else { break };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.due = None;
            let asked_before = findings.nameless.len();
            let again = entry.look(key, is_held(key), self.kinds, now, &mut findings);
            match findings.nameless.len() > asked_before {
                true => self.nameless.insert(key),
                false => self.nameless.remove(&key),
            };
            match again {
                Some(at) => self.schedule(key, at),
                None if !entry.is_told && entry.gone_since.is_some() => drop(self.entries.remove(&key)),
                None => {}
            }
        }
        findings
    }

    /// Whether the names of all keys are known.
    pub fn is_complete(&self) -> bool {
        self.nameless.is_empty()
    }

    pub fn next_poll(&self) -> Option<Duration> {
        self.agenda.first().map(|(due, _)| *due)
    }

    /// Everything that backends were told is there.
    pub fn snapshot(&self) -> Vec<Event> {
        let (mut users, mut channels) = (Vec::new(), Vec::new());
        for entry in self.entries.values().filter(|entry| entry.is_told) {
            match &entry.name {
                Some(Name::User(user)) => users.push(user.clone()),
                Some(Name::Channel(channel)) => channels.push(channel.clone()),
                None => {}
            }
        }
        let mut events = Vec::new();
        if self.kinds.users {
            events.extend(parts(users, |part, parts, users| Event::Users { part, parts, users }));
        }
        if self.kinds.channels {
            events.extend(parts(channels, |part, parts, channels| Event::Channels { part, parts, channels }));
        }
        events
    }
}

impl Entry {
    /// When to look again, if not only at the next touch.
    fn look(
        &mut self,
        key: Key,
        is_held: bool,
        kinds: EventKinds,
        now: Duration,
        findings: &mut Findings,
    ) -> Option<Duration> {
        if !is_held {
            let since = *self.gone_since.get_or_insert(now);
            // A name may come before its key.
            if now < since + GRACE {
                return Some(since + GRACE);
            }
            if std::mem::take(&mut self.is_told) {
                findings.events.extend(self.name.as_ref().and_then(|name| name.event(false, kinds)));
            }
            return None;
        }
        self.gone_since = None;
        let Some(name) = &self.name else {
            findings.nameless.push(key);
            let again = ASK_AFTER * (1 << self.asked.min(DOUBLED_MAX));
            self.asked += 1;
            return Some(now + again);
        };
        if !std::mem::replace(&mut self.is_told, true) {
            findings.events.extend(name.event(true, kinds));
        }
        None
    }
}

impl Name {
    fn event(&self, is_there: bool, kinds: EventKinds) -> Option<Event> {
        match (self, is_there) {
            (Name::User(_), _) if !kinds.users => None,
            (Name::Channel(_), _) if !kinds.channels => None,
            (Name::User(user), true) => Some(Event::UserOnline { user: user.clone() }),
            (Name::User(user), false) => Some(Event::UserOffline { user: user.clone() }),
            (Name::Channel(channel), true) => Some(Event::ChannelOccupied { channel: channel.clone() }),
            (Name::Channel(channel), false) => Some(Event::ChannelVacated { channel: channel.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: EventKinds = EventKinds { sessions: false, users: true, channels: true };
    const NOW: Duration = Duration::from_secs(9);

    fn user(name: &str) -> (Name, UserId) {
        let user = UserId::new(name).unwrap();
        (Name::User(user.clone()), user)
    }

    #[test]
    fn a_user_is_online_once_named_and_offline_after_a_grace() {
        let mut ledger = Ledger::new(KINDS);
        let (name, user) = user("alice");
        let key = name.key();
        ledger.touch(key, NOW);
        assert_eq!(ledger.poll(NOW, |_| true).nameless, [key]);
        assert!(!ledger.is_complete());
        assert_eq!(ledger.next_poll(), Some(NOW + ASK_AFTER));
        assert_eq!(ledger.poll(NOW + ASK_AFTER, |_| true).nameless, [key]);
        assert_eq!(ledger.next_poll(), Some(NOW + ASK_AFTER * 3), "less and less often");
        ledger.name(name.clone(), NOW);
        assert_eq!(ledger.poll(NOW, |_| true).events, [Event::UserOnline { user: user.clone() }]);
        assert!(ledger.is_complete());
        ledger.touch(key, NOW);
        assert!(ledger.poll(NOW, |_| true).events.is_empty(), "once");
        ledger.touch(key, NOW);
        assert!(ledger.poll(NOW, |_| false).events.is_empty());
        assert!(ledger.poll(NOW + GRACE / 2, |_| false).events.is_empty());
        // It is back, and goes for good.
        ledger.touch(key, NOW + GRACE / 2);
        assert!(ledger.poll(NOW + GRACE, |_| true).events.is_empty());
        ledger.touch(key, NOW + GRACE);
        assert!(ledger.poll(NOW + GRACE, |_| false).events.is_empty());
        assert_eq!(ledger.poll(NOW + GRACE * 2, |_| false).events, [Event::UserOffline { user }]);
        assert!(ledger.entries.is_empty() && ledger.agenda.is_empty());
    }

    #[test]
    fn a_name_that_comes_before_its_key_waits_for_it() {
        let mut ledger = Ledger::new(KINDS);
        let (name, user) = user("alice");
        ledger.name(name.clone(), NOW);
        assert!(ledger.poll(NOW, |_| false).events.is_empty());
        ledger.touch(name.key(), NOW + GRACE / 2);
        assert_eq!(ledger.poll(NOW + GRACE / 2, |_| true).events, [Event::UserOnline { user }]);
        let (other, _) = self::user("bob");
        ledger.name(other, NOW);
        ledger.poll(NOW, |_| false);
        ledger.poll(NOW + GRACE, |key| key == name.key());
        assert_eq!(ledger.entries.len(), 1, "one without a key is forgotten");
    }

    #[test]
    fn a_snapshot_has_what_was_told_and_only_what_is_wanted() {
        let mut ledger = Ledger::new(EventKinds { channels: false, ..KINDS });
        assert_eq!(ledger.snapshot(), [Event::Users { part: 0, parts: 1, users: vec![] }]);
        let room = ChannelName::new("room").unwrap();
        ledger.name(Name::Channel(room), NOW);
        for at in 0..1_500 {
            ledger.name(user(&format!("user{at}")).0, NOW);
        }
        assert_eq!(ledger.poll(NOW, |_| true).events.len(), 1_500);
        let sizes: Vec<_> = ledger
            .snapshot()
            .iter()
            .map(|event| match event {
                Event::Users { part, parts, users } => (*part, *parts, users.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sizes, [(0, 2, 1_000), (1, 2, 500)]);
    }
}
