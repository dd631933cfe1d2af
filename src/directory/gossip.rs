//! Gossip: the messages by which nodes share their sets of users and channels, as JSON.
//!
//! Nodes of different versions share a cluster during an upgrade: unknown types and fields are ignored, new
//! fields have defaults, and `v` changes only when that is not enough.

use serde::{Deserialize, Serialize};

use super::key::{Fingerprint, Key};
use super::ring::View;
use crate::bus::partitions::IngressState;
use crate::config::Routing;
use crate::ids::{Incarnation, NodeId};

/// The version that this code speaks.
const VERSION: u32 = 1;
/// Most keys that one [`Delta`] carries, joined and left together.
pub const DELTA_KEYS_MAX: usize = 1_000;
/// Most keys that one part of a snapshot carries: about 100 KB of JSON.
pub const SNAPSHOT_KEYS_MAX: usize = 5_000;
/// Most parts of one snapshot: 20 million keys, beyond what one node can hold.
pub const SNAPSHOT_PARTS_MAX: u32 = 4_096;

/// Why a body is not gossip.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("gossip cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("gossip of version {0} is not understood")]
    Version(u32),
    #[error("gossip breaks a limit: {0}")]
    Limit(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Gossip {
    Delta(Delta),
    Merged(Merged),
    Heartbeat(Heartbeat),
    /// The sender starts a new incarnation with an empty set at seq 0, and asks for heartbeats.
    Hello(Identity),
    SnapshotRequest(SnapshotRequest),
    Snapshot(Snapshot),
    /// The sender leaves, and this incarnation will not come back.
    Bye(Identity),
    Dead(Dead),
    Entries(Entries),
    EntriesLost(EntriesLost),
    /// A message of a newer version.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub node: NodeId,
    pub incarnation: Incarnation,
}

/// What changed in the sender's set since its delta `seq - 1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Counts the deltas of one incarnation, from 1.
    pub seq: u64,
    #[serde(default)]
    pub joined: Vec<Key>,
    #[serde(default)]
    pub left: Vec<Key>,
    /// Each receiver is asked for a [`Merged`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ask: bool,
}

/// The sender has merged a delta that asked for this word; to the node whose delta it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// The incarnation whose delta it is.
    pub of: Incarnation,
    pub seq: u64,
}

/// The sender is alive. Peers compare their replica of its set with the fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// The last delta that the sender published; `count` and `digest` are those of its set after it.
    pub seq: u64,
    pub count: u64,
    pub digest: u64,
    /// The sender's own clock when it sent this. Only the sender can read it, when the heartbeat comes back to
    /// it: everything that was published before that moment has then been read.
    #[serde(default)]
    pub clock_ms: u64,
    /// With the ring: where the streams of entries to the others ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<StreamEnd>,
    #[serde(flatten)]
    pub info: Info,
}

impl Heartbeat {
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint { count: self.count, digest: self.digest }
    }
}

/// What a node reports about itself, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Info {
    pub sessions: u64,
    pub users: u64,
    pub version: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// Where clients reach this very node, if it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When the process started, in milliseconds of Unix time.
    pub started_ms: u64,
    #[serde(skip_serializing_if = "IngressState::is_usual")]
    pub ingress: IngressState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// The node that asks.
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// The node whose set is asked for.
    pub of: NodeId,
}

/// One part of the sender's whole set as it was after its delta `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub seq: u64,
    /// From 0 to `parts - 1`. An empty set is one empty part.
    pub part: u32,
    pub parts: u32,
    #[serde(default)]
    pub keys: Vec<Key>,
}

/// A publish to `node` was returned to `by`: its queue is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub by: NodeId,
}

/// How its sender routes, in each message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Dialect(String);

/// Releases that said nothing knew one way to route.
const UNSAID: Routing = Routing::Directory;

impl Dialect {
    fn unsaid() -> Self {
        Self::of(UNSAID)
    }

    pub fn of(routing: Routing) -> Self {
        Self(routing.dialect().to_owned())
    }

    pub fn is(&self, routing: Routing) -> bool {
        self.0 == routing.dialect()
    }
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It is another node's word: bounded, and quoted so that a log line stays one.
        write!(f, "{:?}", self.0.chars().take(32).collect::<String>())
    }
}

