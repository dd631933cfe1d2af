//! The output of the decoder: a complete message or control frame, or why the socket must be failed.

use crate::protocol::close::CloseCode;

/// One complete message or control frame of the client. The payload lives only during the call that hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    /// To be answered with a pong of the same payload (RFC 6455 section 5.5.3).
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The client's close frame with its code and reason, if it gave any. Always the last event of a socket.
    Close(Option<(u16, &'a str)>),
}

/// Why the socket must be failed (RFC 6455 section 7.1.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The text names the broken rule; it is fit for a log line.
    #[error("{0}")]
    Protocol(&'static str),
    #[error("text that is not UTF-8")]
    Utf8,
    #[error("message longer than the limit, or in too many fragments")]
    TooBig,
}

impl Violation {
    /// The code of the close frame that answers the violation.
    pub fn close_code(self) -> CloseCode {
        match self {
            Violation::Protocol(_) => CloseCode::Protocol,
            Violation::Utf8 => CloseCode::InvalidUtf8,
            Violation::TooBig => CloseCode::TooBig,
        }
    }
}
