//! What belongs to this process: its limits, randomness, its clocks.

use std::ffi::CStr;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use crate::sys::portable::{monotonic, realtime, realtime_coarse, release_spare};
pub use crate::sys::programs::find_program;
pub use crate::sys::unix::clocks::{processor_time, thread_time};
pub use crate::sys::unix::programs::{
    bare, detach, end_now, end_together, library_path, set_apart, signal_of, silence, user_suffix,
};

/// The most files that a process has open, whatever its limit says (`OPEN_MAX`).
const OPEN_MAX: u64 = 10_240;

/// Lets this process open as many files as its hard limit and the system allow (`OPEN_MAX`): a file server holds one
/// descriptor for each file that its guest knows. To be called by a program, not by a library.
pub fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(OPEN_MAX).min(OPEN_MAX);
    let current = Some(limit.current.map_or(most, |current| current.max(most)));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, ..limit })?)
}

/// Random bytes of the host's generator (`getentropy(2)`, which gives 256 at most).
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    for part in bytes.chunks_mut(256) {
        // SAFETY: fills as many bytes as there are.
        if unsafe { libc::getentropy(part.as_mut_ptr().cast(), part.len()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(bytes)
}

/// All threads have shared heaps already.
pub fn share_heap() {}

/// A handle to this process for another one: readable once this process has ended, and with it whatever it has forked
/// without running another program.
pub fn own_handle() -> io::Result<OwnedFd> {
    static LIFE: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();
    let (reader, _) = if let Some(pipe) = LIFE.get() {
        pipe
    } else {
        let pipe = io::pipe()?;
        LIFE.get_or_init(|| pipe)
    };
    Ok(reader.try_clone()?.into())
}

/// Closes what this process inherited beyond its three standard streams. To be called by a program
/// before it opens anything.
pub fn close_inherited() {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(OPEN_MAX).min(OPEN_MAX);
    for descriptor in 3..limit as libc::c_int {
        // SAFETY: closes a descriptor that nothing in this process knows of, or none.
        unsafe { libc::close(descriptor) };
    }
}

/// The path by which a handle of this process is opened again, for as long as it is open. Folders have only the path
/// that they are at now (`F_GETPATH`), since nothing below `/dev/fd` is a folder.
pub fn path_of(handle: BorrowedFd<'_>) -> PathBuf {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the call writes at most `PATH_MAX` bytes, of which the last is zero.
    let told = unsafe { libc::fcntl(handle.as_raw_fd(), libc::F_GETPATH, path.as_mut_ptr()) };
    match CStr::from_bytes_until_nul(&path) {
        Ok(path) if told != -1 => {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()));
            if path.is_dir() {
                return path;
            }
        }
        _ => {}
    }
    PathBuf::from(format!("/dev/fd/{}", handle.as_raw_fd()))
}

/// Nothing here asks the system once and for all.
pub fn learn() {}

/// This program itself, to be started once more.
pub fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}
