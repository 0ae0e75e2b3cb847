//! Networks: what may leave, what happened, and what is asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine's network. Nothing leaves unless the policy allows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// What may leave the machine.
    pub policy: PolicySpec,
    /// Rules of sessions' own, by their names, in place of the machine's.
    pub sessions: BTreeMap<String, PolicySpec>,
    /// Ports of the host's that lead into the guest.
    pub publish: Vec<PublishSpec>,
    /// `NAME=VALUE@HOST…`: what the guest has only a placeholder of, in a variable of its commands.
    pub secrets: Vec<String>,
    /// `none`; `env`: the proxies of the engine's environment; or a URL. Absent: `env`.
    pub proxy: Option<String>,
    /// Let the guest trust whom this host trusts.
    pub host_trust: bool,
    /// A file that gets every verdict, as JSON, one a line.
    pub log: Option<PathBuf>,
    /// A file that gets every frame, as Wireshark and tcpdump read it.
    pub capture: Option<PathBuf>,
    /// The largest IP packet; absent: 65,520 bytes.
    pub mtu: Option<u16>,
}

/// Rules, in the words of `docs/egress.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySpec {
    /// What may be reached.
    pub allow: Vec<String>,
    /// What may not; it goes before `allow`.
    pub deny: Vec<String>,
    /// Ask about what no rule decides, in place of denying it.
    pub ask: bool,
    /// Let encrypted `ClientHello`s pass.
    pub ech: bool,
}

/// A port of the host's that leads to one of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishSpec {
    /// Where the host listens; port 0 is any free one.
    pub host: SocketAddr,
    /// The guest's TCP port.
    pub guest: u16,
}

/// A network as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkStatus {
    /// Where the host listens, in the order of the description; empty while the machine does not run.
    pub published: Vec<SocketAddr>,
    /// The policy's number: 1 at a start, one more for each change.
    pub version: u64,
    /// What may leave the machine.
    pub policy: PolicySpec,
    /// Rules of sessions' own.
    pub sessions: BTreeMap<String, PolicySpec>,
    /// Flows that there are.
    pub flows: u64,
    /// Flows that there have been since the start.
    pub flows_opened: u64,
    /// Flows that were refused.
    pub denied: u64,
    /// Bytes that left the guest.
    pub bytes_sent: u64,
    /// Bytes that came to it.
    pub bytes_received: u64,
    /// Packets whose source is not their sender's.
    pub forged: u64,
    /// Frames with nothing that is served.
    pub ignored: u64,
    /// Packets that found a limit reached.
    pub over_limit: u64,
    /// Bytes of connections' buffers.
    pub memory: u64,
}

/// How long an answer to a question holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Remember {
    /// For what waits, and a yes for a minute more.
    #[default]
    Once,
    /// As long as the machine runs, for the session that wanted it.
    Session,
    /// As long as the machine runs, for all.
    Machine,
}

/// What happens in a machine's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkEvent {
    /// Whose it is; absent: the machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What.
    #[serde(flatten)]
    pub what: NetworkWhat,
}

/// What a [`NetworkEvent`] tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum NetworkWhat {
    /// A flow was allowed or denied.
    Flow {
        /// Its number.
        flow: u64,
        /// `tcp`, `udp` or `icmp`.
        protocol: String,
        /// The allowed name that it goes to, if it goes to one.
        host: Option<String>,
        /// Where it goes.
        address: IpAddr,
        /// Where it goes; 0 for ICMP.
        port: u16,
        /// What was decided.
        verdict: NetworkVerdict,
    },
    /// A name was asked for.
    Query {
        /// The name.
        host: String,
        /// What the guest was answered.
        addresses: Vec<IpAddr>,
        /// What was decided.
        verdict: NetworkVerdict,
    },
    /// A flow has ended.
    Closed {
        /// Its number.
        flow: u64,
        /// Bytes from the guest.
        sent: u64,
        /// Bytes to the guest.
        received: u64,
    },
    /// A flow that was allowed failed on its way.
    Failed {
        /// Its number.
        flow: u64,
        /// Where and why.
        why: String,
    },
    /// A flow or a lookup is held until `network-answer`, 30 seconds at most.
    Ask {
        /// The question's number.
        ask: u64,
        /// `tcp`, `udp` or `icmp`.
        protocol: String,
        /// A name, or an address that no name gave.
        host: String,
        /// The port; absent while a name is looked up.
        port: Option<u16>,
        /// The process that wants it, as the guest claims.
        process: Option<String>,
    },
    /// A question was answered, or its time passed.
    Answered {
        /// The question's number.
        ask: u64,
        /// What was answered.
        allowed: bool,
    },
    /// Another policy holds.
    Policy {
        /// Its number.
        policy: u64,
    },
    /// Events were lost because nobody took them.
    Lost {
        /// How many.
        events: u64,
    },
    /// A program of the guest listens for TCP. Nothing follows from it: what leads there is the app's to say.
    Listening {
        /// An address of the machine's or the session's own network.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// Nobody listens there any more.
    ListeningEnded {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
}

/// What was decided, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkVerdict {
    /// It may pass.
    pub allowed: bool,
    /// The rule that decided; absent if none speaks of it.
    pub rule: Option<String>,
    /// Why, for programs: it never changes its meaning.
    pub code: String,
    /// Why, for people.
    pub reason: String,
    /// The policy's number.
    pub policy: u64,
}
