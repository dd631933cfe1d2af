//! Whole nodes in this process over the in-memory bus, and checks of what is shipped beside the code.

// Clippy knows tests by their attribute, and not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

#[path = "../faults/checker.rs"]
#[allow(dead_code)] // The fault suite uses the rest.
mod checker;
#[path = "../faults/record.rs"]
#[allow(dead_code)] // The fault suite uses the rest.
mod record;
#[path = "../faults/sabotage.rs"]
#[allow(dead_code)] // The fault suite uses the rest.
mod sabotage;

#[path = "../support/counting_bus.rs"]
mod counting_bus;

mod application;
mod application_limits;
mod broker_away;
mod budgets;
mod channel_counts;
mod channel_members;
mod channel_messages;
mod channels;
mod churn;
mod compression;
mod console;
mod credentials;
mod deploy;
mod drain;
mod hooks;
mod hostile;
mod http;
mod http_details;
mod ingress;
mod key_set;
mod keys;
mod limits;
mod mail;
mod presence;
mod presence_events;
mod process;
mod proxy_protocol;
mod readme;
mod revocations;
mod rfc6455;
mod routing;
mod secrets;
mod security;
mod session;
mod sockjs;
mod sockjs_http;
mod sockjs_http_flow;
mod stomp;
mod strategies;
mod strategy_costs;
mod tickets;
mod tidy;
mod tls;
mod wire_differential;
