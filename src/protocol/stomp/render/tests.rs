//! The frames to clients, byte for byte.

use super::*;
use crate::error::Code;
use crate::ids::MessageId;
use crate::protocol::message::{Guarantee, Payload, Settlement};
use crate::protocol::target::Target;

fn message(payload: Payload) -> Message {
    Message {
        id: MessageId::new("a:1%").unwrap(),
        target: Target::parse("user.alice").unwrap(),
        sender: Sender::Client {
            user: UserId::new("b\\ob").unwrap(),
            session: SessionId::parse("n~1").unwrap(),
        },
        event: Some("/queue/x".into()),
        payload,
        accepted_ms: 5,
        expires: None,
        guarantee: Guarantee::AtLeastOnce,
        redelivered: true,
        stamp: None,
    }
}

fn text(bytes: impl Into<Vec<u8>>) -> String {
    String::from_utf8(bytes.into()).unwrap()
}

#[test]
fn a_message_needs_no_escapes_and_says_how_long_it_is() {
    let of = |form, bytes: &'static [u8], takes_binary| {
        tail(&message(Payload { form, bytes: Bytes::from_static(bytes) }), takes_binary)
    };
    let json = of(Form::Json, b"{\"a\":1}", true);
    assert!(!json.is_binary);
    assert_eq!(
        text(&json.bytes[..]),
        "message-id:a%3A1%25\nredelivered:true\ntype:/queue/x\nfrom-user:b%5Cob\nfrom-session:n~1\ntimestamp:5\n\
         content-type:application/json\ncontent-length:7\n\n{\"a\":1}\0"
    );
    let plain = text(&of(Form::Text, "é\n".as_bytes(), true).bytes[..]);
    assert!(plain.ends_with("content-type:text/plain;charset=utf-8\ncontent-length:3\n\né\n\0"), "{plain}");
    let binary = of(Form::Binary, b"\xff\0", true);
    assert!(binary.is_binary && binary.bytes.ends_with(b"octet-stream\ncontent-length:2\n\n\xff\0\0"));
    let base64 = of(Form::Binary, b"\xff\0", false);
    assert!(!base64.is_binary && base64.bytes.ends_with(b"encoding:base64\ntimestamp:5\ncontent-type:application/octet-stream\ncontent-length:4\n\n/wA=\0"));
    // A lie of somebody else must not end a socket.
    assert!(of(Form::Json, b"\xff", true).is_binary && !of(Form::Text, b"\xff", false).is_binary);
}

#[test]
fn heads_and_receipts_are_in_the_clients_own_words() {
    assert_eq!(
        message_head(Some("s\\c1"), "/topic/a:b"),
        "MESSAGE\nsubscription:s\\c1\ndestination:/topic/a:b\n"
    );
    assert_eq!(message_head(None, "/topic/a"), "MESSAGE\ndestination:/topic/a\n");
    assert_eq!(text(receipt("r\\c1", None)), "RECEIPT\nreceipt-id:r\\c1\n\n\0");
    let (id, settlement) = (MessageId::new("m").unwrap(), Settlement::Delivered { sessions: 2 });
    assert_eq!(
        text(receipt("1", Some(&Settled::new(&id, &settlement)))),
        "RECEIPT\nreceipt-id:1\noutcome:delivered\nmessage-id:m\nsessions:2\n\n\0"
    );
}

#[test]
fn errors_are_readable_in_the_header_and_exact_in_the_body() {
    let error = Error::new(Code::BadRequest, "SEND: a\\b");
    assert_eq!(
        text(super::error(&error, Some("7"))),
        "ERROR\nmessage:SEND; a/b\nreceipt-id:7\ncode:bad_request\nretry:false\n\
         content-type:text/plain;charset=utf-8\ncontent-length:9\n\nSEND: a\\b\0"
    );
    assert_eq!(
        text(disconnect(CloseCode::Drain, 250)),
        "ERROR\nmessage:node drains\ncode:4200\nreconnect:true\nafter-ms:250\ncontent-length:0\n\n\0"
    );
    let none = text(no_common_version());
    assert!(none.starts_with("ERROR\nmessage:no common version\nversion:1.0,1.1,1.2\n"), "{none}");
    let late = text(error_notice(&error, None, None));
    assert!(late.contains("\ncode:bad_request\n") && late.contains("\"code\":\"bad_request\""), "{late}");
}

#[test]
fn connected_always_has_heart_beats() {
    let session = SessionId::parse("n~1").unwrap();
    let frame = text(connected(Version::V1_0, &session, &UserId::new("a").unwrap(), 0));
    assert!(
        frame.starts_with("CONNECTED\nversion:1.0\nheart-beat:0,0\nsession:n~1\nuser-name:a\nserver:warren/"),
        "{frame}"
    );
    assert!(frame.ends_with("\n\n\0"));
}
