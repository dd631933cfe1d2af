//! Sees to it that what the node declared stays there: looks for exchanges and queues, binds again, and sends
//! probes along every way on which other nodes' messages come.
//!
//! An operator, or a script, may delete any of it at any time, and the broker tells nobody about most of it. A
//! binding cannot be looked for in AMQP 0-9-1, so it is made again in each round, which changes nothing if it is
//! there; and that it was missing shows by a probe. Probes of one round go in order over one channel, and two of
//! them meet in each queue: when the later one came and the earlier one did not, its binding was missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use lapin::protocol::AMQPSoftError;
use lapin::{Channel, Connection};
use tokio::sync::watch;
use tokio::time::{sleep, timeout, Instant};
use tracing::{error, info, warn};

use super::canary::Canary;
use super::connection::{within, LinkError};
use super::declare;
use super::publisher::LaneInbox;
use super::pulse::{probe, Way};
use super::topology::{Binding, Exchange, Queue};
use super::Shared;
use crate::bus::answer::Answer;
use crate::bus::{Outcome, Publishing, TopologyState, PUBLISH_DEADLINE};
use crate::ids::Incarnation;

/// Some twenty small requests. What was deleted is to be back within 30 s, also if one round fails.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// After damage, so that readiness comes back soon after the repair.
const ROUND_AFTER_DAMAGE: Duration = Duration::from_secs(1);

/// What cannot be repaired is said again after so long.
const SAID_AGAIN: Duration = Duration::from_secs(60);

pub struct Verifier<'a> {
    pub shared: &'a Shared,
    /// The one that owns the node's queues: the broker lets no other one bind them.
    pub connection: &'a Connection,
    pub incarnation: Incarnation,
    pub control_binding: Binding,
    /// Empty once the node has left.
    pub node_bindings: Vec<Binding>,
    /// Ingress has, or had, more than one partition.
    pub has_hash: bool,
    pub urgent: LaneInbox,
}

