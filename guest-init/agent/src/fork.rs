//! A new process by `clone3(2)`: born in a cgroup, with a pidfd, without a wrapper that would have to
//! know of either.
//!
//! Between a fork and an exec a process of several threads may make system calls and nothing else: no
//! allocation, no lock. Whoever forks here prepares everything before.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{PoisonError, RwLock};

use rustix::process::Pid;

/// Born in the cgroup that `clone_args.cgroup` names (`linux/sched.h`), which `libc` does not have.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Held for reading while a file is open that no child may be born with.
static NO_CHILDREN: RwLock<()> = RwLock::new(());

/// Does this while no child is born. A child has copies of all descriptors until it closes them or executes
/// its program, and a copy of one that is open for writing keeps its mount from becoming read-only.
pub(crate) fn without_children<T>(work: impl FnOnce() -> T) -> T {
    let _guard = NO_CHILDREN.read().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// A child.
pub(crate) struct Forked {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// `struct clone_args` (`linux/sched.h`), as of version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with these namespaces (`CLONE_NEW…`) new; `None` is the child's answer.
///
/// # Safety
///
/// The child may make system calls and nothing else until it calls `exec` or `_exit`.
pub(crate) unsafe fn fork(
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Option<Forked>> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64 | namespaces as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let guard = NO_CHILDREN.write().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the kernel reads arguments of the given size and writes a descriptor where they say. The
    // child shares no memory with us and begins with a copy of this stack.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) } as i32;
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let Some(pid) = Pid::from_raw(pid) else {
        // The child's copy of the lock is nobody's.
        std::mem::forget(guard);
        return Ok(None);
    };
    drop(guard);
    // SAFETY: `clone3` has just made it, for us alone.
    Ok(Some(Forked { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }))
}

/// Ends a forked child that cannot go on.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(status) }
}
