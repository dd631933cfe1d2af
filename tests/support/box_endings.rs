//! What every implementation of `Bus` promises about the end of a reading, as tests that are run against each of them.

use futures_util::future::join_all;
use tokio::time::timeout;
use warren::bus::{BoxNumber, Outcome};

use crate::box_contract::{
    deposit, deposit_all, number, numbers, read, read_again, round, take_all, ONE, PATIENCE, U,
};
use crate::bus_contract::{peer, Attach};
use crate::eventually::eventually;

/// What is acknowledged while the reading ends is gone, or its token has said that it was too late.
pub async fn no_acknowledgement_is_lost_while_a_reading_ends(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let mut left: Vec<u32> = (0..400).collect();
    deposit_all(&a.bus, ONE, 0..400).await;
    for _ in 0..40 {
        let mut reader = read_again(&a.bus, ONE, &[U]).await;
        let (mut mails, _) = round(&mut reader).await;
        assert_eq!(numbers(&mails), left);
        let acknowledge = async {
            for mail in mails.drain(..mails.len().min(20)) {
                let number = number(&mail);
                if mail.ack.ack() {
                    left.retain(|one| *one != number);
                }
                tokio::task::yield_now().await;
            }
        };
        let (carried_out, ()) = tokio::join!(reader.close_leaving_marker(), acknowledge);
        assert!(carried_out);
    }
    assert_eq!(take_all(&a.bus, ONE).await, left);
}

pub async fn closing_ends_readings_and_answers_every_deposit(attach: Attach<'_>) {
    let (a, b) = (peer(attach, "a").await, peer(attach, "b").await);
    deposit_all(&a.bus, ONE, 0..100).await;
    let mut reader = read(&a.bus, ONE, &[U]).await;
    let (mails, _) = round(&mut reader).await;
    let answers: Vec<_> = (0..100).map(|n| deposit(&a.bus, BoxNumber(n % 8), "7")).collect();
    a.bus.close();
    let late = deposit(&a.bus, ONE, "8");
    join_all(answers).await;
    assert_eq!(late.await, Outcome::Unavailable);
    assert!(a.bus.attach_box(ONE, vec![U]).await.is_err());
    while timeout(PATIENCE, reader.events.recv()).await.expect("an end").is_some() {}
    eventually("what was read is void", PATIENCE, || async { mails[0].ack.is_void() }).await;
    let again = take_all(&b.bus, ONE).await;
    assert_eq!(again[..100], (0..100).collect::<Vec<_>>());
}
