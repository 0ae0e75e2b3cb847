//! Which addresses allowed names gave to whom, and until when.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::domain::DomainName;

/// How long a guest may keep an answer.
pub(crate) const TTL: Duration = Duration::from_secs(60);
/// How much longer a connection may follow it: programs resolve once and connect again and again.
pub(crate) const GRACE: Duration = Duration::from_secs(600);
/// The most addresses that are kept for a source.
const MAX_PINS: usize = 4096;
/// The most names that are kept for an address of a source.
const MAX_NAMES: usize = 64;

/// The addresses that names gave, by source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins {
    sources: HashMap<IpAddr, HashMap<IpAddr, Vec<Pin>>>,
}

#[derive(Clone, Debug)]
struct Pin {
    name: DomainName,
    until: Duration,
}

impl Pins {
    /// Notes that `name` gave `address` to `source`.
    pub(crate) fn pin(
        &mut self,
        now: Duration,
        source: IpAddr,
        name: &DomainName,
        address: IpAddr,
    ) {
        let until = now + TTL + GRACE;
        let addresses = self.sources.entry(source).or_default();
        if !addresses.contains_key(&address) && addresses.len() >= MAX_PINS {
            make_room(addresses, now);
        }
        let names = addresses.entry(address).or_default();
        names.retain(|pin| pin.until > now && pin.name != *name);
        if names.len() >= MAX_NAMES {
            names.remove(0);
        }
        names.push(Pin { name: name.clone(), until });
    }

    /// The names that gave `address` to `source`, the last one first.
    pub(crate) fn names(
        &self,
        now: Duration,
        source: IpAddr,
        address: IpAddr,
    ) -> impl Iterator<Item = &DomainName> {
        let pins = self.sources.get(&source).and_then(|addresses| addresses.get(&address));
        pins.into_iter().flatten().rev().filter(move |pin| pin.until > now).map(|pin| &pin.name)
    }

    /// Forgets a source.
    pub(crate) fn forget(&mut self, source: IpAddr) {
        self.sources.remove(&source);
    }
}

/// Forgets what has expired, or else the address that would expire first.
fn make_room(addresses: &mut HashMap<IpAddr, Vec<Pin>>, now: Duration) {
    addresses.retain(|_, pins| pins.iter().any(|pin| pin.until > now));
    if addresses.len() >= MAX_PINS {
        let latest = |pins: &[Pin]| pins.iter().map(|pin| pin.until).max();
        let first = addresses.iter().min_by_key(|(_, pins)| latest(pins)).map(|(own, _)| *own);
        first.map(|first| addresses.remove(&first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2));

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0xc633_0000 + number))
    }

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap()
    }

    fn names(pins: &Pins, now: Duration, source: IpAddr, number: u32) -> Vec<String> {
        pins.names(now, source, address(number)).map(ToString::to_string).collect()
    }

    #[test]
    fn a_pin_holds_for_its_source_and_time() {
        let mut pins = Pins::default();
        let start = Duration::from_secs(5);
        pins.pin(start, GUEST, &name("a.example"), address(1));
        assert_eq!(names(&pins, start, GUEST, 1), ["a.example"]);
        assert!(names(&pins, start, GUEST, 2).is_empty());
        assert!(names(&pins, start, address(9), 1).is_empty());
        assert!(!names(&pins, TTL + GRACE, GUEST, 1).is_empty());
        assert!(names(&pins, start + TTL + GRACE, GUEST, 1).is_empty());
    }

    #[test]
    fn one_address_may_have_several_names() {
        let mut pins = Pins::default();
        for text in ["a.example", "b.example", "a.example"] {
            pins.pin(Duration::ZERO, GUEST, &name(text), address(1));
        }
        assert_eq!(names(&pins, Duration::ZERO, GUEST, 1), ["a.example", "b.example"]);
    }

    #[test]
    fn a_guest_that_asks_for_ever_fills_no_memory() {
        let mut pins = Pins::default();
        for number in 0..MAX_PINS as u32 * 2 {
            let now = Duration::from_millis(u64::from(number));
            pins.pin(now, GUEST, &name(&format!("n{number}.example")), address(number));
            pins.pin(now, GUEST, &name(&format!("n{number}.example")), address(0));
        }
        assert!(pins.sources[&GUEST].len() <= MAX_PINS);
        assert!(pins.sources[&GUEST].values().all(|names| names.len() <= MAX_NAMES));
        assert!(!names(&pins, Duration::from_secs(9), GUEST, MAX_PINS as u32 * 2 - 1).is_empty());
    }
}
