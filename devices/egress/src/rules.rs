//! What the rules say of a name or an address.

use std::net::IpAddr;

use crate::domain::DomainName;
use crate::ranges::SpecialRanges;
use crate::rule::{Expect, Protocol, Rule, Target};
use crate::verdict::Reason;

/// A rule, and how it is called in verdicts.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) rule: Rule,
    pub(crate) text: String,
}

/// The rules of a machine or a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) allow: Vec<Named>,
    pub(crate) deny: Vec<Named>,
    pub(crate) ask: bool,
    pub(crate) ech: bool,
}

/// What rules say, and which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    Allowed { rule: String, expect: Expect },
    Denied { rule: Option<String>, reason: Reason },
}

impl Ruling {
    fn denied(reason: Reason) -> Self {
        Self::Denied { rule: None, reason }
    }

    fn forbidden(rule: &Named) -> Self {
        Self::Denied { rule: Some(rule.text.clone()), reason: Reason::DenyRule }
    }
}

impl Rules {
    /// Whether a name may be looked up: something of it is allowed, and not all of it denied.
    pub(crate) fn lookup(&self, name: &DomainName) -> Ruling {
        let denied = self.deny.iter().find(|named| named.rule.forbids_all() && means(named, name));
        if let Some(rule) = denied {
            return Ruling::forbidden(rule);
        }
        match self.allow.iter().find(|named| means(named, name)) {
            Some(rule) => Ruling::Allowed { rule: rule.text.clone(), expect: Expect::default() },
            None => Ruling::denied(Reason::NoRule),
        }
    }

    /// Whether a flow to a name may be opened, and what its first bytes may be.
    pub(crate) fn name(&self, name: &DomainName, protocol: Protocol, port: u16) -> Ruling {
        let denied = |named: &&Named| means(named, name) && named.rule.forbids(protocol, port);
        if let Some(rule) = self.deny.iter().find(denied) {
            return Ruling::forbidden(rule);
        }
        let mut first = None;
        let mut expect = Expect::default();
        for named in self.allow.iter().filter(|named| means(named, name)) {
            if let Some(more) = named.rule.covers(protocol, port) {
                first.get_or_insert(named);
                expect = expect.or(more);
            }
        }
        match first {
            Some(named) => Ruling::Allowed { rule: named.text.clone(), expect },
            None if self.allow.iter().any(|named| means(named, name)) => {
                Ruling::denied(Reason::NoPort)
            }
            None => Ruling::denied(Reason::NoRule),
        }
    }

    /// Whether a flow to an address may be opened because a rule names the address.
    pub(crate) fn address(&self, address: IpAddr, protocol: Protocol, port: u16) -> Ruling {
        if let Some(ruling) = self.address_denied(address, protocol, port) {
            return ruling;
        }
        let special = SpecialRanges::table();
        let kind = special.kind(address);
        let named = |named: &&Named| match named.rule.target() {
            Target::Network(network) => {
                network.contains(&address) && (kind.is_none() || special.names(network))
            }
            Target::Name(_) => false,
        };
        let mut holds = self.allow.iter().filter(named).peekable();
        let known = holds.peek().is_some();
        match holds
            .find_map(|named| named.rule.covers(protocol, port).map(|expect| (named, expect)))
        {
            Some((named, expect)) => Ruling::Allowed { rule: named.text.clone(), expect },
            None if known => Ruling::denied(Reason::NoPort),
            None => Ruling::denied(
                kind.map_or(Reason::NotResolved, |kind| Reason::Special { range: kind.to_owned() }),
            ),
        }
    }

    /// The rule that denies an address, whatever name led to it.
    pub(crate) fn address_denied(
        &self,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Option<Ruling> {
        let denied = |named: &&Named| match named.rule.target() {
            Target::Network(network) => {
                network.contains(&address) && named.rule.forbids(protocol, port)
            }
            Target::Name(_) => false,
        };
        self.deny.iter().find(denied).map(Ruling::forbidden)
    }

    /// Whether a rule opens this special address, so that a name may lead to it.
    pub(crate) fn names_special(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|named| match named.rule.target() {
            Target::Network(network) => {
                network.contains(&address) && SpecialRanges::table().names(network)
            }
            Target::Name(_) => false,
        })
    }
}

