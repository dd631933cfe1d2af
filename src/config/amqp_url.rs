//! AMQP URLs: the one parser for all of them, and what it makes of one.
//!
//! The form is RabbitMQ's (<https://www.rabbitmq.com/docs/uri-spec>), read strictly: whatever could only end in
//! endless attempts to connect is an error here. No error repeats any part of the URL, since in a URL that is
//! not well formed any part may be a piece of the password.

use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

use crate::tls::BrokerTls;

/// Seconds. The broker and this node notice each other's silent death after two to three times this.
const HEARTBEAT_SECONDS: u16 = 10;
const HEARTBEAT_SECONDS_MAX: u16 = 600;
/// RabbitMQ's own default, in bytes. Asked for by name, since a broker without a limit would have lapin make
/// buffers of 32 times 4 GiB.
const FRAME_MAX: u32 = 131_072;
/// 4.x refuses less than 8 KiB; of more than 1 MiB, lapin's two buffers for each connection take 64 MiB.
const FRAME_MAX_RANGE: std::ops::RangeInclusive<u32> = 8_192..=1_048_576;
/// A connection needs some channels for itself; 0 means no limit.
const CHANNEL_MAX_MIN: u16 = 16;
/// AMQP's short strings: users and vhosts in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Where a broker is, and who connects. Shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    tls: bool,
    user: String,
    password: String,
    /// An IPv6 address stands without its brackets.
    host: String,
    port: u16,
    vhost: String,
    heartbeat: u16,
    frame_max: u32,
    channel_max: Option<u16>,
    connection_timeout: Option<Duration>,
    mechanism: Mechanism,
    credentials: BrokerTls,
}

impl AmqpUrl {
    /// The error is a sentence that holds no part of the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("amqp", rest)) => (false, rest),
            Some(("amqps", rest)) => (true, rest),
            _ => return Err("the scheme is neither amqp nor amqps".into()),
        };
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("it holds a space or a control character".into());
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if tail.contains(['@', '#']) || authority.matches('@').count() > 1 {
            return Err(
                "it holds @ or # in a wrong place: in a user, password or vhost, / ? # @ and , have to \
                        be percent-encoded"
                    .into(),
            );
        }
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let (userinfo, address) = match authority.split_once('@') {
            Some((userinfo, address)) => (Some(userinfo), address),
            None => (None, authority),
        };
        let (host, port) = address_of(address, tls)?;
        let mut url = Self {
            tls,
            user: "guest".into(),
            password: "guest".into(),
            host,
            port,
            vhost: vhost(path)?,
            heartbeat: HEARTBEAT_SECONDS,
            frame_max: FRAME_MAX,
            channel_max: None,
            connection_timeout: None,
            mechanism: Mechanism::Plain,
            credentials: BrokerTls::default(),
        };
        url.read_query(query)?;
        url.read_userinfo(userinfo)?;
        Ok(url)
    }

    fn read_userinfo(&mut self, userinfo: Option<&str>) -> Result<(), String> {
        let Some(userinfo) = userinfo else { return Ok(()) };
        let (user, password) = match userinfo.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (userinfo, None),
        };
        self.user = decoded("its user", user)?;
        self.password = decoded("its password", password.unwrap_or_default())?;
        if self.user.is_empty() || self.user.len() > NAME_BYTES_MAX {
            return Err(format!("its user has not 1 to {NAME_BYTES_MAX} bytes"));
        }
        if self.password.is_empty() && self.mechanism != Mechanism::External {
            return Err("it names a user without a password".into());
        }
        Ok(())
    }

    fn read_query(&mut self, query: &str) -> Result<(), String> {
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if seen.contains(&key) {
                return Err("a key of its query is there twice".into());
            }
            seen.push(key);
            match key {
                "heartbeat" => {
                    self.heartbeat = number(value, 1..=HEARTBEAT_SECONDS_MAX)
                        .ok_or(format!("heartbeat is not 1 to {HEARTBEAT_SECONDS_MAX} seconds"))?;
                }
                "frame_max" => {
                    self.frame_max = number(value, FRAME_MAX_RANGE).ok_or(format!(
                        "frame_max is not {} to {} bytes",
                        FRAME_MAX_RANGE.start(),
                        FRAME_MAX_RANGE.end()
                    ))?;
                }
                "channel_max" => {
                    let max = number(value, 0..=u16::MAX).filter(|max| *max == 0 || *max >= CHANNEL_MAX_MIN);
                    self.channel_max =
                        Some(max.ok_or(format!("channel_max is not 0 or {CHANNEL_MAX_MIN} to 65535"))?);
                }
                "connection_timeout" => {
                    let ms = number(value, 1..=u32::MAX).ok_or("connection_timeout is not milliseconds")?;
                    self.connection_timeout = Some(Duration::from_millis(ms.into()));
                }
                "auth_mechanism" => {
                    self.mechanism = match value.to_ascii_lowercase().as_str() {
                        "plain" => Mechanism::Plain,
                        "amqplain" => Mechanism::AmqPlain,
                        "external" => Mechanism::External,
                        _ => return Err("auth_mechanism is not plain, amqplain or external".into()),
                    };
                }
                _ => {
                    return Err("its query has a key other than heartbeat, frame_max, channel_max, \
                                connection_timeout and auth_mechanism"
                        .into())
                }
            }
        }
        Ok(())
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn tls(&self) -> bool {
        self.tls
    }

    /// For the TCP and TLS handshakes; `None` = as long as any other step.
    pub fn connection_timeout(&self) -> Option<Duration> {
        self.connection_timeout
    }

    pub fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// `host:port`, for the log.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// For the one place that connects.
    pub fn expose_password(&self) -> &str {
        &self.password
    }

    /// Seconds.
    pub fn heartbeat(&self) -> u16 {
        self.heartbeat
    }

    pub fn channel_max(&self) -> Option<u16> {
        self.channel_max
    }

    /// Of TLS.
    pub fn credentials(&self) -> &BrokerTls {
        &self.credentials
    }

    pub(super) fn connect_with(&mut self, credentials: BrokerTls) {
        self.credentials = credentials;
    }

    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }
}

