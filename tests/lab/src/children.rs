//! Child processes that die with this process, whatever ends it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::io::FdFlags;
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};

/// A child that receives SIGKILL when the thread that spawned it ends (prctl(2), `PR_SET_PDEATHSIG`),
/// and that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Dependent(Child);

impl Dependent {
    /// Spawns `command` with `inherited` open under the same numbers, in a session of its own, so that
    /// the terminal's ^C does not reach it.
    pub(crate) fn spawn(command: &mut Command, inherited: Vec<OwnedFd>) -> io::Result<Self> {
        let parent = rustix::process::getpid();
        let prepare = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(parent) {
                // The parent died before the request above.
                return Err(io::ErrorKind::NotConnected.into());
            }
            setsid()?;
            for fd in &inherited {
                rustix::io::fcntl_setfd(fd.as_fd(), FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec `prepare` makes system calls only: it allocates nothing and
        // takes no lock.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn()?;
        Ok(Self(child))
    }

    /// The process, for its pipes.
    pub(crate) fn process(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Dependent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
