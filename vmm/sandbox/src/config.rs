//! What a machine is made of.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use cabana_egress_host::{EgressPolicy, Proxies, Secret};
use cabana_journal::Home;
use cabana_machine::Timeline;
use cabana_os::OwnedHandle;

/// Bytes of RAM unless asked otherwise: enough for package managers and small builds. The host commits
/// it as it is touched, but the guest's own account of it costs start-up time and 16 MiB for each GiB.
const DEFAULT_MEMORY: u64 = 512 << 20;

/// A machine with an agent in it.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM, whole pages.
    pub memory: u64,
    /// The kernel.
    pub kernel: PathBuf,
    /// The agent's initramfs.
    pub agent: PathBuf,
    /// The root file system: an EROFS image without compression and inline data.
    pub image: PathBuf,
    /// Where the guest's changes of its root file system go.
    pub scratch: Scratch,
    /// Folders of the host that the guest sees.
    pub shares: Vec<Share>,
    /// The network card; without one there is only the guest's loopback.
    pub network: Option<NetworkConfig>,
    /// The network card's way to a network in another process ([`NetworkHost`](crate::NetworkHost)), in place of one
    /// in this process.
    pub cable: Option<CableConfig>,
    /// The guest's name for itself.
    pub hostname: String,
    /// Added to the kernel's command line.
    pub extra_command_line: String,
    /// Where moments of the start are noted.
    pub timeline: Arc<Timeline>,
    /// The process has nothing to do but this machine, and gives back what it can do without once that is idle.
    pub alone: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: DEFAULT_MEMORY,
            kernel: PathBuf::new(),
            agent: PathBuf::new(),
            image: PathBuf::new(),
            scratch: Scratch::Memory,
            shares: Vec::new(),
            network: None,
            cable: None,
            hostname: "cabana".to_owned(),
            extra_command_line: String::new(),
            timeline: Arc::new(Timeline::new()),
            alone: false,
        }
    }
}

/// Where the guest's changes of its root file system go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scratch {
    /// Guest RAM; they vanish with the machine.
    Memory,
    /// A disk without a name; it vanishes with the machine, even when that is killed.
    Temporary {
        /// A formatted, sparse disk to begin with.
        template: PathBuf,
        /// Where the disk lives.
        folder: PathBuf,
    },
    /// A disk that stays. One machine at a time may use it.
    Persistent {
        /// The disk; it is made from the template when missing.
        path: PathBuf,
        /// A formatted, sparse disk to begin with.
        template: PathBuf,
    },
    /// A disk that somebody else has made.
    Given {
        /// The disk.
        path: PathBuf,
        /// Nobody keeps it.
        vanishing: bool,
    },
}

/// A folder of the host's that appears in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The folder.
    pub host: PathBuf,
    /// Where it appears: an absolute path in the guest.
    pub guest: String,
    /// The guest may only read.
    pub read_only: bool,
    /// Keep what the guest destroys, so that it can be brought back.
    pub journal: Option<ShareJournal>,
}

/// The journal of a share, which is nothing without writing to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareJournal {
    /// Where it is.
    pub home: Home,
    /// The most that it may take of the host's disk, in bytes.
    pub bytes: u64,
}

/// A network card. What leaves through it is decided on the host; nothing does unless it is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The largest IP packet in the guest, 1,280 to 65,520 bytes. Smaller is slower.
    pub mtu: u16,
    /// Ports of the host's that lead to ports of the guest's.
    pub publish: Vec<Publish>,
    /// A file that gets every frame, as Wireshark and tcpdump read it.
    pub capture: Option<PathBuf>,
    /// What may leave. [`Machine::egress`](crate::Machine::egress) changes it while the machine runs.
    pub egress: EgressPolicy,
    /// What the guest has only placeholders of. Each host of them ends its TLS in this process, and the guest has
    /// to be told whom to trust: [`Machine::trust`](crate::Machine::trust).
    pub secrets: Vec<Secret>,
    /// The proxies through which this host reaches the rest.
    pub proxies: Proxies,
    /// A file that gets every verdict, as JSON, one a line.
    pub log: Option<PathBuf>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            mtu: cabana_netstack::MAX_MTU,
            publish: Vec::new(),
            capture: None,
            egress: EgressPolicy::default(),
            secrets: Vec::new(),
            proxies: Proxies::default(),
            log: None,
        }
    }
}

/// A network card whose network is in another process.
#[derive(Clone, Debug)]
pub struct CableConfig {
    /// The card's end of a packet socket (`cabana_os::Packets`).
    pub socket: Arc<OwnedHandle>,
    /// The largest IP packet, as of the network at the other end.
    pub mtu: u16,
}

/// A port of the host's that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's TCP port.
    pub guest: u16,
}
