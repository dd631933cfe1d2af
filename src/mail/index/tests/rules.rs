//! One rule each.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::effect::Effect;
use super::super::gossip::{Count, Gossip};
use super::super::outgoing::{ANNOUNCE_DEADLINE, BATCH_WAIT};
use super::super::state::Index;
use super::super::{MailLimits, Refusal};
use super::{carry_out, index, mail, node, told, BOXES, LIMITS};
use crate::bus::BoxNumber;
use crate::ids::{Incarnation, Life, UserKey};

fn known(number: usize, now: Instant) -> Index {
    let mut index = index(number, now);
    for number in 0..BOXES.get() {
        let began = index.reading_began(BoxNumber(number), now);
        index.exact(began, vec![], now, 1);
    }
    told(&mut index, now + BATCH_WAIT);
    index
}

fn store(index: &mut Index, user: u64, now: Instant) {
    let mail = mail(user, user, 10);
    index.admit(mail, now).unwrap();
    assert!(index.stored(mail, Box::new(|_| {}), now).is_ok());
}

fn waiting(index: &Index, user: u64) -> u32 {
    index.waiting(UserKey(user)).count
}

#[test]
fn a_fresh_node_does_not_know_and_then_it_does() {
    let now = Instant::now();
    assert!(index(0, now).may_have(UserKey(1)));
    let mut known = known(0, now);
    assert!(!known.may_have(UserKey(1)));
    known.admit(mail(1, 7, 10), now).unwrap();
    assert!(known.may_have(UserKey(1)));
    known.release(mail(1, 7, 10));
    assert!(!known.may_have(UserKey(1)));
    known.link_up(now);
    assert!(known.may_have(UserKey(1)), "gossip may have been missed");
}

#[test]
fn each_limit_has_its_refusal() {
    let now = Instant::now();
    let mut a = index(0, now);
    for _ in 0..LIMITS.messages {
        a.admit(mail(1, 7, 10), now).unwrap();
    }
    assert_eq!(a.admit(mail(1, 8, 10), now), Err(Refusal::UserFull));
    assert_eq!(a.admit(mail(2, 7, 1_001), now), Err(Refusal::UserFull));
    a.admit(mail(2, 7, 1_000), now).unwrap();
    assert_eq!(a.admit(mail(2, 7, 1), now), Err(Refusal::UserFull));
    for user in 100..129 {
        a.admit(mail(user, 7, 10), now).unwrap();
    }
    assert_eq!(a.admit(mail(200, 7, 10), now), Err(Refusal::SenderFull));
    let limits = MailLimits { sender_rate: 1, sender_burst: 1, ..LIMITS };
    let mut slow = Index::new(node(0), Life(1), BOXES, limits, now);
    slow.admit(mail(1, 7, 10), now).unwrap();
    assert_eq!(slow.admit(mail(2, 7, 10), now), Err(Refusal::SenderRate));
    slow.admit(mail(2, 7, 10), now + Duration::from_secs(1)).unwrap();
}

#[test]
fn a_reading_keeps_what_it_cannot_have_seen_here_and_elsewhere() {
    let now = Instant::now();
    let (mut a, mut b, mut c) = (index(0, now), index(1, now), index(2, now));
    let now = now + Duration::from_secs(10);
    store(&mut a, 1, now);
    let before = told(&mut a, now + BATCH_WAIT);
    before.iter().for_each(|gossip| assert_eq!(b.receive(gossip.clone(), now), [UserKey(1)]));
    before.iter().for_each(|gossip| drop(c.receive(gossip.clone(), now)));
    let began = b.reading_began(BoxNumber(1), now);
    store(&mut a, 1, now);
    store(&mut b, 1, now);
    b.admit(mail(1, 7, 10), now).unwrap();
    let during = told(&mut a, now + BATCH_WAIT);
    during.iter().for_each(|gossip| drop(b.receive(gossip.clone(), now)));
    during.iter().for_each(|gossip| drop(c.receive(gossip.clone(), now)));
    b.exact(began, vec![Count(UserKey(1), 1, 10)], now, 100);
    assert_eq!(waiting(&b, 1), 4, "one was found, two came during the reading, one is being deposited");
    for gossip in told(&mut b, now + BATCH_WAIT) {
        c.receive(gossip.clone(), now);
        c.receive(gossip, now);
    }
    assert_eq!(waiting(&c, 1), 3, "a repeated batch counts once");
}

