//! RFC 6455 framing: what the server writes, what it accepts, and how a violation is answered.
