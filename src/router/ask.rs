//! Questions to the nodes about the sessions they hold, and orders about these.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::auth::{Identity, Revocation};
use crate::config::Routing;
use crate::delivery::envelope::{Origin, Tag};
use crate::delivery::peer_words::{answer_publish, ask_publish, Ask, AskReply, SessionInfo};
use crate::delivery::report::Report;
use crate::delivery::trace::TraceEvent;
use crate::directory::Key;
use crate::hub::{Command, Counters, Local, Tally};
use crate::ids::{NodeId, SessionId, UserId};
use crate::protocol::close::CloseCode;
use crate::router::Router;

/// How long the nodes have to answer; what is known by then is what the caller gets.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// The same for a report: an operator who looks every second should not wait longer for a node that hangs.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);
/// Longest list of users of a channel; above it they are only counted.
pub const USERS_LISTED_MAX: usize = 1_000;
/// Questions that await answers. Overflow policy: only this node is asked.
const ASKS_MAX: usize = 1024;

type OpenAsks = HashMap<Tag, (Instant, mpsc::Sender<AskReply>)>;

#[derive(Debug)]
pub(super) struct Asks {
    next: AtomicU64,
    /// With the time until which each waits.
    open: Mutex<OpenAsks>,
}

impl Asks {
    pub(super) fn new() -> Self {
        Self { next: AtomicU64::new(1), open: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, OpenAsks> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets overdue questions, which ends the wait of those who asked.
    pub(super) fn expire(&self, now: Instant) {
        self.lock().retain(|_, (until, _)| now < *until);
    }

    fn open(&self, answers: usize, deadline: Duration) -> Option<Asked> {
        let mut open = self.lock();
        if open.len() >= ASKS_MAX {
            return None;
        }
        let tag = Tag(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::channel(answers.max(1));
        open.insert(tag, (Instant::now() + deadline, sender));
        Some((tag, receiver))
    }
}

/// What the nodes said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub sessions: Vec<SessionInfo>,
    /// The users of all nodes that could list them, each once.
    pub users: BTreeSet<UserId>,
    /// The sum of what the nodes counted.
    pub count: u64,
    /// Some node has more users than a list may have.
    pub unlisted: bool,
    pub reports: Vec<Report>,
    pub trace: Vec<TraceEvent>,
    /// What nodes know to be revoked, if they were asked for that.
    pub revocations: Vec<Revocation>,
    /// Whose the ticket was that was asked about.
    pub identity: Option<Box<Identity>>,
    /// Some node that was asked did not answer in time.
    pub partial: bool,
}

/// A question that was put, and where its answers come.
type Asked = (Tag, mpsc::Receiver<AskReply>);

impl Found {
    fn add(&mut self, answer: AskReply) {
        self.sessions.extend(answer.sessions);
        self.users.extend(answer.users);
        self.count += answer.count;
        self.unlisted |= answer.unlisted;
        self.trace.extend(answer.trace);
        self.reports.extend(answer.report.map(|report| *report));
        self.revocations.extend(answer.revocations);
        self.identity = self.identity.take().or(answer.identity);
    }
}

impl Router {
    /// The user's sessions on all nodes.
    pub async fn sessions_of(self: &Arc<Self>, user: &UserId) -> Found {
        let nodes = match self.settings.routing {
            Routing::Directory => self.directory.nodes_of(Key::user(user)),
            Routing::Broadcast | Routing::Ring => self.directory.live_nodes(),
        };
        self.ask(&nodes, Ask::SessionsOf(user.clone())).await
    }

    /// Closes all sessions of a user with [`CloseCode::Kicked`]; returns those that were closed. Every live
    /// node is asked, since a hint must not decide whether somebody stays connected.
    pub async fn disconnect_user(self: &Arc<Self>, user: &UserId) -> Found {
        self.ask(&self.other_nodes(), Ask::DisconnectUser(user.clone())).await
    }

    /// Closes one session; finds none if it is not connected.
    pub async fn disconnect_session(self: &Arc<Self>, session: &SessionId) -> Found {
        let ask = Ask::DisconnectSession(session.to_string());
        if session.node == *self.node() {
            return self.ask(&[], ask).await;
        }
        match self.directory.is_live(&session.node) {
            true => self.ask(std::slice::from_ref(&session.node), ask).await,
            false => Found::default(),
        }
    }

    pub(super) fn other_nodes(&self) -> Vec<NodeId> {
        let peers = self.directory.peers();
        peers.into_iter().map(|peer| peer.node).filter(|node| node != self.node()).collect()
    }

    /// Asks these nodes and this one.
    pub(super) async fn ask(self: &Arc<Self>, nodes: &[NodeId], ask: Ask) -> Found {
        let asked = self.put(nodes, &ask);
        let mut found = Found::default();
        found.add(self.answer_here(&ask).await);
        self.collect(nodes, asked, &mut found).await;
        found
    }

    /// Asks one other node, and not this one.
    pub(super) async fn ask_only(self: &Arc<Self>, node: &NodeId, ask: Ask) -> Found {
        let nodes = std::slice::from_ref(node);
        let mut found = Found::default();
        self.collect(nodes, self.put(nodes, &ask), &mut found).await;
        found
    }

    /// Puts a question to other nodes. `None`: it was not put.
    fn put(&self, nodes: &[NodeId], ask: &Ask) -> Option<Asked> {
        let deadline = if *ask == Ask::Report { REPORT_DEADLINE } else { ASK_DEADLINE };
        let asked = if nodes.is_empty() { None } else { self.asks.open(nodes.len(), deadline) };
        if let Some((tag, _)) = &asked {
            let origin = Origin { node: self.node().clone(), life: self.life, tag: *tag };
            for node in nodes {
                self.bus.publish(ask_publish(node.clone(), ask, &origin), Box::new(|_| ()));
            }
        }
        asked
    }

    async fn collect(&self, nodes: &[NodeId], asked: Option<Asked>, found: &mut Found) {
        let Some((tag, mut answers)) = asked else {
            found.partial = !nodes.is_empty();
            return;
        };
        for _ in nodes {
            match answers.recv().await {
                Some(answer) => found.add(answer),
                None => {
                    found.partial = true;
                    break;
                }
            }
        }
        self.asks.lock().remove(&tag);
    }

    /// Another node's answer has arrived.
    pub fn answered(&self, to: &Origin, answer: AskReply) {
        // An answer to a former process of this node, whose numbers began at the same place, is nothing to this one.
        if to.life != self.life {
            return;
        }
        if let Some((_, sender)) = self.asks.lock().get(&to.tag) {
            // As wide as the number of nodes asked: only a node that answers twice finds it full.
            let _ = sender.try_send(answer);
        }
    }

    /// Another node asks.
    pub async fn asked(self: &Arc<Self>, ask: Ask, origin: Origin) {
        let answer = self.answer_here(&ask).await;
        self.bus.publish(answer_publish(&origin, &answer), Box::new(|_| ()));
    }

    async fn answer_here(&self, ask: &Ask) -> AskReply {
        let info = |local: &Local| SessionInfo::new(&self.session_id(local.counter), local.since_ms);
        let mut answer = AskReply::new(self.node().clone());
        if let Some(user) = ask.user() {
            let sessions = match ask {
                Ask::SessionsOf(_) => self.hub.sessions_of(user),
                _ => self.hub.all_sessions_of(user),
            };
            answer.sessions = sessions.iter().map(info).collect();
            if !matches!(ask, Ask::SessionsOf(_)) {
                let counters = sessions.iter().map(|local| local.counter).collect();
                answer.count = u64::from(self.carry_out_here(ask, counters).await);
            }
        }
        match ask {
            Ask::DisconnectSession(session) => match SessionId::parse(session) {
                Ok(session) if session.node == *self.node() => {
                    let counter = self.hub.counter_of(session.number);
                    let closed = self.carry_out_here(ask, Counters::from_slice(&[counter])).await;
                    answer.sessions.extend((closed > 0).then(|| SessionInfo::new(&session, 0)));
                }
                _ => {}
            },
            Ask::UsersIn(channel) => {
                let (users, count) = self.hub.users_in(channel, USERS_LISTED_MAX);
                (answer.users, answer.count) = (users, count as u64);
                answer.unlisted = count > USERS_LISTED_MAX;
            }
            Ask::Report | Ask::Drain | Ask::Trace(_) => self.answer_operators(ask, &mut answer),
            Ask::Revoke(revocation) => {
                answer.count = self.revoke_here(std::slice::from_ref(revocation)).await.into();
            }
            Ask::RedeemTicket(secret) => {
                answer.identity = self.tickets.redeem(*secret, Instant::now()).map(Box::new);
            }
            Ask::Revocations { digest } => answer.revocations = self.revocations_unlike(*digest),
            _ => {}
        }
        answer
    }

    /// Has the workers carry out an order about sessions here; for how many it changed something.
    async fn carry_out_here(&self, ask: &Ask, counters: Counters) -> u32 {
        let command = |counters, tally| match ask {
            Ask::DisconnectUser(_) | Ask::DisconnectSession(_) => {
                Some(Command::Close { counters, code: CloseCode::Kicked, tally })
            }
            Ask::Subscribe(_, channel) => {
                Some(Command::Subscribe { counters, channel: channel.clone(), tally })
            }
            Ask::Unsubscribe(_, channel) => {
                Some(Command::Unsubscribe { counters, channel: channel.clone(), tally })
            }
            Ask::SessionsOf(_)
            | Ask::UsersIn(_)
            | Ask::Report
            | Ask::Drain
            | Ask::Trace(_)
            | Ask::Revoke(_)
            | Ask::RedeemTicket(_)
            | Ask::Revocations { .. } => None,
        };
        let (tell, told) = oneshot::channel();
        // A caller that has gone away needs no answer.
        let (tally, _) = Tally::new(None, move |changed| {
            let _ = tell.send(changed.sessions);
        });
        loop {
            match self.hub.reserve(counters.clone()) {
                Ok(reservation) => {
                    reservation.command(tally, command);
                    return told.await.unwrap_or(0);
                }
                Err(full) => self.hub.room(full).await,
            }
        }
    }
}
