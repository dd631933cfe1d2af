//! Carries out the hub's commands: messages to the sessions of this worker, in batches, and orders to close them.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::delivery::trace::{unix_us, Step};
use crate::hub::{Command, Counters, Tally};
use crate::ids::ChannelName;
use crate::protocol::close::CloseCode;
use crate::protocol::message::{Message, Rendered};
use crate::protocol::Framing;
use crate::session::drain::Drain;
use crate::session::state::Session;
use crate::session::stomp::OneHead;
use crate::session::worker::WorkerState;

/// Commands carried out together, so that frames for one socket share a system call.
pub(super) const BATCH_MAX: usize = 256;
/// Messages in a row for everyone, or for one channel, are written as one block up to this size, in bytes.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// The sessions that get a block.
#[derive(Default, PartialEq, Eq)]
enum Audience {
    #[default]
    Everyone,
    Channel(ChannelName),
}

/// Messages for one audience that follow each other, to be written to each socket as one block of frames.
#[derive(Default)]
struct Block {
    audience: Audience,
    /// The session of a publisher that wants no echo; such a message is a block of its own.
    except: Option<u64>,
    messages: Vec<Arc<Rendered>>,
    /// About; a frame differs from codec to codec.
    bytes: usize,
}

/// The frames of a block in one piece, made for a framing of warren.v1 when the first session needs it, and for a
/// subscription of STOMP whenever it differs from the one before.
#[derive(Default)]
struct Pieces {
    warren_v1: [OnceCell<Bytes>; Framing::COUNT],
    stomp: OneHead,
}

impl Pieces {
    fn of<'a>(&'a self, messages: &'a [Arc<Rendered>], framing: Framing) -> &'a Bytes {
        match messages {
            [message] => message.warren_v1(framing),
            _ => self.warren_v1[framing as usize].get_or_init(|| {
                let mut piece = BytesMut::new();
                messages.iter().for_each(|message| piece.extend_from_slice(message.warren_v1(framing)));
                piece.freeze()
            }),
        }
    }

    /// How many messages the session was handed.
    fn send(&self, session: &Session, messages: &[Arc<Rendered>], audience: &Audience, now: u32) -> usize {
        match session.stomp() {
            None => {
                session.send(self.of(messages, session.framing), None, now);
                messages.len()
            }
            Some(stomp) => {
                let channel = match audience {
                    Audience::Everyone => None,
                    Audience::Channel(channel) => Some(channel),
                };
                stomp.show(session, channel, messages, &self.stomp, now)
            }
        }
    }
}

impl WorkerState {
    /// Carries out a batch in its order.
    pub(super) fn execute(&self, batch: &mut Vec<Command>) {
        let now = self.now();
        // A single command is written at once; the frames of several are gathered for each socket.
        let gather = batch.len() > 1;
        let mut touched: Vec<Rc<Session>> = Vec::new();
        let mut block = Block::default();
        for command in batch.drain(..) {
            match command {
                Command::Broadcast { message } => {
                    self.add_to_block(&mut block, Audience::Everyone, message, None, now);
                }
                Command::Channel { channel, message, except } => {
                    self.add_to_block(&mut block, Audience::Channel(channel), message, except, now);
                }
                other => {
                    // Order: the block came before this command.
                    self.send_block(&mut block, now);
                    self.execute_one(other, gather, &mut touched, now);
                }
            }
        }
        self.send_block(&mut block, now);
        for session in touched {
            session.flush(now);
        }
    }

