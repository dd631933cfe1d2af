//! What several tests share.

pub mod api;
pub mod eventually;
pub mod nodes;
pub mod process;
pub mod raw_ws;
pub mod stomp;
pub mod tls;
pub mod user;
