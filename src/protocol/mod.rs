//! What is said on the wires: warren.v1 frames and RFC 6455 framing. Pure code, no I/O.

pub mod client;
pub mod close;
pub mod message;
pub mod server;
pub mod target;
pub mod wire;
