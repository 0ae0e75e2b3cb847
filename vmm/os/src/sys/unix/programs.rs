//! Which file this code is in, and how a process ends.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

/// The file that holds this very code: the program, or the library that it has loaded.
pub fn library_path() -> Option<PathBuf> {
    // SAFETY: asks which file an address belongs to; the answer points to memory that stays as long as
    // the file is loaded, which it is while its code runs.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let here = library_path as *const libc::c_void;
        if libc::dladdr(here, &raw mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// Ends this process now: no destructor runs, nothing is flushed.
pub fn end_now(status: i32) -> ! {
    // SAFETY: ends the process; nothing comes after.
    unsafe { libc::_exit(status) }
}

/// Lets a child end with this process, where it does not see to that itself: here ours watch their channel and their
/// parent.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn end_together(_child: &Child) -> std::io::Result<()> {
    Ok(())
}

/// Gives a program that is about to be started nothing of this process's: no environment, no folder.
pub fn bare(command: &mut Command) {
    command.env_clear().current_dir("/");
}

/// Lets a program that is about to be started have no signals of this process's terminal.
pub fn set_apart(command: &mut Command) {
    command.process_group(0);
}

/// The signal that ended a process, if one did.
pub fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// What tells this user's files from others' in a folder of everybody's.
pub fn user_suffix() -> String {
    format!("-{}", rustix::process::geteuid().as_raw())
}

/// Leaves the terminal: neither its end nor its Ctrl-C is meant for this process from now on.
pub fn detach() {
    let _ = rustix::process::setsid();
}

/// Lets nothing that this process says from now on reach who reads its standard output, who is not to wait for its end.
pub fn silence() -> std::io::Result<()> {
    let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(nowhere)?)
}
