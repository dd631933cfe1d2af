//! One socket's life: welcome, requests, limits, credentials, and how it is closed.

use std::time::Duration;

use warren::auth::mint;
use warren::ids::UserId;

use crate::support::nodes::{config, CHECKED};

/// A token that nodes with [`CHECKED`] take, for so many seconds.
pub fn token(user: &str, ttl_s: u64, caps: &[&str]) -> String {
    let caps: Vec<String> = caps.iter().map(|cap| (*cap).to_owned()).collect();
    let user = UserId::new(user).unwrap();
    mint(&user, Duration::from_secs(ttl_s), &caps, &config("mint", CHECKED)).unwrap()
}
