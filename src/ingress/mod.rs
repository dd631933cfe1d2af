//! What arrives by AMQP: from other nodes, and from backends.
//!
//! - [`peers`]: the node queue and the control queue.
//! - [`backends`]: the ingress queue; `read.rs` turns a delivery into a message, `settled.rs` answers for it.
//! - `dead_letter.rs`: what cannot be delivered to anybody.

pub mod backends;
mod dead_letter;
pub mod peers;
mod read;
mod settled;
