//! Mailboxes at RabbitMQ: what of them is left at the broker, and what outlives it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use warren::bus::memory::MemoryBroker;
use warren::bus::rabbit::{AmqpUrl, RabbitBus, RabbitSettings};
use warren::bus::{Bus, Ending, Inboxes, MailboxLimits, Opened, Outcome};

use crate::broker::{vhost, PrivateBroker, Vhost};
use crate::bus_contract::{node, peer, ready, take};
use crate::eventually::eventually;
use crate::mailbox_contract::{deposit, deposit_all, limits, mail, open, short_limits, take_all, user};
use crate::relay::Relay;

const PATIENCE: Duration = Duration::from_secs(20);

fn bus(url: &str, name: &str, mailbox: MailboxLimits) -> (Arc<dyn Bus>, Inboxes) {
    let settings = RabbitSettings { mailbox, ..RabbitSettings::new(vec![AmqpUrl::parse(url).unwrap()]) };
    let (bus, inboxes) = RabbitBus::start(settings, node(name));
    (bus, inboxes)
}

async fn mailboxes(vhost: &Vhost) -> Vec<String> {
    let mut queues = vhost.queues().await;
    queues.retain(|name| name.starts_with("warren.mailbox."));
    queues
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_mailbox_is_removed() {
    let vhost = vhost().await;
    let (bus, _inboxes) = bus(&vhost.url(), "a", limits());
    ready(&*bus).await;
    let user = user("zoë");
    deposit_all(&bus, &user, 0..3).await;
    assert_eq!(mailboxes(&vhost).await, ["warren.mailbox.zo~C3~AB"]);
    take_all(mail(&bus, &user).await).await;
    // Opening it at once finds it empty and leaves the removal to its time.
    assert!(matches!(open(&bus, &user).await, Opened::Empty));
    eventually("it is removed", PATIENCE, || async { mailboxes(&vhost).await.is_empty() }).await;

    // New mail before the removal keeps it.
    deposit_all(&bus, &user, 0..3).await;
    take_all(mail(&bus, &user).await).await;
    deposit_all(&bus, &user, 3..6).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(take_all(mail(&bus, &user).await).await, [3, 4, 5]);
}

/// Asking whether there is mail puts a message into the queue that expires at once, but not before its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_mail_leaves_no_traces() {
    let vhost = vhost().await;
    let (a, _a_inboxes) = bus(&vhost.url(), "a", limits());
    let (b, _b_inboxes) = bus(&vhost.url(), "b", limits());
    ready(&*a).await;
    ready(&*b).await;
    let user = user("u");
    deposit_all(&a, &user, 0..100).await;
    let mut mailbox = mail(&a, &user).await;
    let held = mailbox.mail.recv().await.unwrap();
    for _ in 0..30 {
        assert!(matches!(open(&b, &user).await, Opened::Busy));
    }
    let waiting = b.mailbox_depth(&user).await.unwrap();
    assert!(waiting <= 100 - 64 + 2, "{waiting} wait: two nodes have asked, each once");
    held.ack.ack();
    assert_eq!(take_all(mailbox).await, (1..100).collect::<Vec<_>>());
    for _ in 0..3 {
        assert!(matches!(open(&b, &user).await, Opened::Empty));
        assert_eq!(b.mailbox_depth(&user).await, Ok(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untouched_mailbox_expires() {
    let vhost = vhost().await;
    let memory = MemoryBroker::with_mailboxes(short_limits());
    let attach = |name: &warren::ids::NodeId| -> (Arc<dyn Bus>, Inboxes) {
        let (bus, inboxes) = memory.attach(name.clone());
        (bus, inboxes)
    };
    let a = peer(&attach, "a").await;
    let (bus, _inboxes) = bus(&vhost.url(), "a", short_limits());
    ready(&*bus).await;
    for bus in [&a.bus, &bus] {
        deposit_all(bus, &user("u"), 0..1).await;
    }
    assert_eq!((memory.mailboxes(), mailboxes(&vhost).await.len()), (1, 1));
    // Each deposit renews the lease, though the broker does not count publishing as use.
    for _ in 0..6 {
        sleep(Duration::from_millis(1500)).await;
        deposit_all(&bus, &user("u"), 0..1).await;
        assert_eq!(mailboxes(&vhost).await.len(), 1);
    }
    eventually("it is gone", PATIENCE, || async { mailboxes(&vhost).await.is_empty() }).await;
    eventually("it is gone in memory", PATIENCE, || async { memory.mailboxes() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_link_gives_the_mail_back() {
    let vhost = vhost().await;
    let relay = Relay::start(vhost.port()).await;
    let (far, _far_inboxes) = bus(&relay.url(&vhost.name), "far", limits());
    let (near, _near_inboxes) = bus(&vhost.url(), "near", limits());
    ready(&*far).await;
    ready(&*near).await;
    let user = user("u");
    deposit_all(&near, &user, 0..100).await;
    let mut mailbox = mail(&far, &user).await;
    assert_eq!(take(&mut mailbox.mail).await, "0");
    relay.cut();
    while timeout(PATIENCE, mailbox.mail.recv()).await.expect("an end").is_some() {}
    assert_eq!(mailbox.ending(), Ending::Interrupted);
    eventually("the broker has noticed", PATIENCE, || async {
        // And one question of the far node.
        matches!(near.mailbox_depth(&user).await, Ok(99..=101))
    })
    .await;
    // The acknowledgement of the first may or may not have arrived.
    let all = take_all(mail(&near, &user).await).await;
    assert!(all[0] <= 1, "{all:?}");
    assert_eq!(all, (all[0]..100).collect::<Vec<_>>());
    // The pooled connections come back as well; the other ones may notice the cut a little later.
    eventually("deposits go on", PATIENCE, || async {
        deposit(&far, &user, "7").await == Outcome::Confirmed
    })
    .await;
    ready(&*far).await;
    assert_eq!(take_all(mail(&far, &user).await).await, [7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_survives_the_broker() {
    let mut broker = PrivateBroker::start().await;
    let (bus, _inboxes) = bus(&broker.url(), "a", limits());
    ready(&*bus).await;
    let user = user("u");
    deposit_all(&bus, &user, 0..200).await;
    broker.kill();
    eventually("the loss is seen", PATIENCE, || async { !bus.link().borrow().ready() }).await;
    assert_eq!(deposit(&bus, &user, "x").await, Outcome::Unavailable);
    assert!(bus.open_mailbox(&user).await.is_err());
    broker.start_again().await;
    ready(&*bus).await;
    assert_eq!(take_all(mail(&bus, &user).await).await, (0..200).collect::<Vec<_>>());
}
