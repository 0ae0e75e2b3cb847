//! A machine with an agent in it: from its parts over readiness to its end.

use std::fs::File;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cabana_block::{Block, Disk};
use cabana_boot::{Initrd, Kernel};
use cabana_console::Console;
use cabana_fs::{FileServer, FsDevice};
use cabana_machine::{DeviceMemory, GuestClock, Observation, Outcome, Setup, layout};
use cabana_os::{EventLoop, file, process};
use cabana_pmem::{Image, Pmem};
use cabana_protocol::control::{
    self, GuestMessage, Hello, HostMessage, Ready, RootSetup, ShareMount,
};
use cabana_protocol::{CONTROL_PORT, EXEC_PORT, PROTOCOL_VERSION, ProtocolError, frame};
use cabana_rng::Rng;
use cabana_virtio::VirtioDevice;
use cabana_vsock::{VsockConfig, VsockDevice, VsockHost, VsockStream};

use crate::fate::Fate;
use crate::{Command, ConsoleTail, Error, MachineConfig, Process, Scratch, Share, backend};

/// How long an orderly shutdown may take before the machine is stopped all the same: the agent's own
/// grace for processes, and time to flush a disk.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// What every machine's kernel is told.
///
/// - `console=hvc0 quiet`: last words go to the virtio console, nothing else does;
/// - `panic=-1 reboot=t`: a panic ends the machine at once, by a triple fault;
/// - `tsc=reliable no_timer_check`: nothing is measured that the hypervisor has said;
/// - `random.trust_cpu=on`: the random number generator is ready from the start;
/// - `percpu_alloc=page`: as much memory for each processor's variables as they need, in place of
///   2 MiB that have to be cleared.
const COMMAND_LINE: &str = "console=hvc0 quiet panic=-1 reboot=t tsc=reliable no_timer_check \
                            random.trust_cpu=on percpu_alloc=page";

/// A running machine. Dropping it stops it at once, without flushing; see [`Machine::shutdown`].
#[derive(Debug)]
pub struct Machine {
    /// Taken when the machine ends, so that its devices end with it.
    board: Arc<Mutex<Option<Arc<cabana_machine::Machine>>>>,
    fate: Arc<Fate>,
    vsock: VsockHost,
    control: VsockStream,
    warnings: Vec<String>,
    stamps: Stamps,
    monitor: Option<JoinHandle<()>>,
    // After the board: devices are served here until they stop.
    _loops: Vec<EventLoop>,
}

/// The guest's time-stamp counter at moments of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// The agent's first instruction.
    pub agent: u64,
    /// Ready for commands.
    pub ready: u64,
}

impl Machine {
    /// Boots the machine and waits until it takes commands. There is no deadline: it ends with an
    /// error as soon as the guest has ended.
    pub fn start(config: &MachineConfig) -> Result<Self, Error> {
        let timeline = Arc::clone(&config.timeline);
        let kernel = Kernel::open(&config.kernel)?;
        let initrd = Initrd::open(&config.agent)?;
        let image = Image::open(&config.image)?;
        let vm = backend::create_vm()?;
        timeline.mark("VM created");

        let fate = Arc::new(Fate::default());
        let spawn = |name| EventLoop::spawn(name).map_err(Error::host("a thread"));
        // A disk or a folder that blocks must not hold up the conversation with the guest.
        let (io, disk, folders) = (spawn("io")?, spawn("disk")?, spawn("folders")?);
        let guest_image = layout::device_memory(config.memory);
        let (vsock, host) = VsockDevice::new(VsockConfig::default(), io.handle());
        let tail = fate.console.clone();
        let (console, _) = Console::new(io.handle(), move |output| tail.push(output));
        let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
            Box::new(Pmem::new(Arc::clone(&image), guest_image, io.handle())),
            Box::new(vsock),
            Box::new(FsDevice::new(share(&config.shares)?, vec![folders.handle()])),
            Box::new(console),
            Box::new(Rng::new(io.handle())),
        ];
        if let Some(scratch) = scratch(&config.scratch)? {
            let fails = Arc::clone(&fate);
            let block = Block::new(scratch, disk.handle());
            devices.push(Box::new(block.on_error(move |error| fails.disk_failed(error))));
        }
        let device_memory = vec![DeviceMemory {
            guest: guest_image,
            host: image.host(),
            len: image.len(),
            read_only: true,
            owner: image,
        }];

