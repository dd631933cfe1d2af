//! What nodes tell each other about mail, as JSON on the wire.
//!
//! Nodes of different versions share a cluster during an upgrade: unknown fields are ignored, new fields have defaults,
//! and `v` changes only when that is not enough.

use serde::{Deserialize, Serialize};

use crate::ids::{Life, NodeId, UserKey};

/// AMQP `type` of all of it, on whichever exchange it comes.
pub const MAIL_INDEX_KIND: &str = "warren.mail-index";
/// The version that this code speaks.
const VERSION: u32 = 1;
/// Most entries of one message: about 200 KB of JSON.
pub const ENTRIES_MAX: usize = 5_000;
/// Most parts of one snapshot: 20 million users.
pub const PARTS_MAX: u32 = 4_096;

/// One mail that was put into a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    #[serde(rename = "u")]
    pub user: UserKey,
    /// `None` for a service.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<UserKey>,
    #[serde(rename = "b")]
    pub bytes: u64,
}

/// One mail that was acknowledged out of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    #[serde(flatten)]
    pub mail: Deposit,
    /// The reading in which it was taken. A later reading has not counted the mail.
    #[serde(rename = "r")]
    pub reading: u64,
}

/// Messages and bytes that wait for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count(pub UserKey, pub u32, pub u64);

/// What a complete reading found in a box, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exact {
    #[serde(rename = "box")]
    pub number: u32,
    /// Orders the readings of one box.
    pub reading: u64,
    /// How long ago the reading began, in milliseconds.
    pub age_ms: u64,
    /// The last batch of each node that the reader had merged before the reading began.
    #[serde(default)]
    pub covers: Vec<(Life, u64)>,
    pub found: Vec<Count>,
}

/// What happened at one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub life: Life,
    /// Counts the batches of one life, from 1. A batch that is repeated keeps its number.
    pub seq: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deposits: Vec<Deposit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<Taken>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exact: Vec<Exact>,
}

/// A part of everything that a node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which request it answers.
    pub request: u64,
    pub part: u32,
    pub parts: u32,
    /// Whether the answering node itself knows of all boxes.
    pub complete: bool,
    #[serde(default)]
    pub users: Vec<Count>,
    #[serde(default)]
    pub senders: Vec<(UserKey, u32)>,
    /// Boxes and their last readings.
    #[serde(default)]
    pub readings: Vec<(u32, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Gossip {
    Batch(Batch),
    /// "Tell me everything that you know." For one node, and yet told to all as batches are: in the queue of the node that is
    /// asked it stands behind every batch that was told before the asker could hear any.
    Ask {
        from: NodeId,
        to: NodeId,
        request: u64,
    },
    Part(Part),
    /// What a newer version says to its like.
    #[serde(other)]
    Unknown,
}

#[derive(Serialize)]
struct Outer<'a> {
    v: u32,
    #[serde(flatten)]
    gossip: &'a Gossip,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl Gossip {
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(&Outer { v: VERSION, gossip: self }).map_err(|error| error.to_string())
    }

    /// Reads one message and checks its limits, so that a broken peer cannot make this node hold much.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        let unreadable = |error: serde_json::Error| format!("mail gossip cannot be read: {error}");
        let Version { v } = serde_json::from_slice(body).map_err(unreadable)?;
        if v != VERSION {
            return Err(format!("mail gossip of version {v} is not understood"));
        }
        let gossip: Self = serde_json::from_slice(body).map_err(unreadable)?;
        let within = match &gossip {
            Self::Batch(batch) => {
                let found: usize =
                    batch.exact.iter().map(|exact| exact.found.len() + exact.covers.len()).sum();
                batch.deposits.len() + batch.taken.len() + found <= 4 * ENTRIES_MAX && batch.seq > 0
            }
            Self::Part(part) => {
                part.users.len() + part.senders.len() <= ENTRIES_MAX
                    && part.readings.len() <= 4 * ENTRIES_MAX
                    && part.part < part.parts
                    && part.parts <= PARTS_MAX
            }
            Self::Ask { .. } | Self::Unknown => true,
        };
        if within {
            Ok(gossip)
        } else {
            Err("mail gossip breaks a limit".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzzed() {
        let from = NodeId::new("n-1").unwrap();
        let good = [
            Gossip::Ask { from: from.clone(), to: from.clone(), request: 7 }.encode().unwrap(),
            br#"{"v":1,"type":"batch","from":"n-1","life":3,"seq":1,"deposits":[],"taken":[],"exact":[]}"#.to_vec(),
            br#"{"v":1,"type":"part","from":"n-1","to":"n-2","request":7,"part":0,"parts":1,"users":[],"senders":[],"readings":[]}"#.to_vec(),
        ];
        let words = ["null", "[]", "{}", "[1,2,3]", "deposits", "senders", "\"v\":2"];
        crate::tests::fuzz::fuzz("mail gossip", &good, &words, |input| match Gossip::decode(input) {
            Ok(Gossip::Unknown) => "unknown".to_owned(),
            Ok(gossip) => {
                assert_eq!(Gossip::decode(&gossip.encode().unwrap()).unwrap(), gossip);
                format!("{:?}", std::mem::discriminant(&gossip))
            }
            Err(error) => error.chars().take(60).collect(),
        });
    }
}
