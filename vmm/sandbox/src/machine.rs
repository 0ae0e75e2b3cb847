//! A machine with an agent in it: from its parts over readiness to its end.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cabana_balloon::Balloon;
use cabana_block::{Block, Disk};
use cabana_boot::{Initrd, Kernel};
use cabana_console::Console;
use cabana_egress_host::Egress;
use cabana_fs::FsDevice;
use cabana_machine::{DeviceMemory, GuestClock, Observation, Platform, Setup};
use cabana_netstack::Network;
use cabana_os::{EventLoop, file};
use cabana_pmem::{Image, Pmem};
use cabana_protocol::{CONTROL_PORT, ProtocolError, WATCH_PORT};
use cabana_rng::Rng;
use cabana_virtio::VirtioDevice;
use cabana_vsock::{VsockConfig, VsockDevice, VsockHost, VsockListener};

use crate::backend::{Board, COMMAND_LINE, Processor};
use crate::fate::Fate;
use crate::folders::Folders;
use crate::idle::spare_and_wait;
use crate::touched::Recorder;
use crate::watch::Watch;
use crate::{
    CableConfig, Command, ConsoleTail, Error, Guest, Introduction, Link, MachineConfig,
    NetworkConfig, NetworkCounters, Process, Scratch, ShareJournal, Stream, backend, network,
};

/// A start is over by then, and what those that follow have of it is seen to. What a machine out of a snapshot touches in
/// this time is brought in for them.
const STARTED: Duration = Duration::from_secs(1);

/// A running machine whose agent is ready. Dropping it stops it at once, without flushing; see
/// [`Machine::shutdown`].
#[derive(Debug)]
pub struct Machine {
    // Before the conversation, whose end would make the agent shut down.
    vmm: Vmm,
    guest: Guest,
}

impl Machine {
    /// Boots the machine and waits until it takes commands. There is no deadline: it ends with an
    /// error as soon as the guest has ended.
    pub fn start(config: &MachineConfig) -> Result<Self, Error> {
        let vmm = Vmm::start(config)?;
        let control = vmm.accept()?;
        let introduction = Introduction::of(config);
        let guest = Guest::greet(vmm.link(), control, introduction, &config.timeline)?;
        Ok(Self::new(vmm, guest))
    }

    pub(crate) fn new(vmm: Vmm, guest: Guest) -> Self {
        Self { vmm, guest }
    }

    pub(crate) fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    /// Starts a command; several may run at once.
    pub fn exec(&self, command: &Command) -> Result<Process, Error> {
        self.guest.exec(command)
    }

    /// The conversation with the agent.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What did not work at the start but does not stand in the way, one sentence each.
    pub fn warnings(&self) -> &[String] {
        self.guest.warnings()
    }

    /// The host's first failure with the machine's disk, such as a full one; the guest saw an I/O
    /// error.
    pub fn disk_failure(&self) -> Option<Error> {
        self.vmm.disk_failure()
    }

    /// Figures of the network; `None` without one.
    pub fn network_counters(&self) -> Option<NetworkCounters> {
        self.vmm.network_counters()
    }

    /// The egress policy while the machine runs: another policy, answers, events; `None` without a network.
    pub fn egress(&self) -> Option<&Egress> {
        self.vmm.egress()
    }

    /// Makes programs in the guest trust these certificates (PEM) too: [`Guest::trust`].
    pub fn trust(&self, pem: &str) -> Result<(), Error> {
        self.guest.trust(pem)
    }

    /// Where the host listens for the guest, in the order of the configuration: what port 0 became.
    pub fn published(&self) -> Vec<SocketAddr> {
        self.vmm.published()
    }

    /// What the guest's console said last.
    pub fn console(&self) -> &ConsoleTail {
        self.vmm.console()
    }

    /// Ends all processes, flushes shares and disks and ends the machine, in a bounded time.
    pub fn shutdown(self) -> Result<(), Error> {
        self.guest.shutdown()
    }

    /// Ends the machine now, as if its power had failed.
    pub fn stop(&self) {
        self.vmm.stop();
    }

