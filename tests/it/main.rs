//! The tests that need no broker, in one binary: a binary per file would link the gateway once per file.

#[path = "../support/mod.rs"]
mod support;

mod rfc6455;
mod wire_differential;
