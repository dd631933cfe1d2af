//! The close codes: each with its reason, and whether a client should come back.

/// Whether a client should come back after the socket was closed with a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// The same attempt would fail again.
    Never,
    /// Come back, but wait first.
    BackOff,
    /// Come back after the time that the `disconnect` frame names.
    Planned,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $reason:literal, $reconnect:ident;)*) => {
        /// Why the gateway closes a socket (RFC 6455 section 7.4 for codes below 4000; ours from 4000).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CloseCode { $($(#[$doc])* $name,)* }

        impl CloseCode {
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$name,)*];

            pub fn code(self) -> u16 {
                match self { $(CloseCode::$name => $code,)* }
            }

            /// Sent in the close frame; short enough for a control frame (at most 123 bytes).
            pub fn reason(self) -> &'static str {
                match self { $(CloseCode::$name => $reason,)* }
            }

            pub fn reconnect(self) -> Reconnect {
                match self { $(CloseCode::$name => Reconnect::$reconnect,)* }
            }
        }
    };
}

codes! {
    /// The answer to a client that closes.
    Normal = 1000, "bye", BackOff;
    GoingAway = 1001, "going away", BackOff;
    /// The client broke RFC 6455.
    Protocol = 1002, "protocol error", Never;
    /// A text frame that is not UTF-8.
    InvalidUtf8 = 1007, "invalid utf-8", Never;
    /// A message longer than the limit that `welcome` names.
    TooBig = 1009, "message too big", Never;
    /// A frame that is not warren.v1.
    BadRequest = 4000, "bad request", Never;
    Unauthorized = 4001, "unauthorized", Never;
    /// The origin or the target is not allowed.
    Forbidden = 4003, "forbidden", Never;
    /// Disconnected through the API.
    Kicked = 4005, "disconnected by an operator", Never;
    OverCapacity = 4100, "over capacity", BackOff;
    RateLimited = 4101, "rate limit", BackOff;
    /// The client reads more slowly than messages for it arrive.
    SlowConsumer = 4102, "slow consumer", BackOff;
    /// A session that promised acks did not send them.
    NoAcks = 4103, "messages not acknowledged", BackOff;
    PingTimeout = 4104, "no answer to ping", BackOff;
    TokenExpired = 4105, "token expired", BackOff;
    /// The node shuts down.
    Drain = 4200, "node drains", Planned;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_fit_a_control_frame_and_codes_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for close in CloseCode::ALL {
            assert!(close.reason().len() <= 123);
            assert!(seen.insert(close.code()));
        }
    }
}