    /// Says that this process ends as soon as the machine does: what takes the kernel long then, nobody here waits for.
    pub fn end_with_process(&self) {
        if let Some(board) = self.vmm.board() {
            board.end_with_process();
        }
    }

    /// Looks at the machine from outside; `None` once it has ended.
    pub fn observe(&self) -> Option<Observation> {
        self.vmm.observe()
    }

    /// When the guest started its agent and became ready, on the host's monotonic clock.
    pub fn guest_times(&self, clock: &GuestClock) -> [Duration; 2] {
        let stamps = self.guest.stamps();
        [clock.host_time(stamps.agent), clock.host_time(stamps.ready)]
    }
}

/// A machine as its host sees it: it boots, gives streams to its guest, and ends. What is said to the
/// agent in it is another's business ([`Guest`]). Dropping it stops it at once.
#[derive(Debug)]
pub struct Vmm {
    /// Taken when the machine ends, so that its devices end with it.
    board: Arc<Mutex<Option<Arc<Board>>>>,
    local: Arc<Local>,
    listener: VsockListener,
    shares: Folders,
    network: Option<(Network, Egress)>,
    has_card: bool,
    disk: Option<Arc<Disk>>,
    image: PathBuf,
    /// Somebody has asked for a pause.
    paused: AtomicBool,
    monitor: Option<JoinHandle<()>>,
    /// Ends with the machine.
    _watch: Watch,
    // After the board: devices are served here until they stop.
    _loops: Vec<EventLoop>,
}

impl Vmm {
    /// Boots the machine.
    pub fn start(config: &MachineConfig) -> Result<Self, Error> {
        let timeline = Arc::clone(&config.timeline);
        let kernel = Kernel::open(&config.kernel)?;
        let initrd = Initrd::open(&config.agent)?;
        let image = Image::open(&config.image)?;
        let vm = backend::create_vm()?;
        timeline.mark("VM created");
        // Before the disk: a share that cannot be leaves none behind.
        let shares = Folders::of(&config.shares)?;
        let equipment = Equipment {
            image,
            image_path: &config.image,
            memory: config.memory,
            shares,
            card: Card::of(config.network.as_ref(), config.cable.as_ref()),
            disk: scratch(&config.scratch)?,
            recorder: None,
            alone: config.alone,
        };
        Self::equip(equipment, |devices, device_memory| {
            let setup = Setup {
                cpus: config.cpus,
                memory: config.memory,
                kernel,
                initrd: Some(initrd),
                command_line: format!("{COMMAND_LINE} {}", config.extra_command_line),
                devices,
                device_memory,
                serial: None,
                timeline,
            };
            Ok(Processor::start(vm, setup)?)
        })
    }

    /// Makes the devices, and all that stands behind them, around the machine that `start` makes.
    pub(crate) fn equip(
        equipment: Equipment<'_>,
        start: impl FnOnce(Vec<Box<dyn VirtioDevice>>, Vec<DeviceMemory>) -> Result<Board, Error>,
    ) -> Result<Self, Error> {
        let Equipment { image, image_path, memory, shares, card, .. } = equipment;
        let Equipment { disk: scratch, recorder, alone, .. } = equipment;
        let has_card = card.is_some();
        let fate = Arc::new(Fate::default());
        let spawn = |name| EventLoop::spawn(name).map_err(Error::host("a thread"));
        // A disk or a folder that blocks must not hold up the conversation with the guest.
        let (io, disk, folders) = (spawn("io")?, spawn("disk")?, spawn("folders")?);
        let guest_image = Processor::device_memory(memory);
        let (vsock, host) = VsockDevice::new(VsockConfig::default(), io.handle());
        let tail = fate.console.clone();
        let (console, _) = Console::new(io.handle(), move |output| tail.push(output));
        let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
            Box::new(Pmem::new(Arc::clone(&image), guest_image, io.handle())),
            Box::new(vsock),
            Box::new(FsDevice::new(Arc::clone(shares.server()), vec![folders.handle()])),
            Box::new(console),
            Box::new(Rng::new(io.handle())),
            Box::new(Balloon::new(io.handle())),
        ];
        let mut scratch_disk = None;
        if let Some(scratch) = scratch {
            let fails = Arc::clone(&fate);
            let block = Block::new(scratch, disk.handle());
            scratch_disk = Some(block.disk());
            devices.push(Box::new(block.on_error(move |error| fails.disk_failed(error))));
        }
        let mut loops = vec![io, disk, folders];
        let mut network = None;
        if let Some(card) = card {
            let events = spawn("net")?;
            match card {
                Card::Cable(cable) => devices.push(network::cabled(cable, &events.handle())?),
                Card::Network(config) => {
                    let (behind, egress) = network::behind(config, &events.handle())?;
                    devices.push(network::card(behind.clone(), config.mtu, &events.handle()));
                    network = Some((behind, egress));
                }
            }
            loops.push(events);
        }
        let device_memory = vec![DeviceMemory {
            guest: guest_image,
            host: image.host(),
            len: image.len(),
            read_only: true,
            owner: image,
        }];

