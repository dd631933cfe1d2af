//! What this node knows of who is in one channel elsewhere, and what it told its listeners last. Pure.
//!
//! Which nodes count is the directory's word; who is there is each node's own word. Like telling others, telling
//! listeners is a comparison: of what they were told last with what is true now.

use std::collections::BTreeMap;
use std::time::Duration;

use super::members::{update, Difference, Members};
use super::state::World;
use super::words::{Told, Version, What};
use crate::directory::Holders;
use crate::hub::{Answer, Ticket};
use crate::ids::{ChannelName, Incarnation, NodeId};
use crate::protocol::presence::RosterUpdate;

/// Changes are gathered for so long before listeners are told: who leaves and comes back meanwhile did neither.
pub const SHOW_AFTER: Duration = Duration::from_millis(100);
/// Listeners are told of changes no sooner than this after the last ones, whoever asks.
pub const SHOW_EVERY: Duration = Duration::from_millis(100);
/// For so long the users of a node that is gone stay: it may only have got a new link to the broker.
pub const HOLD: Duration = Duration::from_millis(400);
/// A question that was not answered is asked again after this long.
pub const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Longest wait for the nodes when somebody asks who is there.
pub const SYNC_MAX: Duration = Duration::from_secs(1);

/// One node that has the channel.
#[derive(Debug, Default)]
struct Remote {
    /// As the directory named it last: with another one it may be another process, and words may have been lost.
    incarnation: Option<Incarnation>,
    /// `None`: it has said nothing yet, or something was missed.
    version: Option<Version>,
    members: Members,
    /// Since when the directory does not name it.
    gone_since: Option<Duration>,
    asked_at: Option<Duration>,
    /// Numbers of questions: the newest that somebody waits for, the last that was sent, the last that was answered.
    wanted: u64,
    sent: u64,
    answered: u64,
}

/// Somebody who is to be told who is there, not older than the question.
#[derive(Debug)]
struct Wait {
    ticket: Ticket,
    sync: u64,
    deadline: Duration,
}

#[derive(Debug, Default)]
pub struct Incoming {
    remotes: BTreeMap<NodeId, Remote>,
    /// What listeners know. `None`: there was none yet.
    shown: Option<Members>,
    /// When to tell them what has changed since.
    show_at: Option<Duration>,
    waits: Vec<Wait>,
    /// When listeners were told of changes.
    shown_at: Duration,
    /// Nothing is told before `show_at`: a worker had no room, or listeners were told just now.
    is_blocked: bool,
}

/// A question to be sent.
pub struct Question {
    pub node: NodeId,
    pub version: Option<Version>,
    pub sync: u64,
}

impl Remote {
    /// Whether an answer is awaited, sent for or not.
    fn is_pending(&self) -> bool {
        self.gone_since.is_none() && (self.version.is_none() || self.wanted > self.answered)
    }

    fn is_due(&self, now: Duration) -> bool {
        let may_again = self.asked_at.is_none_or(|at| now >= at + ASK_AGAIN);
        let is_another = self.wanted > self.sent && self.sent == self.answered;
        self.is_pending() && (may_again || is_another)
    }

    fn knows(&self, sync: u64) -> bool {
        self.gone_since.is_some() || self.version.is_some() && self.answered >= sync
    }
}

impl Incoming {
    /// Somebody wants to know who is there; `sync` is greater than in all questions before.
    pub fn wait(&mut self, ticket: Ticket, sync: u64, now: Duration) {
        for remote in self.remotes.values_mut() {
            remote.wanted = sync;
        }
        self.waits.push(Wait { ticket, sync, deadline: now + SYNC_MAX });
    }

    /// Something may have changed.
    pub fn changed(&mut self, now: Duration) {
        if self.shown.is_some() {
            self.show_at.get_or_insert(now + SHOW_AFTER);
        }
    }

    /// Follows the directory: `nodes` have the channel.
    pub fn follow(&mut self, nodes: &Holders, now: Duration) {
        let sync = self.waits.last().map_or(0, |wait| wait.sync);
        for (node, incarnation) in nodes {
            let remote = self
                .remotes
                .entry(node.clone())
                .or_insert_with(|| Remote { wanted: sync, ..Remote::default() });
            let was_gone = remote.gone_since.take().is_some();
            if remote.incarnation.replace(*incarnation) != Some(*incarnation) || was_gone {
                (remote.version, remote.asked_at) = (None, None);
            }
        }
        let mut is_less = false;
        self.remotes.retain(|node, remote| {
            if nodes.iter().any(|(of, _)| of == node) {
                return true;
            }
            let since = *remote.gone_since.get_or_insert(now);
            let stays = !remote.members.is_empty() && now < since + HOLD;
            is_less |= !stays && !remote.members.is_empty();
            stays
        });
        if is_less {
            self.changed(now);
        }
    }

