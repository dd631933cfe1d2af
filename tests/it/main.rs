//! Whole nodes in this process over the in-memory bus, and checks of what is shipped beside the code.

#[path = "../support/mod.rs"]
mod support;

mod deploy;
mod rfc6455;
mod wire_differential;
