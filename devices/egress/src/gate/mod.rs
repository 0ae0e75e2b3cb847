//! The gate: one place that every flow and every lookup of a machine passes.

mod explain;
mod judge;
mod lookup;
mod tell;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::ask::{Answer, Asker, Asks};
use crate::dns::Asked;
use crate::domain::DomainName;
use crate::inspect::{EditHead, Inspector, Progress, Refusal};
use crate::pins::Pins;
use crate::policy::{EgressPolicy, PolicyError};
use crate::rule::Protocol;
use crate::rules::Rules;
use crate::secrets::{self, Placeholder};
use crate::verdict::{AskId, Event, FlowId, Reason, Verdict, What};

pub use explain::Explanation;
use judge::Judgement;
use lookup::step;
pub use lookup::{Lookup, LookupError};

/// The most flows that a gate keeps in mind; the stack has a limit of its own below it.
const MAX_FLOWS: usize = 65_536;

/// The most bytes that all inspections of a machine hold back.
const MAX_HELD: usize = 64 << 20;

/// Names a lookup, chosen by the stack.
pub type QueryId = u64;

/// A flow that the guest wants to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its name, never used again.
    pub id: FlowId,
    /// The guest's address, which tells the session.
    pub source: IpAddr,
    /// The guest's port, which tells nothing but whose process it may be.
    pub source_port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it goes; port 0 for ICMP.
    pub destination: SocketAddr,
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be opened, and nobody looks at what is in it. For UDP and ICMP by name it is the name.
    Allow {
        /// The name that it goes to, if it goes to one.
        host: Option<DomainName>,
    },
    /// It may be opened, and everything that the guest sends has to pass [`Gate::inspect`] until that says
    /// otherwise.
    Inspect {
        /// The names that led to the address, the last one first: it goes to one of them.
        hosts: Vec<DomainName>,
        /// The client must speak first and name its host, so that connecting onward may wait for it.
        client_first: bool,
    },
    /// Its first packet waits: [`Gate::poll`] tells what becomes of it.
    Hold(AskId),
    /// It is refused, or reset if it was open.
    Deny(Verdict),
}

/// What inspected bytes came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The rest may pass without inspection.
    pub passed: bool,
    /// The host that the client named last.
    pub host: Option<DomainName>,
}

/// What becomes of a message to the DNS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsStep {
    /// This goes back.
    Reply(Vec<u8>),
    /// The host's resolver is asked, and its answer goes to [`Gate::resolved`].
    Resolve(Lookup),
    /// It waits: [`Gate::poll`] tells what becomes of it.
    Hold(AskId),
    /// Nothing goes back.
    Drop,
}

/// What has changed for a flow or a lookup that the stack knows already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A flow: a held one goes on, or an open one must be reset.
    Flow(FlowId, Decision),
    /// A held lookup goes on.
    Query(QueryId, DnsStep),
}

/// Every decision about what leaves one machine, with the memory that decisions need: the policy, who is who,
/// which names gave which addresses, which questions wait. It has no socket, thread or clock; see the crate's
/// documentation for how a stack uses it.
#[derive(Debug)]
pub struct Gate {
    version: u64,
    machine: Rules,
    sessions: BTreeMap<String, Rules>,
    sources: HashMap<IpAddr, Option<String>>,
    pins: Pins,
    flows: HashMap<FlowId, Known>,
    lookups: usize,
    /// Addresses that stand for names which a proxy looks up.
    elsewhere: HashMap<DomainName, Ipv4Addr>,
    /// Bytes that inspections hold back.
    held: usize,
    asks: Asks<Waiter>,
    changes: VecDeque<Change>,
    events: VecDeque<Event>,
    lost: u64,
    placeholders: Vec<Placeholder>,
}

/// A flow that was not denied.
#[derive(Debug)]
struct Known {
    flow: Flow,
    host: Option<DomainName>,
    inspector: Option<Inspector>,
    /// It was said to the log that it is allowed.
    told: bool,
}

/// What waits for an answer.
#[derive(Clone, Debug)]
enum Waiter {
    Flow(FlowId),
    Query(QueryId, Asker, Asked),
}

