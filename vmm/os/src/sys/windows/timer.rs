//! A clock that wakes a loop once (`CreateWaitableTimerExW`).

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Foundation::WAIT_OBJECT_0;
use windows_sys::Win32::System::Threading::{
    CREATE_WAITABLE_TIMER_HIGH_RESOLUTION, CancelWaitableTimer, CreateWaitableTimerExW,
    SetWaitableTimer, TIMER_ALL_ACCESS, WaitForSingleObject,
};

use super::poller::{Source, Watch};

/// A timer on a clock that only goes forward; signalled once its time has come.
#[derive(Debug)]
pub struct Timer {
    handle: OwnedHandle,
}

impl Timer {
    /// A timer that is not set. Where Windows has such timers (10, version 1803), it is finer than the ticks of the
    /// system's clock.
    pub fn new() -> io::Result<Self> {
        Self::with(CREATE_WAITABLE_TIMER_HIGH_RESOLUTION).or_else(|_| Self::with(0))
    }

    fn with(flags: u32) -> io::Result<Self> {
        let access = TIMER_ALL_ACCESS;
        // SAFETY: no security attributes and no name: nothing is pointed to. It resets itself when taken.
        let handle = unsafe { CreateWaitableTimerExW(ptr::null(), ptr::null(), flags, access) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system made the handle for us alone.
        Ok(Self { handle: unsafe { OwnedHandle::from_raw_handle(handle) } })
    }

    /// Another handle to the same timer.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { handle: self.handle.try_clone()? })
    }

    /// Sets it to wake once, `after` from now, or not at all.
    pub fn set(&self, after: Option<Duration>) {
        // In steps of 100 ns; what is negative counts from now on. A time of zero is one that has come.
        let due =
            after.map(|after| -i64::try_from(after.as_nanos().div_ceil(100)).unwrap_or(i64::MAX));
        let (handle, never) = (self.handle.as_raw_handle(), i64::MIN / 2);
        // SAFETY: the handle is a timer's and open; nothing is called back.
        unsafe {
            // This resets it, too, which stopping does not.
            SetWaitableTimer(handle, &raw const never, 0, None, ptr::null(), 0);
            match due {
                Some(due) => SetWaitableTimer(handle, &raw const due, 0, None, ptr::null(), 0),
                None => CancelWaitableTimer(handle),
            };
        }
    }

    /// Takes the signal: true if its time has come since the last call, and no loop has taken it.
    pub fn take(&self) -> bool {
        // SAFETY: the handle is a timer's and open; nobody waits.
        unsafe { WaitForSingleObject(self.handle.as_raw_handle(), 0) == WAIT_OBJECT_0 }
    }
}

impl Source for Timer {
    fn watch(&self) -> io::Result<Watch> {
        Ok(Watch::timer(self.handle.try_clone()?))
    }
}