/// How the connection proves who it is (SASL).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    AmqPlain,
    External,
}

/// Checks URLs of one cluster together: nodes know each other by the user that the broker vouches for, and meet
/// in one vhost.
pub fn check_together(urls: &[AmqpUrl]) -> Result<(), &'static str> {
    let Some((first, others)) = urls.split_first() else { return Ok(()) };
    if others.iter().any(|url| url.user != first.user) {
        return Err("all URLs must name the same user: nodes know each other by it");
    }
    if others.iter().any(|url| url.vhost != first.vhost) {
        return Err("all URLs must name the same vhost: nodes meet in it");
    }
    Ok(())
}

fn address_of(address: &str, tls: bool) -> Result<(String, u16), String> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("its IPv6 address has no closing ]")?;
            let host: Ipv6Addr = host.parse().map_err(|_| "what stands in [] is no IPv6 address")?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or("between ] and its port there is no :")?),
            };
            (host.to_string(), port)
        }
        None => match address.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("its address has more than one colon (an IPv6 address stands in [], and a user \
                            and password end with @)"
                    .into());
            }
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (address.to_owned(), None),
        },
    };
    if host.is_empty() {
        return Err("it has no host".into());
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte)) || host.len() > 253 {
        return Err("its host is neither a name nor an address".into());
    }
    let port = match port {
        // As registered for `amqps` and `amqp`.
        None if tls => 5671,
        None => 5672,
        Some(port) => number(port, 1..=u16::MAX)
            .ok_or("its port is not 1 to 65535 (or the @ after the password is missing)")?,
    };
    Ok((host, port))
}

fn vhost(path: &str) -> Result<String, String> {
    let Some(vhost) = path.strip_prefix('/') else { return Ok("/".into()) };
    let vhost = decoded("its vhost", vhost)?;
    if vhost.is_empty() || vhost.len() > NAME_BYTES_MAX {
        return Err(format!(
            "its vhost has not 1 to {NAME_BYTES_MAX} bytes (the default vhost is written /%2f, or left out)"
        ));
    }
    Ok(vhost)
}

/// Digits alone: no sign, no space.
fn number<T: std::str::FromStr + PartialOrd>(text: &str, range: std::ops::RangeInclusive<T>) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number))
}

fn decoded(part: &str, text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(format!("{part} has a % without two hexadecimal digits after it (% itself is %25)"));
        };
        bytes.push((high * 16 + low) as u8);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| format!("{part} is not UTF-8"))
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}:***@{}/{}", self.user, self.address(), self.vhost)
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests;
