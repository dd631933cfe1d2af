//! The task of one session whose client speaks HTTP: between its socket, its receiver, and what its client sends.

use std::future::pending;
use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::exchange::Exchange;
use super::receiver::Outlet;
use super::table::Listed;
use crate::protocol::sockjs;

/// Bytes read of the session at once; they lie on the stack, so that a session at rest has no buffer.
const READ_BYTES: usize = 16 * 1024;
/// Requests that wait for the task. Overflow policy: the request waits.
const ORDERS_MAX: usize = 8;

/// What a request wants of the session.
#[derive(Debug)]
pub(super) enum Order {
    /// To receive.
    Attach(Outlet),
    /// To send these frames; it is told when the session has them.
    Say(BytesMut, oneshot::Sender<()>),
}

pub(super) struct Bridge {
    /// `None`: the session is over.
    socket: Option<UnixStream>,
    orders: mpsc::Receiver<Order>,
    exchange: Exchange,
    outlet: Option<Outlet>,
    /// While there is one no order is taken.
    saying: Option<oneshot::Sender<()>>,
}

impl Bridge {
    /// `socket` is the client's end of the session's socket.
    pub(super) fn new(socket: UnixStream, now: Instant) -> (Self, mpsc::Sender<Order>) {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let exchange = Exchange::new(now);
        (Self { socket: Some(socket), orders, exchange, outlet: None, saying: None }, sender)
    }

    /// Ends when the session is over and its end need not be told any more.
    pub(super) async fn run(mut self, listed: Listed) {
        while self.turn().await.is_continue() {}
        drop(listed);
        // A request that found it in the table at the last moment; later ones find it closed, and begin anew.
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Attach(mut outlet) = order {
                outlet.tell(sockjs::INTERRUPTED);
            }
        }
    }

    /// Waits for whatever comes first, and acts on it.
    async fn turn(&mut self) -> ControlFlow<()> {
        let tells = self.exchange.has_next();
        let deadline = self.exchange.deadline();
        tokio::select! {
            order = self.orders.recv(), if self.saying.is_none() => match order {
                Some(order) => self.obey(order),
                None => return ControlFlow::Break(()),
            },
            () = ready(self.socket.as_ref(), Interest::READABLE), if self.exchange.wants_more() => self.read(),
            () = ready(self.socket.as_ref(), Interest::WRITABLE), if self.exchange.has_outgoing() => self.write(),
            is_there = has_room(self.outlet.as_ref()), if tells => match is_there {
                true => self.tell(),
                false => self.cut(),
            },
            () = broken(self.outlet.as_ref()), if !tells => self.cut(),
            () = at(deadline) => return ControlFlow::Break(()),
        }
        if self.exchange.is_over() {
            // The session notices, if it does not know already.
            self.socket = None;
            self.saying = None;
        }
        ControlFlow::Continue(())
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Attach(mut outlet) => match self.exchange.attach() {
                true => self.outlet = Some(outlet),
                false => _ = outlet.tell(sockjs::ANOTHER_OPEN),
            },
            Order::Say(frames, done) => {
                self.exchange.say(frames);
                if self.exchange.has_outgoing() {
                    self.saying = Some(done);
                } else {
                    // The request may have been given up.
                    let _ = done.send(());
                }
            }
        }
    }

    fn read(&mut self) {
        let Some(socket) = &self.socket else { return };
        let mut bytes = [0; READ_BYTES];
        match socket.try_read(&mut bytes) {
            Ok(0) => self.exchange.on_end(),
            Ok(read) => self.exchange.on_bytes(&bytes[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.exchange.on_end(),
        }
    }

    fn write(&mut self) {
        let Some(socket) = &self.socket else { return };
        let outgoing = self.exchange.outgoing();
        match socket.try_write(outgoing) {
            Ok(written) => outgoing.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // It listens no more. What it said last can still be read.
            Err(_) => outgoing.clear(),
        }
        if !self.exchange.has_outgoing() {
            *self.exchange.outgoing() = BytesMut::new();
            if let Some(done) = self.saying.take() {
                let _ = done.send(());
            }
        }
    }

    fn tell(&mut self) {
        let now = Instant::now();
        let (Some(outlet), Some(next)) = (&mut self.outlet, self.exchange.next(now)) else { return };
        let goes_on = outlet.tell(&next.frame);
        if next.ends || !goes_on {
            self.outlet = None;
            self.exchange.detach(now);
        }
    }

    fn cut(&mut self) {
        self.outlet = None;
        self.exchange.cut(Instant::now());
    }
}

async fn ready(socket: Option<&UnixStream>, interest: Interest) {
    match socket {
        // An error shows with the next read or write.
        Some(socket) => _ = socket.ready(interest).await,
        None => pending().await,
    }
}

async fn has_room(outlet: Option<&Outlet>) -> bool {
    match outlet {
        Some(outlet) => outlet.has_room().await,
        None => pending().await,
    }
}

async fn broken(outlet: Option<&Outlet>) {
    match outlet {
        Some(outlet) => outlet.broken().await,
        None => pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
