//! What every implementation of `Bus` promises about mailboxes, as tests that are run against each of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use warren::bus::{Bus, Ending, Mailbox, MailboxLimits, Opened, Outcome, Properties, Via};
use warren::ids::UserId;

use crate::bus_contract::{body, next, peer, take, Attach};
use crate::eventually::eventually;

const PATIENCE: Duration = Duration::from_secs(20);
/// What the tests are run with.
pub const MESSAGES_MAX: usize = 300;
pub const BYTES_MAX: usize = 100_000;

pub fn limits() -> MailboxLimits {
    MailboxLimits::new(Duration::from_secs(3600), MESSAGES_MAX, BYTES_MAX)
}

/// For [`mail_of_its_time_expires`] alone.
pub fn short_limits() -> MailboxLimits {
    MailboxLimits { ttl: Duration::from_secs(3), expires: Duration::from_secs(5), ..limits() }
}

pub fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Hands a deposit in at once; the result waits for its outcome.
pub fn deposit_with(
    bus: &Arc<dyn Bus>,
    user: &UserId,
    properties: Properties,
    text: &str,
) -> impl std::future::Future<Output = Outcome> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let done = Box::new(move |outcome| tell.send(outcome).unwrap());
    bus.deposit(user, properties, Bytes::copy_from_slice(text.as_bytes()), done);
    async move { timeout(PATIENCE, told).await.expect("an answer in time").unwrap() }
}

pub fn deposit(bus: &Arc<dyn Bus>, user: &UserId, text: &str) -> impl std::future::Future<Output = Outcome> {
    deposit_with(bus, user, Properties::default(), text)
}

pub async fn deposit_all(bus: &Arc<dyn Bus>, user: &UserId, numbers: std::ops::Range<u32>) {
    let outcomes = join_all(numbers.map(|n| deposit(bus, user, &n.to_string()))).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed), "{outcomes:?}");
}

pub async fn open(bus: &Arc<dyn Bus>, user: &UserId) -> Opened {
    timeout(PATIENCE, bus.open_mailbox(user)).await.expect("an answer in time").expect("a mailbox")
}

pub async fn mail(bus: &Arc<dyn Bus>, user: &UserId) -> Mailbox {
    match open(bus, user).await {
        Opened::Mail(mailbox) => mailbox,
        other => panic!("{other:?} instead of mail"),
    }
}

/// Takes everything; the mailbox must be empty after it. What a slow broker made its node store twice counts once.
pub async fn take_all(mut mailbox: Mailbox) -> Vec<u32> {
    let mut all = vec![];
    while let Some(delivery) = timeout(PATIENCE, mailbox.mail.recv()).await.expect("in time") {
        let n = body(&delivery).parse().unwrap();
        if !all.contains(&n) {
            all.push(n);
        }
        delivery.ack.ack();
    }
    assert_eq!(mailbox.ending(), Ending::Emptied);
    all
}

async fn depth(bus: &Arc<dyn Bus>, user: &UserId) -> u64 {
    bus.mailbox_depth(user).await.unwrap()
}

pub async fn mail_waits_in_order(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    let long = "é".repeat(64);
    for name in ["zoë @ work", &long] {
        let user = user(name);
        assert!(matches!(open(&b.bus, &user).await, Opened::Empty));
        assert_eq!(depth(&b.bus, &user).await, 0);
        deposit_all(&a.bus, &user, 0..150).await;
        assert!(depth(&b.bus, &user).await >= 150);
        assert_eq!(take_all(mail(&b.bus, &user).await).await, (0..150).collect::<Vec<_>>());
        assert!(matches!(open(&a.bus, &user).await, Opened::Empty));
        assert_eq!(depth(&b.bus, &user).await, 0);
    }
}

pub async fn mail_keeps_its_properties(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let user = user("u");
    let properties = Properties {
        message_id: Some("m-1".into()),
        kind: Some("greeting".into()),
        persistent: Some(false),
        expiration: Some("3000000".into()),
        headers: smallvec::smallvec![("traceparent".into(), "00-ab-cd-01".into())],
        ..Default::default()
    };
    assert_eq!(deposit_with(&a.bus, &user, properties.clone(), "x").await, Outcome::Confirmed);
    let mut mailbox = mail(&a.bus, &user).await;
    let delivery = next(&mut mailbox.mail).await;
    assert_eq!((delivery.via, delivery.redelivered), (Via::Mailbox, false));
    assert_eq!(delivery.properties, Properties { persistent: Some(true), ..properties });
    delivery.ack.ack();
}

