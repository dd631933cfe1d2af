//! The processes of the simulation, the wire between them, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::process::{with_state, Heard, Process};
use super::{channel, node, user, Action, CHANNELS, NAMES, STEP};
use crate::hub::Ticket;
use crate::ids::{ChannelName, Incarnation, UserId};
use crate::router::roster::state::{Letter, State};
use crate::router::roster::words::Word;

struct InFlight {
    at: Duration,
    from: usize,
    to: usize,
    word: Word,
}

pub struct Cluster {
    pub now: Duration,
    pub processes: Vec<Option<Process>>,
    wire: Vec<InFlight>,
    pub is_away: bool,
    pub random: u64,
    pub tickets: u64,
    pub incarnations: u128,
    pub letters: usize,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        let mut cluster = Self {
            now: Duration::from_secs(1),
            processes: NAMES.iter().map(|_| None).collect(),
            wire: Vec::new(),
            is_away: false,
            random: seed | 1,
            tickets: 0,
            incarnations: 0,
            letters: 0,
        };
        (0..NAMES.len()).for_each(|at| cluster.start(at));
        cluster
    }

    fn roll(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        range.start + self.random % (range.end - range.start)
    }

    fn start(&mut self, at: usize) {
        let first = self.roll(0..u64::MAX >> 1);
        let mut state = State::new(node(at), first);
        let incarnation = self.next_incarnation();
        state.link(!self.is_away, true, self.now);
        let process = Process {
            state,
            channels: BTreeMap::new(),
            followed: BTreeSet::new(),
            incarnation,
            known: BTreeMap::new(),
            now: self.now,
            is_full: false,
        };
        self.processes[at] = Some(process);
        // It hears of what the others have.
        for other in (0..NAMES.len()).filter(|other| *other != at) {
            let has: Vec<_> = self.processes[other]
                .iter()
                .flat_map(|of| of.channels.iter())
                .filter(|(_, here)| !here.users.is_empty())
                .map(|(channel, _)| channel.clone())
                .collect();
            let holder = self.processes[other].as_ref().map(|of| of.incarnation);
            for channel in has {
                let known_at = self.now + Duration::from_millis(self.roll(20..200));
                let process = self.processes[at].as_mut().unwrap();
                process.known.insert((node(other), channel), vec![(known_at, holder)]);
            }
        }
    }

    fn next_incarnation(&mut self) -> Incarnation {
        self.incarnations += 1;
        Incarnation::from_u128(self.incarnations)
    }

    /// The other nodes hear that this one has a channel, or has it no more, between so many milliseconds from now.
    fn gossip(&mut self, at: usize, channel: &ChannelName, has: bool, within: std::ops::Range<u64>) {
        let holder = self.processes[at].as_ref().map(|of| of.incarnation).filter(|_| has);
        for other in (0..NAMES.len()).filter(|other| *other != at) {
            let delay = Duration::from_millis(self.roll(within.clone()));
            let Some(process) = &mut self.processes[other] else { continue };
            let entries = process.known.entry((node(at), channel.clone())).or_default();
            let after = entries.last().map_or(Duration::ZERO, |(at, _)| *at);
            entries.push(((self.now + delay).max(after), holder));
        }
    }

    pub fn sessions(&mut self, at: usize, of: usize, who: UserId, more: bool) {
        let Some(process) = &mut self.processes[at] else { return };
        let here = process.channels.entry(channel(of)).or_default();
        let before = here.users.len();
        match (here.users.get_mut(&who), more) {
            (None, false) => return,
            (None, true) => drop(here.users.insert(who, 1)),
            (Some(count), true) => *count += 1,
            (Some(1), false) => drop(here.users.remove(&who)),
            (Some(count), false) => *count -= 1,
        }
        let after = here.users.len();
        if after == before {
            return;
        }
        if process.followed.contains(&channel(of)) {
            process.state.changed(&channel(of), self.now);
        }
        if after == 0 || before == 0 {
            self.gossip(at, &channel(of), after > 0, 20..60);
        }
    }

    pub fn act(&mut self, action: &Action) {
        match *action {
            Action::Connect(at, of, who) => self.sessions(at, of, user(who), true),
            Action::Disconnect(at, of, who) => self.sessions(at, of, user(who), false),
            Action::Move(from, to, of, who) => {
                self.sessions(from, of, user(who), false);
                self.sessions(to, of, user(who), true);
            }
            Action::Crowd(at, of, count) => {
                let there: Vec<_> = self.processes[at]
                    .iter()
                    .flat_map(|process| process.channels.get(&channel(of)))
                    .flat_map(|here| here.users.keys().cloned())
                    .collect();
                let crowd = (0..count).map(|at| UserId::new(&format!("crowd{at}")).unwrap());
                let crowd: BTreeSet<_> = crowd.collect();
                for who in
                    there.iter().filter(|who| who.as_str().starts_with("crowd") && !crowd.contains(*who))
                {
                    self.sessions(at, of, who.clone(), false);
                }
                for who in crowd.iter().filter(|who| !there.contains(who)) {
                    self.sessions(at, of, who.clone(), true);
                }
            }
            Action::Listen(at, of, on) => self.listen(at, of, on),
            Action::Ask(at, of) => self.ask(at, of),
            Action::Kill(at) => {
                let had: Vec<_> =
                    self.processes[at].iter().flat_map(|of| of.channels.keys().cloned()).collect();
                self.processes[at] = None;
                self.wire.retain(|of| of.to != at);
                had.iter().for_each(|channel| self.gossip(at, channel, false, 250..700));
                self.start(at);
            }
            Action::Reconnect(at) => self.reconnect(at),
            Action::Outage(is_away) if is_away != self.is_away => {
                self.is_away = is_away;
                for at in 0..NAMES.len() {
                    match is_away {
                        false => self.reconnect(at),
                        true => {
                            let now = self.now;
                            self.processes[at].iter_mut().for_each(|of| of.state.link(false, false, now));
                        }
                    }
                }
            }
            Action::Outage(_) => {}
            Action::Full(at, on) => self.processes[at].iter_mut().for_each(|of| of.is_full = on),
            Action::Wait(ms) => self.run(Duration::from_millis(ms.into())),
        }
    }

    fn reconnect(&mut self, at: usize) {
        self.wire.retain(|of| of.to != at);
        let (now, is_away, incarnation) = (self.now, self.is_away, self.next_incarnation());
        let Some(process) = &mut self.processes[at] else { return };
        process.incarnation = incarnation;
        process.state.link(!is_away, true, now);
        let has: Vec<_> = process
            .channels
            .iter()
            .filter(|(_, here)| !here.users.is_empty())
            .map(|(of, _)| of.clone())
            .collect();
        // The others drop what it had, and hear it anew.
        for channel in has {
            self.gossip(at, &channel, false, 1..20);
            self.gossip(at, &channel, true, 20..150);
        }
    }

    pub fn listen(&mut self, at: usize, of: usize, on: bool) {
        let now = self.now;
        let Some(mut process) = self.processes[at].take() else { return };
        let here = process.channels.entry(channel(of)).or_default();
        if here.listens != on {
            here.listens = on;
            (here.heard, here.open) = (None, BTreeSet::new());
            with_state(&mut process, |state, world| state.watch(&channel(of), on, now, world));
        }
        self.processes[at] = Some(process);
        self.ask(at, of);
    }

    fn ask(&mut self, at: usize, of: usize) {
        let Some(process) = &mut self.processes[at] else { return };
        let Some(here) = process.channels.get_mut(&channel(of)).filter(|here| here.listens) else { return };
        self.tickets += 1;
        here.open.insert(self.tickets);
        process.state.wait(&channel(of), Ticket { worker: 0, number: self.tickets }, self.now);
    }

    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += STEP;
            self.deliver();
            for at in 0..NAMES.len() {
                let Some(mut process) = self.processes[at].take() else { continue };
                process.now = self.now;
                let due: Vec<_> = process
                    .known
                    .iter()
                    .filter(|(_, entries)| {
                        entries.iter().any(|(at, _)| *at <= self.now && *at + STEP > self.now)
                    })
                    .map(|((_, channel), _)| channel.clone())
                    .collect();
                due.iter().for_each(|channel| process.state.nodes_changed(channel, self.now));
                let now = self.now;
                let letters = with_state(&mut process, |state, world| state.poll(now, world));
                self.processes[at] = Some(process);
                letters.into_iter().for_each(|letter| self.send(at, letter));
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let due: Vec<_> = self.wire.extract_if(.., |of| of.at <= now).collect();
        for InFlight { to, word, .. } in due {
            let Some(mut process) = self.processes[to].take() else { continue };
            process.now = now;
            with_state(&mut process, |state, world| state.hear(word, now, world));
            self.processes[to] = Some(process);
        }
    }

    fn send(&mut self, from: usize, letter: Letter) {
        self.letters += 1;
        // As on the wire.
        let word: Word = serde_json::from_slice(&serde_json::to_vec(&letter.word).unwrap()).unwrap();
        let is_lost = self.is_away || self.roll(0..50) == 0;
        if let (Word::Told(told), true) = (&letter.word, is_lost) {
            let (now, channel) = (self.now, told.channel.clone());
            self.processes[from].iter_mut().for_each(|of| of.state.failed(&channel, &[], now));
        }
        // What was not confirmed may have arrived.
        if self.is_away || is_lost && self.roll(0..2) == 0 {
            return;
        }
        for name in &letter.to {
            let to = NAMES.iter().position(|of| *of == name.as_str()).unwrap();
            let delay = Duration::from_millis(self.roll(0..30));
            let after = self.wire.iter().filter(|of| of.from == from && of.to == to).map(|of| of.at).max();
            let at = (self.now + delay).max(after.unwrap_or_default());
            self.wire.push(InFlight { at, from, to, word: word.clone() });
        }
        self.wire.sort_by_key(|of| of.at);
    }

    /// What listeners have heard is true, and nobody waits for an answer.
    pub fn check(&self) -> Result<(), TestCaseError> {
        for (of, name) in CHANNELS.iter().enumerate() {
            let all = self.processes.iter().flatten().flat_map(|process| process.channels.get(&channel(of)));
            let truth: BTreeSet<_> = all.flat_map(|here| here.users.keys().cloned()).collect();
            for process in self.processes.iter().flatten() {
                let Some(here) = process.channels.get(&channel(of)).filter(|here| here.listens) else {
                    continue;
                };
                prop_assert!(here.open.is_empty(), "unanswered: {:?}", here.open);
                match here.heard.as_ref().unwrap() {
                    Heard::Users(users) => {
                        let wrong: Vec<_> = users.symmetric_difference(&truth).take(3).collect();
                        prop_assert!(
                            wrong.is_empty(),
                            "{:?}: {:?} in {} at {:?}",
                            process.incarnation,
                            wrong,
                            name,
                            self.now
                        );
                    }
                    // A user with sessions on several nodes may count on each of them.
                    Heard::Count(count) => prop_assert!(*count >= truth.len() as u64 && truth.len() > 900),
                }
            }
        }
        Ok(())
    }
}
