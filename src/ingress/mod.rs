//! What arrives by AMQP: from other nodes, and from backends.
//!
//! - [`peers`]: the node queue and the control queue.
//! - [`backends`]: the ingress queue; `read.rs` turns a delivery into a message, `settled.rs` answers for it.
//! - [`partitions`]: tells the bus which nodes share ingress.
//! - [`replies`]: what backends answer to requests of clients.
//! - `amqp10.rs`: bodies in the types of AMQP 1.0.
//! - `dead_letter.rs`: what cannot be delivered to anybody.

mod amqp10;
pub mod backends;
mod dead_letter;
pub mod partitions;
pub mod peers;
mod read;
pub mod replies;
mod settled;
