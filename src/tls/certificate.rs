//! A certificate with its key, from PEM.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::provider;

/// A chain, the holder's own certificate first, and the key that belongs to it.
#[derive(Clone)]
pub struct Certificate {
    certified: Arc<CertifiedKey>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Certificate {
    /// The error is a sentence that holds no part of the key.
    pub fn parse(chain: &str, key: &str) -> Result<Self, String> {
        let chain = authorities(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| "the key file has no private key in PEM (one with a passphrase is not read)")?;
        let certified = CertifiedKey::from_der(chain, key.clone_key(), &provider());
        let certified = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => "the key does not belong to the certificate".to_owned(),
            error => format!("the certificate and its key cannot be used: {error}"),
        })?;
        Ok(Self { certified: Arc::new(certified), key: Arc::new(key) })
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.certified.cert.clone()
    }

    /// For the one place that needs it: a connection to a broker.
    pub fn expose_key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All certificates of a PEM file.
pub(super) fn authorities(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|_| "the PEM of the certificates is broken")?;
    match found.is_empty() {
        true => Err("there is no certificate in PEM".into()),
        false => Ok(found),
    }
}
