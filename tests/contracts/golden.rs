//! Golden samples: what the code writes is what `schemas/samples/server.jsonl` has, what it reads what `client.jsonl` has, and the
//! schemas agree with both.

use std::time::Duration;

use serde_json::Value;
use warren::error::{Code, Error};
use warren::ids::{ChannelName, MessageId, NodeId, SessionId, UserId};
use warren::protocol::close::CloseCode;
use warren::protocol::message::{Answer, Form, Guarantee, Message, Payload, Sender, Settlement};
use warren::protocol::presence::{Change, Event, Roster};
use warren::protocol::publish::PublishRequest;
use warren::protocol::reply::{Limits, OneSession, Presence, Reply, Settled, Welcome};
use warren::protocol::request::RequestBody;
use warren::protocol::target::Target;
use warren::protocol::warren_v1::{reply, request};

use crate::recording::Recording;
use crate::tools::root;

const CODES: [Code; 14] = [
    Code::BadRequest,
    Code::Unauthorized,
    Code::Forbidden,
    Code::NotFound,
    Code::Offline,
    Code::Declined,
    Code::Expired,
    Code::MailboxFull,
    Code::RateLimited,
    Code::Overloaded,
    Code::NoBackend,
    Code::NoAnswer,
    Code::BadAnswer,
    Code::Unavailable,
];

