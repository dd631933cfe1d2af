//! Delivery: what makes a message arrive although the queues between nodes are not durable.
//!
//! - [`application`]: a message as backends get it.
//! - [`envelope`]: a message as it travels between nodes and lies in boxes.
//! - [`old_mail`]: mail as version 1 stored it (pure).
//! - [`peer_words`]: receipts, questions and notices between nodes.
//! - [`receipt_sender`]: a target node's receipts, batched per origin.
//! - [`report`]: what a node tells operators about itself.
//! - [`seen`]: the ids a node has delivered lately, so that a repeat is not shown twice (pure).
//! - [`trace`]: what became of the latest messages here, for operators.

pub mod application;
pub mod envelope;
pub mod old_mail;
pub mod peer_words;
pub mod receipt_sender;
pub mod report;
pub mod seen;
pub mod trace;
