//! The conversation with a machine's agent: greeting, commands, farewell. Where the machine runs makes
//! no difference to it.

use std::fmt;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use cabana_machine::Timeline;
use cabana_os::process;
use cabana_protocol::control::{
    self, GuestMessage, Hello, HostMessage, NetworkSetup, Ready, RootSetup, ShareMount,
};
use cabana_protocol::{EXEC_PORT, PROTOCOL_VERSION, ProtocolError, frame};

use crate::{Command, Error, MachineConfig, Process, Scratch, Share, Stream, network, trust};

/// How long an orderly shutdown may take before the machine is stopped all the same: the agent's own
/// grace for processes, and time to flush a disk.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// The way to a machine: streams to its guest, and word of its end.
pub trait Link: fmt::Debug + Send + Sync {
    /// A stream to a vsock port of the guest.
    fn connect(&self, port: u32) -> Result<Stream, Error>;

    /// Says why a conversation ended: by the machine's end if there is one.
    fn explain(&self, error: ProtocolError) -> Error;

    /// Waits for the machine's end, at most for `limit`: fine if the agent ended it as it was asked to.
    fn wait_end(&self, limit: Duration) -> Option<Result<(), Error>>;
}

/// What the agent is told at the start.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// The guest's name for itself.
    pub hostname: String,
    /// There is a disk for what the guest writes to its root file system.
    pub has_disk: bool,
    /// Folders to mount.
    pub shares: Vec<ShareMount>,
    /// The network card, if there is one.
    pub network: Option<NetworkSetup>,
}

impl Introduction {
    /// What a machine of this configuration tells its agent.
    pub fn of(config: &MachineConfig) -> Self {
        let MachineConfig { hostname, shares, network, cable, .. } = config;
        let has_disk = config.scratch != Scratch::Memory;
        let has_card = network.is_some() || cable.is_some();
        Self { has_disk, ..Self::new(hostname, shares, has_card) }
    }

    pub(crate) fn new(hostname: &str, shares: &[Share], network: bool) -> Self {
        let mount = |(index, share): (usize, &Share)| ShareMount {
            name: share_name(index),
            guest_path: share.guest.clone(),
            read_only: share.read_only,
        };
        Self {
            hostname: hostname.to_owned(),
            has_disk: false,
            shares: shares.iter().enumerate().map(mount).collect(),
            network: network.then(network::machine_card),
        }
    }
}

/// The name under which the `index`-th share appears in the virtio-fs device.
pub(crate) fn share_name(index: usize) -> String {
    format!("share{index}")
}

/// The guest's time-stamp counter at moments of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// The agent's first instruction.
    pub agent: u64,
    /// Ready for commands.
    pub ready: u64,
}

/// An agent that is ready for commands.
#[derive(Debug)]
pub struct Guest {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) control: Stream,
    warnings: Vec<String>,
    stamps: Stamps,
    /// Somebody reads what the agent says.
    pub(crate) listening: AtomicBool,
    pub(crate) pongs: Arc<Pongs>,
}

/// Answers of the agent that it is there.
#[derive(Debug, Default)]
pub(crate) struct Pongs {
    pub(crate) numbers: Mutex<PongNumbers>,
    pub(crate) changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct PongNumbers {
    pub(crate) asked: u64,
    pub(crate) answered: u64,
}

impl Guest {
    /// Hello, set-up, ready, over the connection that the agent has made to the host's
    /// [`CONTROL_PORT`](cabana_protocol::CONTROL_PORT).
    pub fn greet(
        link: Arc<dyn Link>,
        control: Stream,
        introduction: Introduction,
        timeline: &Timeline,
    ) -> Result<Self, Error> {
        Self::converse(link, control, timeline, |realtime_ns, entropy| {
            HostMessage::Setup(control::Setup {
                realtime_ns,
                hostname: introduction.hostname,
                entropy,
                root: RootSetup {
                    image: "/dev/pmem0".to_owned(),
                    dax: true,
                    scratch: introduction.has_disk.then(|| "/dev/vda".to_owned()),
                },
                shares: introduction.shares,
                network: introduction.network,
            })
        })
    }

    /// Hello, renewal, ready, of an agent that comes out of a snapshot.
    pub fn wake(
        link: Arc<dyn Link>,
        control: Stream,
        introduction: Introduction,
        timeline: &Timeline,
    ) -> Result<Self, Error> {
        Self::converse(link, control, timeline, |realtime_ns, entropy| {
            HostMessage::Renew(control::Renew {
                realtime_ns,
                hostname: introduction.hostname,
                entropy,
                shares: introduction.shares,
                network: introduction.network.is_some(),
            })
        })
    }

