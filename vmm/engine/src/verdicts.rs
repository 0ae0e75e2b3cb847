//! What a network tells, in the words of the API.

use cabana_api::{NetworkEvent, NetworkVerdict, NetworkWhat};
use cabana_sandbox::egress::{Event, Verdict, What};

/// An event for applications.
pub(crate) fn told(event: Event) -> NetworkEvent {
    let what = match event.what {
        What::Flow { flow, protocol, host, address, port, verdict } => {
            let (protocol, verdict) = (protocol.to_string(), in_words(&verdict));
            NetworkWhat::Flow { flow, protocol, host, address, port, verdict }
        }
        What::Query { host, addresses, verdict } => {
            NetworkWhat::Query { host, addresses, verdict: in_words(&verdict) }
        }
        What::Closed { flow, sent, received } => NetworkWhat::Closed { flow, sent, received },
        What::Failed { flow, why } => NetworkWhat::Failed { flow, why },
        What::Ask(question) => NetworkWhat::Ask {
            ask: question.ask,
            protocol: question.protocol.to_string(),
            host: question.host,
            port: question.port,
            process: question.process,
        },
        What::Answered { ask, allowed } => NetworkWhat::Answered { ask, allowed },
        What::Policy { policy } => NetworkWhat::Policy { policy },
        What::Lost { events } => NetworkWhat::Lost { events },
    };
    NetworkEvent { session: event.session, what }
}

fn in_words(verdict: &Verdict) -> NetworkVerdict {
    // A reason is written as an object with its code.
    let code = serde_json::to_value(&verdict.reason).unwrap_or_default();
    NetworkVerdict {
        allowed: verdict.allowed,
        rule: verdict.rule.clone(),
        code: code["code"].as_str().unwrap_or_default().to_owned(),
        reason: verdict.reason.to_string(),
        policy: verdict.policy,
    }
}
