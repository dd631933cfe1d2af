//! Sessions: one socket each, owned by one worker, speaking one codec.
//!
//! - [`worker`]: a thread's sessions. `delivery.rs` carries out the hub's commands, `sweep.rs` is the clock of pings,
//!   deadlines and shutdown; `deadlines.rs` and `drain.rs` hold the pure decisions.
//! - `task.rs`: reads one socket and writes its queued frames.
//! - `state.rs`: the state of one session; every frame to its client goes through it.
//! - `inbound.rs`: the messages of a client, by framing and codec; `notices.rs`: what it is told, in the same.
//! - `stomp/`: sessions that speak STOMP.
//! - `requests.rs`: the requests of a client; `replies.rs`: the fates of its publishes, on the way back.
//! - `subscriptions.rs`: which of the worker's sessions get the messages of a channel.
//! - `socket.rs`: the bounded queue of frames to a socket; `acks.rs`: the messages that the client has yet to
//!   acknowledge.
//! - `asking.rs`: what waits until the application has decided.
//! - `presence.rs`: questions for who is online, and who is in a channel.
//! - `listeners.rs`: which of the worker's sessions are told who comes to a channel and leaves it.
//! - `limiter.rs`: which requests are granted, and which client is closed.

mod acks;
mod asking;
mod deadlines;
mod delivery;
mod drain;
mod inbound;
mod limiter;
mod listeners;
mod notices;
mod presence;
mod replies;
mod requests;
mod socket;
mod state;
mod stomp;
mod subscriptions;
mod sweep;
mod task;
pub mod worker;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Identity, Verifier};
use crate::budgets::{Rates, Share};
use crate::config::RateLimit;
use crate::ids::UserId;
use crate::metrics::Metrics;
use crate::protocol::close::CloseCode;
use crate::protocol::{Codec, Framing};
use crate::tls::Transport;

/// Settings of all sessions of a node.
#[derive(Clone)]
pub struct SessionSettings {
    pub verifier: Arc<Verifier>,
    pub metrics: Arc<Metrics>,
    /// On this node. Overflow policy: the newest is closed with 4100.
    pub sessions_max: usize,
    /// Of one user on this node. Overflow policy: the newest is closed with 4100.
    pub sessions_per_user: usize,
    /// Sessions of one worker that have no user yet. Overflow policy: the newest is closed with 4100.
    pub unauthenticated_max: usize,
    /// Channels of one session. Overflow policy: `bad_request`.
    pub channels_max: usize,
    pub message_bytes_max: u32,
    /// Bytes queued for a socket that the client does not read, behind the frame that is being written; and bytes of a
    /// client that acknowledges: unacknowledged ones, and again those that wait. Overflow policy: the socket is closed
    /// with 4102.
    pub outbox_bytes_max: usize,
    /// Of each session; the same of each user, through all doors.
    pub publish_rate: Option<RateLimit>,
    pub rates: Arc<Rates<UserId>>,
    /// By client address: beyond, a bad `auth` frame is answered with 4101 instead of 4001.
    pub bad_tokens: Arc<Rates<IpAddr>>,
    /// Publishes of one session that await their settlement. Overflow policy: `overloaded`.
    pub in_flight_max: u32,
    /// Publishes of all sessions of a worker that await their settlement, or whose reply is not yet written. Overflow
    /// policy: `overloaded`.
    pub pending_max: usize,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    pub auth_timeout: Duration,
}

/// A socket whose handshake is done, on its way to its worker.
pub struct Admission {
    pub stream: Transport,
    /// Bytes that the client sent right behind its handshake.
    pub early: Vec<u8>,
    /// `None`: the first frame must bring a token.
    pub identity: Option<Identity>,
    /// Counts a socket that has no user yet: dropped when the session has one, or ends.
    pub unauthenticated: Option<Box<dyn Send>>,
    /// Counts the session among those of its client's address; dropped when it ends.
    pub share: Option<Share>,
    /// Messages count as delivered when the client acknowledges them, not when they are written.
    pub acknowledges: bool,
    /// `None`: the first message of the client will tell.
    pub codec: Option<Codec>,
    pub framing: Framing,
    /// To be told so and closed: what is refused to a client of SockJS before that makes it try other ways.
    pub refused: Option<CloseCode>,
}