impl Gate {
    /// A gate with its first policy, number 1. Nobody has an address yet.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] if a word of it is no rule.
    pub fn new(policy: &EgressPolicy) -> Result<Self, PolicyError> {
        let (machine, sessions) = policy.compile()?;
        Ok(Self {
            version: 1,
            machine,
            sessions,
            sources: HashMap::new(),
            pins: Pins::default(),
            flows: HashMap::new(),
            lookups: 0,
            elsewhere: HashMap::new(),
            held: 0,
            asks: Asks::new(),
            changes: VecDeque::new(),
            events: VecDeque::new(),
            lost: 0,
            placeholders: Vec::new(),
        })
    }

    /// Gives an address to a session, or with `None` to the machine itself. Whatever comes from an address that
    /// was given to nobody is denied.
    pub fn assign(&mut self, source: IpAddr, session: Option<String>) {
        self.sources.insert(source, session);
    }

    /// Takes an address back: its flows are reset and what it looked up is forgotten.
    pub fn unassign(&mut self, now: Duration, source: IpAddr) {
        let own = |known: &&Known| known.flow.source == source;
        let ids: Vec<_> = self.flows.values().filter(own).map(|known| known.flow.id).collect();
        for id in ids {
            self.deny_open(now, id, Reason::SessionEnded);
        }
        self.asks.leave(
            |waiter| matches!(waiter, Waiter::Query(_, from, _) if from.address.ip() == source),
        );
        self.pins.forget(source);
        self.sources.remove(&source);
    }

    /// Another policy, from now on and as a whole; its number. Flows that it does not allow are reset, lookups
    /// under way are judged by it when they come back, and questions that wait go on waiting. Answers that were
    /// given stay, and its denying rules go before them.
    ///
    /// # Errors
    ///
    /// [`PolicyError`]; then the old policy stays.
    pub fn reload(&mut self, now: Duration, policy: &EgressPolicy) -> Result<u64, PolicyError> {
        (self.machine, self.sessions) = policy.compile()?;
        self.version += 1;
        self.tell(now, None, What::Policy { policy: self.version });
        self.review(now);
        Ok(self.version)
    }

    /// The number of the policy that holds.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Decides about a flow before anything of it leaves the host.
    pub fn open(&mut self, now: Duration, flow: Flow) -> Decision {
        let session = self.session(flow.source);
        if self.flows.len() >= MAX_FLOWS {
            let verdict = self.denied(None, Reason::TooMany);
            return self.refuse(now, &flow, None, verdict);
        }
        match self.judge(now, &flow) {
            Judgement::Open(verdict) => {
                self.tell_flow(now, &flow, None, verdict);
                self.know(flow, None, None, true);
                Decision::Allow { host: None }
            }
            Judgement::Named(verdict, names) => {
                let host = names.first().map(|(name, _)| name.clone());
                match host {
                    Some(host) if flow.protocol == Protocol::Tcp => {
                        let client_first = !names.iter().any(|(_, expect)| expect.other);
                        let ech = self.rules(session.as_deref()).ech;
                        let hosts = names.iter().map(|(name, _)| name.clone()).collect();
                        let inspector = Inspector::new(names, ech);
                        self.know(flow, Some(host), Some(inspector), false);
                        Decision::Inspect { hosts, client_first }
                    }
                    host => {
                        self.tell_flow(now, &flow, host.as_ref(), verdict);
                        self.know(flow, host.clone(), None, true);
                        Decision::Allow { host }
                    }
                }
            }
            Judgement::Ask(subject, verdict) => {
                let Ok((ask, question)) = self.asks.wait(now, subject, Waiter::Flow(flow.id))
                else {
                    let verdict = Verdict { reason: Reason::TooManyQuestions, ..verdict };
                    return self.refuse(now, &flow, None, verdict);
                };
                if let Some(mut question) = question {
                    let address = SocketAddr::new(flow.source, flow.source_port);
                    question.asker = Some(Asker { protocol: flow.protocol, address });
                    self.tell(now, session, What::Ask(question));
                }
                self.know(flow, None, None, false);
                Decision::Hold(ask)
            }
            Judgement::Denied(host, verdict) => self.refuse(now, &flow, host.as_ref(), verdict),
        }
    }

