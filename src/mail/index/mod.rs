//! STUB
use std::sync::Arc;
use std::time::Instant;
use crate::bus::{BoxNumber, Bus};
use crate::ids::{NodeId, UserId, UserKey};
pub struct MailLimits { pub messages: u32, pub bytes: u64 }
#[derive(Clone)]
pub struct MailIndex;
pub struct ServiceHandle;
pub struct Reservation;
pub struct Began;
#[derive(Debug)]
pub enum Refusal { UserFull, SenderFull, SenderRate }
impl Reservation { pub fn stored(self, announced: Box<dyn FnOnce(bool) + Send>) { announced(true) } }
impl MailIndex {
    pub fn start(_: NodeId, _: Arc<dyn Bus>, _: MailLimits) -> (Self, ServiceHandle) { (Self, ServiceHandle) }
    pub fn may_have(&self, _: &UserId) -> bool { true }
    pub fn waiting(&self, _: &UserId) -> (u32, u64) { (0, 0) }
    pub fn admit(&self, _: &UserId, _: Option<&UserId>, _: usize, _: Instant) -> Result<Reservation, Refusal> { Ok(Reservation) }
    pub fn taken(&self, _: &UserId, _: Option<&UserId>, _: usize) {}
    pub fn reading_began(&self, _: BoxNumber) -> Began { Began }
    pub fn exact(&self, _: Began, _: Vec<(UserKey, u32, u64)>) {}
    pub fn on_gossip(&self, _: &str, _: &[u8]) -> Result<Vec<UserKey>, String> { Ok(vec![]) }
    pub fn next_unread_box(&self) -> Option<BoxNumber> { None }
    pub fn next_due_box(&self, _: Instant, _: &[NodeId]) -> Option<BoxNumber> { None }
}
