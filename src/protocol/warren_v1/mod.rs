//! The codec warren.v1: one JSON object in each text frame.
//!
//! - [`request`]: frames from clients.
//! - [`reply`]: frames to clients.

pub mod reply;
pub mod request;
