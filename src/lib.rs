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
//! Modules in reading order. Imports go strictly down this list's layers: doors use the brain, the brain uses
//! the places, everybody uses the words; `tests/it/tidy.rs` holds the code to it.

// words: what everybody says
pub mod auth;
pub mod config;
pub mod error;
pub mod ids;
pub mod lifecycle;
pub mod metrics;
pub mod protocol;
#[cfg(feature = "sabotage")]
pub mod sabotage;
// places: where things are kept
pub mod bus;
pub mod delivery;
pub mod directory;
pub mod hub;
// the brain
pub mod router;
// the doors
pub mod http;
pub mod ingress;
pub mod session;
// the program
pub mod cli;
pub mod node;