    /// Passes what the guest sent on an inspected flow: what may go on is added to `out`.
    ///
    /// # Errors
    ///
    /// The verdict for which the flow must be reset. Nothing more of it may go on.
    pub fn inspect(
        &mut self,
        now: Duration,
        id: FlowId,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Inspected, Verdict> {
        self.inspect_with(now, id, bytes, out, &mut |_, head, out| {
            out.extend_from_slice(head);
            Ok(())
        })
    }

    /// [`Self::inspect`], with `edit` in the way of every head of a HTTP request: for proxies, which want to know
    /// the host in the request itself.
    ///
    /// # Errors
    ///
    /// As [`Self::inspect`].
    pub fn inspect_with(
        &mut self,
        now: Duration,
        id: FlowId,
        bytes: &[u8],
        out: &mut Vec<u8>,
        edit: &mut EditHead<'_>,
    ) -> Result<Inspected, Verdict> {
        let placeholders = &self.placeholders;
        let mut guarded = |host: &DomainName, head: &[u8], out: &mut Vec<u8>| {
            // In clear text a secret would not be one for long: not even its own host gets it.
            secrets::refuse_placeholders(placeholders, head)?;
            edit(host, head, out)
        };
        let Some(known) = self.flows.get_mut(&id) else {
            return Err(self.denied(None, Reason::PolicyChanged));
        };
        let Some(inspector) = &mut known.inspector else {
            out.extend_from_slice(bytes);
            return Ok(Inspected { passed: true, host: known.host.clone() });
        };
        let before = out.len();
        let flow = known.flow;
        let was_held = inspector.held();
        let progress = match inspector.push_with(bytes, out, &mut guarded) {
            Ok(progress) => {
                self.held = (self.held + inspector.held()).saturating_sub(was_held);
                if self.held > MAX_HELD {
                    out.truncate(before);
                    let host = known.host.clone();
                    return Err(self.refused(now, id, host.as_ref(), Reason::TooMany));
                }
                progress
            }
            Err(refusal) => {
                out.truncate(before);
                let host = known.host.clone();
                return Err(self.refused(now, id, host.as_ref(), Reason::Inspection { refusal }));
            }
        };
        let named = inspector.host().cloned();
        let passed = progress == Progress::Passed;
        if passed {
            known.inspector = None;
        }
        if let Some(host) = &named {
            let news = !known.told || known.host.as_ref() != Some(host);
            known.host = Some(host.clone());
            known.told = true;
            if news {
                match self.rule_name(now, &flow, host) {
                    Ok((verdict, _)) => self.tell_flow(now, &flow, Some(host), verdict),
                    Err(verdict) => {
                        out.truncate(before);
                        return Err(self.refused(now, id, Some(host), verdict.reason));
                    }
                }
            }
        }
        Ok(Inspected { passed, host: named })
    }

    /// A flow that was not denied.
    pub fn flow(&self, id: FlowId) -> Option<Flow> {
        self.flows.get(&id).map(|known| known.flow)
    }

    /// A flow was allowed and failed on its way, at a proxy or at a certificate.
    pub fn failed(&mut self, now: Duration, id: FlowId, why: String) {
        let session = self.flows.get(&id).and_then(|known| self.session(known.flow.source));
        self.tell(now, session, What::Failed { flow: id, why });
    }

    /// A flow is over, with how many bytes came from the guest and went to it.
    pub fn close(&mut self, now: Duration, id: FlowId, sent: u64, received: u64) {
        if let Some(known) = self.forget(id) {
            self.asks.leave(|waiter| matches!(waiter, Waiter::Flow(own) if *own == id));
            let session = self.session(known.flow.source);
            self.tell(now, session, What::Closed { flow: id, sent, received });
        }
    }

    /// Takes an answer to a question. What follows from it comes out of [`Self::poll`].
    pub fn answer(&mut self, now: Duration, ask: AskId, answer: Answer) {
        if let Some((session, waiters)) = self.asks.answer(now, ask, answer) {
            self.tell(now, session, What::Answered { ask, allowed: answer.allow });
            let no = (!answer.allow).then_some(Reason::AnsweredNo);
            self.release(now, waiters, no.as_ref());
        }
    }

    /// Refuses these in plain HTTP from now on.
    pub fn guard(&mut self, placeholders: Vec<Placeholder>) {
        self.placeholders = placeholders;
    }

    /// A flow was refused by whoever looked deeper into it, and is reset.
    pub fn refuse_deeper(&mut self, now: Duration, id: FlowId, refusal: Refusal) {
        let host = self.flows.get(&id).and_then(|known| known.host.clone());
        self.refused(now, id, host.as_ref(), Reason::Inspection { refusal });
    }

    /// How long questions wait from now on; 30 s unless said.
    pub fn set_ask_limit(&mut self, limit: Duration) {
        self.asks.set_limit(limit);
    }

    /// What has changed for held and open flows and for held lookups, by answers, new policies and time.
    pub fn poll(&mut self, now: Duration) -> Vec<Change> {
        for (ask, session, waiters) in self.asks.expire(now) {
            self.tell(now, session, What::Answered { ask, allowed: false });
            self.release(now, waiters, Some(&Reason::Unanswered));
        }
        self.changes.drain(..).collect()
    }

    /// When [`Self::poll`] has something to do at the latest, if nothing else happens.
    pub fn deadline(&self) -> Option<Duration> {
        self.asks.deadline()
    }

    /// What happened since the last call.
    pub fn take_events(&mut self, now: Duration) -> Vec<Event> {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            self.events.push_back(Event {
                at: now,
                session: None,
                what: What::Lost { events: lost },
            });
        }
        self.events.drain(..).collect()
    }

