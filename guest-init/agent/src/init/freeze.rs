//! Holding the machine for a snapshot, and waking up, in the same machine or as another.
//!
//! What runs is held by the kernel's freezer, which no process notices. The sessions' cgroup is held as it
//! is. Everything else of user space but the agent is put into a cgroup of its own first, because the root
//! cannot be held; it stays there afterwards.
//!
//! Shares are unmounted, since the files that the guest knows by number are known to this host alone. They
//! are mounted again when the machine goes on.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cabana_protocol::{Renew, SetupFailed, ShareMount};
use rustix::event::{PollFd, PollFlags, poll};

use super::{connections, failed, settings, shares, watch};
use crate::timespec;

/// The kernel's tree of cgroups, the one of all sessions, and the one of everything else.
const TREE: &str = "/sys/fs/cgroup";
const SESSIONS: &str = "/sys/fs/cgroup/sessions";
const OTHERS: &str = "/sys/fs/cgroup/others";

/// How long the kernel has to hold a cgroup: each thread has to come by.
const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// `PF_KTHREAD` (`linux/sched.h`), in the ninth field of `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x20_0000;

/// What is held; absent while the machine runs.
static HELD: Mutex<Option<Held>> = Mutex::new(None);

struct Held {
    /// To be mounted again.
    shares: Vec<ShareMount>,
    cgroups: Vec<&'static str>,
}

/// Is the machine held?
pub(super) fn is_frozen() -> bool {
    held().is_some()
}

/// Lets go of the shares and holds all processes. Either everything is held afterwards or nothing.
pub(crate) fn freeze() -> Result<(), SetupFailed> {
    let mut held = held();
    if held.is_some() {
        return Err(failed("holding the machine", "it is held already"));
    }
    let released = shares::release()?;
    let mut now = Held { shares: released, cgroups: Vec::new() };
    let result = hold_all(&mut now.cgroups).and_then(|()| settings::prepare_machine_id());
    if let Err(error) = result {
        let _ = now.release();
        return Err(failed("holding the processes", error));
    }
    *held = Some(now);
    Ok(())
}

/// Lets everything go on in the machine that was held.
pub(crate) fn thaw() -> Result<(), SetupFailed> {
    held().take().ok_or_else(|| failed("letting the machine go on", "it is not held"))?.release()
}

/// Makes the machine another one, and lets everything go on.
pub(super) fn wake(renew: &Renew, warnings: &mut Vec<String>) -> Result<(), SetupFailed> {
    settings::set_clock(renew.realtime_ns, warnings);
    settings::add_entropy(&renew.entropy, warnings);
    settings::reseed(warnings);
    settings::set_hostname(&renew.hostname, warnings);
    settings::renew_machine_id(warnings);
    if renew.network {
        connections::end_all();
    }
    let held = held().take().ok_or_else(|| failed("waking up", "the machine was not held"))?;
    Held { shares: renew.shares.clone(), ..held }.release()
}

impl Held {
    fn release(self) -> Result<(), SetupFailed> {
        let mounted = shares::mount_all(&self.shares);
        if !self.shares.is_empty() {
            watch::start(shares::ROOT);
        }
        for cgroup in self.cgroups {
            fs::write(format!("{cgroup}/cgroup.freeze"), "0")
                .map_err(|error| failed("letting the processes go on", error))?;
        }
        mounted
    }
}

fn hold_all(cgroups: &mut Vec<&'static str>) -> io::Result<()> {
    if Path::new(SESSIONS).exists() {
        cgroups.push(SESSIONS);
        hold(SESSIONS)?;
    }
    // Each of them may start another before it is found.
    loop {
        let others = others()?;
        if others.is_empty() {
            break;
        }
        if !cgroups.contains(&OTHERS) {
            if !Path::new(OTHERS).exists() {
                fs::create_dir(OTHERS)?;
            }
            cgroups.push(OTHERS);
        }
        for process in others {
            match fs::write(format!("{OTHERS}/cgroup.procs"), process.to_string()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    // Those that were put there for an earlier snapshot.
    if Path::new(OTHERS).exists() {
        if !cgroups.contains(&OTHERS) {
            cgroups.push(OTHERS);
        }
        hold(OTHERS)?;
    }
    Ok(())
}

/// Processes of user space in the root cgroup, the agent left out.
fn others() -> io::Result<Vec<u32>> {
    let list = fs::read_to_string(format!("{TREE}/cgroup.procs"))?;
    let processes = list.lines().filter_map(|line| line.parse().ok());
    Ok(processes.filter(|process| *process != 1 && is_program(*process)).collect())
}

fn is_program(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: state, five numbers, flags.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let flags = fields.split_ascii_whitespace().nth(6).and_then(|flags| flags.parse::<u64>().ok());
    // A zombie is held by nobody and does nothing.
    let zombie = fields.trim_start().starts_with('Z');
    flags.is_some_and(|flags| flags & KERNEL_THREAD == 0) && !zombie
}

/// Holds a cgroup with all that are below, and waits until they stand.
fn hold(cgroup: &str) -> io::Result<()> {
    fs::write(format!("{cgroup}/cgroup.freeze"), "1")?;
    let end = Instant::now() + HOLD_LIMIT;
    let mut events = fs::File::open(format!("{cgroup}/cgroup.events"))?;
    loop {
        let mut text = String::new();
        io::Seek::rewind(&mut events)?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel tells of changes as of exceptional data.
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timespec(end)))?;
    }
}

fn held() -> MutexGuard<'static, Option<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}
