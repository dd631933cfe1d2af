//! TLS 1.2 and 1.3 (RFC 5246, RFC 8446): certificates, the public listener's side, and what a broker is told and asked for.
//!
//! - `certificate.rs`: a certificate with its key, from PEM.
//! - `acceptor.rs`: the certificate that a listener shows now.
//! - `transport.rs`: a client's socket, with TLS or without; `stream.rs`: TLS on one socket.
//! - `outbound.rs`: a connection to a server that the node asks.
//! - `broker.rs`: the authorities that brokers are checked by, and the node's own certificate for them.

mod acceptor;
mod broker;
mod certificate;
mod outbound;
mod stream;
mod transport;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{aws_lc_rs, CryptoProvider};

pub use acceptor::Acceptor;
pub use broker::{BrokerCredentials, BrokerTls};
pub use certificate::Certificate;
pub use outbound::{checking_by, Connector};
pub use rustls::Error as TlsError;
pub use transport::Transport;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// The one that tokens are checked with as well.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}
