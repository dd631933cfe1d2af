//! Follows the JWK Set that an identity provider publishes.
//!
//! It is asked for at the start, at set times, and when an operator has the keys read again. What clients send never has
//! it asked for: a stranger could else have every node ask as often as the stranger likes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::auth::Verifier;
use crate::config::{self, KeySet};
use crate::http::fetch;
use crate::tls::Connector;

/// After a failure, and twice as long after each further one.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Keeps the verifier's keys as they are published. A set that cannot be had, or be used, leaves those of the former one.
pub(super) async fn follow(source: KeySet, verifier: Arc<Verifier>, again: Arc<Notify>) {
    let mut retry = RETRY_MIN;
    loop {
        let wait = match take(&source, &verifier).await {
            Ok(()) => {
                retry = RETRY_MIN;
                source.refresh
            }
            Err(mistake) => {
                let stays =
                    if verifier.has_keys() { "the former keys stay in use" } else { "no token is good yet" };
                tracing::error!(mistake, host = source.url.host(), "the JWK Set was NOT taken: {stays}");
                let wait = retry.min(source.refresh);
                retry = (retry * 2).min(RETRY_MAX);
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = again.notified() => {}
        }
    }
}

async fn take(source: &KeySet, verifier: &Verifier) -> Result<(), String> {
    let connector = match &source.connector {
        Some(private) => private.clone(),
        None => Connector::public().map_err(|error| error.to_string())?,
    };
    let bytes = fetch::get(&source.url, &connector).await.map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "this is not UTF-8")?;
    let (keys, passed_over) = config::parse_published(&text)?;
    let names: Vec<_> = keys.iter().map(|key| key.kid.clone()).collect();
    verifier.take_published(keys).map_err(|error| error.to_string())?;
    tracing::debug!(?names, passed_over, "the JWK Set was taken");
    Ok(())
}
