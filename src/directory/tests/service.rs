//! The service over the smallest bus that will do: exchanges of one process, links that can be cut.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::bus::{
    Attach, BoxError, BoxNumber, BoxSettings, Bus, Destination, Done, Link, Outcome, Properties, Publish,
    Publishing,
};
use crate::config::Routing;
use crate::directory::{Directory, Membership, GOSSIP_KIND, PROBE_KIND};
use crate::ids::UserKey;

type Doors = Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<Publish>>>>;

struct SmallBus {
    doors: Doors,
    link: watch::Sender<Link>,
}

impl Bus for SmallBus {
    fn publish(&self, publish: Publish, done: Done) {
        if !self.link.borrow().ready() {
            return done(Outcome::Unavailable);
        }
        let doors = self.doors.lock().unwrap();
        let to: Vec<_> = match &publish.to {
            Destination::Control => doors.values().cloned().collect(),
            Destination::Nodes(nodes) => nodes.iter().filter_map(|node| doors.get(node).cloned()).collect(),
            other => panic!("the directory has no business with {other:?}"),
        };
        drop(doors);
        to.iter().for_each(|door| door.try_send(publish.clone()).unwrap());
        done(if to.is_empty() { Outcome::Unroutable } else { Outcome::Confirmed });
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    fn reply_queue(&self) -> Option<String> {
        None
    }

    fn stop_ingress(&self) {}
    fn deposit(&self, _: BoxNumber, _: Properties, _: Bytes, _: Done) {
        panic!("the directory stores nothing");
    }

    fn attach_box(&self, _: BoxNumber, _: Vec<UserKey>) -> BoxFuture<'static, Result<Attach, BoxError>> {
        panic!("the directory reads no mail");
    }

    fn boxes(&self) -> BoxSettings {
        BoxSettings::default()
    }

    fn leave(&self) {}

    fn close(&self) {}
}

struct Node {
    id: NodeId,
    bus: Arc<SmallBus>,
    directory: Directory,
    members: mpsc::Receiver<Membership>,
    _service: JoinSet<()>,
}

