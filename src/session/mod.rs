//! Sessions: one socket each, owned by one worker, speaking warren.v1.
//!
//! - [`worker`]: a thread's sessions; carries out what the hub tells it; the clock of pings and deadlines.
//! - `task.rs`: reads one socket and writes what is queued for it.
//! - `state.rs`: what is known of one session; every frame to a client goes through it.
//! - `requests.rs`: what a client asks for; `replies.rs`: what became of what it published, on the way back.
//! - `socket.rs`: the way out with its bounded queue; `acks.rs`: what the client has yet to acknowledge.
//! - `limiter.rs`: how much may come in.

mod acks;
mod limiter;
mod replies;
mod requests;
mod socket;
mod state;
mod task;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::auth::{Identity, Verifier};
use crate::config::RateLimit;
use crate::metrics::Metrics;

/// How sessions behave; the same for all of a node.
#[derive(Clone)]
pub struct SessionSettings {
    pub verifier: Arc<Verifier>,
    pub metrics: Arc<Metrics>,
    /// On this node. Overflow policy: whoever comes later is closed with 4100.
    pub sessions_max: usize,
    pub message_bytes_max: u32,
    /// Bytes queued for a socket that does not take them. Overflow policy: the socket is closed with 4102.
    pub outbox_bytes_max: usize,
    pub publish_rate: Option<RateLimit>,
    /// Publishes of one session that await their settlement. Overflow policy: `overloaded`.
    pub in_flight_max: u32,
    /// The same, of all sessions of a worker, and those whose reply is not yet written. Overflow policy: `overloaded`.
    pub pending_max: usize,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    pub auth_timeout: Duration,
}

/// A socket whose handshake is done, on its way to its worker.
pub struct Admission {
    pub stream: TcpStream,
    /// What the client sent right behind its handshake.
    pub early: Vec<u8>,
    /// `None`: the first frame must bring a token.
    pub identity: Option<Identity>,
    /// Counts a socket that has no user yet: dropped when the session has one, or ends.
    pub unauthenticated: Option<Box<dyn Send>>,
    /// Messages count as delivered when the client acknowledges them, not when they are written.
    pub acknowledges: bool,
}
