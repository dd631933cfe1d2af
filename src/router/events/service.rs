//! The task that lets events run: it takes the news, decides who speaks, and publishes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep_until, Instant};

use super::event::{parts, Event, OneSession};
use super::ledger::{Findings, Ledger, Name, GRACE};
use super::outbox::Outbox;
use super::words::{NameWord, Names, NAMES_KIND, NAMES_MAX};
use super::News;
use crate::bus::{Destination, Lane, Link, Outcome, Properties, Publish};
use crate::directory::{Age, Key, Touched};
use crate::ids::{Incarnation, NodeId};
use crate::router::Router;

/// How often the directory is looked at.
const TICK: Duration = Duration::from_millis(100);
/// After standing still for so long a node may have been taken for dead: it tells everything again.
const STALLED: Duration = Duration::from_secs(3);
/// What a speaker found in this time before its end, its successor repeats.
const REPEATED: Duration = Duration::from_secs(1);
/// Longest wait for names before a node speaks.
const NAMES_WAIT: Duration = Duration::from_secs(5);

struct Service {
    router: Arc<Router>,
    ledger: Ledger,
    outbox: Outbox,
    /// What was found lately, for when this node has to speak.
    recent: VecDeque<(Duration, Event)>,
    speaks: bool,
    linked_at: Duration,
    incarnation: Option<Incarnation>,
    /// The sessions of this node, and everything that the ledger has, are to be told.
    owes_sessions: bool,
    owes_ledger: bool,
    peers: BTreeSet<NodeId>,
    /// Nodes that are gone, and since when.
    gone: BTreeMap<NodeId, Duration>,
    looked_at: Duration,
}

