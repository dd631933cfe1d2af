//! Certificates: of the public listener, and for the broker.

use std::path::PathBuf;

use super::reading::Reading;
use super::{AmqpUrl, Mechanism};
use crate::tls::{BrokerTls, Certificate};

pub(super) fn listener(from: &mut Reading) -> Option<Certificate> {
    pair(from, "TLS_CERT_FILE", "TLS_KEY_FILE")?;
    let (chain, key) = (from.file("TLS_CERT_FILE")?, from.file("TLS_KEY_FILE")?);
    match Certificate::parse(&chain, &key) {
        Ok(certificate) => Some(certificate),
        Err(why) => {
            from.mistake("TLS_CERT_FILE", None, why);
            None
        }
    }
}

/// Gives the URLs what connections to them are made with.
pub(super) fn brokers(from: &mut Reading, urls: &mut [AmqpUrl]) {
    let ca = from.text("AMQP_CA_FILE").map(PathBuf::from);
    let certificate = pair(from, "AMQP_CERT_FILE", "AMQP_KEY_FILE");
    if ca.is_some() || certificate.is_some() {
        if !urls.iter().any(AmqpUrl::tls) {
            let name = if ca.is_some() { "AMQP_CA_FILE" } else { "AMQP_CERT_FILE" };
            from.mistake(name, None, "needs an amqps:// URL in WARREN_AMQP_URL, or nothing would be checked");
        }
        match BrokerTls::read(ca, certificate) {
            Ok(tls) => urls.iter_mut().for_each(|url| url.connect_with(tls.clone())),
            Err(why) => return from.mistake("AMQP_CA_FILE and WARREN_AMQP_CERT_FILE", None, why),
        }
    }
    let proves_nothing = |url: &AmqpUrl| !url.tls() || !url.credentials().has_certificate();
    if urls.iter().any(|url| url.mechanism() == Mechanism::External && proves_nothing(url)) {
        let why = "auth_mechanism=external needs amqps://, WARREN_AMQP_CERT_FILE and WARREN_AMQP_KEY_FILE";
        from.mistake("AMQP_URL", None, why);
    }
}

/// Two paths that are given together or not at all.
fn pair(from: &mut Reading, certificate: &str, key: &str) -> Option<(PathBuf, PathBuf)> {
    match (from.text(certificate), from.text(key)) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        (Some(_), None) => {
            from.mistake(certificate, None, format!("needs WARREN_{key}"));
            None
        }
        (None, Some(_)) => {
            from.mistake(key, None, format!("needs WARREN_{certificate}"));
            None
        }
    }
}
