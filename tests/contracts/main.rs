//! The documents for machines say what the gateway does: `openapi.yaml`, `amqp/asyncapi.yaml` and `schemas/`, held against the
//! code, against tools that read such documents, and against real traffic.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on has failed.

#[path = "../support/api.rs"]
#[allow(dead_code)] // Other programs of tests use the rest, here and below.
mod api;
#[path = "../support/broker.rs"]
mod broker;
#[path = "../support/eventually.rs"]
mod eventually;
#[path = "../support/nodes.rs"]
#[allow(dead_code)]
mod nodes;

mod backends;
mod calls;
mod client;
mod code;
mod golden;
mod http;
mod recording;
mod schemathesis;
mod sessions;
mod tools;
mod traffic;
