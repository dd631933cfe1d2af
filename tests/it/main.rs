//! Tests that need neither a broker nor the network.

mod deploy;
