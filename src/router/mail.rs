//! Handing out mailboxes: what was stored while a user was away goes before anything newer.
//!
//! A user whose mailbox may hold something has a *gate* on the node: what arrives meanwhile is parked behind it,
//! and goes on when the mailbox is known to be empty. Every first session of a user closes the gate; so does a
//! notice of new mail.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::bus::{Delivery, Destination, Ending, Mailbox, Opened};
use crate::delivery::envelope::{mail_publish, Envelope, Mail};
use crate::error::Code;
use crate::ids::UserId;
use crate::protocol::message::{Guarantee, Settlement};
use crate::protocol::server;
use crate::protocol::target::Target;
use crate::router::attempt::Source;
use crate::router::strategy::Nodes;
use crate::router::{order_key, Router};

/// Mailboxes that this node opens at the same time: this bounds the load of a reconnect storm on the broker.
pub const READERS: usize = 16;
/// Messages parked for one user. Overflow policy: the origin is told that they were not taken, and stores them.
const PARKED_MAX: usize = 64;
/// How long a mailbox is left alone that another node hands out, or that could not be handed out.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a mailbox is left alone that could not be reached at all.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How often a mailbox that cannot be opened is tried before the gate opens all the same.
const TRIES_MAX: u8 = 20;
/// Users of whose mail no node was told. Overflow policy: what follows may overtake mail that was just stored.
const UNTOLD_MAX: usize = 16_384;
/// By then every node has heard of them.
const UNTOLD_FOR: Duration = Duration::from_secs(5);
/// Users in one notice.
const ANNOUNCED_MAX: usize = 1000;

#[derive(Debug, Default)]
struct Gate {
    parked: VecDeque<Envelope>,
    /// New mail was announced while the mailbox was being handed out.
    again: bool,
    tries: u8,
}

#[derive(Debug, Default)]
struct Rooms {
    gates: HashMap<UserId, Gate>,
    /// Users whose mailbox is to be looked into: each at most once, so that the sessions here are its bound.
    queue: VecDeque<UserId>,
    announce: HashSet<UserId>,
    /// Users whose last deposit found no node to tell, and when.
    untold: HashMap<UserId, Instant>,
}

#[derive(Debug)]
pub(super) struct MailRoom {
    rooms: Mutex<Rooms>,
    /// As many as there are gates: with none, which is the rule, nothing needs to be locked.
    gates: AtomicUsize,
    /// The same for those of whom no node was told.
    untold: AtomicUsize,
    wake: Notify,
}

/// What came of looking into a mailbox.
enum Look {
    Emptied,
    /// Another node hands it out.
    Busy,
    /// Nobody took what it holds, or the link was lost on the way.
    Interrupted,
    Unreachable,
}

