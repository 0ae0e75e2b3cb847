//! The way of a host without IPv4 to addresses of IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cabana_egress::{DomainName, NAT64_NAME, Nat64};

use crate::resolver::{Resolver, own_address_towards};

/// How long what was found out holds. Short, since the host's network may change.
const HOLDS: Duration = Duration::from_secs(60);
/// Somewhere in the internet, and nobody.
const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The prefix of the host's network, found out when it is needed.
#[derive(Debug, Default)]
pub(crate) struct Translation(Mutex<Option<(Instant, Option<Nat64>)>>);

/// Whether this host has no way to an address of IPv4 and may have one by IPv6.
pub(crate) fn may_help(address: Ipv4Addr) -> bool {
    own_address_towards(address.into()).is_none() && own_address_towards(FAR.into()).is_some()
}

impl Translation {
    /// The address by which another one is reached, if the network has a prefix. It may block.
    pub(crate) fn towards(&self, address: Ipv4Addr, resolver: &dyn Resolver) -> Option<IpAddr> {
        Some(self.prefix(resolver)?.towards(address)?.into())
    }

    /// Shows the policy what a name's addresses lead to. It may block.
    pub(crate) fn uncover(&self, addresses: &mut [IpAddr], resolver: &dyn Resolver) {
        // Nobody is asked for the prefix where none can be in it.
        if !addresses.iter().any(IpAddr::is_ipv6) {
            return;
        }
        let Some(prefix) = self.prefix(resolver) else { return };
        for address in addresses {
            if let IpAddr::V6(v6) = address {
                *address = prefix.uncovered(*v6).into();
            }
        }
    }

    fn prefix(&self, resolver: &dyn Resolver) -> Option<Nat64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if known.is_none_or(|(until, _)| until <= now) {
            let name = DomainName::parse(NAT64_NAME);
            let answers = name.and_then(|name| resolver.resolve(&name).ok());
            let found = answers.and_then(|answers| Nat64::find(&answers));
            *known = Some((Instant::now() + HOLDS, found));
        }
        known.and_then(|(_, prefix)| prefix)
    }
}
