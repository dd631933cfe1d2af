//! RFC 6455 for the server side: the handshake, frames in (decoder) and frames out (encode). Pure code, no I/O.

pub mod handshake;