        let listener = host.listen(CONTROL_PORT)?;
        let setup = Setup {
            cpus: config.cpus,
            memory: config.memory,
            kernel,
            initrd: Some(initrd),
            command_line: format!("{COMMAND_LINE} {}", config.extra_command_line),
            devices,
            device_memory,
            serial: None,
            timeline: Arc::clone(&timeline),
        };
        let board = Arc::new(cabana_machine::Machine::start(vm, setup)?);
        let slot = Arc::new(Mutex::new(Some(Arc::clone(&board))));
        let monitor = monitor(board, Arc::clone(&slot), Arc::clone(&fate))?;
        let closed = |_| fate.explain(ProtocolError::Closed);
        let control = match listener.accept() {
            Ok(control) => control,
            Err(error) => return Err(end(&slot, monitor, closed(error))),
        };
        match greet(&control, config, &timeline) {
            Ok((hello, ready)) => Ok(Self {
                board: slot,
                fate,
                vsock: host,
                control,
                stamps: Stamps { agent: hello.tsc_main, ready: ready.tsc },
                warnings: ready.warnings,
                monitor: Some(monitor),
                _loops: vec![io, disk, folders],
            }),
            Err(error) => {
                let error = match error {
                    Greeting::Broken(error) => fate.explain(error),
                    Greeting::Refused(error) => error,
                };
                Err(end(&slot, monitor, error))
            }
        }
    }

    /// Starts a command; several may run at once.
    pub fn exec(&self, command: &Command) -> Result<Process, Error> {
        let stream = self.vsock.connect(EXEC_PORT).map_err(|error| match error {
            cabana_vsock::VsockError::Closed => self.fate.explain(ProtocolError::Closed),
            error => Error::Connection(error),
        })?;
        Process::start(stream, command, Arc::clone(&self.fate))
    }

    /// What did not work at the start but does not stand in the way, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The host's first failure with the machine's disk, such as a full one; the guest saw an I/O
    /// error.
    pub fn disk_failure(&self) -> Option<Error> {
        self.fate.disk_failure().map(Error::DiskFailed)
    }

    /// What the guest's console said last.
    pub fn console(&self) -> &ConsoleTail {
        &self.fate.console
    }

    /// Ends all processes, flushes shares and disks and ends the machine, in a bounded time.
    pub fn shutdown(mut self) -> Result<(), Error> {
        if let Err(error) = frame::write_message(&mut self.control, &HostMessage::Shutdown) {
            return Err(self.fate.explain(error));
        }
        let control = self.control.clone();
        let builder = thread::Builder::new().name("farewell".to_owned()).stack_size(128 << 10);
        builder.spawn(|| hang_up(control)).map_err(Error::host("a thread"))?;
        match self.fate.wait(SHUTDOWN_LIMIT) {
            Some(Outcome::Exit(cabana_protocol::exit_port::POWER_OFF)) => Ok(()),
            Some(outcome) => Err(self.fate.error(&outcome)),
            None => Err(Error::Agent("it did not shut down in time".to_owned())),
        }
    }

    /// Ends the machine now, as if its power had failed.
    pub fn stop(&self) {
        if let Some(board) = &*lock(&self.board) {
            board.stop();
        }
    }

    /// Looks at the machine from outside; `None` once it has ended.
    pub fn observe(&self) -> Option<Observation> {
        let board = lock(&self.board).clone();
        Some(board?.observe())
    }

    /// When the guest started its agent and became ready, on the host's monotonic clock.
    pub fn guest_times(&self, clock: &GuestClock) -> [Duration; 2] {
        [clock.host_time(self.stamps.agent), clock.host_time(self.stamps.ready)]
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        if let Some(monitor) = self.monitor.take() {
            let _ = monitor.join();
        }
    }
}

/// Waits for the machine's end, notes it, and takes the machine apart, which ends the conversations
/// with it.
fn monitor(
    board: Arc<cabana_machine::Machine>,
    slot: Arc<Mutex<Option<Arc<cabana_machine::Machine>>>>,
    fate: Arc<Fate>,
) -> Result<JoinHandle<()>, Error> {
    let watch = move || {
        let outcome = board.wait();
        fate.seal(outcome);
        lock(&slot).take();
    };
    let builder = thread::Builder::new().name("monitor".to_owned()).stack_size(128 << 10);
    builder.spawn(watch).map_err(Error::host("a thread"))
}

/// Waits for the agent's last message and closes the connection, for which the agent waits before it
/// ends the machine. A machine that is gone ends this too.
fn hang_up(mut control: VsockStream) {
    while let Ok(message) = frame::read_message::<GuestMessage>(&mut control) {
        if message == GuestMessage::Stopped {
            return control.shutdown(Shutdown::Both);
        }
    }
}

/// Ends a machine that never became one.
fn end(
    slot: &Mutex<Option<Arc<cabana_machine::Machine>>>,
    monitor: JoinHandle<()>,
    error: Error,
) -> Error {
    if let Some(board) = &*lock(slot) {
        board.stop();
    }
    let _ = monitor.join();
    error
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

/// Hello, set-up, ready.
fn greet(
    control: &VsockStream,
    config: &MachineConfig,
    timeline: &cabana_machine::Timeline,
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
    let setup = control::Setup {
        realtime_ns: process::realtime().as_nanos() as u64,
        hostname: config.hostname.clone(),
        entropy,
        root: RootSetup {
            image: "/dev/pmem0".to_owned(),
            dax: true,
            scratch: (config.scratch != Scratch::Memory).then(|| "/dev/vda".to_owned()),
        },
        shares: mounts(&config.shares),
    };
    frame::write_message(&mut stream, &HostMessage::Setup(setup))?;
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

/// The name under which the `index`-th share appears in the virtio-fs device.
fn share_name(index: usize) -> String {
    format!("share{index}")
}

fn mounts(shares: &[Share]) -> Vec<ShareMount> {
    let mount = |(index, share): (usize, &Share)| ShareMount {
        name: share_name(index),
        guest_path: share.guest.clone(),
        read_only: share.read_only,
    };
    shares.iter().enumerate().map(mount).collect()
}

fn share(shares: &[Share]) -> Result<Arc<FileServer>, Error> {
    let server = Arc::new(FileServer::new());
    for (index, share) in shares.iter().enumerate() {
        let attached = cabana_fs::Share {
            name: share_name(index),
            path: share.host.clone(),
            read_only: share.read_only,
        };
        server.attach(&attached)?;
    }
    Ok(server)
}

fn scratch(scratch: &Scratch) -> Result<Option<Disk>, Error> {
    Ok(match scratch {
        Scratch::Memory => None,
        Scratch::Temporary { template, folder } => Some(Disk::scratch(template, folder)?),
        Scratch::Persistent { path, template } => {
            if !path.exists() {
                File::open(template)
                    .and_then(|from| {
                        file::create_whole(path, |disk| file::copy_sparse(&from, disk))
                    })
                    .map_err(|source| Error::MakeDisk { path: path.clone(), source })?;
            }
            Some(Disk::open(path)?)
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
