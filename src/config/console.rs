//! Where the console is, and where it finds the nodes.

use super::Config;

impl Config {
    /// Whether clients' address has the console as well: where everybody on this machine, and nobody else, may do all.
    pub fn console_is_public(&self) -> bool {
        self.insecure() && self.listen.ip().is_loopback()
    }

    /// Whether the admin address has the console: it asks for credentials, or only this machine can connect.
    pub fn console_is_for_operators(&self) -> bool {
        !self.insecure() || self.admin_listen.ip().is_loopback()
    }
}

/// Shown to operators, and opened by their browsers.
pub(super) fn public_url(text: &str) -> Option<String> {
    let url = text.trim_end_matches('/');
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/[]%".contains(c);
    (!rest.is_empty() && rest.chars().all(is_plain)).then(|| url.to_owned())
}