/// Every code; a new one does not compile here until it has a place.
pub fn codes() -> impl Iterator<Item = Code> {
    CODES.into_iter().inspect(|code| match code {
        Code::BadRequest | Code::Unauthorized | Code::Forbidden | Code::NotFound | Code::Offline => {}
        Code::Declined | Code::Expired | Code::MailboxFull | Code::RateLimited | Code::Overloaded => {}
        Code::NoBackend | Code::NoAnswer | Code::BadAnswer | Code::Unavailable => {}
    })
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn session() -> SessionId {
    SessionId::parse("n1~3w5e11264sgsf").unwrap()
}

fn channel() -> ChannelName {
    ChannelName::new("room \u{1f407}").unwrap()
}

fn message(target: &str, sender: Sender, payload: Payload) -> Message {
    Message {
        id: MessageId::new("m1").unwrap(),
        target: Target::parse(target).unwrap(),
        sender,
        event: None,
        payload,
        accepted_ms: 1_764_061_200_000,
        expires: None,
        guarantee: Guarantee::AtLeastOnce,
        redelivered: false,
        stamp: None,
    }
}

fn messages() -> Vec<Vec<u8>> {
    let client = || Sender::Client { user: user("zo\u{eb} \"x\""), session: session() };
    let json = || Payload::json(&br#"{"a": [1.0, "\u00e9"]}"#[..]);
    let again =
        Message { event: Some("chat".into()), redelivered: true, ..message("user.bob", client(), json()) };
    let by_http = message("channel.room", Sender::User { user: user("bob") }, Payload::json(&b"null"[..]));
    let service = || Sender::Service { service: "parcels".into() };
    let text = message("broadcast", service(), Payload { form: Form::Text, bytes: "say \"hi\"".into() });
    let bytes = Payload { form: Form::Binary, bytes: vec![0xff, 0xfe].into() };
    let bytes = message("session.n1~3w5e11264sgsf", service(), bytes);
    [again, by_http, text, bytes].iter().map(reply::message).collect()
}

fn replies() -> Vec<Vec<u8>> {
    let id = MessageId::new("m1").unwrap();
    let answer = |payload: Payload| Settlement::Answered(Answer::new(&payload).unwrap());
    let failed = |code| Settlement::Failed(Error::new(code, "why"));
    let settlements = [
        Settlement::Delivered { sessions: 2 },
        Settlement::Stored,
        Settlement::Published,
        answer(Payload::json(&br#"{"order":7}"#[..])),
        answer(Payload { form: Form::Binary, bytes: vec![0xff].into() }),
        failed(Code::Expired),
        failed(Code::Offline),
    ];
    let mut frames: Vec<Vec<u8>> = settlements
        .iter()
        .map(|of| reply::reply(Some("1"), &Reply::Settled(Settled::new(&id, of))))
        .collect();
    let sessions =
        vec![OneSession { session: session().to_string(), node: NodeId::new("n1").unwrap(), since_ms: 7 }];
    let presences = [
        Presence::User { online: true, sessions, partial: false },
        Presence::User { online: false, sessions: Vec::new(), partial: true },
        Presence::Channel { count: 2, users: Some(vec![user("a"), user("b")]), partial: false },
        Presence::Channel { count: 1_001, users: None, partial: false },
    ];
    frames.extend(presences.iter().map(|of| reply::reply(Some("\"x\""), &Reply::Presence(of))));
    frames.push(reply::reply(Some("-1.5"), &Reply::Ok));
    frames.push(reply::reply(None, &Reply::Subscribed { count: 3 }));
    frames.extend(codes().map(|code| reply::reply(Some("1"), &Reply::Error(&Error::new(code, "why")))));
    frames
}

fn notices() -> Vec<Vec<u8>> {
    let change = |event, user| reply::presence(&channel(), &Change { event, user, count: 3 });
    let roster = |users| reply::roster(&channel(), &Roster { count: 2, users });
    let mut frames = vec![
        change(Event::Join, Some(user("a"))),
        change(Event::Leave, None),
        roster(Some(vec![user("a"), user("b")])),
        roster(None),
        reply::subscribed(&channel()),
        reply::unsubscribed(&channel(), "removed"),
        reply::unsubscribed(&channel(), "forbidden"),
        reply::gap("broker link was lost"),
    ];
    frames.extend(CloseCode::ALL.iter().map(|code| reply::disconnect(*code, 250)));
    frames
}

/// A frame of each kind, in each of its forms.
fn server_frames() -> Vec<Vec<u8>> {
    let limits = Limits { message_bytes: 65_536, publishes_per_second: 0, in_flight: 256 };
    let (session, user, node) = (session(), user("alice"), NodeId::new("n1").unwrap());
    let welcome = |ping_interval, channels: &[ChannelName]| {
        let (session, user, node) = (&session, &user, &node);
        reply::welcome(&Welcome { session, user, node, version: "0.1.0", ping_interval, limits, channels })
    };
    let mut frames =
        vec![welcome(Duration::from_secs(25), &[]), welcome(Duration::from_millis(2_500), &[channel()])];
    frames.extend(messages());
    frames.extend(replies());
    frames.extend(notices());
    frames
}

#[test]
#[allow(clippy::disallowed_methods)] // UPDATE=1 rewrites the samples instead of comparing them.
fn frames_to_clients_are_as_the_samples_and_the_schema_say() {
    let lines: String =
        server_frames().into_iter().map(|frame| String::from_utf8(frame).unwrap() + "\n").collect();
    let path = root().join("schemas/samples/server.jsonl");
    if std::env::var("UPDATE").is_ok() {
        std::fs::write(&path, &lines).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), lines, "UPDATE=1 ./test contracts writes them anew");
    let recording = Recording::default();
    for line in lines.lines() {
        recording.saw(("frames", "server"), serde_json::from_str(line).unwrap());
    }
    recording.wants_all_of(("frames", "server"));
    recording.check();
}

/// What the gateway says to a frame before it looks at who sent it.
fn read(frame: &str) -> Result<&'static str, String> {
    let request = request::parse(frame).map_err(|refusal| refusal.error.message)?;
    let kind = match request.body {
        RequestBody::Publish(publish) => return check(publish).map(|()| "publish"),
        RequestBody::Ack(_) => "ack",
        RequestBody::Auth(_) => "auth",
        RequestBody::Refresh(_) => "refresh",
        RequestBody::Subscribe { .. } => "subscribe",
        RequestBody::Unsubscribe(_) => "unsubscribe",
        RequestBody::Presence(_) => "presence",
        RequestBody::Ping => "ping",
    };
    Ok(kind)
}

fn check(publish: PublishRequest<'_>) -> Result<(), String> {
    let sender = Sender::User { user: user("a") };
    publish.into_message(sender, warren::clock::Now::read()).map(|_| ()).map_err(|error| error.message)
}

#[test]
fn frames_from_clients_are_read_as_the_samples_and_the_schema_say() {
    let recording = Recording::default();
    let lines = |name: &str| std::fs::read_to_string(root().join("schemas/samples").join(name)).unwrap();
    for line in lines("client.jsonl").lines() {
        let frame: Value = serde_json::from_str(line).unwrap();
        assert_eq!(read(line), Ok(frame["type"].as_str().unwrap()), "{line}");
        recording.saw(("frames", "client"), frame);
    }
    recording.wants_all_of(("frames", "client"));
    for line in lines("client-refused.jsonl").lines() {
        assert!(read(line).is_err(), "{line}");
        recording.refused(("frames", "client"), serde_json::from_str(line).unwrap());
    }
    recording.check();
}
