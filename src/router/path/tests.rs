//! The path as a whole, on two simulated nodes with a box between them: in any order of events nothing is lost, nothing
//! newer is shown before something older without a mark, and everything is settled by its deadline.

use super::*;
use crate::bus::Verdict;
use crate::ids::{MessageId, SessionId, UserId};
use crate::protocol::message::{Guarantee, Payload, Sender};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use tokio::sync::mpsc;

type Fates = Arc<Mutex<BTreeMap<u64, Vec<(Settlement, Instant)>>>>;

/// What both nodes see of the world around them.
struct Node {
    id: NodeId,
    life: Life,
    nodes: RefCell<Nodes>,
    here: Cell<bool>,
    taken: RefCell<HashMap<SeenKey, u32>>,
    stamps: Cell<u64>,
    pressed: Cell<bool>,
}

impl World for Node {
    fn this_node(&self) -> &NodeId {
        &self.id
    }
    fn nodes(&self, _: &Target) -> Nodes {
        self.nodes.borrow().clone()
    }
    fn is_here(&self, _: &Target) -> bool {
        self.here.get()
    }
    fn next_stamp(&self) -> Stamp {
        self.stamps.set(self.stamps.get() + 1);
        Stamp { life: self.life, number: self.stamps.get() }
    }
    fn taken(&self, key: SeenKey) -> Option<u32> {
        self.taken.borrow().get(&key).copied()
    }
    fn note_taken(&self, key: SeenKey, sessions: u32, _: Instant) {
        self.taken.borrow_mut().insert(key, sessions);
    }
    fn answer_within(&self) -> Duration {
        Duration::from_millis(2_500)
    }
    fn is_under_pressure(&self) -> bool {
        self.pressed.get()
    }
}

#[allow(clippy::large_enum_variant, reason = "most are messages")]
enum OnLane {
    Message(Envelope),
    Notice(Life),
}

/// An origin `a`, a target node `b` that the user comes to and leaves, the lanes between them, and the user's box.
struct Sim {
    now: Instant,
    a: (Node, Path),
    b: (Node, Path),
    lane: VecDeque<OnLane>,
    receipts: VecDeque<(Tag, Receipt)>,
    /// Published deposits that the broker has not confirmed.
    deposits: VecDeque<(Tag, Arc<Message>)>,
    stored: Vec<Arc<Message>>,
    /// The reading under way: the mail it handed over, by tag.
    reading: Option<Reading>,
    wants_read: bool,
    /// What the session has and has not taken, oldest first.
    outbox: VecDeque<(SeenKey, Arc<Message>)>,
    /// What was shown, session by session.
    shown: Vec<Vec<(u64, bool)>>,
    fates: Fates,
    accepted: u64,
}

struct Reading {
    mail: Vec<Arc<Message>>,
    verdicts: mpsc::Receiver<(u64, Verdict)>,
}

fn number(message: &Message) -> u64 {
    message.id.as_str().parse().unwrap()
}

impl Sim {
    fn new() -> Self {
        let now = Instant::now();
        let target = Target::User(UserId::new("u").unwrap());
        let node = |name: &str, life| Node {
            id: NodeId::new(name).unwrap(),
            life: Life(life),
            nodes: RefCell::default(),
            here: Cell::new(false),
            taken: RefCell::default(),
            stamps: Cell::new(0),
            pressed: Cell::new(false),
        };
        Self {
            now,
            a: (node("a", 1), Path::new(target.clone(), now)),
            b: (node("b", 2), Path::new(target, now)),
            lane: VecDeque::new(),
            receipts: VecDeque::new(),
            deposits: VecDeque::new(),
            stored: Vec::new(),
            reading: None,
            wants_read: false,
            outbox: VecDeque::new(),
            shown: Vec::new(),
            fates: Fates::default(),
            accepted: 0,
        }
    }

    fn at_a(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.a.1.step(event, self.now, &self.a.0, &mut effects);
        for effect in effects {
            match effect {
                Effect::Settle(settle, settlement) => settle(settlement),
                Effect::Send { tag, message, answer_by, .. } => {
                    let origin = Some(Origin { node: self.a.0.id.clone(), life: self.a.0.life, tag });
                    let envelope =
                        Envelope { message: (*message).clone(), origin, answer_by: Some(answer_by) };
                    self.lane.push_back(OnLane::Message(envelope));
                }
                Effect::Deposit { tag, message } => self.deposits.push_back((tag, message)),
                Effect::Notify { .. } => self.lane.push_back(OnLane::Notice(self.a.0.life)),
                _ => panic!("not something that an origin wants"),
            }
        }
    }

