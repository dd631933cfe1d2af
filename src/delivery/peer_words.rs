//! What nodes tell each other besides messages: receipts, questions, answers, and notices of mail. JSON bodies.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

use crate::auth::{Identity, Revocation, TicketSecret};
use crate::bus::{Destination, Lane, Properties, Publish};
use crate::delivery::envelope::{answered_to, Origin, Tag};
use crate::delivery::report::Report;
use crate::delivery::trace::TraceEvent;
use crate::ids::{ChannelName, Life, MessageId, NodeId, SessionId, UserId};

/// AMQP `type` of what nodes send each other. Anything else on a node queue came from a backend.
pub mod kind {
    pub const MESSAGE: &str = "warren.message";
    pub const RECEIPTS: &str = "warren.receipts";
    pub const ASK: &str = "warren.ask";
    pub const ANSWER: &str = "warren.answer";
    pub const MAIL: &str = "warren.mail";
}

/// A target node's word on one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Receipt {
    /// So many sessions have taken it.
    Delivered(u32),
    /// No session of the target is here, and none was shown the message.
    NotHere,
    /// Sessions had it and ended without taking it: it may have been shown.
    NotTaken,
    /// Sessions here did not want it, and none took it. Between nodes it goes as [`Receipt::NotTaken`] and a mark, which
    /// older releases pass over.
    #[serde(skip)]
    Declined,
    /// Interim: the node has it, and no session has it yet.
    Queued,
    /// Interim: sessions have it, and none has taken it yet.
    Held,
    /// The node holds as much for this target as it may, and refuses all that follows until a [`MailNotice`] of the
    /// origin.
    Full,
}

/// One target node's receipts for one origin process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WireReceipts", into = "WireReceipts")]
pub struct Receipts {
    pub from: NodeId,
    /// The origin's.
    pub life: Life,
    /// What this node, as the home of their targets, has passed on, and to which nodes. Goes before the receipts.
    pub relayed: Vec<(Tag, Vec<NodeId>)>,
    pub receipts: Vec<(Tag, Receipt)>,
}

#[derive(Clone, Serialize, Deserialize)]
struct WireReceipts {
    from: NodeId,
    life: Life,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    relayed: Vec<(Tag, Vec<NodeId>)>,
    receipts: Vec<(Tag, Receipt)>,
    /// Those of the receipts that mean [`Receipt::Declined`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    declined: Vec<Tag>,
}

impl From<Receipts> for WireReceipts {
    fn from(of: Receipts) -> Self {
        let mut declined = Vec::new();
        let as_sent = |(tag, receipt)| match receipt {
            Receipt::Declined => {
                declined.push(tag);
                (tag, Receipt::NotTaken)
            }
            _ => (tag, receipt),
        };
        let receipts = of.receipts.into_iter().map(as_sent).collect();
        Self { from: of.from, life: of.life, relayed: of.relayed, receipts, declined }
    }
}

impl From<WireReceipts> for Receipts {
    fn from(of: WireReceipts) -> Self {
        let meant = |(tag, receipt)| match receipt {
            Receipt::NotTaken if of.declined.contains(&tag) => (tag, Receipt::Declined),
            _ => (tag, receipt),
        };
        let receipts = of.receipts.into_iter().map(meant).collect();
        Self { from: of.from, life: of.life, relayed: of.relayed, receipts }
    }
}

/// A question to nodes about the sessions they hold, or an order about these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    SessionsOf(UserId),
    DisconnectUser(UserId),
    /// A session's id as text: only the node that is asked needs to understand it.
    DisconnectSession(String),
    UsersIn(ChannelName),
    /// Put the user's sessions into the channel.
    Subscribe(UserId, ChannelName),
    /// Take the user's sessions out of the channel.
    Unsubscribe(UserId, ChannelName),
    /// What operators want to know of the node.
    Report,
    /// Leave the cluster as after SIGTERM.
    Drain,
    /// What became of a message on the node.
    Trace(MessageId),
    /// Take these tokens no longer, and close the sessions that they opened.
    Revoke(Revocation),
    /// Whose ticket this is, which is used with that.
    RedeemTicket(TicketSecret),
    /// What is revoked, if that is something else than what has this digest.
    Revocations {
        digest: u64,
    },
}

impl Ask {
    /// Whose sessions all of them are about.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Ask::SessionsOf(user)
            | Ask::DisconnectUser(user)
            | Ask::Subscribe(user, _)
            | Ask::Unsubscribe(user, _) => Some(user),
            Ask::DisconnectSession(_)
            | Ask::UsersIn(_)
            | Ask::Report
            | Ask::Drain
            | Ask::Trace(_)
            | Ask::Revoke(_)
            | Ask::RedeemTicket(_)
            | Ask::Revocations { .. } => None,
        }
    }
}

/// One session as `GET /v1/users/{id}` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub session: String,
    pub node: NodeId,
    /// Milliseconds since the Unix epoch.
    pub since_ms: u64,
}

