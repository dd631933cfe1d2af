//! What every implementation of `Bus` promises about boxes, as tests that are run against each of them.

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use warren::bus::{
    may_have_been_shown, Abandoned, Attach as Attached, BoxEvent, BoxMail, BoxNumber, BoxReader, BoxSettings,
    Bus, Outcome, Properties,
};
use warren::ids::UserKey;

pub use crate::box_endings::*;
use crate::bus_contract::{peer, Attach};
use crate::eventually::eventually;

pub const PATIENCE: Duration = Duration::from_secs(20);
pub const ONE: BoxNumber = BoxNumber(1);
pub const U: UserKey = UserKey(1);

pub fn settings() -> BoxSettings {
    BoxSettings { boxes: NonZeroU32::new(8).unwrap(), ttl: Duration::from_secs(3600) }
}

/// For [`mail_of_its_time_expires`] alone.
pub fn short_settings() -> BoxSettings {
    BoxSettings { ttl: Duration::from_secs(2), ..settings() }
}

/// Hands a deposit in at once; the result waits for its outcome.
pub fn deposit_with(
    bus: &Arc<dyn Bus>,
    to: BoxNumber,
    properties: Properties,
    body: Bytes,
) -> impl Future<Output = Outcome> + use<> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let done = Box::new(move |outcome| {
        let _ = tell.send(outcome);
    });
    bus.deposit(to, properties, body, done);
    async move { timeout(PATIENCE, told).await.expect("an answer in time").unwrap() }
}

pub fn deposit(bus: &Arc<dyn Bus>, to: BoxNumber, text: &str) -> impl Future<Output = Outcome> + use<> {
    deposit_with(bus, to, Properties::default(), Bytes::copy_from_slice(text.as_bytes()))
}

pub async fn deposit_all(bus: &Arc<dyn Bus>, to: BoxNumber, numbers: std::ops::Range<u32>) {
    // In parts that the window admits.
    for part in numbers.collect::<Vec<_>>().chunks(100) {
        let outcomes = join_all(part.iter().map(|n| deposit(bus, to, &n.to_string()))).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed), "{outcomes:?}");
    }
}

