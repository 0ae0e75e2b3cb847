//! Messages of the control connection.
//!
//! Frames of [`Kind::ToHost`] carry [`GuestMessage`], frames of [`Kind::ToGuest`] carry
//! [`HostMessage`].

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, Message};
use crate::session::Event;

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// The first message. Its place and its first field stay the same in every generation.
    Hello(Hello),
    /// The machine is set up and exec connections are accepted.
    Ready(Ready),
    /// The machine could not be set up. It ends as after [`Stopped`](Self::Stopped).
    SetupFailed(SetupFailed),
    /// The answer to [`HostMessage::Ping`], with its number.
    Pong(u64),
    /// All processes have ended and all disks are flushed. The agent ends the machine when the host
    /// closes the connection, which it should do at once, or 100 ms later.
    Stopped,
    /// Something happened. Comes at any time after [`Ready`](Self::Ready).
    Event(Event),
}

/// What the host says.
#[allow(clippy::large_enum_variant, reason = "the large one is sent once in a machine's life")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// The answer to [`GuestMessage::Hello`].
    Setup(Setup),
    /// Answered at once by [`GuestMessage::Pong`].
    Ping(u64),
    /// End every process, flush the disks, say [`GuestMessage::Stopped`] and end the machine.
    Shutdown,
    /// The answer to the [`GuestMessage::Hello`] of an agent that comes out of a snapshot, in place of
    /// [`Setup`](Self::Setup).
    Renew(Renew),
}

/// Who the agent is, and when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the agent. A host that does not speak it closes
    /// the connection.
    pub protocol: u32,
    /// The agent's version, for people.
    pub agent_version: String,
    /// The time stamp counter at the agent's first instruction of `main`; 0 where there is none.
    pub tsc_main: u64,
    /// `CLOCK_MONOTONIC` of the guest when this message was made, in nanoseconds.
    pub monotonic_ns: u64,
}

/// How the machine is to be set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The host's wall clock in nanoseconds since 1970, taken as late as possible.
    pub realtime_ns: u64,
    /// The guest's host name.
    pub hostname: String,
    /// Fresh random bytes of the host, credited to the guest's random number generator.
    pub entropy: [u8; 32],
    /// The root file system.
    pub root: RootSetup,
    /// Connected folders; all of them are children of the virtio-fs device with tag
    /// [`SHARES_TAG`].
    pub shares: Vec<ShareMount>,
    /// The network card, if there is one.
    pub network: Option<NetworkSetup>,
}

/// What makes a machine out of a snapshot another one than its siblings. The agent lets nothing go on
/// before it has done all of it; its machine id and the state of its random number generator are its own
/// business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// The host's wall clock in nanoseconds since 1970, taken as late as possible.
    pub realtime_ns: u64,
    /// The guest's host name.
    pub hostname: String,
    /// Fresh random bytes of the host, credited to the guest's random number generator, which is then
    /// seeded anew.
    pub entropy: [u8; 32],
    /// Connected folders.
    pub shares: Vec<ShareMount>,
    /// There is a network card, and what was connected through it is not any more.
    pub network: bool,
}

/// How the network card is to be set up. The gateways answer names too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSetup {
    /// The card's name in the guest, for example `eth0`. Its hardware address and its MTU are the
    /// device's.
    pub interface: String,
    /// The guest's IPv4 address.
    pub v4: [u8; 4],
    /// Bits of the network in it.
    pub v4_prefix: u8,
    /// The way to everywhere else.
    pub v4_gateway: [u8; 4],
    /// The guest's IPv6 address.
    pub v6: [u8; 16],
    /// Bits of the network in it.
    pub v6_prefix: u8,
    /// The way to everywhere else.
    pub v6_gateway: [u8; 16],
}

/// The tag of the one virtio-fs device that serves all connected folders.
pub const SHARES_TAG: &str = "cabana";

/// Where the root file system comes from: a read-only image below, something writable above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSetup {
    /// The block device in the guest that holds the EROFS image, for example `/dev/pmem0`.
    pub image: String,
    /// Whether the image is mapped directly (`dax=always`), which needs a pmem device.
    pub dax: bool,
    /// The block device in the guest that holds the writable ext4 file system, for example `/dev/vda`;
    /// without one, changes live in guest RAM and vanish with the machine.
    pub scratch: Option<String>,
}

/// One connected folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// The name of the child of the synthetic root: one path component.
    pub name: String,
    /// The absolute path in the guest at which the folder appears; it is made when missing.
    pub guest_path: String,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// The machine is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The time stamp counter when this message was made; 0 where there is none.
    pub tsc: u64,
    /// `CLOCK_MONOTONIC` of the guest when this message was made, in nanoseconds.
    pub monotonic_ns: u64,
    /// What did not work but does not stand in the way, one sentence each.
    pub warnings: Vec<String>,
}

/// The machine could not be set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFailed {
    /// What failed and on what, for example ``mounting share `src` on /src``.
    pub what: String,
    /// Why, for example `/src is a file in the guest`.
    pub why: String,
}

impl Message for GuestMessage {
    const KIND: Kind = Kind::ToHost;
}

impl Message for HostMessage {
    const KIND: Kind = Kind::ToGuest;
}
