//! Every address of HTTP: where it is, and what it takes. What is not in the table is not there, whatever a route would take.

use super::sockjs;

/// HEAD goes wherever GET does (RFC 9110 section 9.3.2).
const READ: &str = "GET, HEAD";

/// Which of the two listeners a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Public,
    Admin,
}

/// What an address is for, which decides where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// For whoever asks whether the node is well; on both listeners.
    Probe,
    /// For the operator's monitoring; on the admin listener.
    Metrics,
    /// Leads to a session; on the public listener.
    Socket,
    /// Leads to a session without a WebSocket; on the public listener, where the operator wants it.
    Transport,
    /// On the public listener, and beside the console on the admin one.
    Api,
    /// A file for pages that talk to the node; where the API is.
    Library,
    /// The console's page, and the files that it needs.
    Console,
}

/// One address, or all that differ in the names between braces.
#[derive(Debug)]
pub struct Address {
    /// A name between braces stands for one segment that is not empty.
    pub path: &'static str,
    /// As the header `Allow` lists them.
    pub methods: &'static str,
    pub kind: Kind,
}

const fn at(path: &'static str, methods: &'static str, kind: Kind) -> Address {
    Address { path, methods, kind }
}

pub const ADDRESSES: &[Address] = &[
    at("/livez", READ, Kind::Probe),
    at("/readyz", READ, Kind::Probe),
    at("/metrics", READ, Kind::Metrics),
    at("/ws", READ, Kind::Socket),
    at("/sockjs", READ, Kind::Socket),
    at("/sockjs/", READ, Kind::Socket),
    at("/sockjs/info", "GET, HEAD, OPTIONS", Kind::Socket),
    at("/sockjs/websocket", READ, Kind::Socket),
    at("/sockjs/{server}/{session}/websocket", READ, Kind::Socket),
    at("/sockjs/{server}/{session}/xhr", "POST, OPTIONS", Kind::Transport),
    at("/sockjs/{server}/{session}/xhr_streaming", "POST, OPTIONS", Kind::Transport),
    at("/sockjs/{server}/{session}/xhr_send", "POST, OPTIONS", Kind::Transport),
    at("/sockjs/{server}/{session}/eventsource", "GET, HEAD, OPTIONS", Kind::Transport),
    at("/v1/messages", "POST", Kind::Api),
    at("/v1/messages/{id}/trace", READ, Kind::Api),
    at("/v1/revocations", "POST", Kind::Api),
    at("/v1/tickets", "POST", Kind::Api),
    at("/v1/users/{id}", READ, Kind::Api),
    at("/v1/users/{id}/home", READ, Kind::Api),
    at("/v1/users/{id}/sessions", "DELETE", Kind::Api),
    at("/v1/users/{id}/channels/{name}", "PUT, DELETE", Kind::Api),
    at("/v1/channels/{name}", READ, Kind::Api),
    at("/v1/sessions/{id}", "DELETE", Kind::Api),
    at("/v1/nodes", READ, Kind::Api),
    at("/v1/nodes/{id}/drain", "POST", Kind::Api),
    at("/v1/cluster", READ, Kind::Api),
    at("/warren-client.js", READ, Kind::Library),
    at("/", READ, Kind::Console),
    at("/console/{file}", READ, Kind::Console),
];

impl Address {
    /// The address of a request's path. `console`: whether the listener has the console.
    pub(super) fn of(path: &str, listener: Listener, console: bool) -> Option<&'static Address> {
        ADDRESSES.iter().find(|address| address.kind.is_on(listener, console) && address.is_at(path))
    }

    fn is_at(&self, path: &str) -> bool {
        // The names in it have rules of their own.
        if self.path.starts_with("/sockjs/{") && sockjs::Address::of(path).is_none() {
            return false;
        }
        let mut given = path.split('/');
        let same = self.path.split('/').all(|wanted| match (wanted.starts_with('{'), given.next()) {
            (true, given) => given.is_some_and(|given| !given.is_empty()),
            (false, given) => given == Some(wanted),
        });
        same && given.next().is_none()
    }

    /// Credentials, or the lack of their need, let something happen there.
    pub(super) fn is_trusting(&self) -> bool {
        matches!(self.kind, Kind::Socket | Kind::Transport | Kind::Api)
    }

    pub(super) fn takes(&self, method: &str) -> bool {
        self.methods.split(", ").any(|taken| taken == method)
    }
}

impl Kind {
    pub fn is_on(self, listener: Listener, console: bool) -> bool {
        match (self, listener) {
            (Kind::Probe, _) => true,
            (Kind::Socket | Kind::Transport | Kind::Api | Kind::Library, Listener::Public) => true,
            (Kind::Socket | Kind::Transport, Listener::Admin) | (Kind::Metrics, Listener::Public) => false,
            (Kind::Metrics, Listener::Admin) => true,
            (Kind::Api | Kind::Library | Kind::Console, _) => console,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_known_and_nothing_else() {
        let methods = |path, listener, console| {
            Address::of(path, listener, console).map(|address: &Address| address.methods)
        };
        for (path, public, admin) in [
            ("/ws", Some("GET, HEAD"), None),
            ("/ws/", None, None),
            ("//ws", None, None),
            ("/v1/messages", Some("POST"), None),
            ("/v1/messages/", None, None),
            ("/v1/users/a%2Fb", Some("GET, HEAD"), None),
            ("/v1/users/", None, None),
            ("/v1/users/a/home", Some("GET, HEAD"), None),
            ("/v1/users/a/sessions", Some("DELETE"), None),
            ("/v1/users/a/channels/b", Some("PUT, DELETE"), None),
            ("/v1/sessions/n~1", Some("DELETE"), None),
            ("/v1/nodes/n0/drain", Some("POST"), None),
            ("/sockjs", Some("GET, HEAD"), None),
            ("/sockjs/", Some("GET, HEAD"), None),
            ("/sockjs/info", Some("GET, HEAD, OPTIONS"), None),
            ("/sockjs/a/b/websocket", Some("GET, HEAD"), None),
            ("/sockjs/a/b.c/websocket", None, None),
            ("/sockjs/a/b/xhr", Some("POST, OPTIONS"), None),
            ("/sockjs/a/b/xhr_send", Some("POST, OPTIONS"), None),
            ("/sockjs/a/b/eventsource", Some("GET, HEAD, OPTIONS"), None),
            ("/sockjs/a.b/c/xhr", None, None),
            ("/sockjs/a/b/jsonp", None, None),
            ("/metrics", None, Some("GET, HEAD")),
            ("/livez", Some("GET, HEAD"), Some("GET, HEAD")),
            ("/v1", None, None),
            ("/", None, None),
            ("*", None, None),
            ("/console/main.js", None, None),
        ] {
            assert_eq!(methods(path, Listener::Public, false), public, "{path}");
            assert_eq!(methods(path, Listener::Admin, false), admin, "{path}");
        }
        for path in ["/", "/console/main.js", "/v1/nodes", "/warren-client.js"] {
            for listener in [Listener::Public, Listener::Admin] {
                assert_eq!(methods(path, listener, true), Some("GET, HEAD"), "{path}");
            }
        }
        assert_eq!(methods("/ws", Listener::Admin, true), None);
    }
}
