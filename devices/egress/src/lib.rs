//! Decides what leaves a machine. Pure: no socket, no thread, no clock; time is passed in.
//!
//! A [`Gate`] holds the [`EgressPolicy`] of one machine and everything that its decisions need to remember. The
//! network stack calls it:
//!
//! | when | call | and then |
//! |---|---|---|
//! | an address is given to a session, or to the machine | [`Gate::assign`] | |
//! | the guest sends a SYN, a first datagram, an echo request | [`Gate::open`] | does as the [`Decision`] says |
//! | it sends bytes on a flow that is inspected | [`Gate::inspect`] | sends on what came out, or resets |
//! | it sends a message to the DNS server | [`Gate::query`] | does as the [`DnsStep`] says |
//! | the host's resolver has an answer | [`Gate::resolved`] | sends the reply |
//! | a flow is over | [`Gate::close`] | |
//! | after each of those, and at [`Gate::deadline`] | [`Gate::poll`] | applies each [`Change`] |
//! | now and then | [`Gate::take_events`] | passes them to the owner and the log |
//!
//! The owner of the machine calls [`Gate::reload`] and [`Gate::answer`] and lets the stack poll.
//!
//! # Who is who
//!
//! A flow's source address names its session. The guest's kernel lets a session send from its own address alone,
//! but the gate does not rely on the guest: an address that was given to nobody is denied, and a guest whose
//! kernel has fallen can at worst use the rules of another of its own sessions.
//!
//! # What is decided from what
//!
//! 1. A rule that denies goes before every rule that allows.
//! 2. A rule that names the address allows; special addresses (`ranges.rs`) open to no other rule.
//! 3. Otherwise the address must have been given to this source by a name that the rules allow, in an answer of
//!    this gate that has not expired. The client must then name that name itself, in TLS or HTTP/1
//!    ([`inspect`]).
//! 4. What no rule speaks of is denied, or asked (`ask.rs`).

mod ask;
mod dns;
mod domain;
mod gate;
pub mod inspect;
mod nat64;
mod pins;
mod policy;
mod ranges;
mod rule;
mod rules;
mod secrets;
mod sets;
mod verdict;

pub use ask::{Answer, Asker, Question, Remember};
pub use dns::Family;
pub use domain::{DomainName, DomainPattern};
pub use gate::{
    Change, Decision, DnsStep, Explanation, Flow, Gate, Inspected, Lookup, LookupError, QueryId,
};
pub use nat64::{NAT64_NAME, Nat64};
pub use policy::{EgressPolicy, PolicyError, SessionPolicy};
pub use rule::{Expect, Protocol, Rule, RuleError};
pub use secrets::{Placeholder, Secret, SecretError, rewrite_head};
pub use verdict::{AskId, Event, FlowId, Reason, Verdict, What};
