//! Addresses that are open only to rules that name them.
//!
//! The table is IANA's special-purpose registries (RFC 6890 and what updates it) for addresses that are not
//! globally reachable, with the addresses at which clouds keep the secrets of their machines, and every form of
//! IPv6 address that carries an IPv4 address in it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use ipnet::IpNet;

/// The prefix under which networks without IPv4 reach it (RFC 6052 §2.1).
const NAT64: &str = "64:ff9b::/96";

/// Range and what it is for. Where several hold an address the first one names it.
const SPECIAL: &[(&str, &str)] = &[
    ("169.254.169.254/32", "cloud metadata"),
    ("169.254.170.2/32", "cloud metadata"),
    ("100.100.100.200/32", "cloud metadata"),
    ("168.63.129.16/32", "cloud metadata"),
    ("192.0.0.192/32", "cloud metadata"),
    ("fd00:ec2::254/128", "cloud metadata"),
    ("fd20:ce::254/128", "cloud metadata"),
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved and broadcast"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("::ffff:0:0:0/96", "IPv4-translated"),
    ("::/96", "IPv4-compatible"),
    (NAT64, "NAT64"),
    ("64:ff9b:1::/48", "local NAT64"),
    ("100::/64", "discard"),
    ("2001::/32", "Teredo"),
    ("2001:2::/48", "benchmarking"),
    ("2001:10::/28", "ORCHID"),
    ("2001:20::/28", "ORCHID"),
    ("2002::/16", "6to4"),
    ("3ffe::/16", "6bone"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "unique local"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
];

/// The table, parsed.
#[derive(Clone, Debug)]
pub(crate) struct SpecialRanges {
    ranges: Vec<(IpNet, &'static str)>,
    nat64: IpNet,
}

impl SpecialRanges {
    /// The one table of the process.
    pub(crate) fn table() -> &'static Self {
        static TABLE: LazyLock<SpecialRanges> = LazyLock::new(SpecialRanges::parse);
        &TABLE
    }

    fn parse() -> Self {
        let parse = |text: &str| text.parse::<IpNet>().expect("the table holds networks");
        let ranges = SPECIAL.iter().map(|(text, kind)| (parse(text), *kind)).collect();
        Self { ranges, nat64: parse(NAT64) }
    }

    /// What an address is for, if it is open only to rules that name it.
    pub(crate) fn kind(&self, address: IpAddr) -> Option<&'static str> {
        self.ranges.iter().find(|(range, _)| range.contains(&address)).map(|(_, kind)| *kind)
    }

    /// Whether a rule for this network means special addresses: only if it holds nothing else, so that
    /// `0.0.0.0/0` opens no private network.
    pub(crate) fn names(&self, network: &IpNet) -> bool {
        self.ranges.iter().any(|(range, _)| range.contains(network))
    }

    /// Like [`Self::kind`], for an address that the host's resolver gave for an allowed name. Under the NAT64
    /// prefix the address counts that stands in it: it is how hosts without IPv4 reach the rest.
    pub(crate) fn kind_of_answer(&self, address: IpAddr) -> Option<&'static str> {
        match address {
            IpAddr::V6(v6) if self.nat64.contains(&address) => {
                let [.., a, b, c, d] = v6.octets();
                self.kind(Ipv4Addr::new(a, b, c, d).into())
            }
            _ => self.kind(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str) -> Option<&'static str> {
        SpecialRanges::table().kind(address.parse().unwrap())
    }

    #[test]
    fn special_addresses_are_known_by_their_kind() {
        for (address, expected) in [
            ("127.0.0.1", "loopback"),
            ("10.1.2.3", "private"),
            ("172.31.255.255", "private"),
            ("192.168.0.1", "private"),
            ("169.254.169.254", "cloud metadata"),
            ("169.254.1.1", "link-local"),
            ("100.64.0.1", "carrier-grade NAT"),
            ("224.0.0.251", "multicast"),
            ("255.255.255.255", "reserved and broadcast"),
            ("0.0.0.0", "this network"),
            ("::1", "loopback"),
            ("::", "unspecified"),
            ("fe80::1", "link-local"),
            ("fd00::1", "unique local"),
            ("ff02::fb", "multicast"),
            ("::ffff:93.184.216.34", "IPv4-mapped"),
            ("::93.184.216.34", "IPv4-compatible"),
            ("64:ff9b::5db8:d822", "NAT64"),
            ("2002:7f00:1::", "6to4"),
            ("2001::1", "Teredo"),
            ("fd00:ec2::254", "cloud metadata"),
        ] {
            assert_eq!(kind(address), Some(expected), "{address}");
        }
    }

    #[test]
    fn addresses_beside_the_ranges_are_public() {
        for address in
            ["9.255.255.255", "11.0.0.0", "172.32.0.0", "100.128.0.0", "2001:db9::1", "2606::1"]
        {
            assert_eq!(kind(address), None, "{address}");
        }
    }

    #[test]
    fn only_a_network_of_special_addresses_alone_names_them() {
        let ranges = SpecialRanges::table();
        let names = |text: &str| ranges.names(&text.parse().unwrap());
        assert!(names("10.0.0.0/8") && names("10.1.0.0/16") && names("127.0.0.1/32"));
        assert!(!names("0.0.0.0/0") && !names("8.0.0.0/5") && !names("::/0"));
    }

    #[test]
    fn answers_behind_nat64_count_as_what_they_lead_to() {
        let ranges = SpecialRanges::table();
        let kind = |text: &str| ranges.kind_of_answer(text.parse().unwrap());
        assert_eq!(kind("64:ff9b::5db8:d822"), None);
        assert_eq!(kind("64:ff9b::7f00:1"), Some("loopback"));
        assert_eq!(kind("64:ff9b::a9fe:a9fe"), Some("cloud metadata"));
        assert_eq!(kind("64:ff9b:1::5db8:d822"), Some("local NAT64"));
    }
}
