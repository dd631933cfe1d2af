//! What several tests share.

pub mod raw_ws;
