//! What one stranger may use up: tokens over time, and how many things at once.
//!
//! - `bucket.rs`: a token bucket of eight bytes (pure).
//! - `rates.rs`: a bucket for each user or address, in a table with a bound.
//! - `shares.rs`: how many things each address holds.

mod bucket;
mod rates;
mod shares;

pub use bucket::{Bucket, Pace};
pub use rates::Rates;
pub use shares::{Share, Shares};