    fn at_b(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.b.1.step(event, self.now, &self.b.0, &mut effects);
        for effect in effects {
            match effect {
                Effect::Answer { origin, receipt } => self.receipts.push_back((origin.tag, receipt)),
                Effect::HandOut { key, message } => {
                    if self.b.0.here.get() {
                        self.outbox.push_back((key, message));
                    } else {
                        self.at_b(Event::Resolved { key, taken: Taken { sessions: 0, declined: false } });
                    }
                }
                Effect::Acknowledge { ack, .. } => assert!(ack.ack(), "nobody reads the verdict"),
                Effect::ReadBox | Effect::CleanBox => self.wants_read = true,
                _ => panic!("not something that a target wants"),
            }
        }
    }

    fn accept(&mut self) {
        self.accepted += 1;
        let n = self.accepted;
        let message = Message {
            id: MessageId::new(&n.to_string()).unwrap(),
            target: Target::User(UserId::new("u").unwrap()),
            sender: Sender::Client {
                user: UserId::new("s").unwrap(),
                session: SessionId::parse("a~1").unwrap(),
            },
            event: None,
            payload: Payload::json(vec![b'1'; 30_000]),
            accepted_ms: 0,
            expires: None,
            guarantee: Guarantee::AtLeastOnce,
            redelivered: false,
            stamp: None,
        };
        let (fates, now) = (self.fates.clone(), self.now);
        fates.lock().unwrap().insert(n, Vec::new());
        let settle = move |settlement| fates.lock().unwrap().get_mut(&n).unwrap().push((settlement, now));
        self.at_a(Event::Accepted { tag: Tag(n), message, settle: Box::new(settle) });
    }

    fn connect(&mut self) {
        if self.b.0.here.replace(true) {
            return;
        }
        self.shown.push(Vec::new());
        let may_have_mail = !self.stored.is_empty() || self.reading.is_some();
        self.at_b(Event::SessionsOpened { may_have_mail });
    }

    fn disconnect(&mut self) {
        if !self.b.0.here.replace(false) {
            return;
        }
        self.at_b(Event::SessionsGone);
        for (key, _) in std::mem::take(&mut self.outbox) {
            self.at_b(Event::Resolved { key, taken: Taken { sessions: 0, declined: false } });
        }
    }

    /// The session takes the oldest message that it has.
    fn take(&mut self) {
        if let Some((key, message)) = self.outbox.pop_front() {
            self.shown.last_mut().unwrap().push((number(&message), message.redelivered));
            self.at_b(Event::Resolved { key, taken: Taken { sessions: 1, declined: false } });
        }
    }

    fn confirm_deposit(&mut self) {
        let Some((tag, message)) = self.deposits.pop_front() else { return };
        self.stored.push(message);
        // The announcement reaches every node before the sender is told.
        self.at_b(Event::MailAnnounced { from: None });
        self.at_a(Event::Deposited { tag, deposited: Deposited::Stored });
    }

    /// Ends the reading under way: what was not acknowledged goes back to its place.
    fn end_reading(&mut self) {
        let Some(mut reading) = self.reading.take() else { return };
        let mut left: BTreeMap<u64, _> = (1..).zip(std::mem::take(&mut reading.mail)).collect();
        while let Ok((tag, _)) = reading.verdicts.try_recv() {
            left.remove(&tag);
        }
        self.stored.splice(..0, left.into_values());
        drop(reading);
        self.at_b(Event::MailGivenBack);
    }

    fn read(&mut self) {
        self.end_reading();
        self.wants_read = false;
        let covers = self.b.1.mail_wanted().unwrap_or(self.b.1.mail_covered());
        let (sender, verdicts) = mpsc::channel(10_000);
        let mail = std::mem::take(&mut self.stored);
        let handed = (1..).zip(&mail).map(|(tag, message)| Mail {
            message: message.clone(),
            ack: AckToken::of_box(tag, sender.clone()),
        });
        let handed: Vec<_> = if self.b.0.here.get() { handed.collect() } else { Vec::new() };
        self.reading = Some(Reading { mail, verdicts });
        self.at_b(Event::MailRead { mail: handed, covers });
    }

    fn pass_lane(&mut self) {
        match self.lane.pop_front() {
            Some(OnLane::Message(envelope)) => self.at_b(Event::Arrived(envelope)),
            Some(OnLane::Notice(life)) => self.at_b(Event::MailAnnounced { from: Some(life) }),
            None => {}
        }
    }

    fn pass_receipt(&mut self) {
        if let Some((tag, receipt)) = self.receipts.pop_front() {
            let node = self.b.0.id.clone();
            self.at_a(Event::Receipt { tag, node, receipt });
        }
    }