impl Verifier<'_> {
    /// Runs until the connection is of no use. Unbinds the node's queue when the node leaves.
    pub async fn run(mut self, leave: &watch::Receiver<bool>) -> LinkError {
        let mut leaving = leave.clone();
        let mut number = 0;
        let mut wait = Duration::ZERO;
        let (mut known, mut said) = (Vec::new(), Instant::now());
        let mut canary = Canary::start(self.shared, self.connection, self.incarnation).await;
        loop {
            let bound = !self.node_bindings.is_empty();
            let probed = tokio::select! {
                damage = self.probe_after(wait, &mut number) => Some(damage),
                () = asked(&mut leaving), if bound => None,
            };
            let Some(mut damage) = probed else {
                if let Err(error) = self.unbind().await {
                    return error;
                }
                info!("left the exchanges");
                continue;
            };
            if let Err(error) = self.look_for_hash().await {
                return error;
            }
            // Not to be interrupted: a binding that is on its way must not overtake the node's leaving.
            match self.round().await {
                Ok(found) => damage.extend(found),
                Err(error) => return error,
            }
            if let Some(canary) = canary.as_mut().filter(|_| self.may_publish()) {
                let of = self.incarnation;
                damage.extend(canary.look(self.shared, self.connection, of, &self.urgent, number).await);
            }
            let ingress = self.shared.ingress_damage.borrow().clone();
            let is_complete = ingress.is_some();
            damage.extend(ingress.into_iter().flatten());
            if is_complete || !damage.is_empty() {
                self.tell(&damage);
            }
            wait = if is_complete { ROUND_EVERY } else { ROUND_AFTER_DAMAGE };
            if damage != known || !damage.is_empty() && said.elapsed() > SAID_AGAIN {
                damage.iter().for_each(|damage| error!(damage, "the topology at the broker is damaged"));
                said = Instant::now();
                wait = ROUND_AFTER_DAMAGE;
            }
            known = damage;
        }
    }

    /// What is published on a blocked or silent link waits in its window, so that nothing needless is.
    fn may_publish(&self) -> bool {
        self.shared.link.borrow().publishing == Publishing::Ready
    }

    /// A look that finds nothing costs a channel, so that it is not repeated without a reason.
    async fn look_for_hash(&mut self) -> Result<(), LinkError> {
        let ingress = &self.shared.ingress;
        if ingress.partitions == 1 && (self.has_hash || ingress.view.borrow().is_disputed) {
            self.has_hash = declare::exists(self.connection, &self.shared.topology.ingress_hash()).await?;
        }
        Ok(())
    }

    async fn unbind(&mut self) -> Result<(), LinkError> {
        let channel = within("opening a channel", self.connection.create_channel()).await?;
        for binding in std::mem::take(&mut self.node_bindings) {
            declare::unbind(&channel, &binding).await?;
        }
        Ok(())
    }

    fn tell(&self, damage: &[String]) {
        let state = if damage.is_empty() { TopologyState::Whole } else { TopologyState::Damaged };
        if damage.is_empty() && self.shared.link.borrow().topology == TopologyState::Damaged {
            info!("the topology at the broker is whole again");
        }
        self.shared.change(|link| link.topology = state);
    }

    /// Sends probes along every way, waits for them, and tells which bindings are missing. To be done before the
    /// bindings are made again.
    async fn probe_after(&self, wait: Duration, number: &mut u64) -> Vec<String> {
        sleep(wait).await;
        *number += 1;
        if !self.may_publish() {
            return Vec::new();
        }
        let number = PROBES_FROM + *number;
        let answers = Arc::<Answers>::default();
        let bound = !self.node_bindings.is_empty();
        for way in [Way::Broadcast, Way::Direct, Way::Ingress, Way::Control, Way::Own] {
            if !bound && matches!(way, Way::Broadcast | Way::Direct | Way::Ingress) {
                continue;
            }
            let (told, shared) = (answers.clone(), self.shared.clone());
            let answer = Answer::new(Box::new(move |outcome| {
                if way == Way::Ingress {
                    told.ingress.store(true, Ordering::Relaxed);
                    shared.pulse.came.notify_one();
                }
                let flag = match outcome {
                    Outcome::Confirmed => return,
                    Outcome::Unroutable if way == Way::Direct => &told.unroutable,
                    Outcome::Unroutable if way == Way::Ingress => &told.no_ingress,
                    // The ingress queue is full: backends are told so themselves.
                    Outcome::Refused if way == Way::Ingress => return,
                    Outcome::Unavailable => &told.failed,
                    _ => &told.not_sent,
                };
                flag.store(true, Ordering::Relaxed);
                shared.pulse.came.notify_one();
            }));
            self.urgent.offer(probe(self.shared, self.incarnation, way, number), answer);
        }
        let pulse = &self.shared.pulse;
        let came = |way| pulse.arrived(way) >= number;
        let gone = || answers.unroutable.load(Ordering::Relaxed);
        let broken = || answers.failed.load(Ordering::Relaxed);
        let told = || answers.ingress.load(Ordering::Relaxed) && (came(Way::Direct) || gone());
        let all = async {
            while !(broken() || came(Way::Own) && (!bound || told())) {
                pulse.came.notified().await;
            }
        };
        // Those that do not come in time, because many messages wait before them, tell nothing.
        let _ = timeout(PUBLISH_DEADLINE, all).await;
        let topology = &self.shared.topology;
        if answers.not_sent.load(Ordering::Relaxed) {
            return Vec::new();
        }
        if broken() && self.may_publish() {
            // The channel was closed: an exchange that it named is not there, or was not.
            return vec!["a probe could not be published".to_owned()];
        }
        let no_ingress = answers.no_ingress.load(Ordering::Relaxed);
        [
            (no_ingress, topology.ingress()),
            (bound && gone(), topology.direct()),
            (bound && came(Way::Direct) && !came(Way::Broadcast), topology.broadcast()),
            (came(Way::Own) && !came(Way::Control), topology.control()),
        ]
        .into_iter()
        .filter(|(lost, _)| *lost)
        .map(|(_, exchange)| format!("a queue was not bound to {exchange}"))
        .collect()
    }

    /// Looks for everything, and makes what is missing.
    async fn round(&self) -> Result<Vec<String>, LinkError> {
        let mut damage = Vec::new();
        let mut inspector = Inspector { connection: self.connection, channel: None };
        let topology = &self.shared.topology;
        for exchange in topology.exchanges() {
            damage.extend(inspector.exchange(&exchange).await?);
        }
        for queue in topology.durable_queues() {
            damage.extend(inspector.queue(&queue).await?);
        }
        let mut durable = topology.durable_bindings();
        if self.shared.ingress.partitions > 1 || self.has_hash {
            // Behind the hash exchange the queue would get second copies: see `layout`.
            durable.retain(|binding| *binding != topology.ingress_binding());
        }
        for binding in durable.iter().chain([&self.control_binding]).chain(&self.node_bindings) {
            damage.extend(inspector.binding(binding).await?);
        }
        Ok(damage)
    }
}

