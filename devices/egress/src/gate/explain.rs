//! What the policy would do, in words.

use std::net::IpAddr;

use super::Gate;
use crate::domain::DomainName;
use crate::ranges::SpecialRanges;
use crate::rule::{Expect, Protocol};
use crate::rules::Ruling;

/// What the policy says of a flow that nobody opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it would pass, as far as that shows before anything is sent.
    pub allowed: bool,
    /// The decisions in their order, a sentence each.
    pub steps: Vec<String>,
}

impl Gate {
    /// Explains what would become of a flow to `host`, a name or an address. For a name `addresses` is what the
    /// host's resolver finds, or nothing if it was not asked.
    pub fn explain(
        &self,
        session: Option<&str>,
        host: &str,
        protocol: Protocol,
        port: u16,
        addresses: &[IpAddr],
    ) -> Explanation {
        let rules = self.rules(session);
        let mut steps = Vec::new();
        if let Ok(address) = host.parse() {
            let ruling = rules.address(address, protocol, port);
            return Explanation { allowed: note(&mut steps, "by address", &ruling), steps };
        }
        let Some(name) = DomainName::parse(host) else {
            steps.push(format!("{host} is neither a host name nor an address"));
            return Explanation { allowed: false, steps };
        };
        let found = note(&mut steps, "the lookup", &rules.lookup(&name));
        let ruling = rules.name(&name, protocol, port);
        let mut allowed = found && note(&mut steps, "the connection", &ruling);
        if let (true, Ruling::Allowed { expect, .. }) = (allowed, &ruling)
            && protocol == Protocol::Tcp
        {
            steps.push(format!("inspection: {}", demand(*expect)));
        }
        let mut given = 0;
        for address in addresses.iter().filter(|_| found) {
            match SpecialRanges::table().kind_of_answer(*address) {
                None => {
                    let denied = rules.address_denied(*address, protocol, port);
                    given += usize::from(denied.is_none());
                }
                Some(kind) => {
                    let ruling = rules.address(*address, protocol, port);
                    let open = matches!(ruling, Ruling::Allowed { .. });
                    given += usize::from(open);
                    let end =
                        if open { "which a rule names" } else { "which is kept from the guest" };
                    steps.push(format!("an answer is {address}, a {kind} address, {end}"));
                }
            }
        }
        if allowed && !addresses.is_empty() && given == 0 {
            steps.push("no address is left to connect to".to_owned());
            allowed = false;
        }
        if !allowed && rules.ask {
            steps.push("the policy asks about what no rule speaks of".to_owned());
        }
        Explanation { allowed, steps }
    }
}

fn note(steps: &mut Vec<String>, what: &str, ruling: &Ruling) -> bool {
    match ruling {
        Ruling::Allowed { rule, .. } => steps.push(format!("{what}: allowed by the rule {rule}")),
        Ruling::Denied { rule: Some(rule), reason } => {
            steps.push(format!("{what}: denied by the rule {rule}: {reason}"));
        }
        Ruling::Denied { rule: None, reason } => steps.push(format!("{what}: denied: {reason}")),
    }
    matches!(ruling, Ruling::Allowed { .. })
}

fn demand(expect: Expect) -> &'static str {
    match expect {
        Expect { other: true, .. } => "TLS and HTTP/1 must name this host; anything else passes",
        Expect { tls: true, http: true, .. } => "TLS or HTTP/1 that names this host",
        Expect { tls: true, .. } => "TLS whose ClientHello names this host",
        _ => "HTTP/1 whose every request names this host",
    }
}
