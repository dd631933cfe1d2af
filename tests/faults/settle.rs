//! The end of a scenario: everybody comes home, publishers learn the fate of their messages, then a long silence
//! in which nothing more may come, then the judgement.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{sleep, timeout, Instant};

use crate::checker::{check, Rules, Verdict};
use crate::clients::{Habit, Phase};
use crate::nodes::Folder;
use crate::record::{Heals, History, Kind};
use crate::stage::EXPIRED;
use crate::world::World;

/// How long publishers may take to learn what became of their last messages.
const ANSWERS_MAX: Duration = Duration::from_secs(90);
/// How long mailboxes and ingress may take to become empty, after the last message.
const EMPTY_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(1_000);
/// Nothing more comes after so long: above a receipt's 10 s, an acknowledgement's 30 s and the 20 to 30 s in which
/// a broker notices a dead node. Other scenarios run meanwhile.
const QUIET: Duration = Duration::from_secs(35);
/// The figures of the management API lag behind by a few seconds.
const STATISTICS_MAX: Duration = Duration::from_secs(15);
/// The messages of the others may take so many times as long as in calm.
const OTHERS_MAX: f64 = 2.0;
/// Below this a p99 is the noise of the machine: the calm one counts as so much at least.
const CALM_FLOOR_MS: f64 = 50.0;

/// What came of a scenario.
pub struct Outcome {
    pub verdict: Verdict,
    /// What is wrong beside the messages.
    pub troubles: Vec<String>,
    pub closes: Vec<(u16, u32)>,
    pub timeline: Vec<String>,
    pub folder: Folder,
}

impl World {
    /// Brings everybody home while messages flow, stops the publishers, and waits until all is done.
    pub async fn calm_down(&mut self, flow: usize) {
        self.begin(Phase::Home);
        for user in std::mem::take(&mut self.late) {
            self.arrive(user, self.ports());
        }
        self.flow(self.recorder.sent_count() + flow).await;
        self.served = (0..self.scenario.load.people.devices().len() as u32).collect();
        self.recovered().await;
        self.recorder.note("publishers stop", Heals::No);
        self.stop.send_replace(true);
        let mut publishers = std::mem::take(&mut self.publishers);
        let all = async { while publishers.join_next().await.is_some() {} };
        if timeout(ANSWERS_MAX, all).await.is_err() {
            self.troubles.push(format!("publishers still without an answer after {ANSWERS_MAX:?}"));
        }
        let end = Instant::now() + EMPTY_MAX;
        loop {
            let left = self.left().await;
            if left.is_empty() && self.unseen() == 0 {
                return;
            }
            if Instant::now() > end {
                return self.troubles.extend(left);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// What is not done yet: queues with messages for users, nodes with unsettled messages.
    async fn left(&self) -> Vec<String> {
        let mut left = vec![];
        for (queue, count, held) in self.stage.queues(&self.prefix).await {
            let is_box = queue.contains(".box.") && !queue.contains(".box.canary");
            let mail = queue.contains(".mailbox.") || is_box;
            let waits = queue.ends_with(".ingress")
                || queue.contains(".ingress.")
                || mail && !self.scenario.leaves_mail;
            if count > 0 && waits {
                left.push(format!("{count} messages remain in {queue}, {held} of them with a consumer"));
            }
        }
        for node in &self.nodes {
            if !left.is_empty() {
                let known = node.gauge("warren_mail_messages").await;
                left.push(format!("{} knows of mail: {known:?}", node.name));
            }
            match node.gauge("warren_messages_pending").await {
                Some(0.0) => {}
                Some(count) => left.push(format!("{count} messages are pending on {}", node.name)),
                None => left.push(format!("{} does not tell what is pending", node.name)),
            }
        }
        left
    }

    fn unseen(&self) -> usize {
        let history = self.recorder.lock();
        let seen: HashSet<_> = history.receipts.iter().filter_map(|one| one.key).collect();
        let waits = |kind| matches!(kind, Kind::User);
        let sent = history.sent.iter().filter(|(_, sent)| sent.told.accepted() && waits(sent.letter.kind));
        sent.filter(|(key, _)| !seen.contains(key)).count()
    }

    /// Nothing is done any more; what comes now comes too late. Then judges all of it.
    pub async fn rest_and_judge(mut self) -> Outcome {
        sleep(QUIET).await;
        for node in &mut self.nodes {
            if let Some(status) = node.died() {
                self.troubles.push(format!("{} ended by itself: {status}", node.name));
            }
        }
        self.count_dead().await;
        self.devices.shutdown().await;
        let history = std::mem::take(&mut *self.recorder.lock());
        let verdict = self.verdict(&history);
        self.compare(&verdict);
        let mut closes: Vec<_> = history.closes.iter().map(|(code, count)| (*code, *count)).collect();
        closes.sort_unstable();
        let timeline = crate::report::timeline(&history, &verdict, &self.nodes);
        drop(self.nodes);
        self.stage.clear(&self.prefix).await;
        Outcome { verdict, troubles: self.troubles, closes, timeline, folder: self.folder }
    }

    fn verdict(&self, history: &History) -> Verdict {
        let steady = self.steady();
        let rules = Rules {
            served: &|device| steady.contains(&device),
            grace_us: self.scenario.recovers_ms * 1000,
            ordered: self.scenario.ordered,
        };
        check(history, &rules)
    }

    fn steady(&self) -> HashSet<u32> {
        let devices = self.scenario.load.people.devices();
        let steady = devices.iter().filter(|device| device.habit == Habit::Steady);
        steady.map(|device| device.index).collect()
    }

    async fn count_dead(&mut self) {
        let dead = format!("{}.dead", self.prefix);
        let end = Instant::now() + STATISTICS_MAX;
        loop {
            let queues = self.stage.queues(&self.prefix).await;
            let count = queues.into_iter().find(|(name, ..)| *name == dead).map_or(0, |(_, count, _)| count);
            if count == self.dead {
                return;
            }
            if Instant::now() > end {
                let reasons = match self.stage.dead_reasons(&self.prefix).await {
                    // Whoever gives a message a time to live must expect that while nobody can take it.
                    Ok(reasons) if count == self.dead + reasons.get(EXPIRED).unwrap_or(&0) => return,
                    Ok(reasons) => format!("{reasons:?}"),
                    Err(trouble) => trouble,
                };
                let trouble = format!("{count} messages in the dead queue, not {}: {reasons}", self.dead);
                return self.troubles.push(trouble);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn compare(&mut self, verdict: &Verdict) {
        let scenario = &self.scenario;
        if let Some(ms) = verdict.recovery(99).filter(|ms| *ms > scenario.recovers_ms) {
            self.troubles.push(format!("recovery took {ms} ms, more than {} ms", scenario.recovers_ms));
        }
        if !scenario.compares {
            return;
        }
        let (Some(calm), Some(others)) = (verdict.calm_ms, verdict.others_ms) else {
            return self.troubles.push("too few messages to compare the others' with".into());
        };
        if others > OTHERS_MAX * calm.max(CALM_FLOOR_MS) {
            self.troubles.push(format!("the others' p99 is {others:.0} ms, in calm {calm:.0} ms"));
        }
    }
}
