//! The node's side of TLS to a server that it asks something.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;

use super::certificate::authorities;
use super::{provider, TlsError};

/// TLS 1.2 and 1.3 with servers that these authorities, and no others, vouch for.
pub fn checking_by(
    authorities: impl Into<Arc<RootCertStore>>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let versions =
        ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12])?;
    Ok(versions.with_root_certificates(authorities))
}

/// Which servers a node believes, and how it shakes hands.
#[derive(Clone)]
pub struct Connector(Arc<ClientConfig>);

impl Connector {
    /// A server is checked by the authorities that the machine trusts.
    pub fn public() -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_platform_verifier()?
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// A server is checked by the authorities of this PEM, and by no others. The error is a sentence.
    pub fn private(pem: &str) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for authority in authorities(pem)? {
            roots.add(authority).map_err(|error| format!("an authority cannot be used: {error}"))?;
        }
        let config = checking_by(roots).map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(config.with_no_client_auth())))
    }

    /// Shakes hands with a server whose certificate must name this host.
    pub async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(self.0.clone()).connect(name, tcp).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}
