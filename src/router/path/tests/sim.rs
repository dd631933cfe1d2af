//! Two nodes, perhaps a home between them, and a box, in made-up time.

use crate::bus::Verdict;
use crate::ids::{MessageId, SessionId, UserId};
use crate::protocol::message::{Guarantee, Payload, Sender};
use crate::router::path::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use tokio::sync::mpsc;

pub(super) type Fates = Arc<Mutex<BTreeMap<u64, Vec<(Settlement, Instant)>>>>;

/// What both nodes see of the world around them.
pub(super) struct Node {
    id: NodeId,
    life: Life,
    nodes: RefCell<Nodes>,
    /// The home of the user, if the origin sends by one.
    home: Option<NodeId>,
    here: Cell<bool>,
    taken: RefCell<HashMap<SeenKey, u32>>,
    stamps: Cell<u64>,
    pressed: Cell<bool>,
    returning: Cell<bool>,
}

impl World for Node {
    fn this_node(&self) -> &NodeId {
        &self.id
    }
    fn ways(&self, _: &Target, again: bool) -> Ways {
        match &self.home {
            Some(home) if !again => Ways { nodes: Nodes::new(), relay: Some(home.clone()) },
            _ => Ways { nodes: self.nodes.borrow().clone(), relay: None },
        }
    }
    fn is_live(&self, _: &NodeId) -> bool {
        true
    }
    fn peers_may_return(&self) -> bool {
        self.returning.get()
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

enum Word {
    Receipt(Receipt),
    /// The home's: whether it has passed a message on.
    Relayed(NodeId, bool),
}

/// An origin `a`, a target node `b` that the user comes to and leaves, the lanes between them, and the user's box.
pub(super) struct Sim {
    now: Instant,
    pub(super) a: (Node, Path),
    b: (Node, Path),
    lane: VecDeque<OnLane>,
    /// From `a` to the home between the two, if there is one.
    to_home: VecDeque<OnLane>,
    receipts: VecDeque<(Tag, Word)>,
    /// Published deposits that the broker has not confirmed.
    deposits: VecDeque<(Tag, Arc<Message>)>,
    pub(super) stored: Vec<Arc<Message>>,
    /// The reading under way: the mail it handed over, by tag.
    reading: Option<Reading>,
    wants_read: bool,
    /// What the session has and has not taken, oldest first.
    outbox: VecDeque<(SeenKey, Arc<Message>)>,
    /// What was shown, session by session.
    pub(super) shown: Vec<Vec<(u64, bool)>>,
    pub(super) fates: Fates,
    /// Where the origin has sent each message, by its number.
    pub(super) sent: Vec<(u64, Nodes)>,
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
    pub(super) fn new(has_home: bool) -> Self {
        let now = Instant::now();
        let target = Target::User(UserId::new("u").unwrap());
        let node = |name: &str, life| Node {
            id: NodeId::new(name).unwrap(),
            life: Life(life),
            nodes: RefCell::default(),
            home: has_home.then(|| NodeId::new("h").unwrap()),
            here: Cell::new(false),
            taken: RefCell::default(),
            stamps: Cell::new(0),
            pressed: Cell::new(false),
            returning: Cell::new(false),
        };
        Self {
            now,
            a: (node("a", 1), Path::new(target.clone(), now)),
            b: (node("b", 2), Path::new(target, now)),
            lane: VecDeque::new(),
            to_home: VecDeque::new(),
            receipts: VecDeque::new(),
            deposits: VecDeque::new(),
            stored: Vec::new(),
            reading: None,
            wants_read: false,
            outbox: VecDeque::new(),
            shown: Vec::new(),
            fates: Fates::default(),
            sent: Vec::new(),
            accepted: 0,
        }
    }

    pub(super) fn at_a(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.a.1.step(event, self.now, &self.a.0, &mut effects);
        for effect in effects {
            match effect {
                Effect::Settle(settle, settlement) => settle(settlement),
                Effect::Send { tag, message, answer_by, ways } => {
                    self.sent.push((number(&message), ways.nodes.clone()));
                    let origin = Some(Origin { node: self.a.0.id.clone(), life: self.a.0.life, tag });
                    let envelope =
                        Envelope { message: (*message).clone(), origin, answer_by: Some(answer_by) };
                    self.by(&ways).push_back(OnLane::Message(envelope));
                }
                Effect::Deposit { tag, message } => self.deposits.push_back((tag, message)),
                Effect::Notify { ways } => {
                    let notice = OnLane::Notice(self.a.0.life);
                    self.by(&ways).push_back(notice);
                }
                _ => panic!("not something that an origin wants"),
            }
        }
    }

    fn by(&mut self, ways: &Ways) -> &mut VecDeque<OnLane> {
        match ways.relay {
            Some(_) => &mut self.to_home,
            None => &mut self.lane,
        }
    }

    /// The home passes on what is for the node that it believes to have the user, and says so.
    pub(super) fn pass_home(&mut self) {
        let (Some(home), Some(word)) = (self.a.0.home.clone(), self.to_home.pop_front()) else { return };
        let knows = !self.a.0.nodes.borrow().is_empty();
        if let OnLane::Message(Envelope { origin: Some(origin), .. }) = &word {
            self.receipts.push_back((origin.tag, Word::Relayed(home, knows)));
        }
        if knows {
            self.lane.push_back(word);
        }
    }

    /// The home dies with what it has not passed on, and another one takes its place.
    fn lose_home(&mut self) {
        if let Some(home) = self.a.0.home.take() {
            self.to_home.clear();
            self.a.0.home = NodeId::new(&format!("{home}h")).ok().filter(|id| id.as_str().len() < 9);
            self.at_a(Event::NodeLost(home));
        }
    }

    fn at_b(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.b.1.step(event, self.now, &self.b.0, &mut effects);
        for effect in effects {
            match effect {
                Effect::Answer { origin, receipt } => {
                    self.receipts.push_back((origin.tag, Word::Receipt(receipt)));
                }
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

    pub(super) fn accept(&mut self) {
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

    /// The origin hears that the user is on this node, and nowhere else.
    pub(super) fn move_to(&mut self, node: &str) {
        *self.a.0.nodes.borrow_mut() = NodeId::new(node).into_iter().collect();
    }

    /// A node answers the origin.
    pub(super) fn answer(&mut self, number: u64, node: &str, receipt: Receipt) {
        self.at_a(Event::Receipt { tag: Tag(number), node: NodeId::new(node).unwrap(), receipt });
    }

    pub(super) fn connect(&mut self) {
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

    pub(super) fn confirm_deposit(&mut self) {
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

    pub(super) fn pass_lane(&mut self) {
        match self.lane.pop_front() {
            Some(OnLane::Message(envelope)) => self.at_b(Event::Arrived(envelope)),
            Some(OnLane::Notice(life)) => self.at_b(Event::MailAnnounced { from: Some(life) }),
            None => {}
        }
    }

    pub(super) fn pass_receipt(&mut self) {
        let node = self.b.0.id.clone();
        match self.receipts.pop_front() {
            Some((tag, Word::Receipt(receipt))) => self.at_a(Event::Receipt { tag, node, receipt }),
            Some((tag, Word::Relayed(home, has_passed))) => {
                let nodes = has_passed.then_some(node).into_iter().collect();
                self.at_a(Event::Relayed { tag, home, nodes });
            }
            None => {}
        }
    }

    /// The origin hears where the user is.
    pub(super) fn gossip(&mut self) {
        let nodes = self.b.0.here.get().then(|| self.b.0.id.clone()).into_iter().collect();
        *self.a.0.nodes.borrow_mut() = nodes;
    }

    pub(super) fn pass_time(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.at_a(Event::Tick);
        self.at_b(Event::Tick);
    }

    pub(super) fn step(&mut self, step: u8) {
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
            29..=32 => self.pass_home(),
            33 => self.lose_home(),
            _ => self.pass_time(5),
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        let lanes = self.lane.len() + self.to_home.len() + self.receipts.len();
        lanes + self.deposits.len() > 0
    }

    /// The user comes, and everything that is under way arrives and is taken.
    pub(super) fn settle_down(&mut self) {
        for round in 0..2_000 {
            self.connect();
            self.gossip();
            while self.is_under_way() {
                self.pass_home();
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