/// With the ring: users of the sender whose home the receiver is, part of a stream; see `homes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub epoch: u64,
    /// From 1 in each epoch, which begins with an empty set.
    pub seq: u64,
    #[serde(default)]
    pub joined: Vec<Key>,
    #[serde(default)]
    pub left: Vec<Key>,
    /// The sender has told all that there is, by these live nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
}

/// The sender has missed a part of the stream of entries from `of`, which is to begin anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntriesLost {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub of: NodeId,
}

/// The last part of a stream of entries that the sender has sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    pub to: NodeId,
    pub epoch: u64,
    pub seq: u64,
}

#[derive(Serialize)]
struct Outer<'a> {
    v: u32,
    #[serde(flatten)]
    gossip: &'a Gossip,
    routing: &'a str,
}

#[derive(Deserialize)]
struct Head {
    v: u32,
    #[serde(default = "Dialect::unsaid")]
    routing: Dialect,
}

impl Gossip {
    pub fn encode(&self, routing: Routing) -> Result<Vec<u8>, GossipError> {
        Ok(serde_json::to_vec(&Outer { v: VERSION, gossip: self, routing: routing.dialect() })?)
    }

    /// Reads one message and checks its limits, so that a broken peer cannot make this node hold much.
    pub fn decode(body: &[u8]) -> Result<(Dialect, Self), GossipError> {
        let Head { v, routing } = serde_json::from_slice(body)?;
        if v != VERSION {
            return Err(GossipError::Version(v));
        }
        let gossip: Gossip = serde_json::from_slice(body)?;
        Self::check(gossip).map(|gossip| (routing, gossip))
    }