    fn session(&self, source: IpAddr) -> Option<String> {
        self.sources.get(&source).cloned().flatten()
    }

    /// The rules of a session: its own, or else the machine's.
    fn rules(&self, session: Option<&str>) -> &Rules {
        session.and_then(|session| self.sessions.get(session)).unwrap_or(&self.machine)
    }

    fn denied(&self, rule: Option<String>, reason: Reason) -> Verdict {
        Verdict { allowed: false, rule, reason, policy: self.version }
    }

    fn allowed(&self, rule: String, reason: Reason) -> Verdict {
        Verdict { allowed: true, rule: Some(rule), reason, policy: self.version }
    }

    /// Lets go of who waited: to be decided again, or for `no` denied.
    fn release(&mut self, now: Duration, waiters: Vec<Waiter>, no: Option<&Reason>) {
        for waiter in waiters {
            let change = match (waiter, no) {
                (Waiter::Flow(id), None) => {
                    let Some(known) = self.forget(id) else { continue };
                    Change::Flow(id, self.open(now, known.flow))
                }
                (Waiter::Flow(id), Some(reason)) => {
                    let Some(known) = self.forget(id) else { continue };
                    let verdict = self.denied(None, reason.clone());
                    Change::Flow(id, self.refuse(now, &known.flow, None, verdict))
                }
                (Waiter::Query(id, from, asked), None) => {
                    Change::Query(id, self.look_up(now, id, from, asked))
                }
                (Waiter::Query(id, from, asked), Some(reason)) => {
                    let verdict = self.denied(None, reason.clone());
                    let session = self.session(from.address.ip());
                    self.tell_query(now, session, &asked.name, Vec::new(), verdict);
                    Change::Query(id, step(asked.reply.blocked(&reason.to_string())))
                }
            };
            self.changes.push_back(change);
        }
    }

    /// A flow is no longer known, and holds nothing.
    fn forget(&mut self, id: FlowId) -> Option<Known> {
        let known = self.flows.remove(&id)?;
        let held = known.inspector.as_ref().map_or(0, Inspector::held);
        self.held = self.held.saturating_sub(held);
        Some(known)
    }

    fn know(
        &mut self,
        flow: Flow,
        host: Option<DomainName>,
        inspector: Option<Inspector>,
        told: bool,
    ) {
        self.flows.insert(flow.id, Known { flow, host, inspector, told });
    }

    /// Denies a flow that is not open yet.
    fn refuse(
        &mut self,
        now: Duration,
        flow: &Flow,
        host: Option<&DomainName>,
        verdict: Verdict,
    ) -> Decision {
        self.tell_flow(now, flow, host, verdict.clone());
        Decision::Deny(verdict)
    }

    /// Denies an open flow for what it sent; its owner learns it from the call that it made.
    fn refused(
        &mut self,
        now: Duration,
        id: FlowId,
        host: Option<&DomainName>,
        reason: Reason,
    ) -> Verdict {
        let verdict = self.denied(None, reason);
        if let Some(known) = self.forget(id) {
            self.tell_flow(now, &known.flow, host, verdict.clone());
        }
        verdict
    }

    /// Denies an open flow; its owner learns it by [`Self::poll`].
    fn deny_open(&mut self, now: Duration, id: FlowId, reason: Reason) {
        if let Some(known) = self.forget(id) {
            let verdict = self.denied(None, reason);
            let decision = self.refuse(now, &known.flow, known.host.as_ref(), verdict);
            self.changes.push_back(Change::Flow(id, decision));
        }
    }
}