pub async fn mail_that_comes_meanwhile_is_handed_out_too(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    let user = user("u");
    deposit_all(&a.bus, &user, 0..3).await;
    let mut mailbox = mail(&b.bus, &user).await;
    let held = next(&mut mailbox.mail).await;
    deposit_all(&a.bus, &user, 3..6).await;
    held.ack.ack();
    assert_eq!(take_all(mailbox).await, [1, 2, 3, 4, 5]);
}

pub async fn one_node_at_a_time_opens_a_mailbox(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    let user = user("u");
    deposit_all(&a.bus, &user, 0..2).await;
    let mut mailbox = mail(&a.bus, &user).await;
    let held = next(&mut mailbox.mail).await;
    assert!(matches!(open(&b.bus, &user).await, Opened::Busy));
    assert!(matches!(open(&a.bus, &user).await, Opened::Busy));
    held.ack.ack();
    assert_eq!(take_all(mailbox).await, [1]);
    assert!(matches!(open(&b.bus, &user).await, Opened::Empty));
}

/// Opens when the one before has let go, which takes it a moment.
async fn mail_again(bus: &Arc<dyn Bus>, user: &UserId) -> Mailbox {
    for _ in 0..200 {
        match open(bus, user).await {
            Opened::Mail(mailbox) => return mailbox,
            Opened::Busy => sleep(Duration::from_millis(20)).await,
            Opened::Empty => panic!("mail is lost"),
        }
    }
    panic!("still busy");
}

pub async fn what_is_not_acknowledged_comes_again_in_order(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    let user = user("u");
    deposit_all(&a.bus, &user, 0..200).await;
    // Dropped in the middle: the last acknowledgement before it counts.
    let mut mailbox = mail(&a.bus, &user).await;
    let mut held = vec![];
    for n in 0..20 {
        let delivery = next(&mut mailbox.mail).await;
        assert_eq!(body(&delivery), n.to_string());
        if n < 5 {
            delivery.ack.ack();
        } else {
            held.push(delivery);
        }
    }
    drop(mailbox);
    drop(held);
    // A dropped token: the reader is told, and nothing is handed out in a loop.
    let mut mailbox = mail_again(&b.bus, &user).await;
    let first = next(&mut mailbox.mail).await;
    assert_eq!((body(&first).as_str(), first.redelivered), ("5", true));
    first.ack.ack();
    drop(next(&mut mailbox.mail).await);
    let mut more = 0;
    while timeout(PATIENCE, mailbox.mail.recv()).await.expect("an end").is_some() {
        more += 1;
    }
    assert!(more < 200, "{more}");
    assert_eq!(mailbox.ending(), Ending::Interrupted);
    // A node that goes away.
    let mut mailbox = mail_again(&b.bus, &user).await;
    assert_eq!(take(&mut mailbox.mail).await, "6");
    let held = next(&mut mailbox.mail).await;
    b.bus.close();
    while timeout(PATIENCE, mailbox.mail.recv()).await.expect("an end").is_some() {}
    assert_eq!(mailbox.ending(), Ending::Interrupted);
    drop(held);
    // The acknowledgement of the sixth may or may not have arrived.
    let all = take_all(mail_again(&a.bus, &user).await).await;
    assert!((6..=7).contains(&all[0]), "{all:?}");
    assert_eq!(all, (all[0]..200).collect::<Vec<_>>());
}

pub async fn a_full_mailbox_refuses(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let (many, big) = (user("many"), user("big"));
    deposit_all(&a.bus, &many, 0..MESSAGES_MAX as u32).await;
    assert_eq!(deposit(&a.bus, &many, "x").await, Outcome::Refused);
    let half = "x".repeat(BYTES_MAX / 2);
    assert_eq!(deposit(&a.bus, &big, &half).await, Outcome::Confirmed);
    assert_eq!(deposit(&a.bus, &big, &half).await, Outcome::Confirmed);
    assert_eq!(deposit(&a.bus, &big, &half).await, Outcome::Refused);
    // What was stored is not touched, and room that is made is room.
    let all = take_all(mail(&a.bus, &many).await).await;
    assert_eq!(all, (0..MESSAGES_MAX as u32).collect::<Vec<_>>());
    assert_eq!(deposit(&a.bus, &many, "7").await, Outcome::Confirmed);
}

/// Needs [`short_limits`].
pub async fn mail_of_its_time_expires(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let (own, common) = (user("own"), user("common"));
    let brief = Properties { expiration: Some("50".into()), ..Default::default() };
    assert_eq!(deposit_with(&a.bus, &own, brief, "1").await, Outcome::Confirmed);
    assert_eq!(deposit(&a.bus, &own, "2").await, Outcome::Confirmed);
    assert_eq!(deposit(&a.bus, &common, "1").await, Outcome::Confirmed);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(take_all(mail(&a.bus, &own).await).await, [2]);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(depth(&a.bus, &common).await, 0);
    assert!(matches!(open(&a.bus, &common).await, Opened::Empty));
}

