//! Networks, and what may leave through them.

use std::path::PathBuf;

use cabana_sandbox::Publish;
use clap::{Args, Subcommand};

use super::NamedArgs;
use crate::units;

/// A machine's network.
#[derive(Clone, Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Give the machine a network card. What leaves through it is decided on the host: nothing does
    /// unless it is allowed.
    #[arg(long)]
    pub(crate) net: bool,

    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// Give the guest a placeholder for a secret, which only requests in TLS to HOST turn into the value; without
    /// a value, take this environment's. The variable NAME holds the placeholder. Implies --net.
    #[arg(long = "secret", value_name = "NAME[=VALUE]@HOST[,HOST...][/HEADER,...]")]
    pub(crate) secrets: Vec<String>,

    /// The proxy through which this host reaches the rest: `env` for the environment's, `none`, or one URL.
    #[arg(long, value_name = "env|none|URL", default_value = "env")]
    pub(crate) proxy: String,

    /// Make programs in the guest trust whom this host trusts, as a company whose proxy looks into TLS needs.
    #[arg(long)]
    pub(crate) host_trust: bool,

    /// Write every verdict about the network to FILE, a line of JSON each; implies --net.
    #[arg(long, value_name = "FILE")]
    pub(crate) net_log: Option<PathBuf>,

    /// Lead a port of the host's, of its loopback unless an address is given, to a TCP port of the
    /// guest's; implies --net.
    #[arg(long = "publish", value_name = "[ADDRESS:]PORT:GUEST", value_parser = units::publish)]
    pub(crate) publish: Vec<Publish>,

    /// Write what the guest sends and receives to FILE, for Wireshark or tcpdump; implies --net.
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
}

impl NetworkArgs {
    /// Whether a network is asked for.
    pub(crate) fn any(&self) -> bool {
        self.net
            || !self.policy.is_empty()
            || !self.secrets.is_empty()
            || !self.publish.is_empty()
            || self.pcap.is_some()
            || self.net_log.is_some()
    }
}

/// What may leave a machine that is up, or a session of one.
#[derive(Clone, Debug, Args)]
pub(crate) struct RulesArgs {
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// Ask about what no rule decides, in place of denying it: see `cabana net answer`.
    #[arg(long)]
    pub(crate) ask: bool,
}

/// What may leave a machine.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PolicyArgs {
    /// Let the guest reach a host, a network or a set (pypi, npm, crates, debian, github...); implies --net.
    #[arg(long = "allow", value_name = "[SCHEME://]HOST[:PORT]|SET")]
    pub(crate) allow: Vec<String>,

    /// Deny a part of what is allowed.
    #[arg(long = "deny", value_name = "[SCHEME://]HOST[:PORT]|SET")]
    pub(crate) deny: Vec<String>,

    /// Read a policy, TOML or JSON; --allow and --deny add to it. A running machine follows the file when it
    /// changes. Implies --net.
    #[arg(long = "policy", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NetArgs {
    #[command(subcommand)]
    pub(crate) verb: NetVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetVerb {
    /// Show what happened in a network: from a log that --net-log writes, or as it happens in a machine that is up.
    #[command(after_help = "Examples:
  cabana net log net.jsonl --denied
  cabana net log --machine work
  cabana net log --machine work --json | jq -r 'select(.what == \"flow\") | .host'")]
    Log(NetLogArgs),
    /// Explain what a policy would do with a connection, and why.
    Test(NetTestArgs),
    /// Say how the network of a machine that is up is: rules, published ports, figures.
    Status(NamedArgs),
    /// Put other rules in place of those of a machine that is up, or of one of its sessions, at once.
    #[command(
        after_help = "Without a rule nothing is allowed; for a session, without a rule the machine's hold again.

Examples:
  cabana net set work --allow pypi --allow github
  cabana net set work --session chat-1 --policy chat.toml"
    )]
    Set(NetSetArgs),
    /// Answer a question that `net log` shows.
    #[command(after_help = "Examples:
  cabana net answer work 3 yes
  cabana net answer work 4 no --remember session")]
    Answer(NetAnswerArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NetLogArgs {
    /// The log.
    #[arg(value_name = "FILE", required_unless_present = "machine")]
    pub(crate) file: Option<PathBuf>,

    /// A machine that is up, in place of a log: what happens in its network from now on.
    #[arg(short, long, value_name = "NAME", conflicts_with = "file")]
    pub(crate) machine: Option<String>,

    /// Go on showing what comes into the log, until interrupted.
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Only what was denied or failed.
    #[arg(long)]
    pub(crate) denied: bool,

    /// For programs.
    #[arg(long, requires = "machine")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NetSetArgs {
    /// The machine.
    pub(crate) machine: String,

    /// One of its sessions.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    #[command(flatten)]
    pub(crate) rules: RulesArgs,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NetAnswerArgs {
    /// The machine.
    pub(crate) machine: String,

    /// The question's number.
    pub(crate) ask: u64,

    /// May it pass?
    #[arg(value_parser = ["yes", "no"])]
    pub(crate) answer: String,

    /// For how long and for whom the answer holds: `once`, or as long as the machine runs for the `session` that
    /// asked or for all of the `machine`.
    #[arg(long, value_name = "once|session|machine", value_parser = ["once", "session", "machine"], default_value = "once")]
    pub(crate) remember: String,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "The exit status is 0 if the connection would be allowed, else 1.")]
pub(crate) struct NetTestArgs {
    /// A host name or an address, with a port unless it is 443.
    #[arg(value_name = "HOST[:PORT]")]
    pub(crate) host: String,

    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// With the rules of a machine that is up.
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["allow", "deny", "file"])]
    pub(crate) machine: Option<String>,

    /// As a session that the policy names.
    #[arg(long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// UDP in place of TCP.
    #[arg(long)]
    pub(crate) udp: bool,
}
