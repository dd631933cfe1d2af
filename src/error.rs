//! What can go wrong with a publish or a request, as the sender is told it.

use serde::{Deserialize, Serialize};

/// The closed list of error codes that clients, backends and the HTTP API see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request cannot be understood or breaks a limit.
    BadRequest,
    /// No valid credentials.
    Unauthorized,
    /// Valid credentials that do not allow this.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The user or session that the message is for is not connected anywhere.
    Offline,
    /// Sessions that the message is for are connected, and all of them declined it: no subscription of a STOMP session
    /// asks for it, or its client answered NACK.
    Declined,
    /// The message's time to live ran out before it could be delivered.
    Expired,
    /// The user's mailbox holds as much as it may.
    MailboxFull,
    /// More than this sender may send; slow down.
    RateLimited,
    /// The node has as much in flight as it may; try again.
    Overloaded,
    /// No backend listens for this key; nothing was sent.
    NoBackend,
    /// A request went out, and no answer came: it may or may not have been carried out.
    NoAnswer,
    /// The backend's answer cannot be read, or is too long; the request was probably carried out.
    BadAnswer,
    /// The broker cannot be reached or did not confirm in time; the message may or may not have arrived.
    Unavailable,
}

impl Code {
    /// Whether the same request may succeed later without being changed.
    pub fn retry(self) -> bool {
        matches!(self, Code::RateLimited | Code::Overloaded | Code::NoAnswer | Code::Unavailable)
    }

    /// The HTTP status of an answer that fails with this code.
    pub fn http_status(self) -> u16 {
        match self {
            Code::BadRequest => 400,
            Code::Unauthorized => 401,
            Code::Forbidden => 403,
            Code::NotFound | Code::Offline | Code::NoBackend => 404,
            Code::Expired => 410,
            Code::MailboxFull | Code::Declined => 409,
            Code::RateLimited => 429,
            Code::BadAnswer => 502,
            Code::Overloaded | Code::Unavailable => 503,
            Code::NoAnswer => 504,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadRequest => "bad_request",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::NotFound => "not_found",
            Code::Offline => "offline",
            Code::Declined => "declined",
            Code::Expired => "expired",
            Code::MailboxFull => "mailbox_full",
            Code::RateLimited => "rate_limited",
            Code::Overloaded => "overloaded",
            Code::NoBackend => "no_backend",
            Code::NoAnswer => "no_answer",
            Code::BadAnswer => "bad_answer",
            Code::Unavailable => "unavailable",
        }
    }
}

/// A code with a sentence for the person who reads the log of the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Error {
    pub code: Code,
    pub message: String,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, message)
    }
}

/// `{"code", "message", "retry"}`: the one shape of an error, in frames and in HTTP bodies.
impl Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut object = to.serialize_struct("Error", 3)?;
        object.serialize_field("code", &self.code)?;
        object.serialize_field("message", &self.message)?;
        object.serialize_field("retry", &self.code.retry())?;
        object.end()
    }
}