    fn converse(
        link: Arc<dyn Link>,
        control: Stream,
        timeline: &Timeline,
        answer: impl FnOnce(u64, [u8; 32]) -> HostMessage,
    ) -> Result<Self, Error> {
        match converse(&control, answer, timeline) {
            Ok((hello, ready)) => {
                let stamps = Stamps { agent: hello.tsc_main, ready: ready.tsc };
                let (listening, pongs) = (AtomicBool::new(false), Arc::default());
                Ok(Self { link, control, warnings: ready.warnings, stamps, listening, pongs })
            }
            Err(Greeting::Broken(error)) => Err(link.explain(error)),
            Err(Greeting::Refused(error)) => Err(error),
        }
    }

    /// Starts a command; several may run at once.
    pub fn exec(&self, command: &Command) -> Result<Process, Error> {
        Process::start(self.link.connect(EXEC_PORT)?, command, Arc::clone(&self.link))
    }

    /// Goes on with a background command, by the number that it was started with.
    pub fn attach(&self, process: u64) -> Result<Process, Error> {
        Process::attach(self.link.connect(EXEC_PORT)?, process, Arc::clone(&self.link))
    }

    /// Makes programs in the guest trust these certificates (PEM) too, by adding them to the file in which Debian
    /// and most programs have them. Commands that are started with [`trusting`](crate::trusting) find it even
    /// if they bring roots of their own.
    pub fn trust(&self, pem: &str) -> Result<(), Error> {
        trust::add(self, pem)
    }

    /// What did not work at the start but does not stand in the way, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The guest's clock at moments of its start.
    pub fn stamps(&self) -> Stamps {
        self.stamps
    }

    /// Ends all processes, flushes shares and disks and ends the machine, in a bounded time.
    pub fn shutdown(&self) -> Result<(), Error> {
        let mut control = self.control.clone();
        if let Err(error) = frame::write_message(&mut control, &HostMessage::Shutdown) {
            return Err(self.link.explain(error));
        }
        // Who listens to events hears the last word too.
        if !self.listening.load(Ordering::Relaxed) {
            let builder = thread::Builder::new().name("farewell".to_owned()).stack_size(128 << 10);
            builder.spawn(|| hang_up(control)).map_err(Error::host("a thread"))?;
        }
        self.link
            .wait_end(SHUTDOWN_LIMIT)
            .unwrap_or_else(|| Err(Error::Agent("it did not shut down in time".to_owned())))
    }
}

/// Waits for the agent's last message and closes the connection, for which the agent waits before it
/// ends the machine. A machine that is gone ends this too.
fn hang_up(mut control: Stream) {
    while let Ok(message) = frame::read_message::<GuestMessage>(&mut control) {
        if message == GuestMessage::Stopped {
            return control.shutdown(Shutdown::Both);
        }
    }
}

enum Greeting {
    Broken(ProtocolError),
    Refused(Error),
}

impl From<ProtocolError> for Greeting {
    fn from(error: ProtocolError) -> Self {
        Self::Broken(error)
    }
}

fn converse(
    control: &Stream,
    answer: impl FnOnce(u64, [u8; 32]) -> HostMessage,
    timeline: &Timeline,
) -> Result<(Hello, Ready), Greeting> {
    let mut stream = control.clone();
    let GuestMessage::Hello(hello) = frame::read_message(&mut stream)? else {
        return Err(ProtocolError::OutOfTurn("a message before Hello").into());
    };
    timeline.mark("agent connected");
    if hello.protocol != PROTOCOL_VERSION {
        let (agent, engine) = (hello.protocol, PROTOCOL_VERSION);
        return Err(Greeting::Refused(Error::ProtocolVersion { agent, engine }));
    }
    let entropy = process::random_bytes()
        .map_err(|error| Greeting::Refused(Error::host("random bytes")(error)))?;
    let answer = answer(process::realtime().as_nanos() as u64, entropy);
    frame::write_message(&mut stream, &answer)?;
    match frame::read_message(&mut stream)? {
        GuestMessage::Ready(ready) => {
            timeline.mark("ready");
            Ok((hello, ready))
        }
        GuestMessage::SetupFailed(failed) => {
            Err(Greeting::Refused(Error::Setup { what: failed.what, why: failed.why }))
        }
        _ => Err(ProtocolError::OutOfTurn("a message before Ready").into()),
    }
}