/// What became of one round's probes.
#[derive(Debug, Default)]
struct Answers {
    /// The direct one came back as such.
    unroutable: AtomicBool,
    /// The one to the ingress queue was answered; it came back as such.
    ingress: AtomicBool,
    no_ingress: AtomicBool,
    failed: AtomicBool,
    /// The window was full: that a probe did not arrive means nothing.
    not_sent: AtomicBool,
}

async fn asked(leave: &mut watch::Receiver<bool>) {
    if leave.wait_for(|leave| *leave).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Numbers of this module's probes; those of [`super::pulse`] count from 1 and would take centuries to come here.
const PROBES_FROM: u64 = 1 << 48;

/// Asks on a channel of its own, of which each miss takes one.
struct Inspector<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl Inspector<'_> {
    async fn channel(&mut self) -> Result<Channel, LinkError> {
        if let Some(channel) = self.channel.take().filter(|channel| channel.status().connected()) {
            self.channel = Some(channel.clone());
            return Ok(channel);
        }
        let channel = within("opening a channel", self.connection.create_channel()).await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    async fn exchange(&mut self, exchange: &Exchange) -> Result<Option<String>, LinkError> {
        let what = || format!("exchange {}", exchange.name);
        let looked = declare::declare_exchange(&self.channel().await?, exchange, true).await;
        if !self.missing(looked)? {
            return Ok(None);
        }
        let made = declare::declare_exchange(&self.channel().await?, exchange, false).await;
        self.repaired(&what(), made)
    }

    async fn queue(&mut self, queue: &Queue) -> Result<Option<String>, LinkError> {
        let what = || format!("queue {}", queue.name);
        let looked = declare::declare_queue(&self.channel().await?, queue, true).await;
        if !self.missing(looked)? {
            return Ok(None);
        }
        let made = declare::declare_queue(&self.channel().await?, queue, false).await;
        self.repaired(&what(), made)
    }

    /// An account that may not bind what others made cannot look either.
    async fn binding(&mut self, binding: &Binding) -> Result<Option<String>, LinkError> {
        let bound = declare::bind(&self.channel().await?, binding).await;
        if matches!(&bound, Err(error) if declare::is(error, AMQPSoftError::ACCESSREFUSED))
            || !self.missing(bound)?
        {
            return Ok(None);
        }
        Ok(Some(format!("{} cannot be bound to {}: one of them is missing", binding.queue, binding.exchange)))
    }

    /// Whether the broker said that something is not there.
    fn missing(&mut self, looked: Result<(), LinkError>) -> Result<bool, LinkError> {
        match looked {
            Ok(()) => Ok(false),
            Err(error) if declare::is(&error, AMQPSoftError::NOTFOUND) => Ok(true),
            Err(error) if soft(&error) => {
                warn!(%error, "the broker does not tell whether something is there");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn repaired(&mut self, what: &str, made: Result<(), LinkError>) -> Result<Option<String>, LinkError> {
        match made {
            Ok(()) => Ok(Some(format!("the {what} was missing and was made again"))),
            Err(error) if declare::is(&error, AMQPSoftError::ACCESSREFUSED) => {
                Ok(Some(format!("the {what} is missing, and this account may not make it")))
            }
            Err(error) if soft(&error) => {
                Ok(Some(format!("the {what} is missing and cannot be made: {error}")))
            }
            Err(error) => Err(error),
        }
    }
}

/// An error that costs a channel and not the connection.
fn soft(error: &LinkError) -> bool {
    match error {
        LinkError::Amqp(error) => error.is_amqp_soft_error(),
        // The broker is slow, or a cluster without majority: the connection's heartbeat tells more.
        LinkError::Late(_) => true,
        _ => false,
    }
}
