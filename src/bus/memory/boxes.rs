//! Boxes in memory, and the task that reads one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::bus::boxes::BoxTask;
use crate::bus::marker::{is_marker, Found, Marker, Rounds};
use crate::bus::{
    AckToken, Attach, BoxEvent, BoxMail, BoxNumber, BoxReader, BoxRequest, BoxSettings, Link, Outcome,
    Properties, Publish, Verdict,
};
use crate::ids::{NodeId, UserKey};

/// Body bytes in one box, as at RabbitMQ: a net for what the limits of users do not hold.
const BOX_BYTES_MAX: usize = 1 << 30;

#[derive(Debug)]
pub struct Boxes {
    pub settings: BoxSettings,
    state: Mutex<HashMap<BoxNumber, Stored>>,
}

#[derive(Debug, Default)]
struct Stored {
    letters: VecDeque<Letter>,
    /// Of what is not handed out.
    bytes: usize,
    /// Somebody reads it.
    open: bool,
    /// Changes with each deposit.
    news: watch::Sender<()>,
}

#[derive(Debug)]
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
}

impl Boxes {
    pub fn new(settings: BoxSettings) -> Arc<Self> {
        Arc::new(Self { settings, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BoxNumber, Stored>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mail that waits, without what a reader holds.
    pub fn mail(&self) -> usize {
        let now = Instant::now();
        let mut state = self.lock();
        let waiting = state.values_mut().map(|stored| {
            stored.forget_expired(now);
            stored.letters.iter().filter(|letter| !is_marker(&letter.properties)).count()
        });
        waiting.sum()
    }

    pub fn deposit(&self, number: BoxNumber, properties: Properties, body: Bytes) -> Outcome {
        let mut state = self.lock();
        self.put(state.entry(number).or_default(), properties, body)
    }

    /// The same, for a box that is there.
    pub fn deposit_existing(&self, number: BoxNumber, publish: Publish) -> Outcome {
        match self.lock().get_mut(&number) {
            Some(stored) => self.put(stored, publish.properties, publish.body),
            None => Outcome::Unroutable,
        }
    }

    fn put(&self, stored: &mut Stored, properties: Properties, body: Bytes) -> Outcome {
        let now = Instant::now();
        // A full box can still be read.
        if stored.bytes + body.len() > BOX_BYTES_MAX && !is_marker(&properties) {
            stored.forget_expired(now);
            if stored.bytes + body.len() > BOX_BYTES_MAX {
                return Outcome::Refused;
            }
        }
        let ttl = expiration(&properties).map_or(self.settings.ttl, |own| own.min(self.settings.ttl));
        let properties = Properties { persistent: Some(true), ..properties };
        stored.bytes += body.len();
        stored.letters.push_back(Letter { properties, body, expires: now + ttl, redelivered: false });
        stored.news.send_replace(());
        Outcome::Confirmed
    }

    /// The reading, and the task behind it.
    pub fn attach(
        self: &Arc<Self>,
        number: BoxNumber,
        users: Vec<UserKey>,
        node: &NodeId,
        link: watch::Receiver<Link>,
    ) -> (Attach, Option<impl Future<Output = ()> + use<>>) {
        let mut state = self.lock();
        let Some(stored) = state.get_mut(&number) else { return (Attach::Missing, None) };
        if stored.open {
            return (Attach::Busy, None);
        }
        stored.open = true;
        let news = stored.news.subscribe();
        let rounds = Rounds::new(node.as_str().to_owned(), 0, rand::random());
        let taken = Taken { from: self.clone(), number, unsettled: BTreeMap::new(), tag: 0 };
        let (reader, task) = BoxReader::new();
        let reading = Reading { taken, rounds, task, news, link };
        (Attach::Reading(reader), Some(reading.run(users)))
    }
}

/// As RabbitMQ: a number of milliseconds of 32 bits, and nonsense is ignored.
fn expiration(properties: &Properties) -> Option<Duration> {
    let text = properties.expiration.as_ref()?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let ms: u32 = text.parse().ok().filter(|_| digits)?;
    Some(Duration::from_millis(ms.into()))
}

/// An open box. Dropping it closes it and puts back what is unsettled, in its order.
struct Taken {
    from: Arc<Boxes>,
    number: BoxNumber,
    unsettled: BTreeMap<u64, Letter>,
    tag: u64,
}

impl Taken {
    fn pop(&self) -> Option<Letter> {
        let now = Instant::now();
        let mut state = self.from.lock();
        let stored = state.get_mut(&self.number)?;
        while let Some(letter) = stored.letters.pop_front() {
            stored.bytes -= letter.body.len();
            if letter.expires > now {
                return Some(letter);
            }
        }
        None
    }

    fn put(&self, marker: &Marker) {
        let mut state = self.from.lock();
        let Some(stored) = state.get_mut(&self.number) else { return };
        self.from.put(stored, Marker::properties(self.from.settings.ttl), marker.body());
    }

    fn ack(&mut self, tags: impl IntoIterator<Item = u64>) {
        for tag in tags {
            self.unsettled.remove(&tag);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.from.lock();
        let Some(stored) = state.get_mut(&self.number) else { return };
        stored.open = false;
        for letter in std::mem::take(&mut self.unsettled).into_values().rev() {
            stored.bytes += letter.body.len();
            stored.letters.push_front(Letter { redelivered: true, ..letter });
        }
    }
}

struct Reading {
    taken: Taken,
    rounds: Rounds,
    task: BoxTask,
    news: watch::Receiver<()>,
    link: watch::Receiver<Link>,
}

/// One verdict for each mail that is out; the room is counted, not reserved.
const VERDICTS_MAX: usize = 1 << 24;

/// Why a reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    Left,
    LinkLost,
}

impl Reading {
    async fn run(mut self, users: Vec<UserKey>) {
        let (verdicts, mut settled) = mpsc::channel(VERDICTS_MAX);
        self.taken.put(&self.rounds.begin(users));
        let end = self.until_the_end(&verdicts, &mut settled).await;
        // From now on a token says that it is too late.
        settled.close();
        let mut batch = Vec::new();
        while let Some(verdict) = settled.recv().await {
            batch.push(verdict);
        }
        let Self { mut taken, mut rounds, task, .. } = self;
        settle(&mut taken, &mut rounds, &mut batch);
        if end == End::Clean {
            taken.ack(rounds.close_cleanly());
        }
        drop(taken);
        task.carried_out.store(end != End::LinkLost, Ordering::Release);
        // Last: when the reader sees the end of the events, another one may read.
        drop(task);
    }

    async fn until_the_end(
        &mut self,
        verdicts: &mpsc::Sender<(u64, Verdict)>,
        settled: &mut mpsc::Receiver<(u64, Verdict)>,
    ) -> End {
        let Self { taken, rounds, task, news, link } = self;
        let mut batch = Vec::new();
        let incarnation = link.borrow().incarnation;
        let mut clean = false;
        loop {
            news.mark_unchanged();
            let closed = task.events.is_closed();
            let room = closed || task.events.capacity() > 0;
            let letter = if room { taken.pop() } else { None };
            let more = letter.is_some();
            if let Some(event) = letter.and_then(|letter| arrive(taken, rounds, letter, verdicts)) {
                // There is room, or nobody reads any more.
                let _ = task.events.try_send(event);
            }
            if clean && rounds.is_back() {
                return End::Clean;
            }
            tokio::select! {
                biased;
                _ = settled.recv_many(&mut batch, 1024) => settle(taken, rounds, &mut batch),
                request = task.requests.recv(), if !clean => match request {
                    Some(BoxRequest::NewRound(users)) => taken.put(&rounds.begin(users)),
                    Some(BoxRequest::CloseCleanly) => clean = true,
                    None => return End::Left,
                },
                _ = link.wait_for(|link| link.incarnation != incarnation) => return End::LinkLost,
                _ = std::future::ready(()), if more => {}
                permit = task.events.reserve(), if !room => drop(permit),
                _ = news.changed(), if room => {}
            }
        }
    }
}

/// What the reader is told of a message that came out of the box.
fn arrive(
    taken: &mut Taken,
    rounds: &mut Rounds,
    letter: Letter,
    verdicts: &mpsc::Sender<(u64, Verdict)>,
) -> Option<BoxEvent> {
    taken.tag += 1;
    let tag = taken.tag;
    let event = match Marker::read(&letter.properties, &letter.body, None) {
        Some(marker) => {
            let Found { acks, round_end } = rounds.marker(tag, marker);
            taken.unsettled.insert(tag, letter);
            taken.ack(acks);
            return round_end.map(|abandoned| BoxEvent::RoundEnd { abandoned });
        }
        None => BoxEvent::Mail(BoxMail {
            number: rounds.mail(tag),
            properties: letter.properties.clone(),
            body: letter.body.clone(),
            redelivered: letter.redelivered,
            ack: AckToken::of_box(tag, verdicts.clone()),
        }),
    };
    taken.unsettled.insert(tag, letter);
    Some(event)
}

fn settle(taken: &mut Taken, rounds: &mut Rounds, batch: &mut Vec<(u64, Verdict)>) {
    let acked: Vec<u64> =
        batch.drain(..).filter(|(_, verdict)| *verdict == Verdict::Ack).map(|(tag, _)| tag).collect();
    taken.ack(acked.iter().copied());
    taken.ack(rounds.settled(acked.into_iter()));
}