fn means(named: &Named, name: &DomainName) -> bool {
    matches!(named.rule.target(), Target::Name(pattern) if pattern.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EgressPolicy;

    fn rules(allow: &[&str], deny: &[&str]) -> Rules {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let policy =
            EgressPolicy { allow: words(allow), deny: words(deny), ..EgressPolicy::default() };
        policy.compile().unwrap().0
    }

    fn name(rules: &Rules, text: &str, port: u16) -> Ruling {
        rules.name(&DomainName::parse(text).unwrap(), Protocol::Tcp, port)
    }

    fn address(rules: &Rules, text: &str, port: u16) -> Ruling {
        rules.address(text.parse().unwrap(), Protocol::Tcp, port)
    }

    fn allowed(ruling: &Ruling) -> bool {
        matches!(ruling, Ruling::Allowed { .. })
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let rules = Rules::default();
        assert_eq!(name(&rules, "a.example", 443), Ruling::denied(Reason::NoRule));
        assert_eq!(address(&rules, "198.51.100.1", 443), Ruling::denied(Reason::NotResolved));
        assert!(!allowed(&rules.lookup(&DomainName::parse("a.example").unwrap())));
    }

    #[test]
    fn the_rule_that_decided_has_its_set_before_it() {
        let Ruling::Allowed { rule, expect } = name(&rules(&["pypi"], &[]), "pypi.org", 443) else {
            panic!("pypi.org is in its set");
        };
        assert_eq!(rule, "pypi: pypi.org");
        assert!(expect.tls && !expect.other);
    }

    #[test]
    fn deny_goes_before_allow() {
        let rules =
            rules(&["*.example.com", "198.51.100.0/24"], &["a.example.com", "198.51.100.7"]);
        assert!(allowed(&name(&rules, "b.example.com", 443)));
        assert!(!allowed(&name(&rules, "a.example.com", 443)));
        assert!(!allowed(&rules.lookup(&DomainName::parse("a.example.com").unwrap())));
        assert!(allowed(&address(&rules, "198.51.100.8", 1)));
        assert!(!allowed(&address(&rules, "198.51.100.7", 1)));
    }

    #[test]
    fn another_port_is_another_reason() {
        let rules = rules(&["a.example", "198.51.100.1:80"], &[]);
        assert_eq!(name(&rules, "a.example", 22), Ruling::denied(Reason::NoPort));
        assert_eq!(address(&rules, "198.51.100.1", 81), Ruling::denied(Reason::NoPort));
    }

    #[test]
    fn a_rule_for_every_address_opens_no_special_one() {
        let rules = rules(&["0.0.0.0/0", "::/0"], &[]);
        assert!(allowed(&address(&rules, "198.51.100.1", 1)));
        for special in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "::ffff:1.2.3.4"] {
            assert!(!allowed(&address(&rules, special, 1)), "{special}");
        }
    }

    #[test]
    fn a_special_address_opens_by_name_of_the_address() {
        let rules = rules(&["10.0.0.0/8:5432"], &[]);
        assert!(allowed(&address(&rules, "10.1.2.3", 5432)));
        assert_eq!(address(&rules, "10.1.2.3", 80), Ruling::denied(Reason::NoPort));
        let special = Reason::Special { range: "private".to_owned() };
        assert_eq!(address(&rules, "192.168.0.1", 5432), Ruling::denied(special));
    }

    /// For all words of a small world: a rule that is added never closes anything, and a denying rule
    /// never opens anything.
    #[test]
    fn allow_only_opens_and_deny_only_closes() {
        let words =
            ["a.example", "*.a.example", "*", "b.example:22", "198.51.100.0/24", "10.0.0.0/8"];
        let names = ["a.example", "x.a.example", "b.example"];
        let addresses = ["198.51.100.9", "10.1.1.1", "203.0.113.1"];
        let view = |rules: &Rules| -> Vec<bool> {
            let ports = [22, 80, 443];
            let by_name =
                names.iter().flat_map(|n| ports.map(|port| allowed(&name(rules, n, port))));
            let by_address =
                addresses.iter().flat_map(|a| ports.map(|port| allowed(&address(rules, a, port))));
            by_name.chain(by_address).collect()
        };
        for pair in 0..words.len().pow(2) {
            let (one, other) = (words[pair / words.len()], words[pair % words.len()]);
            let (alone, both) = (view(&rules(&[one], &[])), view(&rules(&[one, other], &[])));
            let less = view(&rules(&[one], &[other]));
            for ((alone, both), less) in alone.iter().zip(both).zip(less) {
                assert!(both || !alone, "{one} {other}");
                assert!(!less || *alone, "{one} {other}");
            }
        }
    }
}