/// A broker that has much to do may not answer in time; whoever reads tries again.
pub async fn attach_once(bus: &Arc<dyn Bus>, to: BoxNumber, users: &[UserKey]) -> Attached {
    let attached = async {
        loop {
            match bus.attach_box(to, users.to_vec()).await {
                Ok(attached) => return attached,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(PATIENCE, attached).await.expect("an answer in time")
}

/// Reads at once: nobody else may be reading.
pub async fn read(bus: &Arc<dyn Bus>, to: BoxNumber, users: &[UserKey]) -> BoxReader {
    match attach_once(bus, to, users).await {
        Attached::Reading(reader) => reader,
        other => panic!("{other:?} instead of a reading"),
    }
}

/// Reads when the one before has let go.
pub async fn read_again(bus: &Arc<dyn Bus>, to: BoxNumber, users: &[UserKey]) -> BoxReader {
    for _ in 0..1000 {
        match bus.attach_box(to, users.to_vec()).await {
            Ok(Attached::Reading(reader)) => return reader,
            Ok(Attached::Missing) => panic!("the box is lost"),
            Ok(Attached::Busy) | Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("still busy");
}

pub async fn event(reader: &mut BoxReader) -> BoxEvent {
    timeout(PATIENCE, reader.events.recv()).await.expect("an event in time").expect("the reading goes on")
}

/// All mail until the end of a round, and the markers that others left.
pub async fn round(reader: &mut BoxReader) -> (Vec<BoxMail>, Vec<Abandoned>) {
    let mut all = vec![];
    loop {
        match event(reader).await {
            BoxEvent::Mail(mail) => all.push(mail),
            BoxEvent::RoundEnd { abandoned } => return (all, abandoned),
        }
    }
}

pub fn number(mail: &BoxMail) -> u32 {
    std::str::from_utf8(&mail.body).unwrap().parse().unwrap()
}

pub fn numbers(mails: &[BoxMail]) -> Vec<u32> {
    mails.iter().map(number).collect()
}

/// Reads and acknowledges everything, and ends cleanly.
pub async fn take_all(bus: &Arc<dyn Bus>, to: BoxNumber) -> Vec<u32> {
    let mut reader = read_again(bus, to, &[U]).await;
    let (mails, _) = round(&mut reader).await;
    let all = numbers(&mails);
    mails.into_iter().for_each(|mail| assert!(mail.ack.ack()));
    reader.close_cleanly().await;
    all
}

pub async fn mail_waits_in_order(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    assert!(matches!(attach_once(&b.bus, ONE, &[U]).await, Attached::Missing));
    assert_eq!(a.bus.boxes(), settings());
    deposit_all(&a.bus, ONE, 0..150).await;
    let mut reader = read(&b.bus, ONE, &[U]).await;
    let (mails, abandoned) = round(&mut reader).await;
    assert_eq!(numbers(&mails), (0..150).collect::<Vec<_>>());
    assert!(mails.iter().zip(1..).all(|(mail, n)| mail.number == n && !mail.redelivered));
    assert_eq!(abandoned, []);
    // What comes meanwhile is handed over as well.
    deposit_all(&a.bus, ONE, 150..160).await;
    let mut more = vec![];
    for _ in 150..160 {
        let BoxEvent::Mail(mail) = event(&mut reader).await else { panic!("no round was asked for") };
        more.push(mail);
    }
    assert_eq!(numbers(&more), (150..160).collect::<Vec<_>>());
    // Every third is acknowledged; the rest goes back to its place.
    for mail in mails {
        if number(&mail).is_multiple_of(3) {
            mail.ack.ack();
        }
    }
    reader.close_cleanly().await;
    let mut reader = read(&a.bus, ONE, &[U]).await;
    let (mails, abandoned) = round(&mut reader).await;
    let wanted: Vec<_> = (0..160).filter(|n| *n >= 150 || n % 3 != 0).collect();
    assert_eq!((numbers(&mails), abandoned), (wanted, vec![]));
    assert!(mails.iter().all(|mail| mail.redelivered));
    mails.into_iter().for_each(|mail| assert!(mail.ack.ack()));
    reader.close_cleanly().await;
    // The box stays, and is empty.
    assert_eq!(take_all(&b.bus, ONE).await, [0; 0]);
}

pub async fn mail_keeps_its_properties(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let properties = Properties {
        message_id: Some("m-1".into()),
        kind: Some("warren.mail".into()),
        persistent: Some(false),
        expiration: Some("3000000".into()),
        headers: smallvec::smallvec![("traceparent".into(), "00-ab-cd-01".into())],
        ..Default::default()
    };
    let outcome = deposit_with(&a.bus, ONE, properties.clone(), Bytes::from_static(b"x")).await;
    assert_eq!(outcome, Outcome::Confirmed);
    let mut reader = read(&a.bus, ONE, &[U]).await;
    let (mut mails, _) = round(&mut reader).await;
    let mail = mails.remove(0);
    let user_id = a.bus.account().map(str::to_owned);
    assert_eq!(mail.properties, Properties { persistent: Some(true), user_id, ..properties });
    mail.ack.ack();
    reader.close_cleanly().await;
}

pub async fn one_reader_at_a_time(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    deposit_all(&a.bus, ONE, 0..2).await;
    deposit_all(&a.bus, BoxNumber(2), 0..1).await;
    let reader = read(&a.bus, ONE, &[U]).await;
    assert!(matches!(attach_once(&b.bus, ONE, &[U]).await, Attached::Busy));
    assert!(matches!(attach_once(&a.bus, ONE, &[U]).await, Attached::Busy));
    assert_eq!(take_all(&b.bus, BoxNumber(2)).await, [0]);
    // The end is the end: whoever was told reads at once.
    reader.close_cleanly().await;
    let reader = read(&b.bus, ONE, &[U]).await;
    reader.close_leaving_marker().await;
    drop(read(&a.bus, ONE, &[U]).await);
    assert_eq!(take_all(&b.bus, ONE).await, [0, 1]);
}

/// What a reader left tells the next one whose mail may have been shown.
pub async fn a_marker_that_is_left_names_its_users(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    deposit_all(&a.bus, ONE, 0..4).await;
    let mut reader = read(&a.bus, ONE, &[U]).await;
    let (_mails, _) = round(&mut reader).await;
    assert!(reader.new_round(vec![U, UserKey(2)]).await);
    assert!(matches!(event(&mut reader).await, BoxEvent::RoundEnd { .. }));
    reader.close_leaving_marker().await;
    deposit_all(&a.bus, ONE, 4..6).await;
    for _ in 0..2 {
        // The same again: while mail lies before it, the marker stays.
        let mut reader = read(&b.bus, ONE, &[UserKey(3)]).await;
        let (mails, abandoned) = round(&mut reader).await;
        assert_eq!(numbers(&mails), (0..6).collect::<Vec<_>>());
        let newest = Abandoned { behind: 4, users: vec![U, UserKey(2)] };
        assert_eq!(abandoned, [newest], "only the newest marker is left");
        assert!(may_have_been_shown(4, U, &abandoned) && !may_have_been_shown(5, U, &abandoned));
        assert!(!may_have_been_shown(4, UserKey(3), &abandoned));
        reader.close_cleanly().await;
    }
    // Once what lies before it is gone, so is the marker.
    let mut reader = read(&b.bus, ONE, &[U]).await;
    let (mails, _) = round(&mut reader).await;
    mails.into_iter().take(4).for_each(|mail| assert!(mail.ack.ack()));
    reader.close_cleanly().await;
    let mut reader = read(&a.bus, ONE, &[U]).await;
    let (mails, abandoned) = round(&mut reader).await;
    assert_eq!((numbers(&mails), abandoned), (vec![4, 5], vec![]));
    reader.close_cleanly().await;
}

/// A reader lets go at a random moment while another one keeps asking: it is refused, or sees everything in order.
pub async fn giving_back_is_one_step(attach: Attach<'_>, rounds: u32) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    deposit_all(&a.bus, ONE, 0..2000).await;
    let mut wanted: Vec<u32> = (0..2000).collect();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = seed | 1;
    let mut next = move |below: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % u64::from(below)) as u32
    };
    let (mut own, mut other) = (&a.bus, &b.bus);
    let mut reader = read(own, ONE, &[U]).await;
    for step in 0..rounds {
        // Everything is read, or the end comes in the middle.
        let stop_after = if next(2) == 0 { usize::MAX } else { next(2000) as usize };
        let mut mails = vec![];
        let mut whole = false;
        while mails.len() < stop_after && !whole {
            match event(&mut reader).await {
                BoxEvent::Mail(mail) => mails.push(mail),
                BoxEvent::RoundEnd { .. } => whole = true,
            }
        }
        let (seen, expected) = (numbers(&mails), if whole { &wanted[..] } else { &wanted[..mails.len()] });
        assert!(seen == expected, "step {step}: {} of {}", seen.len(), expected.len());
        // A few of them are taken.
        for _ in 0..next(5) {
            if !mails.is_empty() {
                let mail = mails.remove(next(mails.len() as u32) as usize);
                wanted.retain(|n| *n != number(&mail));
                mail.ack.ack();
            }
        }
        let ending = next(3);
        let closing = async {
            match ending {
                0 => assert!(reader.close_cleanly().await),
                1 => assert!(reader.close_leaving_marker().await),
                _ => drop(reader),
            }
            drop(mails);
        };
        let polling = async {
            loop {
                match attach_once(other, ONE, &[U]).await {
                    Attached::Reading(reader) => return reader,
                    Attached::Busy => tokio::task::yield_now().await,
                    Attached::Missing => panic!("the box is lost"),
                }
            }
        };
        ((), reader) = tokio::join!(closing, polling);
        (own, other) = (other, own);
    }
    reader.close_cleanly().await;
    assert!(take_all(own, ONE).await == wanted);
}

pub async fn another_reader_sees_all_or_nothing(attach: Attach<'_>) {
    giving_back_is_one_step(attach, 20).await;
}

/// Needs [`short_settings`].
pub async fn mail_of_its_time_expires(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let brief = Properties { expiration: Some("50".into()), ..Default::default() };
    let long = Properties { expiration: Some("99999999999".into()), ..Default::default() };
    assert_eq!(deposit_with(&a.bus, ONE, brief, Bytes::from_static(b"1")).await, Outcome::Confirmed);
    assert_eq!(deposit_with(&a.bus, ONE, long, Bytes::from_static(b"2")).await, Outcome::Confirmed);
    assert_eq!(deposit(&a.bus, BoxNumber(2), "3").await, Outcome::Confirmed);
    let mut seen = vec![];
    eventually("the first is gone", PATIENCE, || async {
        let mut reader = read_again(&a.bus, ONE, &[U]).await;
        let (mails, _) = round(&mut reader).await;
        reader.close_cleanly().await;
        !numbers(&mails).contains(&1)
    })
    .await;
    for to in [ONE, BoxNumber(2)] {
        eventually("the others are gone", PATIENCE, || async {
            let mut reader = read_again(&a.bus, to, &[U]).await;
            let (mails, _) = round(&mut reader).await;
            reader.close_cleanly().await;
            mails.is_empty()
        })
        .await;
        seen.extend(take_all(&a.bus, to).await);
    }
    assert_eq!(seen, [0; 0]);
}

pub async fn many_deposits_at_once_keep_their_order(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    let boxes: Vec<_> = (0..5).map(BoxNumber).collect();
    // Side by side, 200 each, and none of the boxes is there.
    join_all(boxes.iter().map(|to| deposit_all(&a.bus, *to, 0..200))).await;
    for to in boxes {
        assert_eq!(take_all(&b.bus, to).await, (0..200).collect::<Vec<_>>());
    }
}

/// Two nodes deposit without a pause while a third reads, acknowledges and lets go all the time.
pub async fn nothing_is_lost_while_a_box_is_read(attach: Attach<'_>) {
    let (a, b, c) = (peer(attach, "a").await, peer(attach, "b").await, peer(attach, "c").await);
    deposit_all(&c.bus, ONE, 0..1).await;
    let writing = |bus: Arc<dyn Bus>, from: u32| async move {
        for n in from..from + 500 {
            assert_eq!(deposit(&bus, ONE, &n.to_string()).await, Outcome::Confirmed);
        }
    };
    let (first, second) =
        (tokio::spawn(writing(a.bus.clone(), 1000)), tokio::spawn(writing(b.bus.clone(), 2000)));
    let mut seen = vec![];
    loop {
        let over = first.is_finished() && second.is_finished();
        let all = take_all(&c.bus, ONE).await;
        if all.is_empty() && over {
            break;
        }
        seen.extend(all);
    }
    first.await.unwrap();
    second.await.unwrap();
    for from in [1000, 2000] {
        let side: Vec<_> = seen.iter().copied().filter(|n| (from..from + 1000).contains(n)).collect();
        assert_eq!(side, (from..from + 500).collect::<Vec<_>>());
    }
}

/// Mail that is much, and mail that is big, is read in one go, and acknowledged one by one in any order.
pub async fn a_large_box_is_read_in_one_go(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    deposit_all(&a.bus, ONE, 0..10_000).await;
    let mut reader = read(&b.bus, ONE, &[U]).await;
    let (mails, _) = round(&mut reader).await;
    assert!(numbers(&mails).into_iter().eq(0..10_000));
    mails.into_iter().for_each(|mail| assert!(mail.ack.ack()));
    reader.close_cleanly().await;
    assert_eq!(take_all(&b.bus, ONE).await, [0; 0]);
    let big = Bytes::from(vec![b'x'; 60 << 10]);
    let sent = join_all((0..64).map(|_| deposit_with(&a.bus, ONE, Properties::default(), big.clone()))).await;
    assert!(sent.iter().all(|outcome| *outcome == Outcome::Confirmed), "{sent:?}");
    let mut reader = read(&b.bus, ONE, &[U]).await;
    let (mails, _) = round(&mut reader).await;
    assert!(mails.len() == 64 && mails.iter().all(|mail| mail.body == big));
    mails.into_iter().for_each(|mail| assert!(mail.ack.ack()));
    reader.close_cleanly().await;
}