impl MailRoom {
    pub(super) fn new() -> Self {
        Self {
            rooms: Mutex::default(),
            gates: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
            wake: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every node is told soon that there is mail for the user.
    pub(super) fn announce(&self, user: &UserId) {
        self.lock().announce.insert(user.clone());
    }

    /// Nobody holds the user as far as is known: what comes next for them must not overtake the notice.
    fn untold(&self, user: &UserId) {
        let mut rooms = self.lock();
        if rooms.untold.len() < UNTOLD_MAX {
            rooms.untold.insert(user.clone(), Instant::now());
            self.untold.store(rooms.untold.len(), Ordering::SeqCst);
        }
    }

    fn take_untold(&self, user: &UserId) -> bool {
        if self.untold.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut rooms = self.lock();
        let taken = rooms.untold.remove(user).is_some();
        self.untold.store(rooms.untold.len(), Ordering::SeqCst);
        taken
    }

    fn forget_untold(&self) {
        if self.untold.load(Ordering::SeqCst) > 0 {
            let mut rooms = self.lock();
            rooms.untold.retain(|_, since| since.elapsed() < UNTOLD_FOR);
            self.untold.store(rooms.untold.len(), Ordering::SeqCst);
        }
    }
}

impl Router {
    /// The user's mailbox is to be handed out before anything newer.
    pub(super) fn close_gate(&self, user: &UserId) {
        let mut rooms = self.mail.lock();
        match rooms.gates.get_mut(user) {
            Some(gate) => gate.again = true,
            None => {
                rooms.gates.insert(user.clone(), Gate::default());
                self.mail.gates.store(rooms.gates.len(), Ordering::SeqCst);
                rooms.queue.push_back(user.clone());
                drop(rooms);
                self.mail.wake.notify_one();
            }
        }
    }

    /// Tells those who hold the user that there is mail, ahead of whatever follows for the same user.
    pub(super) fn tell_of_mail(&self, user: &UserId, nodes: &Nodes) {
        if nodes.is_empty() {
            self.mail.untold(user);
        } else {
            let mail = Mail { users: vec![user.clone()] };
            let order_key = order_key(&Target::User(user.clone()));
            let publish = mail_publish(Destination::Nodes(nodes.clone()), &mail, order_key);
            self.bus.publish(publish, Box::new(|_| ()));
        }
        self.mail_for(user);
    }

    /// To be called before a message goes to these nodes: a user who was just away has appeared there, and
    /// they may not know yet of mail that was stored meanwhile.
    pub(super) fn tell_of_late_mail(&self, user: &UserId, nodes: &Nodes) {
        if self.mail.take_untold(user) {
            self.tell_of_mail(user, nodes);
        }
    }

    /// Something was put into the user's mailbox. Nothing to do if the user is not here.
    pub fn mail_for(&self, user: &UserId) {
        if self.hub.holds(user) {
            self.close_gate(user);
        }
    }

    /// Messages waiting in the user's mailbox; `None` if it cannot be asked now.
    pub async fn mail_waiting(&self, user: &UserId) -> Option<u64> {
        self.bus.mailbox_depth(user).await.ok()
    }

    /// Looks into the mailboxes of everybody here: after the link was lost, notices may have been missed.
    pub fn look_for_mail(&self) {
        for user in self.hub.user_ids() {
            self.close_gate(&user);
        }
    }

    /// Parks a message behind the gate of its user. Gives it back if there is no gate.
    pub(super) fn park(&self, user: &UserId, envelope: Envelope) -> Park {
        if self.mail.gates.load(Ordering::SeqCst) == 0 {
            return Park::Open(envelope);
        }
        let mut rooms = self.mail.lock();
        match rooms.gates.get_mut(user) {
            None => Park::Open(envelope),
            Some(gate) if gate.parked.len() < PARKED_MAX => {
                gate.parked.push_back(envelope);
                Park::Parked
            }
            Some(_) => Park::Full(envelope),
        }
    }

    /// Tells every node who has mail, as gathered since the last call; to be called a few times a
    /// second.
    pub fn announce_mail(&self) {
        self.mail.forget_untold();
        loop {
            let users: Vec<UserId> = {
                let mut rooms = self.mail.lock();
                let some: Vec<_> = rooms.announce.iter().take(ANNOUNCED_MAX).cloned().collect();
                for user in &some {
                    rooms.announce.remove(user);
                }
                some
            };
            if users.is_empty() {
                return;
            }
            let publish = mail_publish(Destination::Control, &Mail { users }, 0);
            self.bus.publish(publish, Box::new(|_| ()));
        }
    }

    /// Looks into one mailbox after the other, for ever. There are [`READERS`] of these tasks.
    pub async fn read_mail(self: Arc<Self>) {
        loop {
            let next = self.mail.lock().queue.pop_front();
            let Some(user) = next else {
                self.mail.wake.notified().await;
                continue;
            };
            // There may be more than one in the queue, and one wake-up is remembered at most.
            self.mail.wake.notify_one();
            match self.look_into(&user).await {
                Look::Emptied => self.open_gate(&user).await,
                look => self.look_later(user, look).await,
            }
        }
    }

    async fn look_into(self: &Arc<Self>, user: &UserId) -> Look {
        match self.bus.open_mailbox(user).await {
            Ok(Opened::Empty) => Look::Emptied,
            Ok(Opened::Mail(mailbox)) => self.hand_out(mailbox).await,
            Ok(Opened::Busy) => Look::Busy,
            Err(_) => Look::Unreachable,
        }
    }

    async fn hand_out(self: &Arc<Self>, mut mailbox: Mailbox) -> Look {
        let refused = Arc::new(AtomicBool::new(false));
        while let Some(delivery) = mailbox.mail.recv().await {
            if refused.load(Ordering::Relaxed) {
                // What comes after must not overtake it: all of it goes back, in its order.
                return Look::Interrupted;
            }
            let Delivery { properties, body, ack, redelivered, .. } = delivery;
            let mut envelope = match Envelope::from_delivery(&properties, body) {
                Ok(envelope) => envelope,
                Err(error) => {
                    // Nobody but a gateway may write to a mailbox; it would be found again for ever.
                    tracing::error!(%error, "dropped something from a mailbox that is no message");
                    ack.ack();
                    continue;
                }
            };
            envelope.is_mail = true;
            if redelivered {
                envelope.frame = server::mark_redelivered(&envelope.frame);
            }
            let refused = refused.clone();
            let settle = move |settlement| match settlement {
                Settlement::Failed(error) if error.code != Code::Expired => {
                    refused.store(true, Ordering::Relaxed);
                    drop(ack);
                }
                _ => ack.ack(),
            };
            self.accept_envelope(envelope, Guarantee::AtLeastOnce, Source::Mailbox, Box::new(settle));
        }
        match mailbox.ending() {
            Ending::Emptied => Look::Emptied,
            Ending::Interrupted => Look::Interrupted,
        }
    }

    /// Tries again after a pause, as long as the user is here. A broker that cannot be reached ends it: when the
    /// link is back, everybody's mailbox is looked into.
    async fn look_later(self: &Arc<Self>, user: UserId, look: Look) {
        let tries = {
            let mut rooms = self.mail.lock();
            let Some(gate) = rooms.gates.get_mut(&user) else { return };
            gate.tries = gate.tries.saturating_add(1);
            gate.tries
        };
        if !self.hub.holds(&user) {
            return self.open_gate(&user).await;
        }
        if matches!(look, Look::Unreachable) && tries > TRIES_MAX {
            self.open_gate(&user).await;
            let router = self.clone();
            // What is new need not wait for it, but what is in it must not be forgotten.
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN_AFTER).await;
                router.mail_for(&user);
            });
            return;
        }
        let pause = match look {
            Look::Interrupted => PAUSE * 2u32.pow(tries.min(3).into()),
            _ => PAUSE,
        };
        let router = self.clone();
        // Bounded by the gates: each has one look under way, waiting or queued.
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            router.mail.lock().queue.push_back(user);
            router.mail.wake.notify_one();
        });
    }

    /// Lets go what was parked, in order, and removes the gate; unless there is new mail.
    async fn open_gate(self: &Arc<Self>, user: &UserId) {
        loop {
            let next = {
                let mut rooms = self.mail.lock();
                let Some(gate) = rooms.gates.get_mut(user) else { return };
                if gate.again && self.hub.holds(user) {
                    gate.again = false;
                    gate.tries = 0;
                    rooms.queue.push_back(user.clone());
                    drop(rooms);
                    return self.mail.wake.notify_one();
                }
                match gate.parked.pop_front() {
                    Some(envelope) => envelope,
                    None => {
                        rooms.gates.remove(user);
                        self.mail.gates.store(rooms.gates.len(), Ordering::SeqCst);
                        return;
                    }
                }
            };
            while let Err(full) = self.hand_over(next.clone()) {
                self.hub.room(full).await;
            }
        }
    }
}

/// What became of a message at a gate.
pub(super) enum Park {
    /// There is no gate: go on.
    Open(Envelope),
    Parked,
    /// There is no room behind the gate.
    Full(Envelope),
}
