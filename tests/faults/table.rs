//! The table of faults: one row each.

use crate::clients::Habit::{Away, Crawls, Moves, NeverAcks, Vanishes};
use crate::inject::{broker, calm, cluster, link, mail, nodes, operator, pairs, people, poison};
use crate::scenario::People::{Acknowledging, Half, OnTarget, Stuck, TwoDevices};
use crate::scenario::Scenario;

/// Of a deleted object a node must notice within this.
const NOTICED_MS: u64 = 35_000;

#[rustfmt::skip]
pub fn all() -> Vec<Scenario> {
    [calm_rows(), node_rows(), broker_rows(), people_rows(), operator_rows(), pair_rows()].concat()
}

#[rustfmt::skip]
fn calm_rows() -> Vec<Scenario> {
    let new = Scenario::new;
    vec![
        new("none", "nothing", calm::nothing).ordered().quick(),
        new("kinds", "nothing; to users, sessions, all, at-most-once, with TTL alike", calm::nothing).kinds().people(TwoDevices(60)).ordered(),
        new("duplicates", "each message published twice", calm::nothing).quick().rate(300).twice().ordered(),
        new("poison", "unreadable messages among good ones", poison::inject).quick().ordered(),
        new("clocks", "clocks 5 s ahead and 60 s behind; users come and go", people::misbehave).people(Half(90, Away)).skewed(&[0, 5, -60]).kinds().rate(300).ordered(),
    ]
}

#[rustfmt::skip]
fn node_rows() -> Vec<Scenario> {
    let new = Scenario::new;
    vec![
        new("kill-origin", "`kill -9` of the ingress node, messages under way", nodes::kill_origin).within_ms(5_000),
        new("kill-target", "`kill -9` of a node with 200 clients", nodes::kill_target).people(OnTarget(214)).rate(800).within_ms(5_000).quick(),
        new("kill-both", "`kill -9` of two nodes, messages under way between them", nodes::kill_both),
        new("kill-bystander", "`kill -9` of a node without clients", nodes::kill_bystander).people(OnTarget(90)).within_ms(5_000),
        new("two-devices", "each user on two nodes; one is killed", nodes::kill_target).people(TwoDevices(60)),
        new("stop-5s", "SIGSTOP of a node for 5 s", nodes::stop_short),
        new("stop-45s", "SIGSTOP of a node for 45 s", nodes::stop_long).light(),
        new("sigterm", "SIGTERM of a node under load", nodes::terminate).quick(),
        new("rolling-restart", "SIGTERM and restart of each node in turn", nodes::roll),
        new("partitions", "4 partitions of ingress; SIGTERM and restart of each node in turn", nodes::roll).partitioned(),
    ]
}

#[rustfmt::skip]
fn broker_rows() -> Vec<Scenario> {
    let new = Scenario::new;
    vec![
        new("broker-restart", "stop and start of the broker", broker::restart).within_ms(5_000).alone(),
        new("broker-kill", "`kill -9` of the broker, and a new start", broker::kill).within_ms(5_000).alone(),
        new("memory-alarm", "the broker is out of memory for 5 s", broker::memory_alarm).alone(),
        new("queue-deleted", "the queues of two nodes deleted", broker::delete_queues),
        new("close-all-connections", "`rabbitmqctl close_all_connections`", broker::close_connections).alone(),
        new("link-cut", "all connections to the broker cut, twice", link::cut).relayed(),
        new("link-half-open", "connections end at the node's end only", link::half_open).relayed(),
        new("link-slow", "packets to and from the broker 100 ms late", link::slow).relayed(),
        new("link-silent", "no packet between node and broker for 8 s", link::silent).relayed().light(),
        new("broker-cluster", "`kill -9` of one of three brokers", cluster::kill_one).on_three(),
    ]
}

#[rustfmt::skip]
fn people_rows() -> Vec<Scenario> {
    let new = Scenario::new;
    vec![
        new("client-vanishes", "clients lose connections mid-delivery", people::misbehave).people(Half(90, Vanishes)).compares(),
        new("client-moves", "clients move from node to node", people::misbehave).people(Half(90, Moves)).compares().ordered(),
        new("client-away", "clients come and go", people::misbehave).people(Half(90, Away)).compares().ordered(),
        new("client-never-acks", "clients promise acks and send none", people::hold_out).people(Half(60, NeverAcks)).compares(),
        new("client-crawls-small-buffers", "clients read at a crawl; outbox of 40 KB", people::misbehave).people(Half(60, Crawls)).rate(300).small_buffers().compares(),
        new("stuck-readers", "100 clients do not read or do not acknowledge", people::hold_on).people(Stuck(150)).compares(),
        new("storm", "2,000 clients lose connections at once", people::storm).people(Acknowledging(2_000)).rate(1_000).within_ms(15_000),
        new("absent-users", "mail for 100,000 absent users (short: 5,000)", mail::absent).leaves_mail().rate(300).compares().ordered(),
        new("mail-many", "100 users return to 120 mails each (short: 20)", mail::many).rate(300).compares().ordered(),
        new("mail-large", "64 mails of 60 KB (short: 32), line of 100 KB/s, acks", mail::large).rate(300).compares().ordered(),
    ]
}

#[rustfmt::skip]
fn operator_rows() -> Vec<Scenario> {
    let new = Scenario::new;
    vec![
        new("delete-direct", "exchange `direct` deleted", operator::direct).within_ms(NOTICED_MS).light(),
        new("delete-control", "exchange `control` deleted", operator::control).within_ms(NOTICED_MS).light(),
        new("delete-broadcast", "exchange `broadcast` deleted", operator::broadcast).within_ms(NOTICED_MS).light(),
        new("delete-ingress", "exchange `ingress` deleted", operator::ingress).within_ms(NOTICED_MS).light(),
        new("delete-bindings", "bindings of ingress and of a node's queues deleted", operator::bindings).within_ms(NOTICED_MS).light(),
        new("delete-dead", "queue `dead` deleted, then unreadable messages", operator::dead).within_ms(NOTICED_MS).light(),
    ]
}

/// Two causes at once.
#[rustfmt::skip]
fn pair_rows() -> Vec<Scenario> {
    let new = Scenario::new;
    vec![
        new("away+kill-origin", "users come and go; ingress node killed", nodes::kill_origin).people(Half(90, Away)),
        new("storm+broker-restart", "all clients and the broker go", pairs::storm_and_restart).people(Acknowledging(600)).alone(),
        new("stop+kill-target", "a node stopped for 5 s, another one killed", pairs::stop_and_kill).light(),
        new("moves+link-cut", "clients move; links to the broker cut", link::cut).people(Half(90, Moves)).relayed(),
        new("away+rolling", "users come and go; nodes restart in turn", nodes::roll).people(Half(90, Away)),
        new("alarm+kill-origin", "broker out of memory; ingress node killed", pairs::alarm_and_kill).alone(),
        new("vanish+broker-kill", "clients vanish; broker killed", broker::kill).people(Half(90, Vanishes)).alone(),
        new("silent+kill-target", "one node's link silent, another node killed", pairs::silent_and_kill).relayed().light(),
        new("stuck+sigterm", "100 stuck readers; a node ends", nodes::terminate).people(Stuck(150)),
    ]
}
