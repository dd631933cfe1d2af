//! Warren: a WebSocket gateway that scales out behind RabbitMQ.
//!
//! ```text
//!  browser ──frame──▶ session ─┐                        ┌▶ hub ▶ socket ▶ browser            (this node)
//!  backend ──HTTP──▶  http ────┼─▶ router.accept(m) ────┤
//!  backend ──AMQP──▶ ingress ──┘     asks directory     └▶ bus ▶ RabbitMQ ▶ another node ▶ hub ▶ socket
//!                                          │
//!                     settled ─────────────┘ ──▶ only now is the source acknowledged
//! ```
//!
//! Modules in reading order. Imports go strictly down this list's layers: transports use the core, the core uses
//! the infrastructure, everything uses the types; `tests/it/tidy.rs` holds the code to it.

// types
pub mod auth;
pub mod budgets;
pub mod clock;
pub mod config;
pub mod error;
pub mod ids;
pub mod lifecycle;
pub mod metrics;
pub mod output;
pub mod protocol;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod tls;
// infrastructure
pub mod bus;
pub mod delivery;
pub mod directory;
pub mod hub;
pub mod mail;
// core
pub mod router;
// transports
pub mod http;
pub mod ingress;
pub mod session;
// the program
pub mod cli;
pub mod migrate;
pub mod node;
pub mod trace;

#[cfg(test)]
mod tests;
