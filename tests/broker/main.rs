//! Tests of the bus: the contract on both implementations, and RabbitMQ's and its client's sharp edges.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on has failed.

#[path = "../support/api.rs"]
#[allow(dead_code)] // The tests of whole nodes use the rest, here and below.
mod api;
#[path = "../support/box_contract.rs"]
mod box_contract;
#[path = "../support/box_endings.rs"]
mod box_endings;
#[path = "../support/broker.rs"]
mod broker;
#[path = "../support/bus_contract.rs"]
mod bus_contract;
#[path = "../support/tls.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "../support/eventually.rs"]
mod eventually;
#[path = "../support/nodes.rs"]
#[allow(dead_code)]
mod nodes;
#[path = "../support/raw_amqp.rs"]
mod raw_amqp;
#[path = "../support/relay.rs"]
mod relay;
#[path = "../support/user.rs"]
#[allow(dead_code)]
mod user;

mod application;
mod backend_programs;
mod boxes;
mod channels;
mod contract;
mod events;
mod examples;
mod healing;
mod hooks;
mod lapin_defects;
mod memory_faults;
mod migration;
mod partitions;
mod programs;
mod protocols;
mod reconnect;
mod replies;
mod tls;
mod topology;
mod unreadable;
