//! Who is in which channel across the cluster, as a pure machine: words, changes and the time go in, words and updates
//! come out.
//!
//! Time is the duration since the machine was made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use smallvec::SmallVec;

use super::incoming::{Incoming, Question};
use super::members::Members;
use super::outgoing::Outgoing;
use super::words::{Told, Watch, Watched, Word};
use crate::directory::Holders;
use crate::hub::{Answer, Ticket};
use crate::ids::{ChannelName, NodeId};
use crate::protocol::presence::RosterUpdate;

/// How often every node is asked for what was missed, and who asks no more is forgotten.
pub const ROUND_EVERY: Duration = Duration::from_secs(4);
/// Channels in one question at most: about 100 KB.
const CHANNELS_PER_WATCH: usize = 400;

pub type Nodes = SmallVec<[NodeId; 2]>;

/// What the machine looks up, and whom it tells.
pub trait World {
    /// From now on changes of the channel's users here are reported to the machine.
    fn follow(&mut self, channel: &ChannelName);
    fn unfollow(&mut self, channel: &ChannelName);
    /// Who is in the channel here; only counted if they are more than `listed_max`.
    fn here(&self, channel: &ChannelName, listed_max: usize) -> Members;
    /// The live peers that have the channel.
    fn nodes(&self, channel: &ChannelName) -> Holders;
    /// Tells the workers that have listeners. `false`: one has no room, and none was told.
    fn tell(&mut self, channel: &ChannelName, update: RosterUpdate, answers: &[Answer]) -> bool;
}

/// A word for these nodes.
#[derive(Debug, Clone)]
pub struct Letter {
    pub to: Nodes,
    pub word: Word,
}

#[derive(Debug, Default)]
struct Channel {
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
    /// Where it stands in the agenda.
    due: Option<Duration>,
}

#[derive(Debug)]
pub struct State {
    node: NodeId,
    /// Numbers are given upwards from here: streams must differ from those of a former process.
    next: u64,
    channels: HashMap<ChannelName, Channel>,
    agenda: BTreeSet<(Duration, ChannelName)>,
    round_at: Duration,
    can_send: bool,
    questions: BTreeMap<NodeId, Vec<Watched>>,
    letters: Vec<Letter>,
}

impl State {
    pub fn new(node: NodeId, first_stream: u64) -> Self {
        Self {
            node,
            next: first_stream,
            channels: HashMap::new(),
            agenda: BTreeSet::new(),
            round_at: Duration::ZERO,
            can_send: false,
            questions: BTreeMap::new(),
            letters: Vec::new(),
        }
    }