impl SessionInfo {
    pub fn new(session: &SessionId, since_ms: u64) -> Self {
        Self { session: session.to_string(), node: session.node.clone(), since_ms }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskReply {
    pub from: NodeId,
    /// The sessions that the question was about.
    pub sessions: Vec<SessionInfo>,
    /// The users that it was about, unless they are too many to be listed.
    #[serde(default)]
    pub users: Vec<UserId>,
    /// How many users, or for how many of the sessions the order changed something.
    #[serde(default)]
    pub count: u64,
    /// There are more users than a list may have.
    #[serde(default)]
    pub unlisted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<Report>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<TraceEvent>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revocations: Vec<Revocation>,
    /// Whose the ticket was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Box<Identity>>,
}

impl AskReply {
    pub fn new(from: NodeId) -> Self {
        Self {
            from,
            sessions: Vec::new(),
            users: Vec::new(),
            count: 0,
            unlisted: false,
            report: None,
            trace: Vec::new(),
            revocations: Vec::new(),
            identity: None,
        }
    }
}

/// An origin tells the nodes that hold a user: mail of the user lies in its box, and goes before what follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailNotice {
    pub from: NodeId,
    pub life: Life,
    pub user: UserId,
    /// It is for the home of the user, which is to pass it on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relay: bool,
}

fn json(to: Destination, kind: &str, body: &impl Serialize, properties: Properties) -> Publish {
    let properties = Properties {
        kind: Some(kind.to_owned()),
        content_type: Some("application/json".to_owned()),
        persistent: Some(false),
        ..properties
    };
    // Plain structs of strings and numbers cannot fail to serialize.
    let body: Bytes = serde_json::to_vec(body).unwrap_or_default().into();
    Publish { to, properties, body, order_key: 0, lane: Lane::Urgent }
}

/// It overtakes nothing that was published before with the same order key, and is overtaken by nothing after it.
pub fn mail_publish(to: Destination, notice: &MailNotice, order_key: u64) -> Publish {
    let publish = json(to, kind::MAIL, notice, Properties::default());
    Publish { order_key, lane: Lane::Bulk, ..publish }
}

pub fn receipts_publish(to: NodeId, receipts: &Receipts) -> Publish {
    json(Destination::Nodes(smallvec![to]), kind::RECEIPTS, receipts, Properties::default())
}

pub fn ask_publish(to: NodeId, ask: &Ask, origin: &Origin) -> Publish {
    json(Destination::Nodes(smallvec![to]), kind::ASK, ask, answered_to(origin))
}

pub fn answer_publish(to: &Origin, answer: &AskReply) -> Publish {
    json(Destination::Nodes(smallvec![to.node.clone()]), kind::ANSWER, answer, answered_to(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::fuzz::fuzz;

    /// What can be read comes back the same.
    fn reread<T: serde::de::DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
        bytes: &[u8],
    ) -> bool {
        let Ok(word) = serde_json::from_slice::<T>(bytes) else { return false };
        let again = serde_json::to_vec(&word).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&again).unwrap(), word);
        true
    }

    #[test]
    fn fuzzed() {
        let node = NodeId::new("n-1").unwrap();
        let session = SessionId::parse("n-1~abc").unwrap();
        let mut reply = AskReply::new(node);
        reply.sessions.push(SessionInfo::new(&session, 7));
        reply.users.push(UserId::new("zo\u{eb}").unwrap());
        let channel = ChannelName::new("c").unwrap();
        let good = [
            serde_json::to_vec(&reply).unwrap(),
            serde_json::to_vec(&Ask::DisconnectSession(session.to_string())).unwrap(),
            serde_json::to_vec(&Ask::UsersIn(channel.clone())).unwrap(),
            serde_json::to_vec(&Ask::Revocations { digest: u64::MAX }).unwrap(),
            br#"{"redeem_ticket":"00000000000000000000000000000007"}"#.to_vec(),
            br#"{"revoke":{"what":{"user":"a"},"issued_before":7,"until":9}}"#.to_vec(),
            serde_json::to_vec(&Ask::Subscribe(UserId::new("a").unwrap(), channel)).unwrap(),
        ];
        fuzz("peer words", &good, &["null", "[]", "{}", "\\u0000"], |input| {
            let receipts = reread::<Receipts>(input);
            (receipts, reread::<Ask>(input), reread::<AskReply>(input), reread::<MailNotice>(input))
        });
    }

    #[test]
    fn receipts_of_messages_that_were_declined_are_understood_by_older_releases() {
        let receipts = Receipts {
            from: NodeId::new("n").unwrap(),
            life: Life(7),
            relayed: vec![],
            receipts: vec![
                (Tag(1), Receipt::Delivered(2)),
                (Tag(2), Receipt::Declined),
                (Tag(3), Receipt::NotTaken),
            ],
        };
        let json = serde_json::to_string(&receipts).unwrap();
        assert!(
            json.contains(r#""receipts":[[1,{"delivered":2}],[2,"not_taken"],[3,"not_taken"]]"#),
            "{json}"
        );
        assert!(!json.contains("relayed"), "{json}");
        assert_eq!(serde_json::from_str::<Receipts>(&json).unwrap(), receipts);
        let nodes = ["a", "b"].map(|name| NodeId::new(name).unwrap()).into_iter().collect();
        let receipts = Receipts { relayed: vec![(Tag(4), nodes), (Tag(5), vec![])], ..receipts };
        let json = serde_json::to_string(&receipts).unwrap();
        assert!(json.contains(r#""relayed":[[4,["a","b"]],[5,[]]]"#), "{json}");
        assert_eq!(serde_json::from_str::<Receipts>(&json).unwrap(), receipts);
    }
}