#[test]
fn mail_of_an_earlier_reading_is_not_taken_twice() {
    let now = Instant::now();
    let (mut a, mut b) = (known(0, now), known(1, now));
    let began = a.reading_began(BoxNumber(1), now);
    a.exact(began, vec![Count(UserKey(1), 2, 20)], now, 100);
    a.taken(mail(1, 7, 10), now);
    let late = told(&mut a, now + BATCH_WAIT);
    let began = b.reading_began(BoxNumber(1), now);
    b.exact(began, vec![Count(UserKey(1), 1, 10)], now, 200);
    late.into_iter().for_each(|gossip| drop(b.receive(gossip, now)));
    assert_eq!(waiting(&b, 1), 1);
    b.taken(mail(1, 7, 10), now);
    assert_eq!(waiting(&b, 1), 0);
    told(&mut b, now + BATCH_WAIT).into_iter().for_each(|gossip| drop(a.receive(gossip, now)));
    assert_eq!(waiting(&a, 1), 0);
}

#[test]
fn a_deposit_is_announced_when_the_broker_has_confirmed_it() {
    let now = Instant::now();
    for (answers, expected) in
        [(vec![true], 1), (vec![false, false, true], 1), (vec![false; 3], 1_000), (vec![], 1_000)]
    {
        let mut a = index(0, now);
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        a.admit(mail(1, 7, 10), now).unwrap();
        let announced =
            move |confirmed| _ = counted.fetch_add(if confirmed { 1 } else { 1_000 }, Ordering::Relaxed);
        assert!(a.stored(mail(1, 7, 10), Box::new(announced), now).is_ok());
        let (mut at, mut answers) = (now, answers.into_iter());
        while let Some(next) = a.next_poll(at).filter(|next| *next <= now + ANNOUNCE_DEADLINE * 2) {
            at = next.max(at + Duration::from_millis(1));
            for effect in a.poll(at, Vec::new) {
                match effect {
                    Effect::Publish { seq, .. } => {
                        if let Some(confirmed) = answers.next() {
                            carry_out(a.published(seq, confirmed, at));
                        }
                    }
                    tell => carry_out(Some(tell)),
                }
            }
        }
        carry_out(Some(a.end()));
        assert_eq!(calls.load(Ordering::Relaxed), expected);
    }
}

#[test]
fn a_fresh_node_learns_from_a_snapshot() {
    let now = Instant::now();
    let mut a = known(0, now);
    (0..12_000).for_each(|user| store(&mut a, user, now));
    let mut b = index(1, now);
    b.link_up(now);
    let mut ask = None;
    for effect in b.poll(now, || vec![node(0)]) {
        if let Effect::Ask { body } = effect {
            ask = Some(Gossip::decode(&body).unwrap());
        }
    }
    let asked =
        |asked: &Gossip| matches!(asked, Gossip::Ask { from, to, .. } if *from == node(1) && *to == node(0));
    assert!(ask.as_ref().is_some_and(asked), "{ask:?}");
    a.receive(ask.unwrap(), now);
    let mut learned = 0;
    for step in 0..10 {
        for effect in a.poll(now + Duration::from_millis(10) * step, Vec::new) {
            if let Effect::Send { body, .. } = effect {
                learned += b.receive(Gossip::decode(&body).unwrap(), now).len();
            }
        }
    }
    assert_eq!((learned, b.next_unread_box()), (12_000, None));
    assert!(b.may_have(UserKey(1)) && !b.may_have(UserKey(12_000)));
}

#[test]
fn a_box_with_mail_is_read_every_hour_by_one_node() {
    let now = Instant::now();
    let (mut a, mut b) = (known(0, now), known(1, now));
    let live = [node(0), node(1)];
    for user in 0..64 {
        store(&mut a, user, now);
        store(&mut b, user, now);
    }
    let hour = now + Duration::from_secs(3_600);
    assert_eq!(a.next_due_box(BOXES, now, &live), None);
    let mut due: Vec<_> = std::iter::from_fn(|| a.next_due_box(BOXES, hour, &live)).collect();
    due.extend(std::iter::from_fn(|| b.next_due_box(BOXES, hour, &live)));
    due.sort();
    assert_eq!(due, (0..BOXES.get()).map(BoxNumber).collect::<Vec<_>>());
}

#[test]
fn two_hundred_thousand_users_fit_into_10_megabytes() {
    let now = Instant::now();
    let boxes = NonZeroU32::new(1_024).unwrap();
    let limits =
        MailLimits { sender_messages: u32::MAX, sender_rate: 100_000, sender_burst: u32::MAX, ..LIMITS };
    let mut index = Index::new(node(0), Life(1), boxes, limits, now);
    for user in 0..200_000 {
        store_hashed(&mut index, user, now);
    }
    assert!(index.counts().bytes() <= 10_000_000, "{}", index.counts().bytes());
    assert_eq!(index.reservations(), 0);
}

