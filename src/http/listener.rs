//! Binding an address: one process alone, shared by its own listeners, and accepting when descriptors are short.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections that the kernel completes before they are accepted. A reconnect storm must fit.
const BACKLOG: i32 = 4096;
/// What the kernel keeps for a socket that does not read, in bytes; it takes twice that for its bookkeeping.
/// Left to itself it grows to megabytes, and a slow consumer goes unnoticed for as long.
pub(super) const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listeners on one address, `count` of them: the kernel spreads connections over them (`SO_REUSEPORT`). Port 0
/// is chosen once. Fails when any other socket listens there, also one of another node.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    // The first socket claims the address for this process: without SO_REUSEPORT the kernel lets it share with
    // nobody. The flag is set after that, so that our own sockets may join, whose flag is set before.
    let first = socket(address)?;
    first.bind(&address.into())?;
    first.set_reuse_port(true)?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..count {
        let socket = socket(bound)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound.into())?;
        sockets.push(socket);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok((bound, sockets.into_iter().map(Into::into).collect()))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a former process that still linger are no reason to fail; a listener is.
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit both of these on Linux.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The file descriptors that clients of the public address leave free: for probes, the broker and files.
const DESCRIPTORS_RESERVED: u64 = 64;

/// The file descriptor from which on a public connection is refused. The kernel hands out the lowest free number,
/// so that the number says how many are in use.
pub(super) fn descriptors_max() -> i32 {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    i32::try_from(limit - DESCRIPTORS_RESERVED.min(limit / 4)).unwrap_or(i32::MAX)
}

/// Raises the limit of open files as far as the process may; returns it.
pub fn raise_file_limit() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// The next connection, however long that takes.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                // A connection that was reset while it waited; or no file descriptor left, which passes.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_claimed_by_one_and_shared_by_its_own() {
        let (bound, held) = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(held.len(), 3);
        assert!(held.iter().all(|listener| listener.local_addr().unwrap() == bound));
        for count in [1, 3] {
            let error = bind(bound, count).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            let everywhere = SocketAddr::from(([0, 0, 0, 0], bound.port()));
            assert_eq!(bind(everywhere, count).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        // Connections outlive their listener: a node that is started anew must not wait for them.
        let client = std::net::TcpStream::connect(bound).unwrap();
        let accepted: Vec<_> = held.iter().filter_map(|listener| listener.accept().ok()).collect();
        drop(held);
        let again = bind(bound, 2);
        assert!(again.is_ok(), "{again:?}");
        drop((client, accepted));
    }
}
