//! The task that lets the machine run: it follows the link and the directory, takes the news, sends words.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{sleep_until, Instant};
use xxhash_rust::xxh3::xxh3_64;

use super::members::Members;
use super::state::{Letter, State, World};
use super::words::{Word, ROSTER_KIND};
use super::News;
use crate::bus::{Destination, Lane, Outcome, Properties, Publish};
use crate::directory::{Holders, Key, Touched};
use crate::hub::{Answer, Command};
use crate::ids::{ChannelName, Incarnation, NodeId};
use crate::protocol::presence::RosterUpdate;
use crate::router::Router;

/// The channels that are watched in the directory, which knows only their keys. Two channels may share one.
type Keys = HashMap<Key, SmallVec<[ChannelName; 1]>>;

impl Router {
    /// Keeps who is in the channels that somebody listens to; endless.
    pub async fn keep_rosters(self: Arc<Self>) {
        let began = Instant::now();
        let mut links = self.bus.link();
        // Half of the numbers are left to count upwards.
        let mut state = State::new(self.node().clone(), rand::random::<u64>() >> 1);
        let mut keys = Keys::new();
        let mut incarnation: Option<Incarnation> = None;
        loop {
            let link = *links.borrow_and_update();
            let now = began.elapsed();
            let is_new = link.incarnation.is_some() && link.incarnation != incarnation;
            incarnation = link.incarnation.or(incarnation);
            state.link(link.ready(), is_new, now);
            self.take_roster_news(&mut state, &mut keys, now);
            for letter in state.poll(now, &mut Places { router: &self, keys: &mut keys }) {
                self.send_letter(letter);
            }
            let next = state.next_poll().map(|at| began + at);
            tokio::select! {
                changed = links.changed() => {
                    if changed.is_err() {
                        // The bus is closed for good.
                        return std::future::pending().await;
                    }
                }
                () = self.rosters.wake.notified() => {}
                () = self.directory.touched() => {}
                () = async { if let Some(at) = next { sleep_until(at).await } }, if next.is_some() => {}
            }
        }
    }

    fn take_roster_news(&self, state: &mut State, keys: &mut Keys, now: Duration) {
        let (news, watched) = {
            let mut inbox = self.rosters.lock();
            let news = std::mem::take(&mut inbox.news);
            let watched: Vec<_> = (news.watched.iter())
                .map(|channel| (channel.clone(), inbox.listeners.contains_key(channel)))
                .collect();
            (news, watched)
        };
        let News { changed, tickets, words, failed, .. } = news;
        for (channel, has_listeners) in watched {
            state.watch(&channel, has_listeners, now, &mut Places { router: self, keys });
        }
        changed.iter().for_each(|channel| state.changed(channel, now));
        failed.iter().for_each(|(channel, gone)| state.failed(channel, gone, now));
        match self.directory.take_touched() {
            Touched::Keys(touched) => {
                let channels = touched.iter().filter_map(|key| keys.get(key)).flatten();
                channels.for_each(|channel| state.nodes_changed(channel, now));
            }
            Touched::All => state.all_nodes_changed(now),
        }
        for word in words {
            state.hear(word, now, &mut Places { router: self, keys });
        }
        tickets.iter().for_each(|(channel, ticket)| state.wait(channel, *ticket, now));
    }

    fn send_letter(&self, letter: Letter) {
        let Letter { to, word } = letter;
        let channel = match &word {
            Word::Told(told) => Some(told.channel.clone()),
            Word::Watch(_) | Word::Unknown => None,
        };
        // Plain structs of strings and numbers cannot fail to serialize.
        let body = serde_json::to_vec(&word).unwrap_or_default();
        let properties = Properties {
            kind: Some(ROSTER_KIND.to_owned()),
            content_type: Some("application/json".to_owned()),
            persistent: Some(false),
            ..Properties::default()
        };
        // What is told about one channel keeps its order.
        let order_key = channel.as_ref().map_or(0, |channel| xxh3_64(channel.as_str().as_bytes()));
        let publish = Publish {
            to: Destination::Nodes(to.clone()),
            properties,
            body: body.into(),
            order_key,
            lane: Lane::Bulk,
        };
        let meant: SmallVec<[(NodeId, Option<Incarnation>); 2]> =
            to.into_iter().map(|node| (node.clone(), self.directory.incarnation_of(&node))).collect();
        let (directory, rosters) = (self.directory.clone(), self.rosters.clone());
        let done = move |outcome| {
            let is_gone = outcome == Outcome::Unroutable;
            if is_gone {
                meant.iter().for_each(|(node, incarnation)| directory.returned(node, *incarnation));
            }
            if let Some(channel) = channel.filter(|_| outcome != Outcome::Confirmed) {
                let gone = meant.into_iter().filter(|_| is_gone).map(|(node, _)| node);
                rosters.not_confirmed(channel, gone.collect());
            }
        };
        self.bus.publish(publish, Box::new(done));
    }
}

/// What the machine sees of the node.
struct Places<'a> {
    router: &'a Router,
    keys: &'a mut Keys,
}

impl World for Places<'_> {
    fn follow(&mut self, channel: &ChannelName) {
        self.router.rosters.lock().followed.insert(channel.clone());
        let key = Key::channel(channel);
        let channels = self.keys.entry(key).or_default();
        if !channels.contains(channel) {
            channels.push(channel.clone());
            self.router.directory.watch(key);
        }
    }

    fn unfollow(&mut self, channel: &ChannelName) {
        self.router.rosters.lock().followed.remove(channel);
        let key = Key::channel(channel);
        let Some(channels) = self.keys.get_mut(&key) else { return };
        channels.retain(|of| of != channel);
        if channels.is_empty() {
            self.keys.remove(&key);
            self.router.directory.unwatch(key);
        }
    }

    fn here(&self, channel: &ChannelName, listed_max: usize) -> Members {
        Members::of_node(self.router.hub.users_in(channel, listed_max))
    }

    fn nodes(&self, channel: &ChannelName) -> Holders {
        self.router.directory.holders_of(Key::channel(channel))
    }

    fn tell(&mut self, channel: &ChannelName, update: RosterUpdate, answers: &[Answer]) -> bool {
        let workers: SmallVec<[usize; 8]> = {
            let inbox = self.router.rosters.lock();
            inbox.listeners.get(channel).into_iter().flatten().map(|(worker, _)| *worker).collect()
        };
        let (update, answers): (Arc<RosterUpdate>, Arc<[Answer]>) = (update.into(), answers.into());
        let command =
            || Command::Roster { channel: channel.clone(), update: update.clone(), answers: answers.clone() };
        self.router.hub.tell_workers(workers.into_iter(), command).is_ok()
    }
}