    fn check(gossip: Gossip) -> Result<Self, GossipError> {
        match &gossip {
            Gossip::Delta(delta) if delta.joined.len() + delta.left.len() > DELTA_KEYS_MAX => {
                Err(GossipError::Limit("too many keys in a delta"))
            }
            Gossip::Entries(entries) if entries.joined.len() + entries.left.len() > DELTA_KEYS_MAX => {
                Err(GossipError::Limit("too many keys in entries"))
            }
            Gossip::Delta(delta) if delta.seq == 0 => Err(GossipError::Limit("deltas are counted from 1")),
            Gossip::Snapshot(part) if part.keys.len() > SNAPSHOT_KEYS_MAX => {
                Err(GossipError::Limit("too many keys in a part of a snapshot"))
            }
            Gossip::Snapshot(part) if part.parts > SNAPSHOT_PARTS_MAX || part.part >= part.parts => {
                Err(GossipError::Limit("no such part of a snapshot"))
            }
            _ => Ok(gossip),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Routing = Routing::Broadcast;

    fn identity() -> (NodeId, Incarnation) {
        (NodeId::new("n-1").unwrap(), Incarnation::from_u128(7))
    }

    #[test]
    fn every_message_survives_the_wire() {
        let (node, incarnation) = identity();
        let keys: Vec<Key> = serde_json::from_str("[18446744073709551615,0,9007199254740993]").unwrap();
        let info = Info { sessions: 3, draining: true, ..Info::default() };
        let who = Identity { node: node.clone(), incarnation };
        for gossip in [
            Gossip::Hello(who.clone()),
            Gossip::Bye(who),
            Gossip::Delta(Delta {
                node: node.clone(),
                incarnation,
                seq: 1,
                joined: keys.clone(),
                left: vec![],
                ask: true,
            }),
            Gossip::Merged(Merged { node: node.clone(), incarnation, of: incarnation, seq: 1 }),
            Gossip::Heartbeat(Heartbeat {
                node: node.clone(),
                incarnation,
                seq: u64::MAX,
                count: 1,
                digest: u64::MAX,
                clock_ms: 5,
                ends: vec![StreamEnd { to: node.clone(), epoch: 2, seq: 3 }],
                info,
            }),
            Gossip::SnapshotRequest(SnapshotRequest { node: node.clone(), incarnation, of: node.clone() }),
            Gossip::Snapshot(Snapshot { node: node.clone(), incarnation, seq: 1, part: 0, parts: 1, keys }),
            Gossip::Entries(Entries {
                node: node.clone(),
                incarnation,
                epoch: 2,
                seq: 3,
                joined: vec![Key::for_test(1)],
                left: vec![Key::for_test(2)],
                view: Some(View::default()),
            }),
            Gossip::EntriesLost(EntriesLost { node: node.clone(), incarnation, of: node.clone() }),
            Gossip::Dead(Dead { node: node.clone(), incarnation, by: node }),
        ] {
            let body = gossip.encode(OURS).unwrap();
            assert!(body.starts_with(br#"{"v":1,"type":""#), "{}", String::from_utf8_lossy(&body));
            assert_eq!(Gossip::decode(&body).unwrap(), (Dialect::of(OURS), gossip));
        }
    }

    #[test]
    fn newer_versions_are_read_as_far_as_they_can_be() {
        let newer = br#"{"v":1,"type":"mail","user":"a"}"#;
        assert_eq!(Gossip::decode(newer).unwrap(), (Dialect::of(Routing::Directory), Gossip::Unknown));
        let newer = br#"{"v":1,"type":"hello","node":"n","incarnation":"00000000-0000-0000-0000-000000000007","x":{}}"#;
        assert!(matches!(Gossip::decode(newer).unwrap(), (_, Gossip::Hello(_))));
        let sparse = br#"{"v":1,"type":"heartbeat","node":"n","incarnation":"00000000-0000-0000-0000-000000000007","seq":0,"count":0,"digest":0}"#;
        assert!(matches!(Gossip::decode(sparse).unwrap(), (_, Gossip::Heartbeat(_))));
        assert!(matches!(Gossip::decode(br#"{"v":2,"type":"hello"}"#), Err(GossipError::Version(2))));
    }

    #[test]
    fn limits_and_nonsense_are_refused() {
        let (node, incarnation) = identity();
        let keys = vec![Key::for_test(1); SNAPSHOT_KEYS_MAX + 1];
        let many = Snapshot { node: node.clone(), incarnation, seq: 1, part: 0, parts: 1, keys };
        let no_part = Snapshot { part: 3, parts: 3, keys: vec![], ..many.clone() };
        let parts = Snapshot { part: 0, parts: SNAPSHOT_PARTS_MAX + 1, keys: vec![], ..many.clone() };
        let joined = vec![Key::for_test(1); DELTA_KEYS_MAX];
        let delta = Delta { node, incarnation, seq: 1, joined, left: vec![Key::for_test(2)], ask: false };
        let zero = Delta { seq: 0, joined: vec![], ..delta.clone() };
        for bad in [
            Gossip::Snapshot(many),
            Gossip::Snapshot(no_part),
            Gossip::Snapshot(parts),
            Gossip::Delta(delta),
            Gossip::Delta(zero),
        ] {
            assert!(matches!(Gossip::decode(&bad.encode(OURS).unwrap()), Err(GossipError::Limit(_))));
        }
        for bad in [&b""[..], b"null", b"[]", b"{}", br#"{"v":1}"#, b"\xff", br#"{"v":1,"type":"hello"}"#] {
            assert!(matches!(Gossip::decode(bad), Err(GossipError::Json(_))), "{bad:?}");
        }
    }

    #[test]
    fn fuzzed() {
        let (node, incarnation) = identity();
        let keys: Vec<Key> = serde_json::from_str("[18446744073709551615,0]").unwrap();
        let good = [
            Gossip::Hello(Identity { node: node.clone(), incarnation }),
            Gossip::Delta(Delta {
                node: node.clone(),
                incarnation,
                seq: 1,
                joined: keys.clone(),
                left: vec![],
                ask: true,
            }),
            Gossip::Merged(Merged { node: node.clone(), incarnation, of: incarnation, seq: 1 }),
            Gossip::SnapshotRequest(SnapshotRequest { node: node.clone(), incarnation, of: node.clone() }),
            Gossip::Snapshot(Snapshot { node: node.clone(), incarnation, seq: 1, part: 0, parts: 1, keys }),
            Gossip::Dead(Dead { node: node.clone(), incarnation, by: node }),
        ];
        let good = good.map(|gossip| gossip.encode(OURS).unwrap());
        let words = ["null", "[]", "{}", "heartbeat", "snapshot", "\"v\":2"];
        crate::tests::fuzz::fuzz("gossip", &good, &words, |input| match Gossip::decode(input) {
            Ok((_, Gossip::Unknown)) => "unknown".to_owned(),
            Ok((_, gossip)) => {
                assert_eq!(Gossip::decode(&gossip.encode(OURS).unwrap()).unwrap().1, gossip);
                format!("{:?}", std::mem::discriminant(&gossip))
            }
            Err(error) => error.to_string().chars().take(40).collect(),
        });
    }
}
