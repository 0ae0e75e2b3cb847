//! Verdicts and the events that carry them.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::inspect::Refusal;
use crate::rule::Protocol;

/// Names a flow, chosen by the stack and not used again.
pub type FlowId = u64;
/// Names a question to the app.
pub type AskId = u64;

/// What was decided, by which rule of which policy, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it may pass.
    pub allowed: bool,
    /// The rule that decided, with its set before it; none if no rule spoke of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why.
    pub reason: Reason,
    /// The policy that decided: 1 for the first one, one more for each reload.
    pub policy: u64,
}

/// Why a verdict is as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "code")]
pub enum Reason {
    /// A rule allows it.
    AllowRule,
    /// Somebody was asked and allowed it.
    Answer,
    /// A rule denies it.
    DenyRule,
    /// No rule speaks of it.
    NoRule,
    /// Rules allow the host, on other ports or by another protocol.
    NoPort,
    /// No allowed name gave this address to this source, and no rule names it.
    NotResolved,
    /// The address is open only to rules that name it.
    Special {
        /// What the address is for.
        range: String,
    },
    /// A name's answer held only addresses that are open only to rules that name them.
    Rebinding {
        /// What the first of them is for.
        range: String,
    },
    /// The source is an address that nobody has been given.
    ForgedSource,
    /// What the client sent was not for the allowed name.
    Inspection {
        /// What was wrong.
        refusal: Refusal,
    },
    /// Somebody was asked and denied it.
    AnsweredNo,
    /// Somebody was asked and did not answer in time.
    Unanswered,
    /// Too many questions wait already.
    TooManyQuestions,
    /// A new policy no longer allows what an older one did.
    PolicyChanged,
    /// The session of the source is gone.
    SessionEnded,
    /// The guest keeps too many flows or lookups open.
    TooMany,
    /// The host's resolver knows no address, or failed.
    Unresolved,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowRule => "a rule allows it",
            Self::Answer => "somebody was asked and allowed it",
            Self::DenyRule => "a rule denies it",
            Self::NoRule => "no rule allows it",
            Self::NoPort => "rules allow this host, but not this port or protocol",
            Self::NotResolved => "no allowed name gave this address, and no rule names it",
            Self::Special { range } => {
                return write!(f, "a {range} address is open only to a rule that names it");
            }
            Self::Rebinding { range } => {
                return write!(f, "the name led to a {range} address that no rule names");
            }
            Self::ForgedSource => "nobody was given the source address",
            Self::Inspection { refusal } => return refusal.fmt(f),
            Self::AnsweredNo => "somebody was asked and denied it",
            Self::Unanswered => "somebody was asked and did not answer in time",
            Self::TooManyQuestions => "too many questions wait for an answer",
            Self::PolicyChanged => "the policy has changed and no longer allows it",
            Self::SessionEnded => "its session has ended",
            Self::TooMany => "too many are open already",
            Self::Unresolved => "the host's resolver gave no address",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.allowed { "allowed" } else { "denied" }, self.reason)?;
        match &self.rule {
            Some(rule) => write!(f, " (rule {rule}, policy {})", self.policy),
            None => write!(f, " (policy {})", self.policy),
        }
    }
}

/// Something that the owner of a machine may want to see, and that the log keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, on the clock that the gate is told.
    pub at: Duration,
    /// Whose, if the source belongs to a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What an event tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum What {
    /// A flow was allowed or denied. An inspected flow is allowed once its first bytes have named its host.
    Flow {
        /// Its name.
        flow: FlowId,
        /// Its protocol.
        protocol: Protocol,
        /// The allowed name that it goes to, if it goes to one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// Where it goes.
        address: IpAddr,
        /// Where it goes; 0 for ICMP.
        port: u16,
        /// What was decided.
        verdict: Verdict,
    },
    /// A flow ended.
    Closed {
        /// Its name.
        flow: FlowId,
        /// Bytes from the guest.
        sent: u64,
        /// Bytes to the guest.
        received: u64,
    },
    /// A flow that was allowed failed on its way.
    Failed {
        /// Its name.
        flow: FlowId,
        /// Where and why.
        why: String,
    },
    /// A name was asked for.
    Query {
        /// The name.
        host: String,
        /// Its addresses that the guest was given.
        addresses: Vec<IpAddr>,
        /// What was decided.
        verdict: Verdict,
    },
    /// A flow or a lookup is held until somebody answers.
    Ask(crate::ask::Question),
    /// A question was answered, or its time passed.
    Answered {
        /// The question.
        ask: AskId,
        /// What was answered.
        allowed: bool,
    },
    /// Another policy holds from now on.
    Policy {
        /// Its number.
        policy: u64,
    },
    /// Events were lost because nobody took them.
    Lost {
        /// How many.
        events: u64,
    },
}
