//! How hosts without IPv4 reach an IPv4 address (NAT64): by an IPv6 address that holds it behind a prefix of the
//! network's (RFC 6052 §2.2). The prefix is found out by a name whose IPv4 addresses are known (RFC 7050 §3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ranges::SpecialRanges;

/// The name that has no IPv6 address but those that NAT64 makes for it.
pub const NAT64_NAME: &str = "ipv4only.arpa";
/// Its IPv4 addresses.
const KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
/// Bytes of prefixes, the usual one first.
const LENGTHS: [usize; 6] = [12, 8, 7, 6, 5, 4];
/// The usual prefix (RFC 6052 §2.1), which the policy knows: `64:ff9b::/96`.
const USUAL: Nat64 =
    Nat64 { prefix: [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], length: 12 };
/// A byte that stays zero whatever the prefix.
const RESERVED: usize = 8;

/// A network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat64 {
    /// With zeroes behind it.
    prefix: [u8; 16],
    length: usize,
}

impl Nat64 {
    /// Finds the prefix in what the host's resolver says of [`NAT64_NAME`]. One that would lead to special addresses,
    /// other than those that are NAT64's own, is none.
    pub fn find(answers: &[IpAddr]) -> Option<Self> {
        let ranges = SpecialRanges::table();
        let own = |kind: Option<&str>| kind.is_none_or(|kind| kind.ends_with("NAT64"));
        let good = answers.iter().filter(|address| own(ranges.kind(**address)));
        good.filter_map(|address| match address {
            IpAddr::V6(v6) => Some(v6.octets()),
            IpAddr::V4(_) => None,
        })
        .find_map(|octets| {
            let length = *LENGTHS.iter().find(|length| {
                let held = places(**length).map(|place| octets[place]);
                octets[RESERVED] == 0 && KNOWN.contains(&Ipv4Addr::from(held))
            })?;
            let mut prefix = [0; 16];
            prefix[..length].copy_from_slice(&octets[..length]);
            Some(Self { prefix, length })
        })
    }

    /// The address by which an IPv4 address is reached; none for a special one, which means something in this host's
    /// own network alone (RFC 6052 §3.1).
    pub fn towards(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let special = SpecialRanges::table().kind(address.into()).is_some();
        (!special).then(|| self.holding(address))
    }

    /// A name's address as the policy is to see it: one by which the network reaches a special address of IPv4 stands
    /// under the usual prefix, where the policy looks behind it; any other is as it was.
    pub fn uncovered(&self, address: Ipv6Addr) -> Ipv6Addr {
        let octets = address.octets();
        let held = Ipv4Addr::from(places(self.length).map(|place| octets[place]));
        let is_under = octets[..self.length] == self.prefix[..self.length];
        if !is_under || SpecialRanges::table().kind(held.into()).is_none() {
            return address;
        }
        USUAL.holding(held)
    }

    fn holding(&self, address: Ipv4Addr) -> Ipv6Addr {
        let mut octets = self.prefix;
        for (place, octet) in places(self.length).into_iter().zip(address.octets()) {
            octets[place] = octet;
        }
        octets.into()
    }
}

/// Where the IPv4 address stands behind a prefix of so many bytes.
fn places(length: usize) -> [usize; 4] {
    let mut places = (length..).filter(|place| *place != RESERVED);
    std::array::from_fn(|_| places.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_every_length_are_found_and_used() {
        // RFC 6052 §2.4.
        for (prefix, expected) in [
            ("2001:db8:c000:aa::", "2001:db8:c000:221::"),
            ("2001:db8:1c0:0:aa::", "2001:db8:1c0:2:21::"),
            ("2001:db8:122:c000:0:aa00::", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:3c0:0:aa::", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344:c0:0:ab00::", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::192.0.0.171", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::192.0.0.170", "64:ff9b::192.0.2.33"),
            ("64:ff9b:1::192.0.0.170", "64:ff9b:1::192.0.2.33"),
        ] {
            let found = Nat64::find(&[KNOWN[0].into(), prefix.parse().unwrap()]).unwrap();
            let towards: IpAddr = found.towards(Ipv4Addr::new(192, 0, 2, 33)).unwrap().into();
            assert_eq!(found.towards(Ipv4Addr::new(10, 9, 9, 9)), None);
            assert_eq!(towards, expected.parse::<IpAddr>().unwrap(), "{prefix}");
        }
    }

    #[test]
    fn what_leads_to_a_special_address_is_uncovered() {
        let of = |prefix: &str| Nat64::find(&[prefix.parse().unwrap()]).unwrap();
        for (prefix, answer, seen) in [
            ("2001:db8:122:344::192.0.0.170", "2001:db8:122:344::10.0.0.1", "64:ff9b::10.0.0.1"),
            (
                "2001:db8:122:c000:0:aa00::",
                "2001:db8:122:a9fe:a9:fe00::",
                "64:ff9b::169.254.169.254",
            ),
            (
                "2001:db8:122:344::192.0.0.170",
                "2001:db8:122:344::192.0.2.33",
                "2001:db8:122:344::192.0.2.33",
            ),
            (
                "2001:db8:122:344::192.0.0.170",
                "2001:db8:122:345::10.0.0.1",
                "2001:db8:122:345::10.0.0.1",
            ),
            ("64:ff9b::192.0.0.170", "64:ff9b::10.0.0.1", "64:ff9b::10.0.0.1"),
        ] {
            let seen: Ipv6Addr = seen.parse().unwrap();
            assert_eq!(of(prefix).uncovered(answer.parse().unwrap()), seen, "{prefix} {answer}");
        }
    }

    #[test]
    fn an_answer_without_a_prefix_or_with_one_of_special_addresses_is_none() {
        for answer in [
            "192.0.0.170",
            "2001:db8::1",
            "2001:db8::192.0.0.172",
            "::ffff:192.0.0.170",
            "fd00::192.0.0.170",
            "fe80::192.0.0.170",
            "::192.0.0.170",
        ] {
            assert_eq!(Nat64::find(&[answer.parse().unwrap()]), None, "{answer}");
        }
        assert_eq!(Nat64::find(&[]), None);
    }
}
