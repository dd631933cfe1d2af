//! The faults: each is done to a running world once, and healed.

pub mod broker;
pub mod calm;
pub mod cluster;
pub mod link;
pub mod mail;
pub mod nodes;
pub mod operator;
pub mod pairs;
pub mod people;
pub mod poison;
