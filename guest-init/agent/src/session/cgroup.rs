//! What sessions may use: a cgroup (version 2) for each, below one that leaves the agent its reserve.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cabana_protocol::SessionLimits;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::timespec;

/// Where the kernel's tree is mounted.
const TREE: &str = "/sys/fs/cgroup";

/// The parent of all sessions' cgroups.
pub(super) const SESSIONS: &str = "/sys/fs/cgroup/sessions";

const CONTROLLERS: &str = "+memory +pids +cpu +io";

/// What the sessions together leave of the machine's memory: this part, and not less than this.
const RESERVED_PART: u64 = 8;
const RESERVED_LEAST: u64 = 48 << 20;

/// What they leave of the process identifiers.
const RESERVED_PIDS: u64 = 1024;

/// The length of the time in which a session may use its part of the processors, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// How long killed processes have to leave a cgroup.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// One session's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    folder: File,
}

/// Makes the parent of all sessions' cgroups, with what all of them together may use.
pub(super) fn prepare() -> io::Result<()> {
    fs::write(format!("{TREE}/cgroup.subtree_control"), CONTROLLERS)?;
    match fs::create_dir(SESSIONS) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    let memory = rustix::system::sysinfo();
    let total = memory.totalram as u64 * u64::from(memory.mem_unit);
    let reserve = (total / RESERVED_PART).max(RESERVED_LEAST);
    fs::write(format!("{SESSIONS}/memory.max"), total.saturating_sub(reserve).to_string())?;
    let most: u64 =
        fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse().unwrap_or(32_768);
    let threads: u64 =
        fs::read_to_string("/proc/sys/kernel/threads-max")?.trim().parse().unwrap_or(most);
    // Memory for threads runs out before their numbers on a small machine.
    let pids = most.saturating_sub(RESERVED_PIDS).min(threads / 4 * 3);
    fs::write(format!("{SESSIONS}/pids.max"), pids.to_string())?;
    fs::write(format!("{SESSIONS}/cgroup.subtree_control"), CONTROLLERS)
}

impl Cgroup {
    /// Makes the cgroup of the session with this user. `disk` is the device that I/O limits are for.
    pub(super) fn create(
        uid: u32,
        limits: &SessionLimits,
        disk: Option<(u32, u32)>,
    ) -> io::Result<Self> {
        let path = PathBuf::from(format!("{SESSIONS}/{uid}"));
        fs::create_dir(&path)?;
        let cgroup = File::open(&path).map(|folder| Self { path: path.clone(), folder });
        let cgroup = cgroup.and_then(|cgroup| {
            cgroup.limit(&SessionLimits::default(), limits, disk)?;
            Ok(cgroup)
        });
        cgroup.inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })
    }

    /// Sets what differs from the limits in force.
    pub(super) fn limit(
        &self,
        old: &SessionLimits,
        new: &SessionLimits,
        disk: Option<(u32, u32)>,
    ) -> io::Result<()> {
        let or_max = |value: Option<u64>| value.map_or_else(|| "max".into(), |n| n.to_string());
        if old.memory != new.memory {
            self.write("memory.max", &or_max(new.memory))?;
        }
        if old.pids != new.pids {
            // The session's first process is not one of its own.
            self.write("pids.max", &or_max(new.pids.map(|pids| u64::from(pids) + 1)))?;
        }
        if old.cpu_weight != new.cpu_weight {
            self.write("cpu.weight", &new.cpu_weight.unwrap_or(100).to_string())?;
        }
        if old.cpu_max != new.cpu_max {
            let share = new.cpu_max.map(|milli| u64::from(milli) * CPU_PERIOD / 1000);
            self.write("cpu.max", &format!("{} {CPU_PERIOD}", or_max(share)))?;
        }
        if let Some((major, minor)) = disk
            && (old.io_read, old.io_write) != (new.io_read, new.io_write)
        {
            let (read, write) = (or_max(new.io_read), or_max(new.io_write));
            self.write("io.max", &format!("{major}:{minor} rbps={read} wbps={write}"))?;
        }
        Ok(())
    }

    /// A descriptor to be born by.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process and waits until none is left.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")?;
        let events = File::open(self.path.join("cgroup.events"))?;
        let end = Instant::now() + EMPTY_LIMIT;
        while self.number("cgroup.events", "populated ") != 0 {
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut fds, Some(&timespec(end))) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // Read at its beginning the file is armed again.
            rustix::io::pread(&events, &mut [0; 64], 0)?;
        }
        Ok(())
    }

    /// Removes the cgroup, whose processes have been killed.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }

    /// Bytes of memory in use.
    pub(super) fn memory(&self) -> u64 {
        self.number("memory.current", "")
    }

    /// Processes and threads, without the session's first process.
    pub(super) fn pids(&self) -> u32 {
        self.number("pids.current", "").saturating_sub(1) as u32
    }

    /// The number behind this word in a file; 0 when it cannot be read.
    fn number(&self, file: &str, word: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let number = text.lines().find_map(|line| line.strip_prefix(word)?.trim().parse().ok());
        number.unwrap_or(0)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }
}
