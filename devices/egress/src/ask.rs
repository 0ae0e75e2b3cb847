//! Questions about what no rule decides, and the answers that were given.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::DomainName;
use crate::rule::{Expect, Protocol, Rule, Target};
use crate::verdict::AskId;

/// How long a question waits unless [`Asks::set_limit`] says otherwise.
const LIMIT: Duration = Duration::from_secs(30);
/// How long an answer that is not remembered holds: a lookup is followed by a connection.
const ONCE: Duration = Duration::from_secs(60);
/// The most questions that wait at a time.
const MAX_QUESTIONS: usize = 64;
/// The most flows and lookups that wait for one answer.
const MAX_WAITING: usize = 64;
/// The most answers that are remembered.
const MAX_ANSWERS: usize = 1024;

/// A question to whoever owns the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its name, for the answer.
    pub ask: AskId,
    /// A host name, or an address that no name gave.
    pub host: String,
    /// The port; none when a name is looked up, since nobody knows yet what for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The protocol, TCP for a lookup.
    pub protocol: Protocol,
    /// The process that wants it. The guest says so: it is no more than a claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// The guest's end of it, by which the process is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<Asker>,
    /// When it counts as answered with no, on the gate's clock.
    pub until: Duration,
}

/// A socket of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// TCP or UDP; that of the query for a lookup.
    pub protocol: Protocol,
    /// Its own address.
    pub address: SocketAddr,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// May it pass?
    pub allow: bool,
    /// For how long and for whom this holds.
    pub remember: Remember,
}

/// How long an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remember {
    /// For what waits now, and if it is a yes for a minute more.
    Once,
    /// As long as the machine runs, for the session that wanted it.
    Session,
    /// As long as the machine runs, for all of its sessions.
    Machine,
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) session: Option<String>,
    pub(crate) host: Host,
    pub(crate) port: Option<u16>,
    pub(crate) protocol: Protocol,
}

/// A host by name or by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Name(DomainName),
    Address(IpAddr),
}

/// Questions that wait and answers that hold. `W` is what waits.
#[derive(Clone, Debug)]
pub(crate) struct Asks<W> {
    limit: Duration,
    next: AskId,
    waiting: BTreeMap<AskId, Waiting<W>>,
    answers: Vec<Given>,
}

#[derive(Clone, Debug)]
struct Waiting<W> {
    subject: Subject,
    until: Duration,
    waiters: Vec<W>,
}

#[derive(Clone, Debug)]
struct Given {
    ask: AskId,
    whom: Whom,
    rule: Rule,
    allow: bool,
    until: Option<Duration>,
}

/// For whom an answer holds.
#[derive(Clone, Debug)]
enum Whom {
    Machine,
    /// A session, or what belongs to none.
    Session(Option<String>),
}

/// What a remembered answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) ask: AskId,
    pub(crate) allow: bool,
    pub(crate) expect: Expect,
}

impl<W> Asks<W> {
    pub(crate) fn new() -> Self {
        Self { limit: LIMIT, next: 1, waiting: BTreeMap::new(), answers: Vec::new() }
    }

    /// How long questions wait from now on.
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Lets `waiter` wait for an answer: to a new question, which is returned, or to one that was asked
    /// already. `Err` if too many wait.
    pub(crate) fn wait(
        &mut self,
        now: Duration,
        subject: Subject,
        waiter: W,
    ) -> Result<(AskId, Option<Question>), W> {
        let asked = self.waiting.iter_mut().find(|(_, waiting)| waiting.subject == subject);
        if let Some((ask, waiting)) = asked {
            if waiting.waiters.len() >= MAX_WAITING {
                return Err(waiter);
            }
            waiting.waiters.push(waiter);
            return Ok((*ask, None));
        }
        if self.waiting.len() >= MAX_QUESTIONS {
            return Err(waiter);
        }
        let (ask, until) = (self.next, now + self.limit);
        self.next += 1;
        let question = Question {
            ask,
            host: match &subject.host {
                Host::Name(name) => name.to_string(),
                Host::Address(address) => address.to_string(),
            },
            port: subject.port,
            protocol: subject.protocol,
            process: None,
            asker: None,
            until,
        };
        self.waiting.insert(ask, Waiting { subject, until, waiters: vec![waiter] });
        Ok((ask, Some(question)))
    }

    /// Takes an answer; who waited for it. `None` if nobody does any more.
    pub(crate) fn answer(
        &mut self,
        now: Duration,
        ask: AskId,
        answer: Answer,
    ) -> Option<(Option<String>, Vec<W>)> {
        let waiting = self.waiting.remove(&ask)?;
        let Subject { session, host, port, protocol } = waiting.subject;
        let rule = match host {
            Host::Name(name) => Rule::name(protocol, name, port),
            Host::Address(address) => Rule::address(protocol, address, port.unwrap_or_default()),
        };
        let (whom, until) = match answer.remember {
            Remember::Once => (Whom::Session(session.clone()), Some(now + ONCE)),
            Remember::Session => (Whom::Session(session.clone()), None),
            Remember::Machine => (Whom::Machine, None),
        };
        if answer.allow || answer.remember != Remember::Once {
            self.answers.retain(|given| given.until.is_none_or(|until| until > now));
            if self.answers.len() >= MAX_ANSWERS {
                self.answers.remove(0);
            }
            self.answers.push(Given { ask, whom, rule, allow: answer.allow, until });
        }
        Some((session, waiting.waiters))
    }

