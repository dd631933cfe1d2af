//! Messages and answers to the client.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::interests::{AckMode, Subscription};
use super::Stomp;
use crate::error::{Code, Error};
use crate::hub::Tally;
use crate::ids::ChannelName;
use crate::protocol::close::CloseCode;
use crate::protocol::message::Rendered;
use crate::protocol::reply::{Reply, Settled};
use crate::protocol::stomp::destination::{ERRORS, GAPS};
use crate::protocol::stomp::render::{self, ack_line};
use crate::protocol::stomp::Version;
use crate::protocol::target::Target;
use crate::protocol::Framing;
use crate::session::state::Session;

/// The frames of some messages under one head: most sessions of a channel have the same.
#[derive(Default)]
pub(in crate::session) struct OneHead(RefCell<Option<(Framing, Box<str>, Bytes)>>);

impl OneHead {
    fn of(&self, framing: Framing, head: &str, messages: &[Arc<Rendered>]) -> Bytes {
        let mut last = self.0.borrow_mut();
        if let Some((of, known, piece)) = &*last {
            if *of == framing && **known == *head {
                return piece.clone();
            }
        }
        let piece = match messages {
            [message] => frame(framing, head, "", message),
            _ => {
                let mut piece = BytesMut::new();
                messages
                    .iter()
                    .for_each(|message| piece.extend_from_slice(&frame(framing, head, "", message)));
                piece.freeze()
            }
        };
        *last = Some((framing, head.into(), piece.clone()));
        piece
    }
}

fn frame(framing: Framing, head: &str, ack: &str, message: &Rendered) -> Bytes {
    let tail = message.stomp(framing);
    let head = [head.as_bytes(), ack.as_bytes()];
    match framing {
        Framing::WebSocket | Framing::Deflated => tail.frame(&head),
        Framing::SockJs => framing.text(&[head[0], head[1], &tail.bytes]),
    }
}

impl Stomp {
    /// A message for the session or its user.
    pub(in crate::session) fn deliver(
        &self,
        session: &Session,
        message: &Arc<Rendered>,
        tally: Tally,
        gather: bool,
        now: u32,
    ) {
        let is_for_user = matches!(message.message().target, Target::User(_));
        if is_for_user && !self.interests.borrow().takes_own() {
            // It was on its way when the last subscription ended: it is kept for the next.
            return;
        }
        let mut counted = false;
        for (frame, acknowledges) in self.frames_for(session, message) {
            let id = &message.message().id;
            match acknowledges {
                // It counts when it is acknowledged.
                true => session.deliver_frame(&frame, id, tally.clone(), gather, now),
                false => session.push(&frame, Some(tally.clone()).filter(|_| !counted), now),
            }
            counted = true;
        }
        match counted {
            false => self.hold_or_decline(message, tally),
            true if !gather => session.flush(now),
            true => {}
        }
    }

    /// The frame of each subscription that takes the message, and whether it must be acknowledged: one at most is, since
    /// the message counts once.
    fn frames_for(&self, session: &Session, message: &Rendered) -> Vec<(Bytes, bool)> {
        let event = message.message().event.as_deref();
        let mut frames = Vec::with_capacity(1);
        let mut owed: Option<(u32, AckMode)> = None;
        {
            let interests = self.interests.borrow();
            let number = interests.next_number();
            let wanted = interests.of_own(event);
            // First the one that acknowledges: the message counts with the first.
            let (acked, others): (Vec<&Subscription>, Vec<&Subscription>) =
                wanted.into_iter().partition(|of| of.acknowledges());
            for (at, of) in acked.into_iter().chain(others).enumerate() {
                let is_owed = at == 0 && of.acknowledges();
                if is_owed {
                    owed = Some((of.number, of.ack));
                }
                let ack = match (self.version.get(), of.ack) {
                    (Version::V1_2, AckMode::Cumulative | AckMode::Individual) => {
                        ack_line(if is_owed { number } else { 0 })
                    }
                    _ => String::new(),
                };
                frames.push((frame(session.framing, &of.head, &ack, message), is_owed));
            }
        }
        if let Some((subscription, mode)) = owed {
            self.interests.borrow_mut().owe(subscription, mode, &message.message().id);
        }
        frames
    }