        let listener = host.listen(CONTROL_PORT)?;
        let watched = host.listen(WATCH_PORT)?;
        let machine = Arc::new(start(devices, device_memory)?);
        let board = Arc::new(Mutex::new(Some(Arc::clone(&machine))));
        let monitor = monitor(machine, Arc::clone(&board), Arc::clone(&fate), recorder, alone)?;
        let local = Arc::new(Local { vsock: host, fate });
        let watch = Watch::start(Arc::clone(shares.server()), watched);
        let watch = watch.map_err(Error::host("a thread"))?;
        Ok(Self {
            board,
            local,
            listener,
            shares,
            network,
            has_card,
            disk: scratch_disk,
            image: image_path.to_owned(),
            paused: AtomicBool::new(false),
            monitor: Some(monitor),
            _watch: watch,
            _loops: loops,
        })
    }

    /// Waits for the agent's control connection: an error when the guest ends without one.
    pub fn accept(&self) -> Result<Stream, Error> {
        let accepted = self.listener.accept().map(Stream::from);
        accepted.map_err(|_| self.local.explain(ProtocolError::Closed))
    }

    /// The way to the guest.
    pub fn link(&self) -> Arc<dyn Link> {
        Arc::clone(&self.local) as Arc<dyn Link>
    }

    /// Shows one more folder to the guest, as a child of the virtio-fs device's root. Where the guest
    /// mounts it is its agent's business. That no journal of the machine's lies in the folder, and the folder's own in
    /// none that the guest has, is the caller's to know.
    pub fn attach_share(
        &self,
        name: &str,
        path: &Path,
        read_only: bool,
        journal: Option<&ShareJournal>,
    ) -> Result<(), Error> {
        self.shares.attach(name, path, read_only, journal)
    }

    /// Takes a folder away from the guest, with all that it has open of it.
    pub fn detach_share(&self, name: &str) -> Result<(), Error> {
        self.shares.detach(name)
    }

    /// Figures of the network; `None` without one.
    pub fn network_counters(&self) -> Option<NetworkCounters> {
        self.network.as_ref().map(|(network, _)| network.counters())
    }

    /// Where the host listens for the guest, in the order of the configuration: what port 0 became.
    pub fn published(&self) -> Vec<SocketAddr> {
        self.network.as_ref().map(|(network, _)| network.published()).unwrap_or_default()
    }

    /// The egress policy while the machine runs; `None` without a network.
    pub fn egress(&self) -> Option<&Egress> {
        self.network.as_ref().map(|(_, egress)| egress)
    }

    /// The host's first failure with the machine's disk.
    pub fn disk_failure(&self) -> Option<Error> {
        self.local.fate.disk_failure().map(Error::DiskFailed)
    }

    /// Waits for the first thing that the host could not do of what the guest asked of its disk; `None` at the
    /// machine's end.
    pub fn wait_disk_failure(&self) -> Option<Error> {
        self.local.fate.wait_disk_failure().map(Error::DiskFailed)
    }

    /// What the guest's console said last.
    pub fn console(&self) -> &ConsoleTail {
        &self.local.fate.console
    }

    /// Ends the machine now, as if its power had failed.
    pub fn stop(&self) {
        if let Some(board) = &*lock(&self.board) {
            board.stop();
        }
    }

    /// Lets no vCPU run until [`resume`](Self::resume). False once the machine has ended.
    pub fn pause(&self) -> bool {
        let board = self.board();
        if let Some(board) = &board
            && !self.paused.swap(true, Ordering::SeqCst)
        {
            board.pause();
        }
        board.is_some()
    }

    /// Lets the vCPUs run again.
    pub fn resume(&self) {
        if let Some(board) = self.board()
            && self.paused.swap(false, Ordering::SeqCst)
        {
            board.resume();
        }
    }

    /// Looks at the machine from outside; `None` once it has ended.
    pub fn observe(&self) -> Option<Observation> {
        Some(self.board()?.observe())
    }

    /// Whether it has a network card.
    pub(crate) fn has_card(&self) -> bool {
        self.has_card
    }

    /// The board; `None` once the machine has ended.
    pub(crate) fn board(&self) -> Option<Arc<Board>> {
        lock(&self.board).clone()
    }

    /// The writable disk.
    pub(crate) fn disk(&self) -> Option<&Disk> {
        self.disk.as_deref()
    }

    /// Where the root image is.
    pub(crate) fn image_path(&self) -> &Path {
        &self.image
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.stop();
        if let Some(monitor) = self.monitor.take() {
            let _ = monitor.join();
        }
    }
}