    /// Who has waited too long, by question.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<(AskId, Option<String>, Vec<W>)> {
        let late = |(ask, waiting): (&AskId, &Waiting<W>)| (waiting.until <= now).then_some(*ask);
        let late: Vec<_> = self.waiting.iter().filter_map(late).collect();
        let take = |ask| {
            let waiting = self.waiting.remove(&ask)?;
            Some((ask, waiting.subject.session, waiting.waiters))
        };
        late.into_iter().filter_map(take).collect()
    }

    /// Whoever matches waits no longer. A question that nobody waits for stays, for its answer may be
    /// remembered.
    pub(crate) fn leave(&mut self, gone: impl Fn(&W) -> bool) {
        for waiting in self.waiting.values_mut() {
            waiting.waiters.retain(|waiter| !gone(waiter));
        }
    }

    /// When the next question's time is over.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }

    /// The newest answer that speaks of this; without a port, of a lookup.
    pub(crate) fn remembered(
        &self,
        now: Duration,
        session: Option<&str>,
        host: &Host,
        protocol: Protocol,
        port: Option<u16>,
    ) -> Option<Remembered> {
        let holds = |given: &&Given| {
            given.until.is_none_or(|until| until > now)
                && match &given.whom {
                    Whom::Machine => true,
                    Whom::Session(own) => own.as_deref() == session,
                }
                && match (given.rule.target(), host) {
                    (Target::Name(pattern), Host::Name(name)) => pattern.matches(name),
                    (Target::Network(network), Host::Address(address)) => network.contains(address),
                    _ => false,
                }
        };
        self.answers.iter().rev().filter(holds).find_map(|given| {
            let expect = match port {
                // A yes to one port is reason enough to look the name up; a no to it is none not to.
                None if given.allow || given.rule.forbids_all() => Some(Expect::default()),
                None => None,
                Some(port) if given.allow => given.rule.covers(protocol, port),
                Some(port) => given.rule.forbids(protocol, port).then(Expect::default),
            }?;
            Some(Remembered { ask: given.ask, allow: given.allow, expect })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);

    fn subject(session: Option<&str>, host: &str, port: Option<u16>) -> Subject {
        let host = Host::Name(DomainName::parse(host).unwrap());
        Subject { session: session.map(str::to_owned), host, port, protocol: Protocol::Tcp }
    }

    fn says(
        asks: &Asks<u8>,
        now: Duration,
        session: Option<&str>,
        port: Option<u16>,
    ) -> Option<bool> {
        let host = Host::Name(DomainName::parse("a.example").unwrap());
        asks.remembered(now, session, &host, Protocol::Tcp, port).map(|given| given.allow)
    }

    #[test]
    fn the_same_question_is_asked_once() {
        let mut asks = Asks::new();
        let (first, question) = asks.wait(START, subject(None, "a.example", Some(22)), 1).unwrap();
        assert_eq!(question.unwrap().host, "a.example");
        let (second, question) = asks.wait(START, subject(None, "a.example", Some(22)), 2).unwrap();
        assert_eq!((first, question), (second, None));
        let (third, _) = asks.wait(START, subject(Some("s"), "a.example", Some(22)), 3).unwrap();
        assert_ne!(first, third);
        let yes = Answer { allow: true, remember: Remember::Once };
        assert_eq!(asks.answer(START, first, yes), Some((None, vec![1, 2])));
        assert_eq!(asks.answer(START, first, yes), None);
    }

    #[test]
    fn an_answer_holds_as_long_as_it_says() {
        for (remember, later, others) in [
            (Remember::Once, false, false),
            (Remember::Session, true, false),
            (Remember::Machine, true, true),
        ] {
            let mut asks = Asks::new();
            let (ask, _) = asks.wait(START, subject(Some("s"), "a.example", None), 1).unwrap();
            asks.answer(START, ask, Answer { allow: true, remember }).unwrap();
            assert_eq!(says(&asks, START, Some("s"), Some(443)), Some(true));
            assert_eq!(says(&asks, START, Some("s"), None), Some(true));
            assert_eq!(says(&asks, START, Some("s"), Some(22)), None);
            assert_eq!(says(&asks, START + ONCE, Some("s"), None).is_some(), later);
            assert_eq!(says(&asks, START, Some("t"), None).is_some(), others);
            assert_eq!(says(&asks, START, None, None).is_some(), others);
        }
    }

    #[test]
    fn a_no_to_one_port_leaves_the_name_alone() {
        let mut asks = Asks::new();
        let (ask, _) = asks.wait(START, subject(None, "a.example", Some(22)), 1).unwrap();
        asks.answer(START, ask, Answer { allow: false, remember: Remember::Machine }).unwrap();
        assert_eq!(says(&asks, START, None, Some(22)), Some(false));
        assert_eq!(says(&asks, START, None, Some(443)), None);
        assert_eq!(says(&asks, START, None, None), None);
    }

    #[test]
    fn time_passes_for_every_question() {
        let mut asks = Asks::new();
        asks.set_limit(Duration::from_secs(5));
        let (ask, _) = asks.wait(START, subject(None, "a.example", None), 1).unwrap();
        assert_eq!(asks.deadline(), Some(START + Duration::from_secs(5)));
        assert!(asks.expire(START + Duration::from_secs(4)).is_empty());
        assert_eq!(asks.expire(START + Duration::from_secs(5)), [(ask, None, vec![1])]);
        assert_eq!(asks.deadline(), None);
    }

    #[test]
    fn a_guest_cannot_ask_without_end() {
        let mut asks = Asks::new();
        for number in 0..MAX_QUESTIONS {
            asks.wait(START, subject(None, &format!("n{number}.example"), None), 1).unwrap();
        }
        assert!(asks.wait(START, subject(None, "more.example", None), 1).is_err());
        for _ in 1..MAX_WAITING {
            asks.wait(START, subject(None, "n1.example", None), 1).unwrap();
        }
        assert!(asks.wait(START, subject(None, "n1.example", None), 1).is_err());
    }
}
