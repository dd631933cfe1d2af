//! The certificate that a listener shows, which may be replaced while it serves.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, ServerConfig, ServerConnection};

use super::{provider, Certificate};

/// Begins TLS on the connections of a listener.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
}

/// Read for each handshake, locked for moments.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Acceptor {
    pub fn new(certificate: &Certificate) -> Result<Self, Error> {
        let current = Arc::new(Current(RwLock::new(certificate.certified())));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        // A client that offers protocols, and not this one, is refused (RFC 7301 section 3.2).
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Who comes back is resumed by what the client keeps, so that a node keeps nothing. Its keys last for hours.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new()?;
        config.send_tls13_tickets = 1;
        Ok(Self { config: Arc::new(config), current })
    }

    /// What further handshakes show. Sessions go on.
    pub fn replace(&self, certificate: &Certificate) {
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = certificate.certified();
    }

    pub(super) fn accept(&self) -> Result<ServerConnection, Error> {
        ServerConnection::new(self.config.clone())
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}
