//! One-time tickets: whoever brings one opens one session. The node that issued a ticket keeps it, and so it alone can
//! tell, and tells once, whose it is.
//!
//! Lock: one, held for a moment; nothing is called meanwhile.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Identity;
use crate::ids::{NodeId, UserId};

/// Issued by a node within their time, used or not. Overflow policy: no more are issued.
const TICKETS_MAX: usize = 1 << 16;
/// The same of one user.
const OF_USER_MAX: usize = 64;

/// 128 random bits: who has not been given them does not find them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TicketSecret(u128);

impl TicketSecret {
    fn generate() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl From<TicketSecret> for String {
    fn from(secret: TicketSecret) -> Self {
        format!("{:032x}", secret.0)
    }
}

/// The text is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no ticket")]
pub struct NoTicket;

impl TryFrom<String> for TicketSecret {
    type Error = NoTicket;

    fn try_from(text: String) -> Result<Self, NoTicket> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(is_hex) {
            return Err(NoTicket);
        }
        u128::from_str_radix(&text, 16).map(Self).map_err(|_| NoTicket)
    }
}

/// As a client has it: `<node>~<secret>`, fit for a URL as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Which issued it.
    pub node: NodeId,
    pub secret: TicketSecret,
}

impl Ticket {
    /// For the answer to whoever asked for it, and nobody else.
    pub fn expose(&self) -> String {
        format!("{}~{}", self.node, String::from(self.secret))
    }
}

impl FromStr for Ticket {
    type Err = NoTicket;

    fn from_str(text: &str) -> Result<Self, NoTicket> {
        let (node, secret) = text.rsplit_once('~').ok_or(NoTicket)?;
        let node = NodeId::new(node).map_err(|_| NoTicket)?;
        Ok(Self { node, secret: secret.to_owned().try_into()? })
    }
}

/// Why no ticket was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotIssued {
    /// This user has as many as one may have.
    OfUser,
    /// The node has.
    OfNode,
}

/// Those that this node has issued.
#[derive(Debug)]
pub struct Tickets {
    ttl: Duration,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Not used yet. Strangers do not choose the keys, and the hasher is seeded all the same.
    open: HashMap<TicketSecret, Identity>,
    /// All of them, by the end of their time.
    order: VecDeque<(Instant, TicketSecret, UserId)>,
    of_user: HashMap<UserId, usize>,
}

impl Table {
    fn forget_overdue(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, ..)| *until <= now) {
            let Some((_, secret, user)) = self.order.pop_front() else { return };
            self.open.remove(&secret);
            if let Some(count) = self.of_user.get_mut(&user) {
                *count -= 1;
                if *count == 0 {
                    self.of_user.remove(&user);
                }
            }
        }
    }
}

impl Tickets {
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, table: Mutex::default() }
    }

    /// How long a ticket is good for.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn issue(&self, identity: Identity, now: Instant) -> Result<TicketSecret, NotIssued> {
        let mut table = self.lock();
        table.forget_overdue(now);
        let user = identity.user.clone();
        if table.of_user.get(&user).is_some_and(|count| *count >= OF_USER_MAX) {
            return Err(NotIssued::OfUser);
        }
        if table.order.len() >= TICKETS_MAX {
            return Err(NotIssued::OfNode);
        }
        let secret = TicketSecret::generate();
        table.open.insert(secret, identity);
        *table.of_user.entry(user.clone()).or_default() += 1;
        table.order.push_back((now + self.ttl, secret, user));
        Ok(secret)
    }

    /// Whose ticket it is, once.
    pub fn redeem(&self, secret: TicketSecret, now: Instant) -> Option<Identity> {
        let mut table = self.lock();
        table.forget_overdue(now);
        table.open.remove(&secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caps;
    use crate::tests::fuzz::fuzz;

    const TTL: Duration = Duration::from_secs(30);

    fn identity(user: &str) -> Identity {
        Identity {
            user: UserId::new(user).unwrap(),
            expires_unix_s: Some(7),
            issued_unix_s: 5,
            jti: Some("t".into()),
            caps: Caps::from_claim(["publish:user.*", "api"]),
            channels: Arc::from([crate::ids::ChannelName::new("c").unwrap()]),
        }
    }

    use std::sync::Arc;

    #[test]
    fn a_ticket_is_good_once_and_for_a_while() {
        let (tickets, start) = (Tickets::new(TTL), Instant::now());
        let first = tickets.issue(identity("a"), start).unwrap();
        let second = tickets.issue(identity("a"), start).unwrap();
        assert_ne!(first, second);
        assert_eq!(tickets.redeem(first, start), Some(identity("a")));
        assert_eq!(tickets.redeem(first, start), None);
        assert_eq!(tickets.redeem(second, start + TTL), None);
        assert_eq!(format!("{second:?}"), "***");
        let table = tickets.lock();
        assert!(table.open.is_empty() && table.order.is_empty() && table.of_user.is_empty());
    }

    #[test]
    fn a_user_and_a_node_have_a_bound() {
        let (tickets, start) = (Tickets::new(TTL), Instant::now());
        for _ in 0..OF_USER_MAX {
            let secret = tickets.issue(identity("a"), start).unwrap();
            assert!(tickets.redeem(secret, start).is_some(), "used ones count as well");
        }
        assert_eq!(tickets.issue(identity("a"), start), Err(NotIssued::OfUser));
        for at in OF_USER_MAX..TICKETS_MAX {
            tickets.issue(identity(&format!("u{at}")), start).unwrap();
        }
        assert_eq!(tickets.issue(identity("b"), start), Err(NotIssued::OfNode));
        assert!(tickets.issue(identity("a"), start + TTL).is_ok());
    }

    #[test]
    fn a_ticket_travels_as_text_and_its_holder_between_nodes() {
        let ticket = Ticket { node: NodeId::new("n-1.x").unwrap(), secret: TicketSecret(7) };
        assert_eq!(ticket.expose(), "n-1.x~00000000000000000000000000000007");
        assert_eq!(ticket.expose().parse(), Ok(ticket));
        for bad in
            ["", "~", "n~7", "n", "~00000000000000000000000000000007", "n~0000000000000000000000000000000G"]
        {
            assert_eq!(bad.parse::<Ticket>(), Err(NoTicket), "{bad}");
        }
        let sent = serde_json::to_string(&identity("zo\u{eb}")).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&sent).unwrap(), identity("zo\u{eb}"));
    }

    #[test]
    fn fuzzed() {
        let good = [b"n-1~00000000000000000000000000000007".to_vec()];
        fuzz("tickets", &good, &["~", "%7E", "ffffffffffffffffffffffffffffffff"], |input| {
            let ticket = String::from_utf8_lossy(input).parse::<Ticket>();
            if let Ok(ticket) = &ticket {
                assert_eq!(ticket.expose().parse().as_ref(), Ok(ticket));
            }
            ticket.is_ok()
        });
    }
}