    fn next_number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1).max(1);
        self.next
    }

    fn schedule(&mut self, channel: &ChannelName, at: Duration) {
        let Some(of) = self.channels.get_mut(channel) else { return };
        if of.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(due) = of.due.replace(at) {
            self.agenda.remove(&(due, channel.clone()));
        }
        self.agenda.insert((at, channel.clone()));
    }

    /// Whether listeners of the channel are here.
    pub fn watch(
        &mut self,
        channel: &ChannelName,
        has_listeners: bool,
        now: Duration,
        world: &mut impl World,
    ) {
        if has_listeners {
            world.follow(channel);
            let of = self.channels.entry(channel.clone()).or_default();
            of.incoming.get_or_insert_default();
            return self.schedule(channel, now);
        }
        let Some(of) = self.channels.get_mut(channel) else { return };
        for node in of.incoming.take().iter().flat_map(Incoming::nodes) {
            let (channel, version, sync) = (channel.clone(), None, 0);
            self.questions.entry(node.clone()).or_default().push(Watched {
                channel,
                version,
                sync,
                ends: true,
            });
        }
        self.forget_if_unused(channel, world);
    }

    fn forget_if_unused(&mut self, channel: &ChannelName, world: &mut impl World) {
        if self.channels.get(channel).is_some_and(|of| of.incoming.is_none() && of.outgoing.is_none()) {
            world.unfollow(channel);
            if let Some(due) = self.channels.remove(channel).and_then(|of| of.due) {
                self.agenda.remove(&(due, channel.clone()));
            }
        }
    }

    /// Somebody asks who is in a channel that has listeners here.
    pub fn wait(&mut self, channel: &ChannelName, ticket: Ticket, now: Duration) {
        let sync = self.next_number();
        if let Some(incoming) = self.channels.get_mut(channel).and_then(|of| of.incoming.as_mut()) {
            incoming.wait(ticket, sync, now);
            self.schedule(channel, now);
        }
    }

    /// The users of a channel here may be others.
    pub fn changed(&mut self, channel: &ChannelName, now: Duration) {
        let Some(of) = self.channels.get_mut(channel) else { return };
        of.incoming.iter_mut().for_each(|incoming| incoming.changed(now));
        of.outgoing.iter_mut().for_each(|outgoing| outgoing.changed(now));
        self.reschedule(channel, now);
    }

    /// Other nodes may have the channel.
    pub fn nodes_changed(&mut self, channel: &ChannelName, now: Duration) {
        self.schedule(channel, now);
    }

    pub fn all_nodes_changed(&mut self, now: Duration) {
        let watched = self.channels.iter().filter(|(_, of)| of.incoming.is_some());
        let watched: Vec<_> = watched.map(|(channel, _)| channel.clone()).collect();
        watched.iter().for_each(|channel| self.schedule(channel, now));
    }

    /// The broker did not confirm what was told about a channel; `gone` has no queue.
    pub fn failed(&mut self, channel: &ChannelName, gone: &[NodeId], now: Duration) {
        if let Some(outgoing) = self.channels.get_mut(channel).and_then(|of| of.outgoing.as_mut()) {
            outgoing.failed(gone, now);
            self.reschedule(channel, now);
        }
    }

    /// `is_new`: what other nodes said to the queue of the old link may be lost.
    pub fn link(&mut self, can_send: bool, is_new: bool, now: Duration) {
        if is_new {
            self.channels.values_mut().filter_map(|of| of.incoming.as_mut()).for_each(Incoming::link_up);
            self.round_at = now;
        }
        if can_send != self.can_send || is_new {
            self.can_send = can_send;
            let all: Vec<_> = self.channels.keys().cloned().collect();
            all.iter().for_each(|channel| self.schedule(channel, now));
        }
    }

    pub fn hear(&mut self, word: Word, now: Duration, world: &mut impl World) {
        match word {
            Word::Told(told) => {
                let channel = told.channel.clone();
                if let Some(incoming) = self.channels.get_mut(&channel).and_then(|of| of.incoming.as_mut()) {
                    incoming.hear(told, now);
                    self.schedule(&channel, now);
                }
            }
            Word::Watch(Watch { from, channels }) => {
                channels.iter().for_each(|watched| self.asked(&from, watched, now, world));
            }
            Word::Unknown => {}
        }
    }

    fn asked(&mut self, from: &NodeId, watched: &Watched, now: Duration, world: &mut impl World) {
        let channel = &watched.channel;
        if watched.ends {
            let Some(of) = self.channels.get_mut(channel) else { return };
            if of.outgoing.as_mut().is_some_and(|outgoing| !outgoing.expire(Some(from), now)) {
                of.outgoing = None;
            }
            return self.forget_if_unused(channel, world);
        }
        let stream = self.next_number();
        if self.channels.get(channel).is_none_or(|of| of.outgoing.is_none()) {
            world.follow(channel);
            let members = world.here(channel, Members::default().listed_max());
            self.channels.entry(channel.clone()).or_default().outgoing = Some(Outgoing::new(stream, members));
        }
        // Whoever asks gets what is true now.
        self.tell_others(channel, now, world);
        let Some(outgoing) = self.channels.get_mut(channel).and_then(|of| of.outgoing.as_mut()) else {
            return;
        };
        let answer = outgoing.asked(from, watched, now);
        let version = outgoing.version();
        if let Some(what) = answer {
            let (from, to) = (self.node.clone(), Nodes::from_iter([from.clone()]));
            let told = Told { from, channel: channel.clone(), version, sync: watched.sync, what };
            self.letters.push(Letter { to, word: Word::Told(told) });
        }
        self.reschedule(channel, now);
    }

    fn tell_others(&mut self, channel: &ChannelName, now: Duration, world: &impl World) {
        let Some(outgoing) = self.channels.get_mut(channel).and_then(|of| of.outgoing.as_mut()) else {
            return;
        };
        let members = world.here(channel, outgoing.listed_max());
        let Some(what) = outgoing.tell(members, now) else { return };
        let to: Nodes = outgoing.lessees().cloned().collect();
        let (from, version) = (self.node.clone(), outgoing.version());
        let told = Told { from, channel: channel.clone(), version, sync: 0, what };
        if !to.is_empty() {
            self.letters.push(Letter { to, word: Word::Told(told) });
        }
    }

    /// Does what is due by `now`, and hands out the words to be sent, in this order.
    pub fn poll(&mut self, now: Duration, world: &mut impl World) -> Vec<Letter> {
        let due: Vec<_> = self.agenda.iter().take_while(|(at, _)| *at <= now).cloned().collect();
        for (at, channel) in due {
            if let Some(of) = self.channels.get_mut(&channel).filter(|of| of.due == Some(at)) {
                of.due = None;
                self.agenda.remove(&(at, channel.clone()));
                self.step(&channel, now, world);
            }
        }
        if self.round_at <= now && self.can_send {
            self.round(now, world);
        }
        let mut letters = std::mem::take(&mut self.letters);
        if self.can_send {
            for (node, watched) in std::mem::take(&mut self.questions) {
                for channels in watched.chunks(CHANNELS_PER_WATCH) {
                    let watch = Watch { from: self.node.clone(), channels: channels.to_vec() };
                    letters.push(Letter { to: Nodes::from_iter([node.clone()]), word: Word::Watch(watch) });
                }
            }
        } else {
            // Leases end by themselves; everything else is asked again.
            self.questions.clear();
        }
        letters
    }

    fn step(&mut self, channel: &ChannelName, now: Duration, world: &mut impl World) {
        let Some(of) = self.channels.get_mut(channel) else { return };
        if let Some(incoming) = &mut of.incoming {
            incoming.follow(&world.nodes(channel), now);
            let questions = if self.can_send { incoming.ask(now) } else { Vec::new() };
            for Question { node, version, sync } in questions {
                let watched = Watched { channel: channel.clone(), version, sync, ends: false };
                self.questions.entry(node).or_default().push(watched);
            }
            incoming.show(channel, self.can_send, now, world);
        }
        let tells = of.outgoing.as_ref().and_then(Outgoing::due).is_some_and(|due| due <= now);
        if tells && self.can_send {
            self.tell_others(channel, now, world);
        }
        self.reschedule(channel, now);
    }

    fn reschedule(&mut self, channel: &ChannelName, now: Duration) {
        let Some(of) = self.channels.get(channel) else { return };
        let incoming = of.incoming.as_ref().and_then(|incoming| incoming.due(self.can_send, now));
        let outgoing = of.outgoing.as_ref().and_then(Outgoing::due).filter(|_| self.can_send);
        if let Some(due) = incoming.into_iter().chain(outgoing).min() {
            self.schedule(channel, due);
        }
    }

    fn round(&mut self, now: Duration, world: &mut impl World) {
        self.round_at = now + ROUND_EVERY;
        let mut unused = Vec::new();
        for (channel, of) in &mut self.channels {
            for Question { node, version, sync } in of.incoming.iter().flat_map(Incoming::renewals) {
                let watched = Watched { channel: channel.clone(), version, sync, ends: false };
                self.questions.entry(node).or_default().push(watched);
            }
            if of.outgoing.as_mut().is_some_and(|outgoing| !outgoing.expire(None, now)) {
                of.outgoing = None;
                unused.push(channel.clone());
            }
        }
        unused.iter().for_each(|channel| self.forget_if_unused(channel, world));
    }

    /// When [`poll`](Self::poll) has something to do, if nothing happens before.
    pub fn next_poll(&self) -> Option<Duration> {
        let round = (self.can_send && !self.channels.is_empty()).then_some(self.round_at);
        self.agenda.first().map(|(due, _)| *due).into_iter().chain(round).min()
    }

    /// Channels with listeners here, or of which other nodes are told.
    #[cfg(test)]
    pub fn channels(&self) -> usize {
        self.channels.len()
    }
}
