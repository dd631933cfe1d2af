//! SUBSCRIBE, UNSUBSCRIBE, ACK and NACK.

use std::rc::Rc;

use percent_encoding::percent_decode_str;

use super::frames::NAME_BYTES_MAX;
use super::interests::{AckMode, Named};
use super::Stomp;
use crate::error::Error;
use crate::ids::MessageId;
use crate::protocol::stomp::destination::Interest;
use crate::protocol::stomp::frame::{Command, Frame};
use crate::protocol::stomp::Version;
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Headers of brokers that ask for a queue of the subscription's own. To ignore them would promise what is not kept.
const QUEUE_HEADERS: [&str; 5] =
    ["x-queue-name", "x-queue-type", "x-stream-offset", "x-expires", "x-message-ttl"];

impl WorkerState {
    /// Whether the receipt comes later.
    pub(super) fn on_subscribe(
        self: &Rc<Self>,
        session: &Rc<Session>,
        stomp: &Stomp,
        frame: &Frame<'_>,
    ) -> Result<bool, Error> {
        let (version, id) = (stomp.version.get(), frame.raw("id"));
        if id.is_none() && version > Version::V1_0 {
            return Err(Error::bad_request("id is missing"));
        }
        if id.is_some_and(|id| id.len() > NAME_BYTES_MAX) {
            return Err(Error::bad_request(format!("id is longer than {NAME_BYTES_MAX} bytes")));
        }
        let missing = || Error::bad_request("destination is missing");
        let (raw, destination) =
            frame.raw("destination").zip(frame.header("destination")).ok_or_else(missing)?;
        check_unsupported(frame)?;
        let ack = AckMode::parse(frame.raw("ack"))
            .ok_or_else(|| Error::bad_request("ack is auto, client or client-individual"))?;
        let interest = Interest::parse(&destination).map_err(Error::bad_request)?;
        let max = self.settings.channels_max;
        let channel = match &interest {
            Interest::Channel(channel) => Some(channel.clone()),
            _ => None,
        };
        {
            let mut interests = stomp.interests.borrow_mut();
            if interests.has(id, raw) {
                return Err(Error::bad_request("there is a subscription with this id already"));
            }
            if interests.len() >= max {
                return Err(Error::bad_request(format!("at most {max} subscriptions of one session")));
            }
            // First here: a message that comes at once must find it.
            if interests.add(version, id, raw, interest, ack).acknowledges() {
                session.acknowledges_from_now_on();
            }
        }
        let Some(channel) = channel else {
            self.follow_interests(session, stomp);
            stomp.hand_out_held(session, self.now());
            return Ok(false);
        };
        let (own_id, own_raw) = (id.map(str::to_owned), raw.to_owned());
        let undo = move |session: &Session| {
            if let Some(stomp) = session.stomp() {
                stomp.interests.borrow_mut().remove(own_id.as_deref(), Some(&own_raw));
            }
        };
        let subscribed = self.subscribe(session, frame.raw("receipt"), &channel, None, undo);
        if subscribed.is_err() {
            stomp.interests.borrow_mut().remove(id, Some(raw));
        }
        subscribed.map(|()| true)
    }

    /// A subscription that is not there is none already.
    pub(super) fn on_unsubscribe_frame(
        &self,
        session: &Rc<Session>,
        stomp: &Stomp,
        frame: &Frame<'_>,
    ) -> Result<(), Error> {
        let (id, destination) = (frame.raw("id"), frame.raw("destination"));
        if id.is_none() && (destination.is_none() || stomp.version.get() > Version::V1_0) {
            return Err(Error::bad_request("id is missing"));
        }
        let Some(gone) = stomp.interests.borrow_mut().remove(id, destination) else { return Ok(()) };
        if let Interest::Channel(channel) = &gone.interest {
            let is_last = stomp.interests.borrow().of_channel(channel).next().is_none();
            if is_last {
                self.unsubscribe(session, channel);
            }
        }
        if gone.acknowledges() {
            // What it had and what waits is for whoever comes next.
            let owed = stomp.interests.borrow_mut().settle_all_of(gone.number);
            session.give_back(owed.iter().map(MessageId::as_str));
        }
        self.follow_interests(session, stomp);
        Ok(())
    }

    fn follow_interests(&self, session: &Session, stomp: &Stomp) {
        let takes_own = stomp.interests.borrow().takes_own();
        self.set_reachable(session, stomp, takes_own);
    }

    /// Carries out an ACK or NACK. Whether it was to be expected.
    pub(super) fn acknowledge(
        &self,
        session: &Session,
        stomp: &Stomp,
        command: Command,
        named: Named<'_>,
    ) -> bool {
        let ids = stomp.interests.borrow_mut().settle(named);
        if ids.is_empty() {
            return stomp.interests.borrow_mut().is_courtesy();
        }
        let ids = ids.iter().map(MessageId::as_str);
        match command {
            Command::Nack => session.on_declined(ids, self.now()),
            _ => {
                session.on_acks(ids, self.now());
            }
        }
        true
    }
}

fn check_unsupported(frame: &Frame<'_>) -> Result<(), Error> {
    if frame.raw("selector").is_some_and(|selector| !selector.trim().is_empty()) {
        return Err(Error::bad_request("selectors are not supported"));
    }
    let wants_queue = ["durable", "persistent"].iter().any(|name| frame.raw(name) == Some("true"))
        || QUEUE_HEADERS.iter().any(|name| frame.raw(name).is_some());
    match wants_queue {
        true => Err(Error::bad_request(
            "durable subscriptions and queues are not supported; what is sent to a user waits while the user is away",
        )),
        false => Ok(()),
    }
}

/// Which message an ACK or NACK is for: 1.2 names the header `ack` of the MESSAGE, earlier versions its `message-id`.
pub(super) fn named<'a>(frame: &Frame<'a>) -> Result<Named<'a>, Error> {
    match (frame.raw("id"), frame.raw("message-id"), frame.version) {
        (Some(number), _, Some(Version::V1_2)) => number
            .parse()
            .map(Named::Number)
            .map_err(|_| Error::bad_request("id is not the header ack of a MESSAGE")),
        (_, Some(id), _) => {
            // As it was written into the MESSAGE.
            let id = percent_decode_str(id).decode_utf8_lossy();
            Ok(Named::Message { id, subscription: frame.raw("subscription") })
        }
        (_, None, Some(Version::V1_2)) => Err(Error::bad_request("id is missing")),
        (_, None, _) => Err(Error::bad_request("message-id is missing")),
    }
}