pub async fn many_deposits_at_once_keep_their_order(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    let users: Vec<_> = (0..5).map(|n| user(&format!("u{n}"))).collect();
    // Five users side by side, 200 each, none with a mailbox.
    join_all(users.iter().map(|user| deposit_all(&a.bus, user, 0..200))).await;
    for user in &users {
        assert_eq!(take_all(mail(&b.bus, user).await).await, (0..200).collect::<Vec<_>>());
    }
}

/// Two nodes deposit without a pause while a third opens, empties and removes the mailbox all the time. With a
/// broker that is slow, some may come twice, and the order is that in which they came first.
pub async fn nothing_is_lost_between_deposit_and_removal(attach: Attach<'_>) {
    let (a, b, c) = (peer(attach, "a").await, peer(attach, "b").await, peer(attach, "c").await);
    let user = user("u");
    let numbers = |from: u32| {
        let (bus, user) = (if from == 0 { a.bus.clone() } else { b.bus.clone() }, user.clone());
        async move {
            for n in 0..300 {
                deposited(&bus, &user, &(from + n).to_string()).await;
                sleep(Duration::from_millis(u64::from(rand::random_range(0..4u32)))).await;
            }
        }
    };
    let (first, second) = (tokio::spawn(numbers(0)), tokio::spawn(numbers(1000)));
    let mut seen = BTreeSet::new();
    let mut rounds = 0;
    let mut last = [None, None];
    loop {
        let over = first.is_finished() && second.is_finished();
        match open(&c.bus, &user).await {
            Opened::Mail(mut mailbox) => {
                rounds += 1;
                while let Some(delivery) = timeout(PATIENCE, mailbox.mail.recv()).await.expect("in time") {
                    let n: u32 = body(&delivery).parse().unwrap();
                    if seen.insert(n) {
                        let side = usize::from(n >= 1000);
                        assert!(last[side] < Some(n), "{n} after {last:?}");
                        last[side] = Some(n);
                    }
                    delivery.ack.ack();
                }
            }
            Opened::Empty if over => break,
            Opened::Empty | Opened::Busy => sleep(Duration::from_millis(2)).await,
        }
    }
    first.await.unwrap();
    second.await.unwrap();
    assert!(rounds >= 5, "{rounds} rounds");
    assert!(seen.into_iter().eq((0..300).chain(1000..1300)));
}

/// A broker that has much to do may be too late for a try.
async fn deposited(bus: &Arc<dyn Bus>, user: &UserId, text: &str) {
    for _ in 0..10 {
        match deposit(bus, user, text).await {
            Outcome::Confirmed => return,
            outcome => assert_eq!(outcome, Outcome::Unavailable),
        }
    }
    panic!("never stored");
}

/// An emptied mailbox is removed after a while; just then two nodes deposit into it.
pub async fn deposits_that_meet_the_removal_survive(attach: Attach<'_>) {
    let (a, b, c) = (peer(attach, "a").await, peer(attach, "b").await, peer(attach, "c").await);
    let one = |n: u32| {
        let (a, b, c) = (a.bus.clone(), b.bus.clone(), c.bus.clone());
        async move {
            let user = user(&format!("u{n}"));
            deposited(&a, &user, "0").await;
            let emptied = take_all(mail(&c, &user).await).await;
            assert!(emptied.iter().all(|n| *n == 0), "{emptied:?}");
            sleep(Duration::from_millis(rand::random_range(1_800..2_300))).await;
            tokio::join!(deposited(&a, &user, "1"), deposited(&b, &user, "2"));
            let mut seen = BTreeSet::new();
            while !(seen.contains("1") && seen.contains("2")) {
                let mut mailbox = mail_again(&c, &user).await;
                while let Some(delivery) = timeout(PATIENCE, mailbox.mail.recv()).await.expect("in time") {
                    seen.insert(body(&delivery));
                    delivery.ack.ack();
                }
            }
        }
    };
    join_all((0..40).map(|n| tokio::spawn(one(n)))).await.into_iter().for_each(|done| done.unwrap());
}

pub async fn closing_answers_every_deposit(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let answers: Vec<_> = (0..100).map(|n| deposit(&a.bus, &user(&n.to_string()), "x")).collect();
    a.bus.close();
    let late = deposit(&a.bus, &user("late"), "x");
    join_all(answers).await;
    assert_eq!(late.await, Outcome::Unavailable);
    eventually("the mailbox cannot be asked", PATIENCE, || async {
        a.bus.open_mailbox(&user("0")).await.is_err() && a.bus.mailbox_depth(&user("0")).await.is_err()
    })
    .await;
}
