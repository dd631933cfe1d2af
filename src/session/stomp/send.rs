//! SEND: a message for a channel, a user, a session or everybody.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::clock::Now;
use crate::error::Error;
use crate::protocol::message::{Form, Guarantee, Payload};
use crate::protocol::publish::Draft;
use crate::protocol::stomp::destination::publication;
use crate::protocol::stomp::frame::Frame;
use crate::router::hooks::Way;
use crate::session::requests;
use crate::session::state::Session;
use crate::session::worker::WorkerState;

impl WorkerState {
    pub(super) fn on_send(self: &Rc<Self>, session: &Rc<Session>, frame: &Frame<'_>) -> Result<(), Error> {
        let draft = draft(frame)?;
        let receipt = frame.raw("receipt");
        requests::accept(self, session, receipt, Way::Usual, |sender| draft.into_message(sender, Now::read()))
    }
}

fn draft<'a>(frame: &Frame<'a>) -> Result<Draft<'a>, Error> {
    let destination =
        frame.header("destination").ok_or_else(|| Error::bad_request("destination is missing"))?;
    let (target, event) = publication(&destination).map_err(Error::bad_request)?;
    if frame.raw("reply-to").is_some() {
        return Err(Error::bad_request(
            "reply-to is not supported; answers can be sent to /session/<id>/<path>",
        ));
    }
    if frame.raw("message-id").is_some() {
        return Err(Error::bad_request("message-id is the server's; name the message in amqp-message-id"));
    }
    let ttl = frame.header("expiration").map(|ms| ms.trim().parse().map_err(|_| expiration())).transpose()?;
    let delivery = match frame.header("persistent").as_deref() {
        Some("false") => Guarantee::AtMostOnce,
        _ => Guarantee::AtLeastOnce,
    };
    Ok(Draft {
        target,
        payload: payload(frame.header("content-type").as_deref(), frame.body)?,
        event: event.map(Cow::Owned).or_else(|| frame.header("type")),
        ttl,
        delivery,
        message_id: frame.header("amqp-message-id").or_else(|| frame.header("x-message-id")),
        reply: false,
    })
}

fn expiration() -> Error {
    Error::bad_request("expiration is a number of milliseconds")
}

/// What the body is. Pages that send JSON seldom say so.
fn payload(content_type: Option<&str>, body: &[u8]) -> Result<Payload, Error> {
    let bytes = Bytes::copy_from_slice(body);
    let is_json = || serde_json::from_slice::<IgnoredAny>(body).is_ok();
    let is_text = || std::str::from_utf8(body).is_ok();
    let media_type =
        content_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let form = match media_type.as_deref() {
        Some(of) if of.ends_with("/json") || of.ends_with("+json") => match is_json() {
            true => Form::Json,
            false => return Err(Error::bad_request("the body is not the JSON that content-type says it is")),
        },
        Some(of) if of.starts_with("text/") => match is_text() {
            true => Form::Text,
            false => {
                return Err(Error::bad_request("the body is not the UTF-8 text that content-type says it is"))
            }
        },
        Some(_) => Form::Binary,
        None if is_json() => Form::Json,
        None if is_text() => Form::Text,
        None => Form::Binary,
    };
    Ok(Payload { form, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_what_it_says_or_what_it_looks_like() {
        for (content_type, body, form) in [
            (None, &b"{\"a\":1}"[..], Form::Json),
            (None, b"42", Form::Json),
            (None, b"hello", Form::Text),
            (None, b"", Form::Text),
            (None, b"\xff", Form::Binary),
            (Some("text/plain;charset=UTF-8"), b"42", Form::Text),
            (Some("application/json"), b"42", Form::Json),
            (Some("Application/Problem+JSON; x=y"), b"{}", Form::Json),
            (Some("application/octet-stream"), b"42", Form::Binary),
            (Some("image/png"), b"\xff", Form::Binary),
        ] {
            assert_eq!(
                payload(content_type, body).map(|payload| payload.form),
                Ok(form),
                "{content_type:?} {body:?}"
            );
        }
        assert!(payload(Some("application/json"), b"{").is_err());
        assert!(payload(Some("text/plain"), b"\xff").is_err());
    }
}
