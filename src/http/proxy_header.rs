//! The PROXY protocol, versions 1 and 2 (W. Tarreau, "The PROXY protocol", 2020): a balancer that forwards TCP says in front
//! of everything else who its client is. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Section 2.1: the longest line of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
/// Section 2.2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED_BYTES: usize = SIGNATURE.len() + 4;
/// Addresses and further fields of version 2: more than any proxy sends.
const FIELDS_BYTES_MAX: usize = 2_048;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// More bytes are needed to tell.
    Begun,
    /// So many bytes, and the client; `None`: the proxy speaks for itself, as for a health check.
    Header(usize, Option<IpAddr>),
    /// This is no such header.
    Wrong,
}

/// What stands at the beginning of a connection that must have a header.
pub(super) fn read(bytes: &[u8]) -> Seen {
    match bytes.first() {
        None => Seen::Begun,
        Some(b'P') => version_1(bytes),
        Some(_) => version_2(bytes),
    }
}

fn version_1(bytes: &[u8]) -> Seen {
    let within = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = within.windows(2).position(|two| two == b"\r\n") else {
        let begins = within.iter().zip(b"PROXY ").all(|(byte, expected)| byte == expected);
        return if begins && bytes.len() < LINE_BYTES_MAX { Seen::Begun } else { Seen::Wrong };
    };
    let Ok(line) = std::str::from_utf8(&within[..end]) else { return Seen::Wrong };
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family, source, target, from, to] => {
            let fits =
                |address: &IpAddr| if family == "TCP4" { address.is_ipv4() } else { address.is_ipv6() };
            let address = |text: &str| text.parse().ok().filter(fits);
            let is_port = |text: &str| text.parse::<u16>().is_ok();
            match (address(source), address(target)) {
                (Some(client), Some(_))
                    if matches!(family, "TCP4" | "TCP6") && is_port(from) && is_port(to) =>
                {
                    Some(client)
                }
                _ => return Seen::Wrong,
            }
        }
        _ => return Seen::Wrong,
    };
    Seen::Header(end + 2, client)
}

fn version_2(bytes: &[u8]) -> Seen {
    if !bytes.iter().zip(SIGNATURE).all(|(byte, expected)| byte == expected) {
        return Seen::Wrong;
    }
    let Some(fixed) = bytes.get(SIGNATURE.len()..FIXED_BYTES) else { return Seen::Begun };
    let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if length > FIELDS_BYTES_MAX || fixed[0] & 0xfe != 0x20 {
        return Seen::Wrong;
    }
    let Some(fields) = bytes.get(FIXED_BYTES..FIXED_BYTES + length) else { return Seen::Begun };
    // The command LOCAL is the proxy's own; so is a family that is no IP address, such as a Unix socket.
    let is_proxied = fixed[0] & 1 == 1;
    let client: Option<IpAddr> = match fixed[1] {
        _ if !is_proxied => None,
        0x11 | 0x12 => match fields.first_chunk::<12>().and_then(|of| of.first_chunk::<4>()) {
            Some(source) => Some(Ipv4Addr::from(*source).into()),
            None => return Seen::Wrong,
        },
        0x21 | 0x22 => match fields.first_chunk::<36>().and_then(|of| of.first_chunk::<16>()) {
            Some(source) => Some(Ipv6Addr::from(*source).into()),
            None => return Seen::Wrong,
        },
        _ => None,
    };
    Seen::Header(FIXED_BYTES + length, client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::fuzz::fuzz;

    fn client(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn binary(command: u8, family: u8, fields: &[u8]) -> Vec<u8> {
        let length = (fields.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family], &length[..], fields].concat()
    }

    fn goods() -> Vec<(Vec<u8>, Option<IpAddr>)> {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0xd0, 0, 0, 80];
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        vec![
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 53248 80\r\n".to_vec(), client("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::7 fd00::1 53248 80\r\n".to_vec(), client("2001:db8::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever follows here\r\n".to_vec(), None),
            (binary(0x21, 0x11, &v4), client("192.0.2.7")),
            (binary(0x21, 0x21, &v6), client("2001:db8::7")),
            (binary(0x21, 0x11, &[&v4[..], &[4, 0, 1, 0]].concat()), client("192.0.2.7")),
            (binary(0x20, 0, &[]), None),
            (binary(0x20, 0x11, &v4), None),
            (binary(0x21, 0x31, &[0; 216]), None),
        ]
    }

    #[test]
    fn each_header_is_read_wherever_it_is_cut() {
        for (header, client) in goods() {
            for cut in 0..header.len() {
                assert_eq!(read(&header[..cut]), Seen::Begun, "{cut} of {header:?}");
            }
            let with_more = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&with_more), Seen::Header(header.len(), client));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PUT / HTTP/1.1\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 53248\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 53248 80 90\r\n",
            b"PROXY TCP4 2001:db8::7 fd00::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 65536\r\n",
            b"PROXY  TCP4 192.0.2.7 10.0.0.1 1 2\r\n",
            b"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 \xff 10.0.0.1 1 2\r\n",
            b"\r\n\r\nGET",
            b"\x16\x03\x01",
            &binary(0x11, 0x11, &[0; 12]),
            &binary(0x22, 0x11, &[0; 12]),
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x21, &[0; 35]),
            &binary(0x21, 0x11, &[0; FIELDS_BYTES_MAX + 1]),
            &[b'P'; LINE_BYTES_MAX],
            &[&b"PROXY UNKNOWN "[..], &[b'x'; LINE_BYTES_MAX]].concat(),
        ] {
            assert_eq!(read(bad), Seen::Wrong, "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn fuzzed() {
        let good: Vec<Vec<u8>> = goods().into_iter().map(|(header, _)| header).collect();
        let words = ["PROXY ", "TCP4", "TCP6", "UNKNOWN", "\r\n", " ", "::1", "255.255.255.255"];
        fuzz("PROXY headers", &good, &words, |input| {
            let seen = read(input);
            if let Seen::Header(length, _) = seen {
                assert!(length <= input.len());
                assert_eq!(read(&input[..length]), seen, "what follows makes no difference");
            }
            (std::mem::discriminant(&seen), matches!(seen, Seen::Header(_, Some(_))), input.first().copied())
        });
    }
}
