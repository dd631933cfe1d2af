//! What destinations mean: a channel, a user, a session, everybody; or why they mean nothing here.

use crate::ids::{AppKey, ChannelName, SessionId, UserId};
use crate::protocol::publish::{check_event, EVENT_BYTES_MAX};
use crate::protocol::target::Target;

/// Where messages without an event go, and those that no other subscription of a session asks for.
pub const ANY_QUEUE: &str = "/queue/messages";
/// Where a session that subscribes to it is told of failures, instead of being closed.
pub const ERRORS: &str = "/queue/errors";
/// Where a session that subscribes to it is told that it may have missed messages.
pub const GAPS: &str = "/queue/gaps";

const KNOWN: &str =
    "destinations are /topic/<channel>, /user/<path>, /session/<id>/<path>, /app/<key> and /broadcast";
const NO_QUEUES: &str = "browsers share no queues here; use /topic/<channel>, or /user/queue/<name>";

/// What a session subscribes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    Channel(ChannelName),
    Broadcast,
    /// Messages for the session's own user whose event is this path.
    Own(Box<str>),
    /// All messages for the session's own user that no other subscription asks for.
    AnyOwn,
}

impl Interest {
    /// The error is fit to be shown to the client.
    pub fn parse(destination: &str) -> Result<Self, String> {
        if destination == "/user/**" {
            return Ok(Interest::AnyOwn);
        }
        if let Some(name) = destination.strip_prefix("/channel/") {
            return channel(name).map(Interest::Channel);
        }
        refuse_foreign(destination)?;
        refuse_patterns(destination)?;
        if let Some(name) = topic(destination) {
            return channel(name).map(Interest::Channel);
        }
        if destination == "/broadcast" {
            return Ok(Interest::Broadcast);
        }
        match destination.strip_prefix("/user") {
            Some(path) if path.len() > 1 && path.starts_with('/') => {
                check_event(path).map_err(|error| error.message)?;
                Ok(if path == ANY_QUEUE { Interest::AnyOwn } else { Interest::Own(path.into()) })
            }
            _ if destination.starts_with("/app/") => {
                Err("the application cannot be subscribed to; SEND to /app/<key>, what it answers comes to /user/<path>".into())
            }
            _ if destination.starts_with("/session/") => {
                Err("a session cannot be subscribed to; what is sent to it comes to /user/<path>".into())
            }
            _ => Err(KNOWN.into()),
        }
    }
}

/// Whom a SEND is for, and its event. In the key of an application a slash is a dot.
pub fn publication(destination: &str) -> Result<(Target, Option<String>), String> {
    refuse_foreign(destination)?;
    if let Some(name) = destination.strip_prefix("/channel/").or_else(|| topic(destination)) {
        return channel(name).map(|channel| (Target::Channel(channel), None));
    }
    if destination == "/broadcast" {
        return Ok((Target::Broadcast, None));
    }
    if let Some(path) = destination.strip_prefix("/app/") {
        let key = AppKey::new(&path.replace('/', ".")).map_err(|error| error.to_string())?;
        return Ok((Target::App(key), None));
    }
    if let Some(rest) = destination.strip_prefix("/user/") {
        let (name, event) = name_and_path(rest)?;
        // As Spring has it: a slash in a name is written as %2F.
        let user =
            UserId::new(&name.replace("%2F", "/").replace("%2f", "/")).map_err(|error| error.to_string())?;
        return Ok((Target::User(user), event));
    }
    if let Some(rest) = destination.strip_prefix("/session/") {
        let (id, event) = name_and_path(rest)?;
        let session = SessionId::parse(id).map_err(|error| error.to_string())?;
        return Ok((Target::Session(session), event));
    }
    Err(KNOWN.into())
}

fn name_and_path(rest: &str) -> Result<(&str, Option<String>), String> {
    let Some(slash) = rest.find('/') else { return Ok((rest, None)) };
    let (name, path) = rest.split_at(slash);
    check_event(path).map_err(|error| error.message)?;
    Ok((name, (path.len() > 1).then(|| path.to_owned())))
}

fn topic(destination: &str) -> Option<&str> {
    destination.strip_prefix("/topic/").or_else(|| destination.strip_prefix("/exchange/amq.topic/"))
}

fn channel(name: &str) -> Result<ChannelName, String> {
    ChannelName::new(name).map_err(|error| error.to_string())
}

/// Destinations of other brokers that mean something else than anything here.
fn refuse_foreign(destination: &str) -> Result<(), String> {
    let starts = |prefix: &str| {
        destination == prefix || destination.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
    };
    match () {
        () if starts("/queue") || starts("/amq/queue") => Err(NO_QUEUES.into()),
        () if starts("/exchange/amq.topic") => Ok(()),
        () if starts("/exchange") => Err("exchanges are not open to browsers; use /topic/<channel>".into()),
        () if starts("/temp-queue") || starts("/reply-queue") => {
            Err("temporary queues are not part of this version; answers can be sent to /session/<id>/<path>"
                .into())
        }
        () => Ok(()),
    }
}