    /// The origin hears where the user is.
    fn gossip(&mut self) {
        let nodes = self.b.0.here.get().then(|| self.b.0.id.clone()).into_iter().collect();
        *self.a.0.nodes.borrow_mut() = nodes;
    }

    fn pass_time(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.at_a(Event::Tick);
        self.at_b(Event::Tick);
    }

    fn step(&mut self, step: u8) {
        match step {
            0..=5 => self.accept(),
            6..=9 => self.pass_lane(),
            10..=13 => self.pass_receipt(),
            14..=16 => self.confirm_deposit(),
            17..=18 => self.read(),
            19..=22 => self.take(),
            23 => self.connect(),
            24 => self.disconnect(),
            25..=26 => self.gossip(),
            27 => self.pass_time(120),
            28 => {
                let pressed = !self.a.0.pressed.get();
                self.a.0.pressed.set(pressed);
            }
            _ => self.pass_time(5),
        }
    }

    /// The user comes, and everything that is under way arrives and is taken.
    fn settle_down(&mut self) {
        for round in 0..2_000 {
            self.connect();
            self.gossip();
            while !self.lane.is_empty() || !self.receipts.is_empty() || !self.deposits.is_empty() {
                self.pass_lane();
                self.pass_receipt();
                self.confirm_deposit();
            }
            if self.wants_read || round % 16 == 0 {
                self.read();
            }
            while !self.outbox.is_empty() {
                self.take();
            }
            self.pass_time(20);
        }
        self.end_reading();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Users come and go, read slowly or not, and no process dies: nothing is lost, shown twice or out of order.
    #[test]
    fn nothing_is_lost_repeated_or_reordered(steps in prop::collection::vec(0u8..32, 1..400)) {
        let mut sim = Sim::new();
        for step in steps {
            sim.step(step);
        }
        sim.settle_down();
        for (n, fates) in sim.fates.lock().unwrap().iter() {
            prop_assert_eq!(fates.len(), 1, "message {} is settled {:?}", n, fates);
            let told = &fates[0].0;
            let promised = matches!(told, Settlement::Delivered { .. } | Settlement::Stored);
            let was_shown = sim.shown.iter().flatten().any(|(shown, _)| shown == n);
            prop_assert!(was_shown || !promised, "message {} was {:?} and never shown", n, told);
        }
        prop_assert!(sim.stored.is_empty(), "{} mails are left", sim.stored.len());
        for session in &sim.shown {
            let unmarked: Vec<u64> = session.iter().filter(|(_, marked)| !marked).map(|(n, _)| *n).collect();
            prop_assert!(unmarked.is_sorted_by(|a, b| a < b), "{:?}", session);
        }
        let all: Vec<u64> = sim.shown.iter().flatten().filter(|(_, marked)| !marked).map(|(n, _)| *n).collect();
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), all.len(), "shown twice without a mark: {:?}", sim.shown);
    }

    /// Whatever gets stuck, a sender is told in time.
    #[test]
    fn everything_is_settled_by_its_deadline(steps in prop::collection::vec(0u8..32, 1..200)) {
        let mut sim = Sim::new();
        for step in steps {
            sim.step(step);
        }
        // Nothing moves any more but the clock.
        for _ in 0..200 {
            sim.pass_time(50);
        }
        for (n, fates) in sim.fates.lock().unwrap().iter() {
            prop_assert_eq!(fates.len(), 1, "message {} is settled {:?}", n, fates);
        }
        prop_assert_eq!(sim.a.1.pending(), 0);
    }

    #[test]
    fn a_lost_link_settles_everything_at_once(steps in prop::collection::vec(0u8..27, 1..200)) {
        let mut sim = Sim::new();
        for step in steps {
            sim.step(step);
        }
        sim.at_a(Event::LinkLost);
        prop_assert_eq!(sim.a.1.pending(), 0);
        prop_assert!(sim.fates.lock().unwrap().values().all(|fates| fates.len() == 1));
    }
}

#[test]
fn a_user_who_takes_nothing_costs_an_origin_little_time() {
    let mut sim = Sim::new();
    sim.connect();
    sim.gossip();
    for _ in 0..300 {
        sim.accept();
    }
    for _ in 0..20 {
        while !sim.lane.is_empty() || !sim.receipts.is_empty() || !sim.deposits.is_empty() {
            sim.pass_lane();
            sim.pass_receipt();
            sim.confirm_deposit();
        }
        sim.pass_time(20);
    }
    let told = sim.fates.lock().unwrap().values().filter(|fates| !fates.is_empty()).count();
    assert!(told > 280, "only {told} of 300 are settled after 400 ms");
}
