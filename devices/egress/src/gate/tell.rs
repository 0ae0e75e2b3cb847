//! What the gate tells its owner.

use std::net::IpAddr;
use std::time::Duration;

use super::{Flow, Gate};
use crate::domain::DomainName;
use crate::verdict::{Event, Verdict, What};

/// The most events that wait to be taken.
const MAX_EVENTS: usize = 8192;

impl Gate {
    pub(super) fn tell_flow(
        &mut self,
        now: Duration,
        flow: &Flow,
        host: Option<&DomainName>,
        verdict: Verdict,
    ) {
        let what = What::Flow {
            flow: flow.id,
            protocol: flow.protocol,
            host: host.map(ToString::to_string),
            address: flow.destination.ip(),
            port: flow.destination.port(),
            verdict,
        };
        self.tell(now, self.session(flow.source), what);
    }

    pub(super) fn tell_query(
        &mut self,
        now: Duration,
        session: Option<String>,
        name: &DomainName,
        addresses: Vec<IpAddr>,
        verdict: Verdict,
    ) {
        self.tell(now, session, What::Query { host: name.to_string(), addresses, verdict });
    }

    pub(super) fn tell(&mut self, now: Duration, session: Option<String>, what: What) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(Event { at: now, session, what });
        } else {
            self.lost += 1;
        }
    }
}
