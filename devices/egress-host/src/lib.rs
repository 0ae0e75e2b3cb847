//! The egress policy's ends in the host.
//!
//! [`egress`] makes them: an [`EgressGate`] for the network stack, and an [`Egress`] for whoever owns the machine.
//! What they decide is `cabana-egress`'s; here are the things that touch the world.

mod authority;
mod dial;
mod gate;
mod log;
mod nat64;
mod pac;
mod prefixed;
mod proxies;
mod relay;
mod resolver;
mod trust;

pub use authority::AuthorityError;
pub use cabana_egress::{
    Answer, AskId, Asker, DomainName, EgressPolicy, Event, Explanation, LookupError, PolicyError,
    Protocol, Question, Reason, Remember, Secret, SecretError, SessionPolicy, Verdict, What,
};
pub use cabana_pac::StartError;
pub use gate::{Egress, EgressConfig, EgressError, EgressGate, Listener, egress};
pub use log::LogLine;
pub use proxies::{Proxies, Proxy, ProxyError, ProxyKind};
pub use resolver::{HostResolver, Resolver};
pub use trust::Trust;

/// Explains what a policy would do with a flow to `host`, a name or an address; the host's resolver is asked for a
/// name.
///
/// # Errors
///
/// [`PolicyError`] if a word of the policy is no rule.
pub fn explain(
    policy: &EgressPolicy,
    session: Option<&str>,
    host: &str,
    protocol: Protocol,
    port: u16,
) -> Result<Explanation, PolicyError> {
    let gate = cabana_egress::Gate::new(policy)?;
    let name = DomainName::parse(host);
    // A name that may not be looked up is not, here either.
    let known = name.filter(|_| gate.explain(session, host, protocol, port, &[]).allowed);
    let found = known.map(|name| HostResolver.resolve(&name));
    let mut explanation = match &found {
        Some(Ok(addresses)) => gate.explain(session, host, protocol, port, addresses),
        _ => gate.explain(session, host, protocol, port, &[]),
    };
    if let Some(Err(error)) = found {
        explanation.steps.push(match error {
            LookupError::Unknown => "this host's resolver knows no address of it".to_owned(),
            LookupError::Failed => "this host's resolver could not find out its address".to_owned(),
        });
    }
    Ok(explanation)
}
