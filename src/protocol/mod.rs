//! What is said on the wires: warren.v1 frames, RFC 6455 framing, node-to-node envelopes. Pure code, no I/O.

pub mod client;
pub mod close;
pub mod envelope;
pub mod message;
pub mod server;
pub mod target;
pub mod wire;