    /// Another node tells who is there.
    pub fn hear(&mut self, told: Told, now: Duration) {
        let Some(remote) = self.remotes.get_mut(&told.from) else { return };
        let Told { version, sync, what, .. } = told;
        let is_next = |has: Version| has.stream == version.stream && has.seq + 1 == version.seq;
        let is_old = |has: Version| has.stream == version.stream && has.seq >= version.seq;
        let is_changed = match what {
            What::Unchanged => {
                if remote.version != Some(version) {
                    (remote.version, remote.asked_at) = (None, None);
                }
                false
            }
            What::Changed { joined, left } => match remote.version {
                Some(has) if is_next(has) => {
                    let fits = remote.members.apply(Difference { joined, left });
                    remote.version = fits.then_some(version);
                    true
                }
                Some(has) if is_old(has) => false,
                _ => {
                    remote.version = None;
                    false
                }
            },
            What::Users(_) | What::Count(_)
                if remote.version.is_some_and(|has| is_old(has) && has != version) =>
            {
                false
            }
            What::Users(users) => {
                remote.members = Members::Users(users.into_iter().collect());
                remote.version = Some(version);
                true
            }
            What::Count(count) => {
                remote.members = Members::Count(count);
                remote.version = Some(version);
                true
            }
        };
        if sync > 0 {
            remote.answered = remote.answered.max(sync);
        }
        if is_changed {
            self.changed(now);
        }
    }

    /// The link is new: what was under way is lost.
    pub fn link_up(&mut self) {
        for remote in self.remotes.values_mut() {
            remote.answered = remote.sent;
            remote.asked_at = None;
        }
    }

    /// The questions that are due now. Saying so counts as asking.
    pub fn ask(&mut self, now: Duration) -> Vec<Question> {
        let mut questions = Vec::new();
        for (node, remote) in &mut self.remotes {
            if remote.is_due(now) {
                remote.sent = remote.wanted;
                remote.asked_at = Some(now);
                questions.push(Question { node: node.clone(), version: remote.version, sync: remote.sent });
            }
        }
        questions
    }

    /// What every node is asked from time to time, so that nothing that went wrong stays so.
    pub fn renewals(&self) -> impl Iterator<Item = Question> + '_ {
        let there =
            self.remotes.iter().filter(|(_, remote)| remote.gone_since.is_none() && remote.version.is_some());
        there.map(|(node, remote)| Question { node: node.clone(), version: remote.version, sync: 0 })
    }

    /// Those who need to be told that there are no listeners any more.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.remotes.keys()
    }

    /// Those who have waited long enough, or for everybody who had to say something.
    fn answers(&self, can_hear: bool, now: Duration) -> Vec<Answer> {
        let answer = |wait: &Wait| {
            let all = self.remotes.values().all(|remote| remote.knows(wait.sync));
            let is_over = all || !can_hear || wait.deadline <= now;
            is_over.then_some(Answer { ticket: wait.ticket, is_partial: !all || !can_hear })
        };
        self.waits.iter().filter_map(answer).collect()
    }

    /// Tells listeners what they are to be told by now.
    pub fn show(&mut self, channel: &ChannelName, can_hear: bool, now: Duration, world: &mut impl World) {
        let is_due = self.show_at.is_some_and(|at| at <= now);
        let answers = self.answers(can_hear, now);
        if !is_due && (answers.is_empty() || self.is_blocked) {
            return;
        }
        if now < self.shown_at + SHOW_EVERY {
            (self.show_at, self.is_blocked) = (Some(self.shown_at + SHOW_EVERY), true);
            return;
        }
        let listed_max = self.shown.as_ref().map_or(Members::default().listed_max(), Members::listed_max);
        let here = world.here(channel, listed_max);
        let parts = self.remotes.values().map(|remote| &remote.members);
        let members = Members::merge(parts.chain([&here]), listed_max);
        let nothing = || RosterUpdate { changes: Vec::new(), is_anew: false, roster: members.roster() };
        let update = self.shown.as_ref().and_then(|shown| update(shown, &members));
        if update.is_none() && answers.is_empty() {
            (self.show_at, self.is_blocked) = (None, false);
            return;
        }
        if update.is_some() {
            self.shown_at = now;
        }
        if world.tell(channel, update.unwrap_or_else(nothing), &answers) {
            (self.show_at, self.is_blocked) = (None, false);
            self.shown = Some(members);
            // Both are in the same order.
            let mut answered = answers.iter().map(|answer| answer.ticket).peekable();
            self.waits.retain(|wait| answered.next_if_eq(&wait.ticket).is_none());
        } else {
            (self.show_at, self.is_blocked) = (Some(now + SHOW_AFTER), true);
        }
    }

    /// When there is something to do, if nothing happens before.
    pub fn due(&self, can_ask: bool, now: Duration) -> Option<Duration> {
        let remotes = self.remotes.values().filter_map(|remote| match remote.gone_since {
            Some(since) => Some(since + HOLD),
            None if can_ask && remote.is_pending() => Some(remote.asked_at.map_or(now, |at| at + ASK_AGAIN)),
            None => None,
        });
        let waits = self.waits.iter().map(|wait| wait.deadline).filter(|_| !self.is_blocked);
        remotes.chain(waits).chain(self.show_at).min()
    }
}