    fn execute_one(&self, command: Command, gather: bool, touched: &mut Vec<Rc<Session>>, now: u32) {
        match command {
            Command::Deliver { counters, message, tally } => {
                // The last session gets the tally itself: for a single session there is a single copy.
                let mut sessions = self.open_sessions(&counters).peekable();
                let mut handed = 0;
                let traced_us = self.router.trace().is_on().then(unix_us);
                while let Some(session) = sessions.next() {
                    handed += 1;
                    if sessions.peek().is_none() {
                        session.deliver(&message, tally, gather, now);
                        touched.extend(gather.then_some(session));
                        break;
                    }
                    session.deliver(&message, tally.clone(), gather, now);
                    touched.extend(gather.then_some(session));
                }
                self.settings.metrics.handed(handed);
                self.trace_written(traced_us, message.message(), handed, &counters);
            }
            Command::Broadcast { .. } | Command::Channel { .. } => {}
            Command::Gap { reason } => {
                for (_, session) in self.sessions.borrow().iter().filter(|(_, session)| session.is_open()) {
                    session.tell_gap(reason, now);
                }
            }
            Command::Close { counters, code, tally } => {
                for session in self.open_sessions(&counters) {
                    session.close(code, 0, now);
                    tally.clone().count();
                }
            }
            Command::CloseRevoked { tally } => self.close_revoked(&tally, now),
            Command::Subscribe { counters, channel, tally } => {
                for session in self.open_sessions(&counters) {
                    self.put_by_server(&session, &channel, tally.clone());
                }
            }
            Command::Unsubscribe { counters, channel, tally } => {
                for session in self.open_sessions(&counters) {
                    self.take_out_by_server(&session, &channel, tally.clone());
                }
            }
            Command::Roster { channel, update, answers } => self.on_roster(&channel, &update, &answers),
            Command::Drain { spread_ms } => {
                let counters = self.sessions.borrow().iter().map(|(_, session)| session.counter).collect();
                *self.drain.borrow_mut() = Some(Drain::new(counters, spread_ms, now));
            }
        }
    }

    /// For operators, if one looks. `at_us`: when writing began; `counters`: the sessions, if they are few.
    fn trace_written(&self, at_us: Option<u64>, message: &Message, sessions: usize, counters: &[u64]) {
        let Some(at_us) = at_us.filter(|_| sessions > 0) else { return };
        let written = Step::Written {
            sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
            session: match counters {
                [counter] => Some(self.router.session_id(*counter).to_string()),
                _ => None,
            },
        };
        self.router.trace().note_at(at_us, &message.id, written);
    }

    fn close_revoked(&self, tally: &Tally, now: u32) {
        let revocations = self.settings.verifier.revocations();
        let sessions: Vec<_> = self.sessions.borrow().iter().map(|(_, session)| session.clone()).collect();
        for session in sessions.iter().filter(|session| session.is_open()) {
            if session.identity().is_some_and(|identity| revocations.covers(&identity)) {
                session.close(CloseCode::Unauthorized, 0, now);
                tally.clone().count();
            }
        }
    }

    fn open_sessions<'a>(&'a self, counters: &'a Counters) -> impl Iterator<Item = Rc<Session>> + 'a {
        let found = counters.iter().filter_map(|counter| self.find(*counter));
        found.filter(|session| session.is_open())
    }

    fn add_to_block(
        &self,
        block: &mut Block,
        audience: Audience,
        message: Arc<Rendered>,
        except: Option<u64>,
        now: u32,
    ) {
        let bytes = message.message().bytes();
        let is_another = block.audience != audience || block.except != except;
        if is_another || block.bytes + bytes > BLOCK_BYTES_MAX {
            self.send_block(block, now);
            (block.audience, block.except) = (audience, except);
        }
        block.bytes += bytes;
        block.messages.push(message);
    }

    /// Writes the block and leaves an empty one for the same audience.
    fn send_block(&self, block: &mut Block, now: u32) {
        let messages = std::mem::take(&mut block.messages);
        block.bytes = 0;
        if messages.is_empty() {
            return;
        }
        let pieces = Pieces::default();
        let traced_us = self.router.trace().is_on().then(unix_us);
        let mut handed = 0;
        let send = |session: &Rc<Session>| handed += pieces.send(session, &messages, &block.audience, now);
        match &block.audience {
            Audience::Everyone => {
                let sessions = self.sessions.borrow();
                sessions
                    .iter()
                    .map(|(_, session)| session)
                    .filter(|session| session.is_open())
                    .for_each(send);
            }
            Audience::Channel(channel) => {
                let subscriptions = self.subscriptions.borrow();
                let others =
                    subscriptions.of(channel).filter(|session| Some(session.counter) != block.except);
                others.for_each(send);
            }
        }
        self.settings.metrics.handed(handed);
        if traced_us.is_some() {
            let sessions = handed / messages.len();
            for message in &messages {
                self.trace_written(traced_us, message.message(), sessions, &[]);
            }
        }
    }
}
