//! What belongs to this process: its limits, randomness, its clocks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{PidfdFlags, Resource, Rlimit, getpid, getrlimit, pidfd_open, setrlimit};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::ClockId;

pub use super::behind::close_behind;
pub use super::spare::release_spare;
pub use crate::sys::programs::find_program;
use crate::sys::unix::clocks::duration;
pub use crate::sys::unix::clocks::{processor_time, thread_time};
pub use crate::sys::unix::programs::{
    bare, detach, end_now, end_together, library_path, set_apart, signal_of, silence, user_suffix,
};

/// Lets this process open as many files as its hard limit allows: a file server holds one descriptor
/// for each file that its guest knows. To be called by a program, not by a library.
pub fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// Lets all threads share one heap, where the C library would give one of its own to each: a machine
/// has many threads that allocate little. To be called by a program before its first thread.
pub fn share_heap() {
    // SAFETY: sets a parameter of the allocator; where it has none of this kind nothing changes.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// A handle to this process for another one: readable once this process has ended (`pidfd_open(2)`).
pub fn own_handle() -> io::Result<OwnedFd> {
    Ok(pidfd_open(getpid(), PidfdFlags::empty())?)
}

/// Closes what this process inherited beyond its three standard streams. To be called by a program
/// before it opens anything.
pub fn close_inherited() {
    // SAFETY: closes descriptors that nothing in this process knows of.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// The path by which a handle of this process is opened again, for as long as it is open.
pub fn path_of(handle: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Asks the system for what it is asked for once in a process's life, to be called by a process that is
/// about to confine itself.
pub fn learn() {
    // rustix reads the auxiliary vector from a file at its first use.
    let _ = rustix::param::page_size();
    let _ = super::pages::pagemap();
}

/// This program itself, to be started once more: it stays the same when its file is replaced by a newer one.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn own_program() -> io::Result<PathBuf> {
    Ok("/proc/self/exe".into())
}

/// Random bytes of the host's generator (`getrandom(2)`).
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// Time since the host's start, which never steps (`CLOCK_MONOTONIC`).
pub fn monotonic() -> Duration {
    duration(ClockId::Monotonic)
}

/// The wall clock as file systems read it for times of change: a few milliseconds late, and quick.
pub fn realtime_coarse() -> Duration {
    duration(ClockId::RealtimeCoarse)
}

/// Time since 1970 (`CLOCK_REALTIME`).
pub fn realtime() -> Duration {
    duration(ClockId::Realtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_rises() {
        raise_open_files().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
