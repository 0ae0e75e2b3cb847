//! The DNS server's part of the gate.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::judge::askable;
use super::{DnsStep, Gate, QueryId, Waiter};
use crate::ask::{Asker, Host, Subject};
use crate::dns::{self, Asked, Family, Reply};
use crate::domain::DomainName;
use crate::ranges::SpecialRanges;
use crate::rule::Protocol;
use crate::verdict::{Reason, Verdict, What};

/// Where addresses come from that stand for names which a proxy will look up (RFC 2544 §C.2.2: they are nobody's).
const ELSEWHERE: [u8; 2] = [198, 18];
/// The most names that have such an address.
const MAX_ELSEWHERE: usize = 1 << 16;

/// The most lookups that the host's resolver is busy with for one machine.
const MAX_LOOKUPS: usize = 256;

/// A name that the host's resolver is to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    source: IpAddr,
    name: DomainName,
    family: Family,
    reply: Reply,
}

impl Lookup {
    /// The name.
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    /// The addresses that matter.
    pub fn family(&self) -> Family {
        self.family
    }
}

/// Why the host's resolver gave no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// The name has no address.
    Unknown,
    /// It could not find out.
    Failed,
}

impl Gate {
    /// Takes a message to the DNS server, without the length that stands before it over TCP.
    pub fn query(&mut self, now: Duration, id: QueryId, from: Asker, message: &[u8]) -> DnsStep {
        if !self.sources.contains_key(&from.address.ip()) {
            return DnsStep::Drop;
        }
        match dns::read(message) {
            Ok(asked) => self.look_up(now, id, from, asked),
            Err(reply) => step(reply),
        }
    }

    /// Takes what the host's resolver found for a lookup; what goes back to the guest.
    pub fn resolved(
        &mut self,
        now: Duration,
        lookup: &Lookup,
        found: Result<&[IpAddr], LookupError>,
    ) -> DnsStep {
        self.lookups = self.lookups.saturating_sub(1);
        let Lookup { source, name, family, reply } = lookup;
        let session = self.session(*source);
        // The policy, and who has the address, may have changed meanwhile.
        let verdict = match self.rule_lookup(now, *source, name) {
            Ok(verdict) => verdict,
            Err(verdict) => {
                let why = verdict.reason.to_string();
                self.tell_query(now, session, name, Vec::new(), verdict);
                return step(reply.blocked(&why));
            }
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let verdict = Verdict { reason: Reason::Unresolved, ..verdict };
                self.tell_query(now, session, name, Vec::new(), verdict);
                return step(match error {
                    LookupError::Unknown => reply.unknown(),
                    LookupError::Failed => reply.failed(),
                });
            }
        };
        let rules = self.rules(session.as_deref());
        let (mut given, mut dropped) = (Vec::new(), None);
        for address in found.iter().copied().filter(|address| family.holds(*address)) {
            match SpecialRanges::table().kind_of_answer(address) {
                Some(range) if !rules.names_special(address) && !self.stands_for(address, name) => {
                    dropped.get_or_insert(range);
                }
                _ => given.push(address),
            }
        }
        dns::fit(&mut given);
        for address in &given {
            self.pins.pin(now, *source, name, *address);
        }
        if let (true, Some(range)) = (given.is_empty(), dropped) {
            let verdict = self.denied(None, Reason::Rebinding { range: range.to_owned() });
            let why = verdict.reason.to_string();
            self.tell_query(now, session, name, Vec::new(), verdict);
            return step(reply.blocked(&why));
        }
        let answer = step(reply.addresses(&given));
        self.tell_query(now, session, name, given, verdict);
        answer
    }

    /// Gives the guest an address that stands for the name, because a proxy will look it up and this host cannot.
    /// It leads nowhere but to that name, and to those who asked for it.
    pub fn resolved_elsewhere(&mut self, now: Duration, lookup: &Lookup) -> DnsStep {
        let next = self.elsewhere.len();
        let address = match self.elsewhere.get(&lookup.name) {
            Some(address) => *address,
            None if next >= MAX_ELSEWHERE => {
                return self.resolved(now, lookup, Err(LookupError::Failed));
            }
            None => {
                let [.., high, low] = (next as u32).to_be_bytes();
                let address = Ipv4Addr::new(ELSEWHERE[0], ELSEWHERE[1], high, low);
                self.elsewhere.insert(lookup.name.clone(), address);
                address
            }
        };
        self.resolved(now, lookup, Ok(&[address.into()]))
    }

    /// Whether the address stands for this name.
    pub(super) fn stands_for(&self, address: IpAddr, name: &DomainName) -> bool {
        self.elsewhere.get(name).is_some_and(|own| IpAddr::V4(*own) == address)
    }

    /// Whether the address stands for a name, so that only a proxy can lead there.
    pub fn is_elsewhere(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(v4) if v4.octets()[..2] == ELSEWHERE)
            && self.elsewhere.values().any(|own| IpAddr::V4(*own) == address)
    }

    pub(super) fn look_up(
        &mut self,
        now: Duration,
        id: QueryId,
        from: Asker,
        asked: Asked,
    ) -> DnsStep {
        let source = from.address.ip();
        let session = self.session(source);
        let verdict = match self.rule_lookup(now, source, &asked.name) {
            Ok(verdict) => verdict,
            Err(verdict) => {
                if self.rules(session.as_deref()).ask && askable(&verdict.reason) {
                    return self.ask_lookup(now, id, from, asked, verdict);
                }
                let why = verdict.reason.to_string();
                self.tell_query(now, session, &asked.name, Vec::new(), verdict);
                return step(asked.reply.blocked(&why));
            }
        };
        let Some(family) = asked.family else {
            return step(asked.reply.addresses(&[]));
        };
        if self.lookups >= MAX_LOOKUPS {
            let verdict = Verdict { allowed: false, reason: Reason::TooMany, ..verdict };
            self.tell_query(now, session, &asked.name, Vec::new(), verdict);
            return step(asked.reply.failed());
        }
        self.lookups += 1;
        DnsStep::Resolve(Lookup { source, name: asked.name, family, reply: asked.reply })
    }

    pub(super) fn ask_lookup(
        &mut self,
        now: Duration,
        id: QueryId,
        from: Asker,
        asked: Asked,
        verdict: Verdict,
    ) -> DnsStep {
        let session = self.session(from.address.ip());
        let subject = Subject {
            session: session.clone(),
            host: Host::Name(asked.name.clone()),
            port: None,
            protocol: Protocol::Tcp,
        };
        match self.asks.wait(now, subject, Waiter::Query(id, from, asked)) {
            Ok((ask, question)) => {
                if let Some(mut question) = question {
                    question.asker = Some(from);
                    self.tell(now, session, What::Ask(question));
                }
                DnsStep::Hold(ask)
            }
            Err(Waiter::Query(_, _, asked)) => {
                let verdict = Verdict { reason: Reason::TooManyQuestions, ..verdict };
                self.tell_query(now, session, &asked.name, Vec::new(), verdict);
                step(asked.reply.failed())
            }
            Err(Waiter::Flow(_)) => DnsStep::Drop,
        }
    }
}

/// What goes back, if anything can.
pub(super) fn step(reply: Option<Vec<u8>>) -> DnsStep {
    reply.map_or(DnsStep::Drop, DnsStep::Reply)
}
