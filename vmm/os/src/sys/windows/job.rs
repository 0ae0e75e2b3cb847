//! Jobs: what several processes may take together, and how they end.

use std::io;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr;

use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectExtendedLimitInformation, SetInformationJobObject,
};
use windows_sys::Win32::System::Threading::GetCurrentProcess;

/// A job of no name. What it says of its processes' end holds when this is dropped.
#[derive(Debug)]
pub(super) struct Job(OwnedHandle);

/// What a job's processes may take; the flags say which of the limits hold.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits {
    /// `JOB_OBJECT_LIMIT_*`.
    pub(super) flags: u32,
    /// Processes at once.
    pub(super) processes: u32,
    /// Bytes that each of them may commit.
    pub(super) memory: usize,
    /// Processor time of each of them in steps of 100 ns.
    pub(super) time: i64,
}

impl Job {
    pub(super) fn new(limits: &Limits) -> io::Result<Self> {
        // SAFETY: no attributes and no name: nothing is pointed to.
        let job = unsafe { CreateJobObjectW(ptr::null(), ptr::null()) };
        if job.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system made the handle for us alone.
        let job = Self(unsafe { OwnedHandle::from_raw_handle(job) });
        job.limit(limits)?;
        Ok(job)
    }

    /// Puts limits in the place of the last.
    pub(super) fn limit(&self, limits: &Limits) -> io::Result<()> {
        let mut information = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
        information.BasicLimitInformation.LimitFlags = limits.flags;
        information.BasicLimitInformation.ActiveProcessLimit = limits.processes;
        information.BasicLimitInformation.PerProcessUserTimeLimit = limits.time;
        information.ProcessMemoryLimit = limits.memory;
        let len = size_of_val(&information) as u32;
        let kind = JobObjectExtendedLimitInformation;
        // SAFETY: reads a structure of that kind, of the length that is told.
        let set = unsafe {
            let job = self.0.as_raw_handle();
            SetInformationJobObject(job, kind, (&raw const information).cast(), len)
        };
        if set == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes this process in for good.
    pub(super) fn take_this_process(&self) -> io::Result<()> {
        // SAFETY: a constant that stands for this process.
        self.take(unsafe { BorrowedHandle::borrow_raw(GetCurrentProcess()) })
    }

    /// Takes a process in for good, beside the jobs that it is in.
    pub(super) fn take(&self, process: BorrowedHandle<'_>) -> io::Result<()> {
        // SAFETY: both handles are open.
        match unsafe { AssignProcessToJobObject(self.0.as_raw_handle(), process.as_raw_handle()) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
