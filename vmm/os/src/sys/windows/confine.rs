//! What a process may do once it is confined. A job of its own lets it start no program, and takes memory and time from an
//! interpreter. Files and system calls stay in reach: a restricted token would take them from the process as a whole, whose
//! files are opened by their paths.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use windows_sys::Win32::System::JobObjects::{
    JOB_OBJECT_LIMIT_ACTIVE_PROCESS, JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION,
    JOB_OBJECT_LIMIT_PROCESS_MEMORY, JOB_OBJECT_LIMIT_PROCESS_TIME,
};

use super::handle::BorrowedHandle;
use super::job::{Job, Limits};
use super::process::processor_time;
pub use crate::sys::confinement::{ConfineError, Confinement};

/// The job of this process alone, and its limits.
static ALONE: OnceLock<(Job, Limits)> = OnceLock::new();

/// Confines this process to what a machine needs. To be called before it reads what others wrote.
pub fn machine<'a>(
    _files: impl IntoIterator<Item = (BorrowedHandle<'a>, bool)>,
) -> Result<Confinement, ConfineError> {
    alone(Limits::default())?;
    Ok(Confinement { system_calls: false, files: false })
}

/// As [`machine`], for a process that serves a network.
pub fn network<'a>(
    _files: impl IntoIterator<Item = BorrowedHandle<'a>>,
    _readable: &[PathBuf],
) -> Result<Confinement, ConfineError> {
    machine([])
}

/// As [`machine`], for a process that does nothing but compute in so many bytes of memory, and answer by a channel that it has.
pub fn computation(memory: u64) -> Result<(), ConfineError> {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    alone(Limits { flags: JOB_OBJECT_LIMIT_PROCESS_MEMORY, memory, ..Limits::default() })
}

/// Gives a process that computes its time anew, in seconds of a processor; when that is over the system ends it.
pub fn limit_time(seconds: u64) -> io::Result<()> {
    let Some((job, limits)) = ALONE.get() else { return Ok(()) };
    let used = processor_time().as_nanos() / 100;
    let time = i64::try_from(used).unwrap_or(i64::MAX).saturating_add(seconds as i64 * 10_000_000);
    job.limit(&Limits { flags: limits.flags | JOB_OBJECT_LIMIT_PROCESS_TIME, time, ..*limits })
}

/// Puts this process into a job of its own in which it stays the only one, once.
fn alone(mut limits: Limits) -> Result<(), ConfineError> {
    limits.flags |= JOB_OBJECT_LIMIT_ACTIVE_PROCESS | JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION;
    limits.processes = 1;
    let made = Job::new(&limits).and_then(|job| job.take_this_process().map(|()| job));
    let refused =
        |error: io::Error| ConfineError::Refused { wall: "a job", why: error.to_string() };
    let _ = ALONE.set((made.map_err(refused)?, limits));
    Ok(())
}
