//! Hooks: the application decides who may connect, publish and subscribe, where an operator wants that. It is asked as by any
//! request to a backend, under keys that nobody else may use, and its silence is a refusal.
//!
//! - `decisions.rs`: what was decided lately, and who waits (pure).
//!
//! Lock: one, around the decisions, held for moments; nothing is called meanwhile.

mod decisions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::{settled, Router, Settle};
use crate::clock::unix_ms;
use crate::config::HookKinds;
use crate::error::{Code, Error};
use crate::ids::{AppKey, ChannelName, MessageId, UserId};
use crate::protocol::message::{Guarantee, Message, Payload, Sender, Settlement};
use crate::protocol::target::Target;
use decisions::{Asked, Decisions};

/// With what the keys of hooks begin.
const PREFIX: &str = "hook.";
/// Longest reason of a refusal that a client is shown, in characters.
const REASON_MAX: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    Connect,
    Publish,
    Subscribe,
}

impl Hook {
    fn key(self) -> &'static str {
        match self {
            Hook::Connect => "hook.connect",
            Hook::Publish => "hook.publish",
            Hook::Subscribe => "hook.subscribe",
        }
    }
}

/// Allowed, or what the client is told instead.
pub type Verdict = Result<(), Error>;
/// What waits for a verdict: called once, on any thread, and returns at once.
pub type Then = Box<dyn FnOnce(Verdict) + Send>;

/// All that a decision depends on. Equal questions have one answer for as long as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    hook: Hook,
    user: UserId,
    /// The target, the channel, or the address that a client comes from.
    about: Box<str>,
}

impl Question {
    pub fn connect(user: &UserId, address: Option<std::net::IpAddr>) -> Self {
        let about = address.map(|address| address.to_string()).unwrap_or_default();
        Self { hook: Hook::Connect, user: user.clone(), about: about.into() }
    }

    pub fn publish(user: &UserId, to: &Target) -> Self {
        Self { hook: Hook::Publish, user: user.clone(), about: to.to_string().into() }
    }

    pub fn subscribe(user: &UserId, channel: &ChannelName) -> Self {
        Self { hook: Hook::Subscribe, user: user.clone(), about: channel.as_str().into() }
    }

    fn body(&self) -> Vec<u8> {
        let Self { user, about, .. } = self;
        let body = match self.hook {
            Hook::Connect if about.is_empty() => json!({ "hook": "connect", "user": user }),
            Hook::Connect => json!({ "hook": "connect", "user": user, "address": about }),
            Hook::Publish => json!({ "hook": "publish", "user": user, "to": about }),
            Hook::Subscribe => json!({ "hook": "subscribe", "user": user, "channel": about }),
        };
        body.to_string().into_bytes()
    }
}

/// How a message of a client is published.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    Usual,
    /// Not back to the session with this counter.
    WithoutEcho(u64),
    /// The application answers it, to the session with this counter if there is one.
    Request(Option<u64>),
}

#[derive(Debug, Clone, Copy)]
pub struct HookSettings {
    pub kinds: HookKinds,
    pub timeout: Duration,
    /// How long a decision counts.
    pub cache: Duration,
}

pub(super) struct Hooks {
    settings: HookSettings,
    decisions: Mutex<Decisions>,
}