impl Node {
    fn start(name: &str, doors: &Doors) -> Self {
        let bus = Arc::new(SmallBus { doors: doors.clone(), link: watch::Sender::new(Link::default()) });
        let id = node(name);
        let (directory, members, service) = Directory::new(id.clone(), Routing::Directory, None, bus.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(service);
        let node = Self { id, bus, directory, members, _service: tasks };
        node.link_up();
        node
    }

    fn link_up(&self) -> Incarnation {
        let incarnation = Incarnation::generate();
        let (door, mut inbox) = mpsc::channel::<Publish>(1_000);
        self.bus.doors.lock().unwrap().insert(self.id.clone(), door);
        self.bus.link.send_replace(Link {
            incarnation: Some(incarnation),
            publishing: Publishing::Ready,
            ..Link::default()
        });
        let directory = self.directory.clone();
        tokio::spawn(async move {
            while let Some(publish) = inbox.recv().await {
                assert_eq!(publish.properties.persistent, Some(false));
                match publish.properties.kind.as_deref() {
                    Some(GOSSIP_KIND) => directory.on_gossip(&publish.body).unwrap(),
                    kind => assert_eq!(kind, Some(PROBE_KIND)),
                }
            }
        });
        incarnation
    }

    fn link_down(&self) {
        self.bus.doors.lock().unwrap().remove(&self.id);
        self.bus.link.send_replace(Link::default());
    }

    async fn member(&mut self) -> Membership {
        timeout(at(3_000), self.members.recv()).await.unwrap().unwrap()
    }
}

async fn soon(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..300 {
        if holds() {
            return;
        }
        sleep(at(10)).await;
    }
    panic!("not within three seconds: {what}");
}

#[tokio::test]
async fn nodes_find_each_others_keys() {
    let doors = Doors::default();
    let (mut a, b) = (Node::start("a", &doors), Node::start("b", &doors));
    assert_eq!(a.member().await, Membership::Up(node("b")));
    b.directory.join(key(1));
    a.directory.join(key(1));
    soon("the key is known", || a.directory.nodes_of(key(1)).as_slice() == [node("b")]).await;
    b.directory.leave(key(1));
    soon("the key is gone", || a.directory.nodes_of(key(1)).is_empty()).await;

    b.directory.set_load(5, 3);
    b.directory.set_draining();
    soon("b describes itself", || a.directory.peers()[0].info.draining).await;
    let peers = a.directory.peers();
    assert_eq!((peers.len(), peers[0].info.sessions, peers[0].info.users), (1, 5, 3));
    assert_eq!(peers[0].info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(peers[0].incarnation, a.directory.incarnation_of(&node("b")));
    assert!(a.directory.is_live(&node("b")) && !a.directory.is_live(&node("x")));
    assert_eq!(a.directory.this_node().keys, 1);
    soon("the control exchange is proven", || a.directory.synced()).await;
    assert!(a.directory.control_seen_ago().unwrap() < at(3_000));
}

#[tokio::test]
async fn a_crash_is_seen_at_once_and_a_late_comer_learns_all() {
    let doors = Doors::default();
    let (mut a, b) = (Node::start("a", &doors), Node::start("b", &doors));
    (0..12_000).for_each(|n| a.directory.join(key(n)));
    soon("b has the set", || b.directory.peers().first().is_some_and(|a| a.keys == 12_000)).await;
    let mut c = Node::start("c", &doors);
    soon("c has the set", || c.directory.peers().iter().any(|a| a.keys == 12_000 && a.synced)).await;
    let seconds = [a.member().await, a.member().await];
    assert_eq!(seconds, [Membership::Up(node("b")), Membership::Up(node("c"))]);
    c.member().await;
    c.member().await;

    let gone = a.directory.incarnation_of(&node("b")).unwrap();
    b.link_down();
    let lost = Membership::Lost(node("b"), gone);
    assert_eq!(timeout(at(1_500), a.member()).await.unwrap(), lost);
    assert_eq!(timeout(at(500), c.member()).await.unwrap(), lost, "the finder told the others");

    let anew = b.link_up();
    assert_eq!(a.member().await, Membership::Up(node("b")));
    assert_eq!(a.directory.incarnation_of(&node("b")), Some(anew));
    soon("b is synced again", || b.directory.synced()).await;
}

#[tokio::test]
async fn goodbye_is_confirmed_and_known() {
    let doors = Doors::default();
    let (mut a, b) = (Node::start("a", &doors), Node::start("b", &doors));
    let up = a.member().await;
    assert_eq!(up, Membership::Up(node("b")));
    soon("b has its link", || b.directory.control_seen_ago().is_some()).await;
    assert!(b.directory.bye().await);
    assert!(
        matches!(timeout(at(500), a.member()).await.unwrap(), Membership::Lost(who, _) if who == node("b"))
    );
    assert!(!b.directory.bye().await, "once");
    a.link_down();
    sleep(at(50)).await;
    assert!(!a.directory.bye().await, "nobody heard it");
}

#[tokio::test]
async fn an_unread_membership_channel_holds_nothing_up() {
    let doors = Doors::default();
    let (a, b) = (Node::start("a", &doors), Node::start("b", &doors));
    for _ in 0..200 {
        b.link_up();
        sleep(at(5)).await;
    }
    b.directory.join(key(1));
    soon("a still follows", || a.directory.nodes_of(key(1)).len() == 1).await;
    let mut members = a.members;
    let mut ups = 0;
    let mut last = None;
    while let Ok(Some(notice)) = timeout(at(1_000), members.recv()).await {
        ups += usize::from(matches!(notice, Membership::Up(_)));
        last = Some(notice);
    }
    assert!(ups > 128, "more notices than the channel has room for: {ups} twice");
    assert_eq!(last, Some(Membership::Up(node("b"))));
}
