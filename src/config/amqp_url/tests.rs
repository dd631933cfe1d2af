//! Which URLs are read, how, and which are refused without a word of theirs.

use super::*;

#[test]
fn the_parts_of_a_url_are_told_apart() {
    let url =
        AmqpUrl::parse("amqps://us%40er:p%2Fa%3as%3As@mq.example:5679/v%2Fh?heartbeat=7&frame_max=9000")
            .unwrap();
    assert!(url.tls());
    assert_eq!((url.user(), url.expose_password()), ("us@er", "p/a:s:s"));
    assert_eq!((url.host(), url.port()), ("mq.example", 5679));
    assert_eq!((url.vhost(), url.heartbeat(), url.frame_max()), ("v/h", 7, 9000));
    for (text, address, vhost) in [
        ("amqp://mq", "mq:5672", "/"),
        ("amqps://mq", "mq:5671", "/"),
        ("amqp://mq/%2f", "mq:5672", "/"),
        ("amqp://mq?heartbeat=5", "mq:5672", "/"),
        ("amqp://[::1]:5673/v", "[::1]:5673", "v"),
        ("amqp://u:p@[fe80::0:1]", "[fe80::1]:5672", "/"),
        ("amqp://u:p:p@127.0.0.1", "127.0.0.1:5672", "/"),
    ] {
        let url = AmqpUrl::parse(text).unwrap();
        assert_eq!((url.address().as_str(), url.vhost()), (address, vhost), "{text}");
    }
    assert_eq!(AmqpUrl::parse("amqp://[::1]").unwrap().host(), "::1");
    assert_eq!(AmqpUrl::parse("amqp://mq").unwrap().heartbeat(), 10);
}

#[test]
fn what_cannot_connect_is_refused_and_never_repeated() {
    for bad in [
        "",
        "canary",
        "mq:5672",
        "http://u:canary@mq",
        "AMQP//mq",
        "amqp:/mq",
        "amqp://",
        "amqp://u:canary@",
        "amqp://u:canary@:5672",
        "amqp://u:canary",
        "amqp://u:canary@mq:port",
        "amqp://u:canary@mq:0",
        "amqp://u:canary@mq:65536",
        "amqp://u:canary@mq:",
        "amqp://u:canary@mq:+1",
        "amqp://u:canary@m q",
        "amqp://u:can/ary@mq",
        "amqp://u:can?ary@mq",
        "amqp://u:can#ary@mq",
        "amqp://u:can@ary@mq",
        "amqp://u:canary%@mq",
        "amqp://u:canary%f@mq",
        "amqp://u:canary%zz@mq",
        "amqp://u:canary%ff@mq",
        "amqp://%ff:canary@mq",
        "amqp://:canary@mq",
        "amqp://canary@mq",
        "amqp://u:@mq",
        "amqp://@mq",
        "amqp://u:canary@[::1",
        "amqp://u:canary@::1",
        "amqp://u:canary@[canary]",
        "amqp://u:canary@[::1]5672",
        "amqp://u:canary@m%20q",
        "amqp://u:canary@mqé",
        "amqp://u:canary@mq/",
        "amqp://u:canary@mq/%ff",
        "amqp://u:canary@mq/v#canary",
        "amqp://u:canary@mq/?heartbeat=7",
        "amqp://u:canary@mq?heartbeat=abc",
        "amqp://u:canary@mq?heartbeat=0",
        "amqp://u:canary@mq?heartbeat=",
        "amqp://u:canary@mq?heartbeat",
        "amqp://u:canary@mq?heartbeat=-1",
        "amqp://u:canary@mq?heartbeat=99999",
        "amqp://u:canary@mq?frame_max=abc",
        "amqp://u:canary@mq?frame_max=1",
        "amqp://u:canary@mq?frame_max=0",
        "amqp://u:canary@mq?frame_max=99999999999",
        "amqp://u:canary@mq?channel_max=",
        "amqp://u:canary@mq?channel_max=1",
        "amqp://u:canary@mq?channel_max=65536",
        "amqp://u:canary@mq?connection_timeout=soon",
        "amqp://u:canary@mq?auth_mechanism=foo",
        "amqp://u:canary@mq?auth_mechanism=anonymous",
        "amqp://u:canary@mq?canary=1",
        "amqp://u:canary@mq?heartbeat=5&heartbeat=6",
        "amqp://u:canary@mq?password=canary",
    ] {
        let error = AmqpUrl::parse(bad).map(|url| url.to_string()).unwrap_err();
        assert!(!error.contains("canary") && !error.contains("ary"), "{bad}: {error}");
    }
}

#[test]
fn a_url_is_shown_without_its_password() {
    let url = AmqpUrl::parse("amqp://gateway:canary@mq/%2f").unwrap();
    assert_eq!(format!("{url} {url:?}").matches("canary").count(), 0);
    assert_eq!(url.to_string(), "amqp://gateway:***@mq:5672//");
}

#[test]
fn urls_of_one_cluster_name_one_user_and_one_vhost() {
    let check = |texts: &[&str]| {
        let urls: Vec<_> = texts.iter().map(|text| AmqpUrl::parse(text).unwrap()).collect();
        check_together(&urls)
    };
    assert!(check(&[]).is_ok());
    assert!(check(&["amqp://u:p@a", "amqp://u:other@b/%2F", "amqps://u:p@[::1]"]).is_ok());
    assert!(check(&["amqp://u:p@a", "amqp://v:p@b"]).unwrap_err().contains("user"));
    assert!(check(&["amqp://u:p@a", "amqp://u:p@b/v"]).unwrap_err().contains("vhost"));
}

#[test]
fn fuzzed() {
    let good =
        ["amqp://user:pAsSwOrD@host:5672/%2f", "amqps://u:pAsSwOrD@[::1]/vhost?heartbeat=5&channel_max=9"];
    let words =
        ["%", "%2f", "@", ":", "//", "[", "]", "?", "&", "#", "auth_mechanism=plain", "connection_timeout="];
    crate::tests::fuzz::fuzz("URLs", &good.map(|text| text.as_bytes().to_vec()), &words, |input| {
        let text = String::from_utf8_lossy(input);
        match AmqpUrl::parse(&text) {
            Ok(url) => {
                let password = url.expose_password();
                let shown = format!("{url:?}");
                let elsewhere =
                    [url.user(), url.vhost(), url.host()].iter().any(|part| part.contains("pAsSwOrD"));
                assert!(
                    !password.contains("pAsSwOrD") || elsewhere || !shown.contains("pAsSwOrD"),
                    "{shown}"
                );
                format!("{} {} {}", url.tls(), url.port() == 5672, url.heartbeat() > 0)
            }
            Err(why) => {
                assert!(!why.contains("pAsSwOrD"), "{why}");
                why
            }
        }
    });
}