/// What a machine's devices are made of.
pub(crate) struct Equipment<'a> {
    pub(crate) image: Arc<Image>,
    pub(crate) image_path: &'a Path,
    /// Bytes of RAM.
    pub(crate) memory: u64,
    pub(crate) shares: Folders,
    pub(crate) card: Option<Card<'a>>,
    pub(crate) disk: Option<Disk>,
    /// Is to note what the machine touches first.
    pub(crate) recorder: Option<Recorder>,
    /// The process has nothing else to do.
    pub(crate) alone: bool,
}

/// What a network card is plugged into.
pub(crate) enum Card<'a> {
    /// A network of this process.
    Network(&'a NetworkConfig),
    /// One of another process.
    Cable(&'a CableConfig),
}

impl<'a> Card<'a> {
    /// A cable goes before a network.
    pub(crate) fn of(
        network: Option<&'a NetworkConfig>,
        cable: Option<&'a CableConfig>,
    ) -> Option<Self> {
        cable.map(Self::Cable).or(network.map(Self::Network))
    }
}

/// The way to a machine of this process.
#[derive(Debug)]
struct Local {
    vsock: VsockHost,
    fate: Arc<Fate>,
}

impl Link for Local {
    fn connect(&self, port: u32) -> Result<Stream, Error> {
        self.vsock.connect(port).map(Stream::from).map_err(|error| match error {
            cabana_vsock::VsockError::Closed => self.fate.explain(ProtocolError::Closed),
            error => Error::Connection(error),
        })
    }

    fn explain(&self, error: ProtocolError) -> Error {
        self.fate.explain(error)
    }

    fn wait_end(&self, limit: Duration) -> Option<Result<(), Error>> {
        self.fate.wait(limit).map(|outcome| self.fate.judge(&outcome))
    }
}

/// Waits for the machine's end, notes it, and takes the machine apart, which ends the conversations
/// with it. Until then it does what has its time after the start.
fn monitor(
    board: Arc<Board>,
    slot: Arc<Mutex<Option<Arc<Board>>>>,
    fate: Arc<Fate>,
    recorder: Option<Recorder>,
    alone: bool,
) -> Result<JoinHandle<()>, Error> {
    let watch = move || {
        if let Some(outcome) = board.wait_within(STARTED) {
            fate.seal(outcome);
        }
        board.enlarge_kernel();
        if let Some(recorder) = recorder {
            recorder.record();
        }
        fate.seal(if alone { spare_and_wait(&board) } else { board.wait() });
        lock(&slot).take();
    };
    let builder = thread::Builder::new().name("monitor".to_owned()).stack_size(128 << 10);
    builder.spawn(watch).map_err(Error::host("a thread"))
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
        Scratch::Given { path, vanishing } => {
            let disk = Disk::open(path)?;
            Some(if *vanishing { disk.vanishing() } else { disk })
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
