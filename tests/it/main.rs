//! Tests that need neither a broker nor the network.

// Clippy knows tests by their attribute, and not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod deploy;
