//! What tests beside the code share.

pub mod fuzz;
