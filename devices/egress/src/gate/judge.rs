//! What the policy, the pins and the answers say of a flow or a name.

use std::time::Duration;

use std::net::IpAddr;

use super::{Flow, Gate, Known};
use crate::ask::{Host, Subject};
use crate::domain::DomainName;
use crate::ranges::SpecialRanges;
use crate::rule::{Expect, Protocol};
use crate::rules::Ruling;
use crate::verdict::{Reason, Verdict};

/// What is found about a flow.
pub(super) enum Judgement {
    /// By address.
    Open(Verdict),
    /// By name, with every name that led there.
    Named(Verdict, Vec<(DomainName, Expect)>),
    Ask(Subject, Verdict),
    Denied(Option<DomainName>, Verdict),
}

/// Whether somebody may be asked: about what no rule speaks of, and never about what a rule, or the table of
/// special addresses, closes.
pub(super) fn askable(reason: &Reason) -> bool {
    matches!(reason, Reason::NoRule | Reason::NoPort | Reason::NotResolved)
}

impl Gate {
    pub(super) fn judge(&self, now: Duration, flow: &Flow) -> Judgement {
        let Flow { source, protocol, destination, .. } = *flow;
        let (address, port) = (destination.ip(), destination.port());
        if !self.sources.contains_key(&source) {
            return Judgement::Denied(None, self.denied(None, Reason::ForgedSource));
        }
        let session = self.session(source);
        let rules = self.rules(session.as_deref());
        let by_address = rules.address(address, protocol, port);
        let (rule, reason) = match by_address {
            Ruling::Allowed { rule, .. } => {
                return Judgement::Open(self.allowed(rule, Reason::AllowRule));
            }
            Ruling::Denied { rule, reason } => (rule, reason),
        };
        // Names lead nowhere that a rule denies, nor into ranges that are open by address alone.
        let special = SpecialRanges::table().kind_of_answer(address).is_some();
        let by_name = |name: &DomainName| {
            reason != Reason::DenyRule && (!special || self.stands_for(address, name))
        };
        let (mut names, mut first, mut refused) = (Vec::new(), None, None);
        for name in self.pins.names(now, source, address).filter(|name| by_name(name)) {
            match self.rule_name(now, flow, name) {
                Ok((verdict, expect)) => {
                    first.get_or_insert(verdict);
                    names.push((name.clone(), expect));
                }
                Err(verdict) => {
                    refused.get_or_insert((name.clone(), verdict));
                }
            }
        }
        if let Some(verdict) = first {
            return Judgement::Named(verdict, names);
        }
        let (host, verdict) = match refused {
            Some((name, verdict)) => (Host::Name(name), verdict),
            None => (Host::Address(address), self.denied(rule, reason)),
        };
        let given = self.asks.remembered(now, session.as_deref(), &host, protocol, Some(port));
        match given {
            _ if !askable(&verdict.reason) => {}
            Some(given) if given.allow => {
                let verdict = self.allowed(format!("answer {}", given.ask), Reason::Answer);
                return Judgement::Open(verdict);
            }
            Some(given) => {
                let rule = Some(format!("answer {}", given.ask));
                return Judgement::Denied(None, self.denied(rule, Reason::AnsweredNo));
            }
            None if rules.ask => {
                let port = (protocol != Protocol::Icmp).then_some(port);
                let subject = Subject { session, host, port, protocol };
                return Judgement::Ask(subject, verdict);
            }
            None => {}
        }
        let name = match host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        };
        Judgement::Denied(name, verdict)
    }

    /// What rules and answers say of a flow to a name.
    pub(super) fn rule_name(
        &self,
        now: Duration,
        flow: &Flow,
        name: &DomainName,
    ) -> Result<(Verdict, Expect), Verdict> {
        let session = self.session(flow.source);
        let (protocol, port) = (flow.protocol, flow.destination.port());
        let (rule, reason) = match self.rules(session.as_deref()).name(name, protocol, port) {
            Ruling::Allowed { rule, expect } => {
                return Ok((self.allowed(rule, Reason::AllowRule), expect));
            }
            Ruling::Denied { rule, reason } => (rule, reason),
        };
        let host = Host::Name(name.clone());
        let given = self.asks.remembered(now, session.as_deref(), &host, protocol, Some(port));
        match given.filter(|_| askable(&reason)) {
            Some(given) if given.allow => {
                let verdict = self.allowed(format!("answer {}", given.ask), Reason::Answer);
                Ok((verdict, given.expect))
            }
            Some(given) => {
                Err(self.denied(Some(format!("answer {}", given.ask)), Reason::AnsweredNo))
            }
            None => Err(self.denied(rule, reason)),
        }
    }

    /// What rules and answers say of looking a name up.
    pub(super) fn rule_lookup(
        &self,
        now: Duration,
        source: IpAddr,
        name: &DomainName,
    ) -> Result<Verdict, Verdict> {
        if !self.sources.contains_key(&source) {
            return Err(self.denied(None, Reason::ForgedSource));
        }
        let session = self.session(source);
        let (rule, reason) = match self.rules(session.as_deref()).lookup(name) {
            Ruling::Allowed { rule, .. } => return Ok(self.allowed(rule, Reason::AllowRule)),
            Ruling::Denied { rule, reason } => (rule, reason),
        };
        let host = Host::Name(name.clone());
        let given = self.asks.remembered(now, session.as_deref(), &host, Protocol::Tcp, None);
        match given.filter(|_| askable(&reason)) {
            Some(given) if given.allow => {
                Ok(self.allowed(format!("answer {}", given.ask), Reason::Answer))
            }
            Some(given) => {
                Err(self.denied(Some(format!("answer {}", given.ask)), Reason::AnsweredNo))
            }
            None => Err(self.denied(rule, reason)),
        }
    }

    /// Judges every flow that is not held again, after something was closed.
    pub(super) fn review(&mut self, now: Duration) {
        let ids: Vec<_> = self.flows.keys().copied().collect();
        for id in ids {
            let Some(known) = self.flows.get(&id) else { continue };
            let flow = known.flow;
            let again = match (&known.inspector, &known.host, known.told) {
                (None, None, false) => continue, // Held: its answer decides.
                (None, None, true) => match self.judge(now, &flow) {
                    Judgement::Open(_) => Some(None),
                    _ => None,
                },
                // Whom it goes to is known, and pins may have expired since.
                (_, Some(host), true) => self.still(now, &flow, host).then_some(None),
                (_, _, false) | (Some(_), None, true) => match self.judge(now, &flow) {
                    Judgement::Named(_, names) => Some(Some(names)),
                    _ => None,
                },
            };
            let ech = self.rules(self.session(flow.source).as_deref()).ech;
            match (again, self.flows.get_mut(&id)) {
                (None, _) => self.deny_open(now, id, Reason::PolicyChanged),
                (Some(Some(names)), Some(Known { inspector: Some(inspector), .. })) => {
                    inspector.allow(names, ech);
                }
                _ => {}
            }
        }
    }

    /// Whether a flow to a name may stay.
    fn still(&self, now: Duration, flow: &Flow, host: &DomainName) -> bool {
        let rules = self.rules(self.session(flow.source).as_deref());
        let (address, port) = (flow.destination.ip(), flow.destination.port());
        self.sources.contains_key(&flow.source)
            && self.rule_name(now, flow, host).is_ok()
            && rules.address_denied(address, flow.protocol, port).is_none()
    }
}