fn store_hashed(index: &mut Index, user: u64, now: Instant) {
    let key = xxhash_rust::xxh3::xxh3_64(&user.to_le_bytes());
    index.admit(mail(key, 7, 10), now).unwrap();
    drop(index.stored(mail(key, 7, 10), Box::new(|_| {}), now));
}

/// Nobody else would look for mail that was not announced, nor for what a reading found.
#[test]
fn what_could_not_be_told_is_found_by_a_reading() {
    let mut now = Instant::now();
    let mut a = known(0, now);
    assert_eq!(a.next_unread_box(), None);
    store(&mut a, 1, now);
    let began = a.reading_began(BoxNumber(2), now);
    a.exact(began, vec![], now, 2);
    let mut attempts = 0;
    for _ in 0..100 {
        now += Duration::from_millis(50);
        for effect in a.poll(now, Vec::new) {
            if let Effect::Publish { seq, .. } = effect {
                attempts += 1;
                a.published(seq, false, now);
            }
        }
    }
    assert_eq!(attempts, 6, "three for each of two batches");
    let unread: BTreeSet<_> = (0..8).map(|_| a.next_unread_box().unwrap()).collect();
    assert!(unread.iter().eq(&[BoxNumber(1), BoxNumber(2)]), "{unread:?}");
    for number in unread {
        let began = a.reading_began(number, now);
        a.exact(began, vec![], now, 3);
    }
    assert_eq!(a.next_unread_box(), None);
}

#[test]
fn what_a_node_that_is_gone_took_lately_is_looked_for_by_one_of_the_others() {
    let now = Instant::now();
    let (mut a, mut b, mut c) = (known(0, now), known(1, now), known(2, now));
    let taken = mail(3, 3, 10);
    store(&mut a, 3, now);
    let number = BoxNumber((3 % u64::from(BOXES.get())) as u32);
    let began = b.reading_began(number, now);
    b.exact(began, vec![Count(UserKey(3), 1, 10)], now, 9);
    b.taken(taken, now);
    for gossip in told(&mut a, now + BATCH_WAIT).into_iter().chain(told(&mut b, now + BATCH_WAIT)) {
        a.receive(gossip.clone(), now);
        c.receive(gossip, now);
    }
    assert_eq!((waiting(&a, 3), waiting(&c, 3)), (0, 0));
    let live = [node(0), node(2)];
    a.node_lost(now, &live);
    c.node_lost(now, &live);
    let mut looked = vec![a.next_unread_box(), c.next_unread_box()];
    looked.sort_unstable();
    assert_eq!(looked, [None, Some(number)], "by one of them");
    assert!([&a, &c].into_iter().any(|index| index.may_have(UserKey(3))));
    let (mut late, later) = (known(0, now), now + Duration::from_secs(60));
    for gossip in told(&mut b, now + BATCH_WAIT) {
        late.receive(gossip, now);
    }
    late.node_lost(later, &[node(0)]);
    assert_eq!(late.next_unread_box(), None, "its acknowledgements have arrived long ago");
}

#[test]
fn a_node_with_a_new_link_does_not_say_that_it_knows_everything() {
    let now = Instant::now();
    let mut a = known(0, now);
    let first = Some(Incarnation::generate());
    a.link_is(first, now);
    let complete = |index: &mut Index| {
        index.receive(Gossip::Ask { from: node(1), to: node(0), request: 7 }, now);
        // The next burst of parts.
        let sent =
            index.poll(now + Duration::from_secs(1), Vec::new).into_iter().find_map(|effect| match effect {
                Effect::Send { body, .. } => Some(Gossip::decode(&body).unwrap()),
                _ => None,
            });
        let Some(Gossip::Part(part)) = sent else { panic!("{sent:?}") };
        part.complete
    };
    assert!(!complete(&mut a), "whoever has a link for the first time has heard nothing yet");
    for (link, expected) in [(first, true), (None, true), (Some(Incarnation::generate()), false)] {
        let mut again = known(0, now);
        again.link_is(first, now);
        for number in 0..BOXES.get() {
            let began = again.reading_began(BoxNumber(number), now);
            again.exact(began, vec![], now, 2);
        }
        again.link_is(link, now);
        assert_eq!(complete(&mut again), expected, "{link:?}");
    }
}
