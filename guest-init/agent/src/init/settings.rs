//! Clock, entropy, name, loopback interface: what the host hands over that is no file system. A
//! setting that fails is a warning.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::{fs, io, mem};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::files;

/// The clock is left alone when it is this close to the host's.
const CLOCK_TOLERANCE_NS: u64 = 1_000_000;

/// The agent's place among those who want a processor (`nice`).
const PRIORITY: libc::c_int = -15;

/// See machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";

const SECOND_NS: u64 = 1_000_000_000;

/// `RNDADDENTROPY` (`linux/random.h`), which `libc` does not have.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// `RNDRESEEDCRNG`, likewise.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `struct rand_pool_info` with 32 bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; 32],
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Sets the wall clock.
pub(super) fn set_clock(realtime_ns: u64, warnings: &mut Vec<String>) {
    let now = nanoseconds(clock_gettime(ClockId::Realtime));
    if now.abs_diff(realtime_ns) <= CLOCK_TOLERANCE_NS {
        return;
    }
    let time = Timespec {
        tv_sec: (realtime_ns / SECOND_NS) as i64,
        tv_nsec: (realtime_ns % SECOND_NS) as i64,
    };
    if let Err(errno) = clock_settime(ClockId::Realtime, time) {
        warnings.push(format!("setting the clock: {}", io::Error::from(errno)));
    }
}

/// Credits random bytes to the kernel's generator.
pub(super) fn add_entropy(entropy: &[u8; 32], warnings: &mut Vec<String>) {
    let pool = RandPoolInfo { entropy_bits: 256, size: 32, bytes: *entropy };
    let result = fs::File::open("/dev/urandom").and_then(|random| {
        // SAFETY: the kernel reads a `rand_pool_info` of the size that its field tells.
        check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) })
    });
    if let Err(error) = result {
        warnings.push(format!("adding the host's entropy: {error}"));
    }
}

/// Lets the kernel's generator forget what machines of the same snapshot have in common.
pub(super) fn reseed(warnings: &mut Vec<String>) {
    let result = fs::File::open("/dev/urandom").and_then(|random| {
        // SAFETY: the request has no argument.
        check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) })
    });
    if let Err(error) = result {
        warnings.push(format!("seeding the random number generator: {error}"));
    }
}

/// Makes sure that the machine has an id (machine-id(5)), in a file that can be written over in place:
/// bringing the image's file up into the writable file system takes time, which is better spent before
/// a snapshot than after it.
pub(super) fn prepare_machine_id() -> io::Result<()> {
    let old = fs::read_to_string(MACHINE_ID).unwrap_or_default();
    let sound = old.len() == 33 && old.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit());
    fs::write(MACHINE_ID, if sound { old } else { random_id()? })
}

/// Gives the machine another id.
pub(super) fn renew_machine_id(warnings: &mut Vec<String>) {
    let renewed = random_id().and_then(|id| {
        let file = fs::File::options().write(true).open(MACHINE_ID)?;
        file.write_all_at(id.as_bytes(), 0)
    });
    if let Err(error) = renewed {
        warnings.push(format!("renewing /etc/machine-id: {error}"));
    }
}

/// A random UUID without its dashes, and a line's end.
fn random_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', ""))
}

pub(super) fn set_hostname(name: &str, warnings: &mut Vec<String>) {
    if let Err(errno) = rustix::system::sethostname(name.as_bytes()) {
        warnings.push(format!("setting the host name `{name}`: {}", io::Error::from(errno)));
    }
}

/// Brings the loopback interface up.
pub(super) fn loopback_up(warnings: &mut Vec<String>) {
    if let Err(error) = try_loopback_up() {
        warnings.push(format!("bringing the loopback interface up: {error}"));
    }
}

/// Brings the loopback interface of this thread's network up.
pub(crate) fn try_loopback_up() -> io::Result<()> {
    // SAFETY: makes a socket; no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    // SAFETY: `socket` has just made it, for us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: `ifreq` is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads an `ifreq` that names an interface and holds its flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
}

/// Puts the agent before everything else that wants a processor. Threads inherit it; commands undo it for
/// themselves.
pub(super) fn come_first(warnings: &mut Vec<String>) {
    // SAFETY: sets the priority of this thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, PRIORITY) } < 0 {
        let error = io::Error::last_os_error();
        warnings.push(format!("raising the agent's priority: {error}"));
    }
}

/// Lets each processor keep only a thousandth of the memory to itself once it is freed, in place of tens of MiB: what
/// is kept so does not go back to the host. A kernel that cannot is none the worse.
pub(super) fn keep_few_free_pages() {
    let _ = fs::write("/proc/sys/vm/percpu_pagelist_high_fraction", "1024");
}

/// Lets the agent have the descriptors of hundreds of commands and sessions at a time.
pub(super) fn open_more_files(warnings: &mut Vec<String>) {
    if let Err(error) = files::raise() {
        warnings.push(format!("raising the agent's limit of open files: {error}"));
    }
}

/// Keeps the out-of-memory killer from PID 1, whose end would be the machine's. Commands undo it for
/// themselves.
pub(super) fn exempt_from_oom_killer(warnings: &mut Vec<String>) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        warnings.push(format!("exempting the agent from the out-of-memory killer: {error}"));
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec as u64 * SECOND_NS + time.tv_nsec as u64
}

/// The error of a call that answers with a negative number.
fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
