//! Mailboxes in memory, and the task that hands one out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::bus::{
    AckToken, Delivery, Ending, Link, Mailbox, MailboxLimits, Opened, Outcome, Properties, Verdict, Via,
};
use crate::ids::UserId;

/// Deliveries of one mailbox that are unsettled.
const WINDOW: usize = 64;
/// How often the mailboxes of users who do not come back are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

pub struct Mailboxes {
    limits: MailboxLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    boxes: HashMap<UserId, Stored>,
    swept: Option<Instant>,
}

#[derive(Default)]
struct Stored {
    letters: VecDeque<Letter>,
    /// Of what is not handed out.
    bytes: usize,
    /// Somebody hands it out.
    open: bool,
    /// Changes with each deposit.
    news: watch::Sender<()>,
}

struct Letter {
    properties: Properties,
    body: Bytes,
    expires: Instant,
    redelivered: bool,
}

impl Stored {
    fn forget_expired(&mut self, now: Instant) {
        self.letters.retain(|letter| letter.expires > now);
        self.bytes = self.letters.iter().map(|letter| letter.body.len()).sum();
    }

    fn pop(&mut self, now: Instant) -> Option<Letter> {
        while let Some(letter) = self.letters.pop_front() {
            self.bytes -= letter.body.len();
            if letter.expires > now {
                return Some(letter);
            }
        }
        None
    }
}

impl Mailboxes {
    pub fn new(limits: MailboxLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are; one that is empty counts only while it is open.
    pub fn count(&self) -> usize {
        let mut state = self.lock();
        sweep(&mut state, Instant::now());
        state.boxes.len()
    }

    pub fn depth(&self, user: &UserId) -> u64 {
        let mut state = self.lock();
        let Some(stored) = state.boxes.get_mut(user) else { return 0 };
        stored.forget_expired(Instant::now());
        stored.letters.len() as u64
    }

    pub fn deposit(&self, user: &UserId, properties: Properties, body: Bytes) -> Outcome {
        let now = Instant::now();
        let mut state = self.lock();
        if state.swept.is_none_or(|swept| now >= swept + SWEEP_EVERY) {
            sweep(&mut state, now);
        }
        let stored = state.boxes.entry(user.clone()).or_default();
        let full = |stored: &Stored| {
            stored.letters.len() >= self.limits.messages || stored.bytes + body.len() > self.limits.bytes
        };
        if full(stored) {
            stored.forget_expired(now);
        }
        if full(stored) {
            return Outcome::Refused;
        }
        let ttl = expiration(&properties).map_or(self.limits.ttl, |own| own.min(self.limits.ttl));
        let properties = Properties { persistent: Some(true), ..properties };
        stored.bytes += body.len();
        stored.letters.push_back(Letter { properties, body, expires: now + ttl, redelivered: false });
        stored.news.send_replace(());
        Outcome::Confirmed
    }

    /// The mailbox, and the task that hands it out.
    pub fn open(
        self: &Arc<Self>,
        user: &UserId,
        link: watch::Receiver<Link>,
    ) -> (Opened, Option<impl std::future::Future<Output = ()>>) {
        let mut state = self.lock();
        let Some(stored) = state.boxes.get_mut(user) else { return (Opened::Empty, None) };
        if stored.open {
            return (Opened::Busy, None);
        }
        stored.forget_expired(Instant::now());
        if stored.letters.is_empty() {
            state.boxes.remove(user);
            return (Opened::Empty, None);
        }
        stored.open = true;
        let news = stored.news.subscribe();
        let (mailbox, mail, end) = Mailbox::new(WINDOW);
        let taken =
            Taken { from: self.clone(), user: user.clone(), unsettled: BTreeMap::new(), removed: false };
        (Opened::Mail(mailbox), Some(hand_out(taken, news, mail, end, link)))
    }
}

fn sweep(state: &mut State, now: Instant) {
    state.swept = Some(now);
    state.boxes.retain(|_, stored| {
        stored.forget_expired(now);
        stored.open || !stored.letters.is_empty()
    });
}

/// As RabbitMQ: a number of milliseconds of 32 bits, and nonsense is ignored.
fn expiration(properties: &Properties) -> Option<Duration> {
    let text = properties.expiration.as_ref()?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let ms: u32 = text.parse().ok().filter(|_| digits)?;
    Some(Duration::from_millis(ms.into()))
}

/// An open mailbox. Dropping it closes it and puts back what is unsettled, in its order.
struct Taken {
    from: Arc<Mailboxes>,
    user: UserId,
    unsettled: BTreeMap<u64, Letter>,
    /// It was removed; one that was made since is not ours to close.
    removed: bool,
}

impl Taken {
    fn pop(&self) -> Option<Letter> {
        self.from.lock().boxes.get_mut(&self.user)?.pop(Instant::now())
    }

    /// Removes the mailbox if nothing is in it.
    fn remove_empty(&mut self) -> bool {
        let mut state = self.from.lock();
        self.removed = state.boxes.get(&self.user).is_none_or(|stored| stored.letters.is_empty());
        if self.removed {
            state.boxes.remove(&self.user);
        }
        self.removed
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let mut state = self.from.lock();
        let Some(stored) = state.boxes.get_mut(&self.user) else { return };
        stored.open = false;
        for letter in std::mem::take(&mut self.unsettled).into_values().rev() {
            stored.bytes += letter.body.len();
            stored.letters.push_front(Letter { redelivered: true, ..letter });
        }
    }
}

async fn hand_out(
    mut taken: Taken,
    news: watch::Receiver<()>,
    mail: mpsc::Sender<Delivery>,
    end: oneshot::Sender<Ending>,
    link: watch::Receiver<Link>,
) {
    let ending = until_the_end(&mut taken, news, &mail, link).await;
    drop(taken);
    let _ = end.send(ending);
    // The end of the mail comes last: whoever sees it may ask for the reason.
    drop(mail);
}

async fn until_the_end(
    taken: &mut Taken,
    mut news: watch::Receiver<()>,
    mail: &mpsc::Sender<Delivery>,
    mut link: watch::Receiver<Link>,
) -> Ending {
    let (verdicts, mut settled) = mpsc::channel(WINDOW);
    let mut batch = Vec::new();
    let mut tag = 0;
    let incarnation = link.borrow().incarnation;
    loop {
        news.mark_unchanged();
        while taken.unsettled.len() < WINDOW {
            let Some(letter) = taken.pop() else { break };
            tag += 1;
            let delivery = Delivery {
                via: Via::Mailbox,
                routing_key: String::new(),
                properties: letter.properties.clone(),
                body: letter.body.clone(),
                redelivered: letter.redelivered,
                ack: AckToken::new(tag, verdicts.clone()),
            };
            taken.unsettled.insert(tag, letter);
            // There is room for all that is unsettled; a reader that is gone is seen below.
            let _ = mail.try_send(delivery);
        }
        if taken.unsettled.is_empty() && taken.remove_empty() {
            return Ending::Emptied;
        }
        tokio::select! {
            biased;
            _ = settled.recv_many(&mut batch, WINDOW) => {
                let mut dropped = false;
                for (tag, verdict) in batch.drain(..) {
                    match verdict {
                        Verdict::Ack => drop(taken.unsettled.remove(&tag)),
                        Verdict::Requeue => dropped = true,
                    }
                }
                if dropped {
                    return Ending::Interrupted;
                }
            }
            _ = link.wait_for(|link| link.incarnation != incarnation) => return Ending::Interrupted,
            _ = mail.closed() => return Ending::Interrupted,
            _ = news.changed() => {}
        }
    }
}
