//! What a node needs to speak TLS to a broker of its own making: authorities that are not public, and a certificate.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;

use super::certificate::authorities;
use super::Certificate;

/// Files that are read for each connection, since certificates are replaced while nodes run.
#[derive(Debug, Clone, Default)]
pub struct BrokerTls(Arc<Files>);

#[derive(Debug, Default)]
struct Files {
    ca: Option<PathBuf>,
    /// The chain, and its key.
    certificate: Option<(PathBuf, PathBuf)>,
    /// Read last without a mistake.
    last: Mutex<BrokerCredentials>,
}

/// What a connection to a broker is made with.
#[derive(Debug, Clone, Default)]
pub struct BrokerCredentials {
    /// `None`: the authorities that the machine trusts.
    pub authorities: Option<Arc<RootCertStore>>,
    pub certificate: Option<Certificate>,
}

/// By the files that are named.
impl PartialEq for BrokerTls {
    fn eq(&self, other: &Self) -> bool {
        (&self.0.ca, &self.0.certificate) == (&other.0.ca, &other.0.certificate)
    }
}

impl Eq for BrokerTls {}

impl BrokerTls {
    /// Reads the files. The error is a sentence that names the file.
    pub fn read(ca: Option<PathBuf>, certificate: Option<(PathBuf, PathBuf)>) -> Result<Self, String> {
        let files = Files { ca, certificate, last: Mutex::default() };
        let read = files.read()?;
        *files.lock() = read;
        Ok(Self(Arc::new(files)))
    }

    pub fn has_certificate(&self) -> bool {
        self.0.certificate.is_some()
    }

    /// What the files hold now. A mistake in them leaves what they held before.
    pub fn current(&self) -> BrokerCredentials {
        match self.0.read() {
            Ok(read) => *self.0.lock() = read,
            Err(mistake) => {
                tracing::error!(
                    mistake,
                    "the certificates for the broker were NOT read again: the former ones stay in use"
                );
            }
        }
        self.0.lock().clone()
    }
}

impl Files {
    fn lock(&self) -> std::sync::MutexGuard<'_, BrokerCredentials> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<BrokerCredentials, String> {
        let text = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let authorities = match &self.ca {
            None => None,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let (added, _) = roots.add_parsable_certificates(authorities(&text(path)?)?);
                if added == 0 {
                    return Err(format!("{}: no certificate of it can be used", path.display()));
                }
                Some(Arc::new(roots))
            }
        };
        let certificate = match &self.certificate {
            None => None,
            Some((chain, key)) => Some(Certificate::parse(&text(chain)?, &text(key)?)?),
        };
        Ok(BrokerCredentials { authorities, certificate })
    }
}
