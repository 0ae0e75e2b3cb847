//! What a process may do once it is confined, by the named profiles of `sandbox_init(3)`: no internet, or nothing but computing.
//! Files stay in reach, for which no profile has a name.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::path::PathBuf;
use std::ptr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::process::processor_time;
pub use crate::sys::confinement::{ConfineError, Confinement};
use crate::sys::unix::handle::BorrowedHandle;

/// The profile is one of those below.
const SANDBOX_NAMED: u64 = 1;

unsafe extern "C" {
    static kSBXProfileNoInternet: [c_char; 0];
    static kSBXProfilePureComputation: [c_char; 0];
    fn sandbox_init(profile: *const c_char, flags: u64, error: *mut *mut c_char) -> c_int;
    fn sandbox_free_error(error: *mut c_char);
}

/// Confines this process to what a machine needs. To be called before it reads what others wrote.
pub fn machine<'a>(
    _files: impl IntoIterator<Item = (BorrowedHandle<'a>, bool)>,
) -> Result<Confinement, ConfineError> {
    // SAFETY: the symbol is a text that ends with a zero.
    enter(unsafe { kSBXProfileNoInternet.as_ptr() })?;
    Ok(Confinement { system_calls: false, files: false })
}

/// As [`machine`], for a process that serves a network: there is no wall that leaves it sockets.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn network<'a>(
    _files: impl IntoIterator<Item = BorrowedHandle<'a>>,
    _readable: &[PathBuf],
) -> Result<Confinement, ConfineError> {
    Ok(Confinement { system_calls: false, files: false })
}

/// As [`machine`], for a process that does nothing but compute, and answer by a channel that it has. The system has no limit to
/// its address space.
pub fn computation(_memory: u64) -> Result<(), ConfineError> {
    // SAFETY: the symbol is a text that ends with a zero.
    enter(unsafe { kSBXProfilePureComputation.as_ptr() })
}

/// Gives this process its time anew, in seconds of a processor; when that is over the system ends it.
pub fn limit_time(seconds: u64) -> io::Result<()> {
    let maximum = getrlimit(Resource::Cpu).maximum;
    let current = Some(processor_time().as_secs() + seconds);
    Ok(setrlimit(Resource::Cpu, Rlimit { current, maximum })?)
}

fn enter(profile: *const c_char) -> Result<(), ConfineError> {
    let mut error = ptr::null_mut();
    // SAFETY: the profile's name is a text of the system's; the call says by a text of its own what went wrong.
    if unsafe { sandbox_init(profile, SANDBOX_NAMED, &raw mut error) } == 0 {
        return Ok(());
    }
    let mut why = String::new();
    if !error.is_null() {
        // SAFETY: a text that ends with a zero and is ours to free.
        unsafe {
            why = CStr::from_ptr(error).to_string_lossy().into_owned();
            sandbox_free_error(error);
        }
    }
    Err(ConfineError::Refused { wall: "the sandbox", why })
}
