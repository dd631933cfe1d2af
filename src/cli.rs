//! The command line: `warren` serves; the others help the person who sets it up.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::auth::{self, MintError};
use crate::config::{markdown_table, Config};
use crate::ids::{AppKey, MessageId, UserId};

/// A WebSocket gateway that scales out behind RabbitMQ. Configured by WARREN_ variables: see `warren config`.
#[derive(Debug, Parser)]
#[command(name = "warren", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run a node (what `warren` alone does)
    Serve,
    /// Print a token for a user, signed with WARREN_JWT_SECRET
    Token(TokenArgs),
    /// Print the table of all variables with their defaults and ranges
    Config,
    /// Tell what became of a message: asks a node of this configuration, which asks the others
    Trace(TraceArgs),
    /// Move the mail of version 1 into boxes: `rabbitmqctl -q list_queues name | warren migrate-mailboxes`
    MigrateMailboxes,
    /// Answer requests to app.<key> with their own payload, over the broker of WARREN_AMQP_URL: a backend to try with
    AppEcho(EchoArgs),
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EchoArgs {
    /// The key of the target
    #[arg(long, default_value = "echo", value_parser = key)]
    pub key: AppKey,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TokenArgs {
    /// Whose token it is
    #[arg(value_parser = user)]
    pub user: UserId,
    /// How long it is valid: a number with s, m, h or d
    #[arg(long, default_value = "1h", value_parser = ttl)]
    pub ttl: Duration,
    /// What the user may do instead of the usual: api, publish:broadcast, publish:user.*, subscribe:channel.a
    #[arg(long = "cap", value_name = "CAP")]
    pub caps: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TraceArgs {
    /// The id of the message
    #[arg(value_parser = message)]
    pub id: MessageId,
    /// The admin address of a node; that of WARREN_ADMIN_LISTEN on this machine unless given
    #[arg(long, value_name = "IP:PORT")]
    pub node: Option<SocketAddr>,
}

impl Cli {
    pub fn command(self) -> Command {
        self.command.unwrap_or(Command::Serve)
    }
}

impl TokenArgs {
    pub fn mint(&self, config: &Config) -> Result<String, MintError> {
        auth::mint(&self.user, self.ttl, &self.caps, config)
    }
}

/// What `warren config` prints.
pub fn config_text() -> String {
    markdown_table()
}

fn user(text: &str) -> Result<UserId, String> {
    UserId::new(text).map_err(|error| error.to_string())
}

fn key(text: &str) -> Result<AppKey, String> {
    AppKey::new(text).map_err(|error| error.to_string())
}

fn message(text: &str) -> Result<MessageId, String> {
    MessageId::new(text).map_err(|error| error.to_string())
}

fn ttl(text: &str) -> Result<Duration, String> {
    const FORM: &str = "a time is a number with s, m, h or d, such as 90s or 12h";
    let unit = text.chars().last().filter(|unit| !unit.is_ascii_digit()).ok_or(FORM)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(FORM.into()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| FORM)?;
    match number.checked_mul(seconds) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("the time is zero or too long".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Option<Command> {
        Cli::try_parse_from(args.split(' ')).ok().map(Cli::command)
    }

    #[test]
    fn serving_is_what_it_does_by_default() {
        assert_eq!(parse("warren"), Some(Command::Serve));
        assert_eq!(parse("warren serve"), Some(Command::Serve));
        assert_eq!(parse("warren config"), Some(Command::Config));
        assert_eq!(parse("warren migrate-mailboxes"), Some(Command::MigrateMailboxes));
        let Some(Command::AppEcho(echo)) = parse("warren app-echo --key orders.new") else {
            panic!("no echo")
        };
        assert_eq!(echo.key.as_str(), "orders.new");
        assert_eq!(parse("warren app-echo --key a*"), None);
        assert_eq!(parse("warren run"), None);
        assert_eq!(parse("warren trace"), None);
        let Some(Command::Trace(trace)) = parse("warren trace m1 --node 127.0.0.1:9090") else {
            panic!("no trace");
        };
        assert_eq!((trace.id.as_str(), trace.node.map(|node| node.port())), ("m1", Some(9090)));
    }

    #[test]
    fn tokens_have_a_user_a_time_and_caps() {
        let Some(Command::Token(token)) = parse("warren token 42 --ttl 2d --cap api --cap publish:user.*")
        else {
            panic!("no token");
        };
        assert_eq!((token.user.as_str(), token.ttl.as_secs()), ("42", 172_800));
        assert_eq!(token.caps, ["api", "publish:user.*"]);
        let Some(Command::Token(token)) = parse("warren token 42") else { panic!("no token") };
        assert_eq!((token.ttl.as_secs(), token.caps.len()), (3600, 0));
        for bad in ["1", "h", "0s", "-1h", "1w", "1é", "99999999999999999999d", "999999999999999999d"] {
            assert_eq!(parse(&format!("warren token 42 --ttl={bad}")), None, "{bad}");
        }
    }
}
