//! A machine without an agent: any kernel, any initramfs, any disks, serial console.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use cabana_block::{Block, Disk};
use cabana_boot::{Initrd, Kernel};
use cabana_machine::{Outcome, Platform, Setup, Timeline};
use cabana_os::EventLoop;
use cabana_platform::SerialInput;
use cabana_rng::Rng;
use cabana_virtio::VirtioDevice;

use crate::backend::{Board, Processor};
use crate::{Error, backend};

/// What [`BareMachine::start`] boots.
pub struct BareConfig {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// An uncompressed ELF kernel or a bzImage; on arm64 an `Image`.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub command_line: String,
    /// Raw disk images, `/dev/vda` and so on.
    pub disks: Vec<BareDisk>,
    /// Where the serial port's output goes.
    pub serial: Box<dyn Write + Send>,
}

/// A disk of a [`BareMachine`].
#[derive(Clone, Debug)]
pub struct BareDisk {
    /// The image.
    pub path: PathBuf,
    /// The guest may only read.
    pub read_only: bool,
}

/// A running machine without an agent. Dropping it stops it.
#[derive(Debug)]
pub struct BareMachine {
    machine: Board,
    // After the machine: its devices are served here until they stop.
    _events: EventLoop,
}

impl BareMachine {
    /// Boots the kernel.
    pub fn start(config: BareConfig) -> Result<Self, Error> {
        let kernel = Kernel::open(&config.kernel)?;
        let initrd = config.initrd.as_deref().map(Initrd::open).transpose()?;
        let events = EventLoop::spawn("devices").map_err(Error::host("a thread"))?;
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for disk in config.disks {
            let opened = if disk.read_only {
                Disk::open_read_only(&disk.path)?
            } else {
                Disk::open(&disk.path)?
            };
            devices.push(Box::new(Block::new(opened, events.handle())));
        }
        if !devices.is_empty() {
            devices.push(Box::new(Rng::new(events.handle())));
        }
        let machine = Processor::start(
            backend::create_vm()?,
            Setup {
                cpus: config.cpus,
                memory: config.memory,
                kernel,
                initrd,
                command_line: config.command_line,
                devices,
                device_memory: Vec::new(),
                serial: Some(config.serial),
                timeline: Arc::new(Timeline::new()),
            },
        )?;
        Ok(Self { machine, _events: events })
    }

    /// Waits for its end.
    pub fn wait(&self) -> Outcome {
        let outcome = self.machine.wait();
        self.machine.enlarge_kernel();
        outcome
    }

    /// Ends it now.
    pub fn stop(&self) {
        self.machine.stop();
    }

    /// The other end of its serial port.
    pub fn serial(&self) -> Option<SerialInput> {
        self.machine.serial().cloned()
    }

    /// The machine beneath, for those who measure.
    pub fn machine(&self) -> &Board {
        &self.machine
    }
}