impl Hooks {
    pub(super) fn new(settings: HookSettings) -> Self {
        Self { settings, decisions: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Decisions> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
struct Decision {
    allow: bool,
    reason: Option<String>,
}

/// The verdict in a backend's answer. Whatever is not a clear yes is no.
fn verdict(settlement: Settlement) -> Verdict {
    let decision = match settlement {
        Settlement::Answered(answer) => serde_json::from_str::<Decision>(answer.payload().get()).ok(),
        _ => None,
    };
    match decision {
        Some(Decision { allow: true, .. }) => Ok(()),
        Some(Decision { reason, .. }) => {
            let reason = reason.unwrap_or_else(|| "the application does not allow it".to_owned());
            let reason: String = reason.chars().filter(|char| !char.is_control()).take(REASON_MAX).collect();
            Err(Error::new(Code::Forbidden, reason))
        }
        None => Err(Error::new(
            Code::Unavailable,
            "the application does not say whether this is allowed; try again",
        )),
    }
}

impl Router {
    pub fn has_hook(&self, hook: Hook) -> bool {
        let kinds = self.hooks.settings.kinds;
        match hook {
            Hook::Connect => kinds.connect,
            Hook::Publish => kinds.publish,
            Hook::Subscribe => kinds.subscribe,
        }
    }

    /// Whether only the gateway itself may send there.
    pub fn is_reserved(&self, target: &Target) -> bool {
        matches!(target, Target::App(key) if key.as_str().starts_with(PREFIX))
            && self.hooks.settings.kinds != HookKinds::default()
    }

    /// Carries something out, or not, once the application has said whether it may be. Without a hook it is at once.
    pub fn when_allowed(self: &Arc<Self>, question: Question, then: Then) {
        if !self.has_hook(question.hook) {
            return then(Ok(()));
        }
        let asked = self.hooks.lock().ask(&question, then, Instant::now());
        match asked {
            Asked::Known(then, verdict) => then(verdict),
            Asked::Waits => {}
            Asked::Full(then) => {
                then(Err(Error::new(Code::Overloaded, "too many actions await a decision; try again")));
            }
            Asked::First => {
                let router = self.clone();
                let message = self.hook_message(&question);
                let decided = move |settlement| router.decided(&question, verdict(settlement));
                match message {
                    Some(message) => self.request(message, None, Box::new(decided)),
                    None => decided(Settlement::Failed(Error::bad_request("no key"))),
                }
            }
        }
    }

    /// [`Router::when_allowed`] for callers that can wait.
    pub async fn allowed(self: &Arc<Self>, question: Question) -> Verdict {
        if !self.has_hook(question.hook) {
            return Ok(());
        }
        let (tell, told) = oneshot::channel();
        self.when_allowed(question, Box::new(move |verdict| drop(tell.send(verdict))));
        told.await.unwrap_or_else(|_| Err(Error::new(Code::Unavailable, "this node is shutting down")))
    }

    fn decided(&self, question: &Question, verdict: Verdict) {
        if let Err(error) = &verdict {
            tracing::debug!(hook = question.hook.key(), user = %question.user, %error, "not allowed");
        }
        self.hooks.lock().decided(question, verdict);
        loop {
            let next = self.hooks.lock().next(question, self.hooks.settings.cache, Instant::now());
            match next {
                Some((then, verdict)) => then(verdict),
                None => return,
            }
        }
    }

    fn hook_message(&self, question: &Question) -> Option<Message> {
        Some(Message {
            id: MessageId::generate(),
            target: Target::App(AppKey::new(question.hook.key()).ok()?),
            sender: Sender::User { user: question.user.clone() },
            event: Some("hook".into()),
            payload: Payload::json(question.body()),
            accepted_ms: unix_ms(),
            expires: Some(Instant::now() + self.hooks.settings.timeout),
            guarantee: Guarantee::AtMostOnce,
            redelivered: false,
            stamp: None,
        })
    }

    /// Publishes a message of a user, once it is allowed: `user` is `None` for whoever is not asked about. Messages of one
    /// user for one target keep their order.
    pub fn publish_as(self: &Arc<Self>, user: Option<&UserId>, message: Message, way: Way, settle: Settle) {
        match user.filter(|_| self.has_hook(Hook::Publish)) {
            None => self.publish(message, way, settle),
            Some(user) => {
                let (question, router) = (Question::publish(user, &message.target), self.clone());
                let then = move |verdict| match verdict {
                    Ok(()) => router.publish(message, way, settle),
                    Err(error) => settle(Settlement::Failed(error)),
                };
                self.when_allowed(question, Box::new(then));
            }
        }
    }

    /// [`Router::publish_as`] for callers that can wait.
    pub async fn deliver_as(
        self: &Arc<Self>,
        user: Option<&UserId>,
        message: Message,
        way: Way,
    ) -> Settlement {
        settled(|settle| self.publish_as(user, message, way, settle)).await
    }

    fn publish(&self, message: Message, way: Way, settle: Settle) {
        match way {
            Way::Usual => self.accept(message, settle),
            Way::WithoutEcho(session) => self.accept_without_echo(message, session, settle),
            Way::Request(session) => self.request(message, session, settle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::Answer;

    #[test]
    fn only_a_clear_yes_is_yes() {
        let answered = |text: &str| {
            let answer = Answer::new(&Payload::json(text.as_bytes().to_vec())).unwrap();
            verdict(Settlement::Answered(answer)).map_err(|error| (error.code, error.message))
        };
        assert_eq!(answered(r#"{"allow":true,"more":1}"#), Ok(()));
        assert_eq!(
            answered(r#"{"allow":false,"reason":"not\nyours"}"#),
            Err((Code::Forbidden, "notyours".into()))
        );
        assert_eq!(answered(r#"{"allow":false}"#).unwrap_err().0, Code::Forbidden);
        for unclear in
            ["true", "{}", r#"{"allow":1}"#, r#"{"allow":"true"}"#, "null", r#"{"allow":null}"#, "[]"]
        {
            assert_eq!(answered(unclear).unwrap_err().0, Code::Unavailable, "{unclear}");
        }
        for failed in [Code::NoBackend, Code::NoAnswer, Code::BadAnswer, Code::Overloaded] {
            let verdict = verdict(Settlement::Failed(Error::new(failed, "x")));
            assert_eq!(verdict.unwrap_err().code, Code::Unavailable);
        }
        assert!(verdict(Settlement::Published).is_err());
    }
}
