//! Reaping orphans, and ending every process.
//!
//! Linux gives an orphan to PID 1's first thread, and a command that the exec server starts to the
//! thread that started it. So the first thread waits with `__WNOTHREAD` for its own children alone, and
//! no exit status is taken from a thread that waits for it.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{io, mem, ptr};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::timespec;

/// How long processes have to end by themselves after SIGTERM.
const TERM_GRACE: Duration = Duration::from_millis(500);

/// How long the kernel has to end processes after SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How often it is looked whether all processes have ended.
const LOOK: Duration = Duration::from_millis(2);

/// Hears of processes that end.
pub(super) struct Orphans {
    signals: OwnedFd,
}

impl Orphans {
    /// Begins to watch. Called on the first thread before there is another: threads inherit that
    /// SIGCHLD is blocked.
    pub(super) fn watch() -> io::Result<Self> {
        // SAFETY: the set is plain data, initialized by `sigemptyset`; the calls take it by pointer
        // and keep nothing.
        let descriptor = unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `signalfd` has just made it, for us alone.
        Ok(Self { signals: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// Reaps after waiting until a process has ended, one of `others` is readable, or the time is over.
    pub(super) fn wait(&self, others: &[BorrowedFd<'_>], end: Option<Instant>) -> io::Result<()> {
        let timeout = end.map(timespec);
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // One that is read stands for all that came until then.
        let mut information = [0; mem::size_of::<libc::signalfd_siginfo>()];
        let _ = rustix::io::read(&self.signals, &mut information);
        reap();
        Ok(())
    }

    /// Reaps until no process is left, or the time is over; says whether none is left.
    fn reap_all(&self, end: Instant) -> bool {
        reap();
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            // Whoever is not a child of some thread here has an ancestor that is.
            if let Err(Errno::CHILD) = waitid(WaitId::All, options) {
                return true;
            }
            let now = Instant::now();
            if now >= end || self.wait(&[], Some(end.min(now + LOOK))).is_err() {
                return false;
            }
        }
    }
}

/// Reaps the orphans that have ended.
fn reap() {
    loop {
        // SAFETY: waits for children, with no place for a status.
        let pid = unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG | libc::__WNOTHREAD) };
        if pid <= 0 {
            return;
        }
    }
}

/// Ends every process but this one: SIGTERM, a grace, SIGKILL.
pub(super) fn end_all(orphans: &Orphans) {
    signal_all(libc::SIGTERM);
    // A stopped process does not see SIGTERM before it goes on.
    signal_all(libc::SIGCONT);
    if !orphans.reap_all(Instant::now() + TERM_GRACE) {
        signal_all(libc::SIGKILL);
        orphans.reap_all(Instant::now() + KILL_GRACE);
    }
}

fn signal_all(signal: libc::c_int) {
    // SAFETY: sends a signal to all processes but the caller, which `run` has found to be PID 1.
    unsafe { libc::kill(-1, signal) };
}