    /// Messages for a channel (`None`: for everybody), in their order. How many the session was handed.
    pub(in crate::session) fn show(
        &self,
        session: &Session,
        channel: Option<&ChannelName>,
        messages: &[Arc<Rendered>],
        pieces: &OneHead,
        now: u32,
    ) -> usize {
        let (mut shown, mut courtesies) = (0, 0);
        {
            let interests = self.interests.borrow();
            let mut show = |of: &Subscription| {
                session.send(&pieces.of(session.framing, &of.head, messages), None, now);
                shown = messages.len();
                courtesies += if of.ack == AckMode::Auto { 0 } else { messages.len() };
            };
            match channel {
                Some(channel) => interests.of_channel(channel).for_each(&mut show),
                None => interests.of_broadcast().for_each(&mut show),
            }
        }
        self.interests.borrow_mut().expect_courtesies(courtesies);
        shown
    }

    // ---- answers ----

    /// The answer to a frame: a RECEIPT if the client wants one.
    pub(in crate::session) fn reply(
        &self,
        session: &Session,
        receipt: Option<&str>,
        reply: &Reply,
        now: u32,
    ) {
        match reply {
            Reply::Ok | Reply::Subscribed { .. } => self.receipt(session, receipt, None, now),
            Reply::Settled(settled) => match settled.error {
                None => self.receipt(session, receipt, Some(settled), now),
                Some(error) => self.not_taken(session, error, receipt, settled, now),
            },
            Reply::Error(error) => self.refuse(session, error, receipt, now),
            // Nobody asks in STOMP.
            Reply::Presence(_) => {}
        }
        self.leave_if_settled(session, now);
    }

    fn receipt(&self, session: &Session, receipt: Option<&str>, settled: Option<&Settled>, now: u32) {
        if let Some(receipt) = receipt {
            let frame = session.framing.text(&[&render::receipt(receipt, settled)]);
            session.push(&frame, None, now);
        }
    }

    /// A message of the client was accepted, and not taken in the end. One that wants no receipt wants no answer.
    fn not_taken(
        &self,
        session: &Session,
        error: &Error,
        receipt: Option<&str>,
        settled: &Settled,
        now: u32,
    ) {
        let is_told =
            self.tell_own(session, ERRORS, &render::error_notice(error, receipt, Some(settled)), now);
        if receipt.is_some() && !is_told {
            session.close_saying(Some(&render::error(error, receipt)), close_code(error.code), now);
        }
    }

    /// A frame of the client cannot be carried out. One that subscribes to its errors is told there and goes on, any other
    /// gets an ERROR, with which a connection ends (STOMP 1.2, "ERROR").
    pub(super) fn refuse(&self, session: &Session, error: &Error, receipt: Option<&str>, now: u32) {
        if !self.tell_own(session, ERRORS, &render::error_notice(error, receipt, None), now) {
            session.close_saying(Some(&render::error(error, receipt)), close_code(error.code), now);
        }
        session.flush(now);
    }

    pub(in crate::session) fn tell_gap(&self, session: &Session, reason: &str, now: u32) {
        self.tell_own(session, GAPS, &render::gap_notice(reason), now);
        session.flush(now);
    }

    /// The gateway took the session out of a channel: a client that cannot be told must not believe that it is in it.
    pub(in crate::session) fn tell_unsubscribed(
        &self,
        session: &Session,
        channel: &ChannelName,
        reason: &str,
        now: u32,
    ) {
        let gone = self.interests.borrow_mut().remove_channel(channel);
        for of in gone {
            let id = of.id.as_deref().unwrap_or_default();
            let notice = render::unsubscribed_notice(id, &of.destination, reason);
            if !self.tell_own(session, ERRORS, &notice, now) {
                let error =
                    Error::new(Code::Forbidden, format!("the subscription to a channel has ended: {reason}"));
                session.close_saying(Some(&render::error(&error, None)), CloseCode::Forbidden, now);
            }
        }
        session.flush(now);
    }

    /// A MESSAGE of the gateway itself to those who subscribe to this path of their user. Whether there was one.
    fn tell_own(&self, session: &Session, path: &str, notice: &[u8], now: u32) -> bool {
        let interests = self.interests.borrow();
        let mut told = false;
        for of in interests.named(path) {
            session.push(&session.framing.text(&[of.head.as_bytes(), notice]), None, now);
            told = true;
        }
        told
    }
}

/// With which code a socket is closed after an ERROR.
fn close_code(code: Code) -> CloseCode {
    match code {
        Code::Unauthorized => CloseCode::Unauthorized,
        Code::Forbidden => CloseCode::Forbidden,
        Code::RateLimited => CloseCode::RateLimited,
        code if code.retry() => CloseCode::OverCapacity,
        _ => CloseCode::BadRequest,
    }
}
