//! Sessions of the same users opened and closed by several threads at once: no deadlock, and the directory agrees.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use warren::hub::{Local, Tally};
use warren::ids::UserId;

use crate::support::eventually::eventually;
use crate::support::nodes::Cluster;

/// Few, so that the threads meet at the same users and at the same shards of every table.
const USERS: usize = 8;
const ROUNDS: u64 = 2_000;
/// A round takes microseconds: a thread that stands still for so long waits for a lock that nobody gives back.
const WATCHDOG: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_and_closing_sessions_never_waits_for_those_who_look() {
    let cluster = Cluster::start(2, &[]).await;
    let router = cluster.nodes[0].router().clone();
    let users: Arc<Vec<UserId>> =
        Arc::new((0..USERS).map(|at| UserId::new(&format!("user{at}")).unwrap()).collect());
    let progress = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for thread in 0..2u64 {
        let (router, users, progress) = (router.clone(), users.clone(), progress.clone());
        threads.push(thread::spawn(move || {
            for round in 0..ROUNDS {
                let user = &users[(round as usize * 7 + thread as usize) % USERS];
                // Above any counter that a socket of this test could have.
                let counter = u64::MAX - (round * 2 + thread);
                assert!(router.open_session(user, Local { counter, since_ms: 0 }, usize::MAX));
                router.close_session(user, counter);
                progress.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let looking = thread::spawn({
        let (router, users, stop) = (router.clone(), users.clone(), stop.clone());
        move || {
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                at += 1;
                let user = &users[at % USERS];
                let held = router.hub().holds(user);
                let sessions = router.hub().sessions_of(user);
                assert!(held || sessions.len() <= 2, "two threads open sessions");
                // The permit is dropped unused: no worker has such sessions.
                drop(router.hub().reserve_user(user));
                drop(Tally::new(None, |_| ()));
            }
        }
    });
    let (mut seen, mut since) = (0, Instant::now());
    eventually("all sessions are opened and closed", 12 * WATCHDOG, || {
        let now = progress.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < WATCHDOG, "no progress after {seen} sessions");
        let are_done = threads.iter().all(thread::JoinHandle::is_finished);
        async move { are_done }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    looking.join().unwrap();
    assert_eq!((router.hub().sessions(), router.hub().users()), (0, 0));
    // The last word of each user's `join` and `leave` is that it has left, also as the other node knows it.
    for user in users.iter() {
        cluster.knows(user.as_str(), &[]).await;
    }
    assert!(router.open_session(&users[0], Local { counter: 1, since_ms: 0 }, usize::MAX));
    cluster.knows(users[0].as_str(), &[0]).await;
    router.close_session(&users[0], 1);
}
