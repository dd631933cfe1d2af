//! RFC 6455, mostly for the server side: the handshake, frames in (decoder) and frames out (encode); and RFC 7692, where it
//! is negotiated. Pure code, no I/O.
//!
//! In reading order: `handshake` decides on the upgrade request and `extensions` on compression, `header` reads the first
//! bytes of a frame, `utf8` says how much of a text is valid so far, `decoder` turns bytes into `event`s, with `inflate`
//! for compressed messages, `encode` makes frames, and `deflate` their compressed twins. `client_side` is the other end, for
//! clients that speak another transport.

pub mod client_side;
pub mod decoder;
pub mod deflate;
pub mod encode;
pub mod event;
pub mod extensions;
pub mod handshake;
mod header;
mod inflate;
mod utf8;

pub use decoder::{Decoder, FRAGMENTS_MAX, MESSAGE_BYTES_MAX};
pub use deflate::{deflated_frame, deflated_tail, headed_frame};
pub use encode::{close_frame, message_frame, ping_frame, pong_frame, text_frame};
pub use event::{Event, Violation};