/// Patterns of Spring and RabbitMQ. Channels whose names look like one can be had as `/channel/<name>`.
fn refuse_patterns(destination: &str) -> Result<(), String> {
    let is_pattern =
        destination.contains(['*', '{', '}']) || destination.split(['/', '.']).any(|word| word == "#");
    match is_pattern {
        true => Err("wildcards are not supported; subscribe to each channel by its name".into()),
        false => Ok(()),
    }
}

/// The path that an event stands for: `x`, `queue.x` and `/queue/x` are the same. Without an event it is [`ANY_QUEUE`].
pub fn path_of_event(event: Option<&str>) -> std::borrow::Cow<'_, str> {
    match event {
        None | Some("") => ANY_QUEUE.into(),
        Some(path) if path.starts_with('/') => path.into(),
        Some(name) => format!("/queue/{}", name.strip_prefix("queue.").unwrap_or(name)).into(),
    }
}

const _: () = assert!(ERRORS.len() <= EVENT_BYTES_MAX && GAPS.len() <= EVENT_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions() {
        let room = |name: &str| Ok(Interest::Channel(ChannelName::new(name).unwrap()));
        for (destination, expected) in [
            ("/topic/room", room("room")),
            ("/topic/a.b/c d", room("a.b/c d")),
            ("/topic/#general", room("#general")),
            ("/channel/a.*", room("a.*")),
            ("/exchange/amq.topic/a.b", room("a.b")),
            ("/broadcast", Ok(Interest::Broadcast)),
            ("/user/queue/errors", Ok(Interest::Own("/queue/errors".into()))),
            ("/user/exchange/amq.direct/x", Ok(Interest::Own("/exchange/amq.direct/x".into()))),
            ("/user/queue/messages", Ok(Interest::AnyOwn)),
            ("/user/**", Ok(Interest::AnyOwn)),
        ] {
            assert_eq!(Interest::parse(destination), expected, "{destination}");
        }
        for (destination, part) in [
            ("/topic/*", "wildcards"),
            ("/topic/a.#", "wildcards"),
            ("/topic/**", "wildcards"),
            ("/topic/{id}", "wildcards"),
            ("/user/queue/*", "wildcards"),
            ("/topic/", "empty"),
            ("/topic", "destinations are"),
            ("/user", "destinations are"),
            ("/user/", "destinations are"),
            ("/queue/work", "share no queues"),
            ("/amq/queue/work", "share no queues"),
            ("/exchange/orders/key", "exchanges"),
            ("/temp-queue/x", "temporary"),
            ("/app/orders", "the application cannot be subscribed to"),
            ("/app", "destinations are"),
            ("/session/n~1/queue/x", "cannot be subscribed to"),
            ("room", "destinations are"),
            ("", "destinations are"),
        ] {
            let error = Interest::parse(destination).unwrap_err();
            assert!(error.contains(part), "{destination}: {error}");
        }
    }

    #[test]
    fn publications() {
        for (destination, target, event) in [
            ("/topic/room", "channel.room", None),
            ("/topic/a.*", "channel.a.*", None),
            ("/channel/room", "channel.room", None),
            ("/user/bob/queue/news", "user.bob", Some("/queue/news")),
            ("/user/bob", "user.bob", None),
            ("/user/bob/", "user.bob", None),
            ("/user/a%2Fb/queue/x", "user.a/b", Some("/queue/x")),
            ("/session/n~1/queue/x", "session.n~1", Some("/queue/x")),
            ("/app/orders/new", "app.orders.new", None),
            ("/broadcast", "broadcast", None),
        ] {
            let expected = (Target::parse(target).unwrap(), event.map(str::to_owned));
            assert_eq!(publication(destination), Ok(expected), "{destination}");
        }
        for destination in
            ["/user/", "/user//x", "/session/x", "/queue/q", "/app/", "/app/a*", "/topic/", "x", ""]
        {
            assert!(publication(destination).is_err(), "{destination}");
        }
    }

    #[test]
    fn short_events_are_paths_too() {
        for (event, path) in [
            (None, ANY_QUEUE),
            (Some("/queue/x"), "/queue/x"),
            (Some("queue.x"), "/queue/x"),
            (Some("x"), "/queue/x"),
            (Some("/exchange/amq.direct/x"), "/exchange/amq.direct/x"),
        ] {
            assert_eq!(path_of_event(event), path);
        }
    }
}
