//! The first process of a session's PID namespace, which keeps its namespaces in being.
//!
//! It reaps by asking the kernel to (`SIGCHLD` is ignored), owns nothing, may do nothing, and waits for
//! its end; with it end all processes of the session. It never executes a program, so that it costs the
//! host little more than its stack.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::mount::{MountFlags, mount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;

use super::cgroup::Cgroup;
use super::users::KEEPER;
use super::{SessionError, confine, filter};
use crate::fork::{self, Forked};

const NAME: &CStr = c"session";

const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Forks the keeper from a thread that has entered the session's other namespaces.
pub(super) fn start(cgroup: &Cgroup) -> Result<Forked, SessionError> {
    let at = SessionError::at::<io::Error>;
    // What the child uses has to be there before.
    filter::program();
    let (ready, tell) =
        pipe_with(PipeFlags::CLOEXEC).map_err(SessionError::at("its first process"))?;
    // SAFETY: the child makes system calls alone until it ends.
    let forked = unsafe { fork::fork(libc::CLONE_NEWPID, Some(cgroup.as_fd())) };
    let Some(keeper) = forked.map_err(at("its first process"))? else { keep(&tell) };
    drop(tell);
    let mut answer = [0; 8];
    match rustix::io::read(&ready, &mut answer) {
        Ok(8) if answer == [0; 8] => Ok(keeper),
        Ok(8) => {
            let [stage, .., a, b, c, d] = answer;
            let error = io::Error::from_raw_os_error(i32::from_le_bytes([a, b, c, d]));
            let what = STAGES.get(usize::from(stage)).copied().unwrap_or("its first process");
            Err(at(what)(error))
        }
        Ok(_) => Err(at("its first process")(io::ErrorKind::BrokenPipe.into())),
        Err(errno) => Err(at("its first process")(errno.into())),
    }
}

/// What the keeper does before it keeps.
const STAGES: [&str; 4] = ["", "a cgroup namespace", "/proc and /sys/fs/cgroup", "its confinement"];

/// The keeper's life. It allocates nothing.
fn keep(tell: &OwnedFd) -> ! {
    let steps: [fn() -> io::Result<()>; 3] = [new_cgroup_root, mount_own, give_up_rights];
    let mut answer = [0; 8];
    for (index, step) in steps.iter().enumerate() {
        if let Err(error) = step() {
            answer[0] = index as u8 + 1;
            answer[4..].copy_from_slice(&error.raw_os_error().unwrap_or(0).to_le_bytes());
            break;
        }
    }
    let told = rustix::io::write(tell, &answer);
    if told != Ok(8) || answer[0] != 0 {
        fork::exit(1);
    }
    let end = libc::c_uint::MAX;
    // SAFETY: closes descriptors, which are copies of the agent's; nothing here uses one any more.
    unsafe { libc::syscall(libc::SYS_close_range, 0, end, 0) };
    loop {
        // SAFETY: waits for a signal; no memory is involved.
        unsafe { libc::pause() };
    }
}

/// The session's cgroup becomes the root that its processes see. The namespace begins where the process
/// that makes it is, so that it cannot be made by the fork.
fn new_cgroup_root() -> io::Result<()> {
    // SAFETY: a namespace of cgroups changes no descriptor and no memory.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }?)
}

/// Mounts what shows the namespaces that only this process is in.
fn mount_own() -> io::Result<()> {
    mount(c"proc", c"/proc", c"proc", FLAGS, None)?;
    mount(c"cgroup", c"/sys/fs/cgroup", c"cgroup2", FLAGS | MountFlags::RDONLY, None)?;
    Ok(())
}

fn give_up_rights() -> io::Result<()> {
    for signal in 1..32 {
        let disposition = if signal == libc::SIGCHLD { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: sets a disposition; no handler of ours is involved.
        unsafe { libc::signal(signal, disposition) };
    }
    rustix::thread::set_name(NAME)?;
    confine::apply(KEEPER)?;
    // Nobody looks into its copy of the agent's memory.
    // SAFETY: sets a flag of the process.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A signal that cannot be refused.
pub(super) fn kill(pidfd: &OwnedFd) {
    // SAFETY: sends a signal; no memory is involved.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), libc::SIGKILL, 0, 0)
    };
}