impl Router {
    /// Tells backends of sessions, users and channels, as far as they are to be told; endless.
    pub async fn keep_events(self: Arc<Self>) {
        let began = Instant::now();
        if self.events.kinds.are_of_cluster() {
            self.directory.watch_all();
        }
        let mut links = self.bus.link();
        let mut service = Service {
            ledger: Ledger::new(self.events.kinds),
            router: self.clone(),
            outbox: Outbox::default(),
            recent: VecDeque::new(),
            speaks: false,
            linked_at: Duration::ZERO,
            incarnation: None,
            owes_sessions: true,
            owes_ledger: false,
            peers: BTreeSet::new(),
            gone: BTreeMap::new(),
            looked_at: Duration::ZERO,
        };
        loop {
            let link = *links.borrow_and_update();
            service.look(link, began.elapsed());
            let now = began.elapsed();
            let next = service.ledger.next_poll().into_iter().chain(service.outbox.due()).min();
            let next = began + next.map_or(now + TICK, |next| next.min(now + TICK));
            tokio::select! {
                changed = links.changed() => {
                    if changed.is_err() {
                        // The bus is closed for good.
                        return std::future::pending().await;
                    }
                }
                () = self.events.wake.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }
}

impl Service {
    fn look(&mut self, link: Link, now: Duration) {
        let has_stalled = now > self.looked_at + STALLED;
        self.looked_at = now;
        if link.incarnation.is_some() && link.incarnation != self.incarnation {
            (self.incarnation, self.linked_at) = (link.incarnation, now);
            self.begin_anew();
        }
        if !link.ready() || has_stalled {
            self.begin_anew();
        }
        let news = std::mem::take(&mut *self.router.events.lock());
        self.take(news, link, now);
        self.follow_directory(now);
        let router = &self.router;
        let Findings { events, nameless } = self.ledger.poll(now, |key| router.directory.is_held(key));
        self.ask_for_names(nameless, link);
        for event in events {
            if self.speaks {
                self.tell(event.clone());
            }
            self.recent.push_back((now, event));
        }
        while self.recent.front().is_some_and(|(at, _)| *at + REPEATED < now) {
            self.recent.pop_front();
        }
        if link.ready() {
            self.decide_who_speaks(now);
            self.end_sessions_of_the_gone(now);
            self.send(now);
        }
    }

    /// What waits may be out of date: everything is told again.
    fn begin_anew(&mut self) {
        self.outbox.clear();
        self.speaks = false;
        self.owes_sessions = self.router.events.kinds.sessions;
    }

    fn take(&mut self, news: News, link: Link, now: Duration) {
        let News { names, sessions, words, answers, is_lost } = news;
        for (sent, is_confirmed) in answers {
            self.outbox.answered(sent, is_confirmed, now);
        }
        let mut come = Vec::new();
        for (name, is_here) in names {
            if is_here {
                come.push(name.clone());
            }
            self.ledger.name(name, now);
        }
        if is_lost && self.router.events.kinds.are_of_cluster() {
            let users = self.router.hub.all_sessions().into_iter().map(|(user, _)| Name::User(user));
            let channels = self.router.hub.all_channels().into_iter().map(Name::Channel);
            users.chain(channels).for_each(|name| self.ledger.name(name, now));
            self.ledger.touch_all(self.router.directory.all_keys(), now);
        }
        if is_lost {
            self.begin_anew();
        }
        for come in come.chunks(NAMES_MAX).filter(|_| link.ready()) {
            self.say(Destination::Control, &NameWord::Names(Names::of(come)));
        }
        for word in words {
            match word {
                NameWord::Names(names) => names.into_names().for_each(|name| self.ledger.name(name, now)),
                NameWord::Nameless { from, keys } => {
                    let names: Vec<_> =
                        keys.iter().filter_map(|key| self.ledger.name_of(*key)).cloned().collect();
                    let to = Destination::Nodes([from].into_iter().collect());
                    self.say(to, &NameWord::Names(Names::of(&names)));
                }
                NameWord::Unknown => {}
            }
        }
        // A snapshot that is owed has them.
        for event in sessions {
            if !self.owes_sessions {
                self.tell(event);
            }
        }
    }

    fn follow_directory(&mut self, now: Duration) {
        match self.router.directory.take_all_touched() {
            Touched::Keys(keys) => keys.into_iter().for_each(|key| self.ledger.touch(key, now)),
            Touched::All => self.ledger.touch_all(self.router.directory.all_keys(), now),
        }
    }

    /// Some node that has the key knows its name.
    fn ask_for_names(&mut self, nameless: Vec<Key>, link: Link) {
        let mut by_node: HashMap<NodeId, Vec<Key>> = HashMap::new();
        for key in nameless {
            if let Some(node) = self.router.directory.nodes_of(key).into_iter().next() {
                by_node.entry(node).or_default().push(key);
            }
        }
        for (node, keys) in by_node.into_iter().filter(|_| link.ready()) {
            for keys in keys.chunks(NAMES_MAX) {
                let from = self.router.node().clone();
                let to = Destination::Nodes([node.clone()].into_iter().collect());
                self.say(to, &NameWord::Nameless { from, keys: keys.to_vec() });
            }
        }
    }

    fn decide_who_speaks(&mut self, now: Duration) {
        let directory = &self.router.directory;
        let may = match directory.age() {
            Age::Younger => false,
            Age::Unknown => self.speaks,
            // Those who were there before this node have had the time to make themselves known.
            Age::Oldest => {
                let has_names = self.ledger.is_complete() || now > self.linked_at + NAMES_WAIT;
                self.speaks || directory.is_sure() && has_names
            }
        };
        if may && !self.speaks {
            for (_, event) in std::mem::take(&mut self.recent) {
                self.tell(event);
            }
            self.owes_ledger = true;
        }
        self.speaks = may;
        if std::mem::take(&mut self.owes_ledger) && self.speaks {
            self.ledger
                .snapshot()
                .into_iter()
                .for_each(|event| self.outbox.push_beyond(event, self.router.node()));
        }
        if std::mem::take(&mut self.owes_sessions) {
            let sessions = self.router.hub.all_sessions().into_iter();
            let sessions = sessions
                .map(|(user, counter)| OneSession { session: self.router.session_id(counter), user })
                .collect();
            self.tell_sessions(self.router.node().clone(), sessions);
        }
    }

    fn tell_sessions(&mut self, node: NodeId, sessions: Vec<OneSession>) {
        let event = |part, parts, sessions| Event::Sessions { node: node.clone(), part, parts, sessions };
        parts(sessions, event)
            .into_iter()
            .for_each(|event| self.outbox.push_beyond(event, self.router.node()));
    }

    /// Nobody else knows which sessions a node had that died.
    fn end_sessions_of_the_gone(&mut self, now: Duration) {
        if !self.router.events.kinds.sessions {
            return;
        }
        let peers: BTreeSet<NodeId> =
            self.router.directory.peers().into_iter().map(|peer| peer.node).collect();
        for gone in self.peers.difference(&peers) {
            self.gone.entry(gone.clone()).or_insert(now);
        }
        self.gone.retain(|node, _| !peers.contains(node));
        self.peers = peers;
        let over: Vec<_> =
            self.gone.iter().filter(|(_, since)| now >= **since + GRACE).map(|(of, _)| of.clone()).collect();
        for node in over {
            self.gone.remove(&node);
            if self.speaks {
                self.tell_sessions(node, Vec::new());
            }
        }
    }

    fn tell(&mut self, event: Event) {
        if !self.outbox.push(event, self.router.node()) {
            tracing::warn!(
                "events wait faster than the broker takes them; a snapshot follows in their place"
            );
            self.begin_anew();
        }
    }

    fn send(&mut self, now: Duration) {
        while let Some((sent, event, body)) = self.outbox.next(now) {
            let events = self.router.events.clone();
            let done = move |outcome| {
                // Nobody listens: that is no failure.
                let is_confirmed = matches!(outcome, Outcome::Confirmed | Outcome::Unroutable);
                events.put((sent, is_confirmed), |news| &mut news.answers);
            };
            self.router.bus.publish(event.to_publish(body), Box::new(done));
        }
    }

    fn say(&self, to: Destination, word: &NameWord) {
        let properties = Properties {
            kind: Some(NAMES_KIND.to_owned()),
            content_type: Some("application/json".to_owned()),
            persistent: Some(false),
            ..Properties::default()
        };
        // Plain structs of strings and numbers cannot fail to serialize.
        let body: Bytes = serde_json::to_vec(word).unwrap_or_default().into();
        // What is lost is asked for again.
        self.router
            .bus
            .publish(Publish { to, properties, body, order_key: 0, lane: Lane::Bulk }, Box::new(|_| ()));
    }
}
