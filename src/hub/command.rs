//! What the hub tells the workers.

use std::sync::Arc;

use super::{Answer, Counters, Tally};
use crate::ids::ChannelName;
use crate::protocol::close::CloseCode;
use crate::protocol::message::Rendered;
use crate::protocol::presence::RosterUpdate;

/// An order to a worker.
#[derive(Debug)]
pub enum Command {
    /// A message for these sessions.
    Deliver { counters: Counters, message: Arc<Rendered>, tally: Tally },
    /// A message for every session.
    Broadcast { message: Arc<Rendered> },
    /// A message for every session that subscribes to a channel, but for one: that of a publisher who wants no echo.
    Channel { channel: ChannelName, message: Arc<Rendered>, except: Option<u64> },
    /// Every session is told that it may have missed messages.
    Gap { reason: &'static str },
    /// Close these sessions; the tally counts those that were there.
    Close { counters: Counters, code: CloseCode, tally: Tally },
    /// Put these sessions into a channel; the tally counts those that are in it, when their messages reach them.
    Subscribe { counters: Counters, channel: ChannelName, tally: Tally },
    /// Take these sessions out of a channel; the tally counts those that were in it.
    Unsubscribe { counters: Counters, channel: ChannelName, tally: Tally },
    /// Who came to and left a channel that sessions of the worker listen to, and for which questions the nodes were asked.
    Roster { channel: ChannelName, update: Arc<RosterUpdate>, answers: Arc<[Answer]> },
    /// Close the sessions whose token counts no longer; the tally counts them.
    CloseRevoked { tally: Tally },
    /// The node stops: close every session within so many milliseconds.
    Drain { spread_ms: u32 },
}
