//! RFC 6455, mostly for the server side: the handshake, frames in (decoder) and frames out (encode). Pure code, no I/O.
//!
//! In reading order: `handshake` decides on the upgrade request, `header` reads the first bytes of a frame,
//! `utf8` says how much of a text is valid so far, `decoder` turns bytes into `event`s, `encode` makes frames. `client_side` is the other
//! end, for clients that speak another transport.

pub mod client_side;
pub mod decoder;
pub mod encode;
pub mod event;
pub mod handshake;
mod header;
mod utf8;

pub use decoder::{Decoder, FRAGMENTS_MAX, MESSAGE_BYTES_MAX};
pub use encode::{close_frame, message_frame, ping_frame, pong_frame, text_frame};
pub use event::{Event, Violation};
