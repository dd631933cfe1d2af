//! By what questions for who is in a channel are known, on their way from the workers and back.

/// A question of a session for who is in a channel. Its worker knows the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub worker: usize,
    pub number: u64,
}

/// The nodes have been asked for a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub ticket: Ticket,
    /// Some node did not answer in time.
    pub is_partial: bool,
}
