//! Reads the keys of tokens, of the API and of TLS again: on SIGHUP, and when a file that they came from has changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use crate::auth::Verifier;
use crate::config::Config;
use crate::tls::Acceptor;

/// How often the files are looked at. Whoever mounts secrets as files replaces them, and often cannot send a signal.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The keys of a running node.
#[derive(Clone)]
pub struct KeyReload {
    verifier: Arc<Verifier>,
    /// Of a listener with TLS.
    acceptor: Option<Acceptor>,
    files: Vec<PathBuf>,
    /// Has the keys that are published asked for.
    published: Arc<Notify>,
}

impl KeyReload {
    pub(super) fn new(verifier: Arc<Verifier>, acceptor: Option<Acceptor>, config: &Config) -> Self {
        Self { verifier, acceptor, files: config.key_files.clone(), published: Arc::default() }
    }

    /// Reads all of the configuration again, and takes the keys from it. A mistake leaves everything as it is.
    pub fn now(&self) {
        self.published.notify_one();
        let replaced = Config::from_env().map_err(|mistakes| mistakes.to_string()).and_then(|config| {
            self.verifier.replace_keys(&config).map_err(|error| error.to_string())?;
            if let (Some(acceptor), Some(certificate)) = (&self.acceptor, &config.tls) {
                acceptor.replace(certificate);
            }
            Ok(config.api_keys.len())
        });
        match replaced {
            Ok(api_keys) => tracing::info!(files = self.files.len(), api_keys, "the keys were read again"),
            Err(mistakes) => {
                tracing::error!(%mistakes, "the keys were NOT read again: the former ones stay in use");
            }
        }
    }

    /// Wakes the task that follows the published keys, when an operator has all keys read again.
    pub(super) fn published(&self) -> Arc<Notify> {
        self.published.clone()
    }

    /// Follows the files. A file that is only half written is read again when the rest is there.
    pub(super) async fn follow(self) {
        let mut before = self.stamps();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stamps = self.stamps();
            if stamps != before {
                before = stamps;
                self.now();
            }
        }
    }

    /// What changes when a file does; `None` for one that is not there.
    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let stamp = |file: &PathBuf| {
            let found = std::fs::metadata(file).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        self.files.iter().map(stamp).collect()
    }
}
