//! A machine without an agent, in a worker: any kernel, its serial port to a file.

use std::fs::File;
use std::path::{Path, PathBuf};

use cabana_worker::link::{Guest, Role, Start, VERSION};

use crate::Error;
use crate::config::WorkerKind;
use crate::worker::{Handles, Worker};

/// What [`Engine::boot`](crate::Engine::boot) boots.
#[derive(Debug)]
pub struct BareSpec {
    /// An uncompressed ELF kernel or a bzImage.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub command_line: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Where the serial port's output goes.
    pub serial: Option<File>,
}

/// A machine without an agent. Dropping it ends it.
#[derive(Debug)]
pub struct Bare {
    worker: Worker,
}

impl Bare {
    pub(crate) fn start(kind: &WorkerKind, spec: BareSpec) -> Result<Self, Error> {
        let mut handles = Handles::default();
        handles.open(Role::Kernel, "the kernel", &spec.kernel)?;
        if let Some(initrd) = &spec.initrd {
            handles.open(Role::Initrd, "the initramfs", initrd)?;
        }
        if let Some(serial) = spec.serial {
            handles.add(Role::Serial, "the serial port", serial);
        }
        handles.add_parent()?;
        let start = Start {
            version: VERSION,
            cpus: spec.cpus,
            memory: spec.memory,
            command_line: spec.command_line,
            guest: Guest::Bare,
            handles: handles.list,
            confine: true,
        };
        Ok(Self { worker: Worker::start(kind, start, &handles.open, |_| {})? })
    }

    /// Waits for its end: fine if the guest reset itself or ended with status 0.
    pub fn wait(&self) -> Result<(), Error> {
        self.worker.wait()
    }

    /// Ends it now.
    pub fn stop(&self) {
        self.worker.stop();
    }

    /// The worker's process on the host, if it has one.
    pub fn worker(&self) -> Option<u32> {
        self.worker.pid()
    }
}

impl Handles {
    /// Opens a file for reading and adds it.
    pub(crate) fn open(
        &mut self,
        role: Role,
        what: &'static str,
        path: &Path,
    ) -> Result<(), Error> {
        let opened = File::open(path);
        let file = opened.map_err(|source| Error::Open { what, path: path.to_owned(), source })?;
        self.add(role, path.display().to_string(), file);
        Ok(())
    }

    /// Adds this process, with which a worker ends.
    pub(crate) fn add_parent(&mut self) -> Result<(), Error> {
        let own = cabana_os::process::own_handle().map_err(Error::host("a handle to itself"))?;
        self.add(Role::Parent, "the engine", own);
        Ok(())
    }
}
