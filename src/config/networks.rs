//! Lists of addresses and networks: which proxies are believed.

use std::net::IpAddr;

/// The proxies whose word about a client's address and scheme is believed. Empty by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    /// The first address, as 128 bits; IPv4 as ::ffff:0:0/96.
    base: u128,
    mask: u128,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let (longest, offset) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let length = length.unwrap_or(longest);
        if length > longest {
            return None;
        }
        let mask = u128::MAX.checked_shl(128 - offset - length).unwrap_or(0);
        Some(Self { base: bits(address) & mask, mask })
    }
}

impl TrustedProxies {
    /// Comma-separated addresses and networks: `10.0.0.0/8, 2001:db8::1`.
    pub fn parse(list: &str) -> Option<Self> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(Network::parse).collect::<Option<_>>().map(Self)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = bits(address);
        self.0.iter().any(|network| bits & network.mask == network.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        let list = TrustedProxies::parse("10.1.0.0/16, 192.0.2.7,2001:db8::/32").unwrap();
        for (address, inside) in [
            ("10.1.255.1", true),
            ("10.2.0.0", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:9::1", true),
            ("2001:db9::1", false),
            ("::ffff:10.1.0.1", true),
        ] {
            assert_eq!(list.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(!TrustedProxies::parse("").unwrap().contains("127.0.0.1".parse().unwrap()));
        assert!(TrustedProxies::parse("0.0.0.0/0").unwrap().contains("8.8.8.8".parse().unwrap()));
        for bad in ["x", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/"] {
            assert!(TrustedProxies::parse(bad).is_none(), "{bad}");
        }
    }
}
