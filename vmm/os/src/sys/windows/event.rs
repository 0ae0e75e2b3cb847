//! An event: signalled by any thread or by the hypervisor, waited for by one loop (`CreateEventW`).

use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr;

use windows_sys::Win32::Foundation::{HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{
    CreateEventW, ResetEvent, SetEvent, WaitForSingleObject,
};

use super::poller::{Source, Watch};

/// A flag that wakes whoever waits for it. Signals that come before anyone looks are merged.
#[derive(Debug)]
pub struct Event {
    handle: OwnedHandle,
}

impl Event {
    /// A new event, not signalled.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no security attributes and no name: nothing is pointed to. It stays signalled until it is reset.
        let handle = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system made the handle for us alone.
        Ok(Self { handle: unsafe { OwnedHandle::from_raw_handle(handle) } })
    }

    /// Another handle to the same event.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { handle: self.handle.try_clone()? })
    }

    /// Wakes the waiter.
    pub fn signal(&self) {
        // SAFETY: the handle is an event's and open.
        unsafe { SetEvent(self.handle.as_raw_handle()) };
    }

    /// The object itself, for a structure of the system's.
    pub(super) fn raw(&self) -> HANDLE {
        self.handle.as_raw_handle()
    }

    /// Another handle to the object.
    pub(super) fn object(&self) -> io::Result<OwnedHandle> {
        self.handle.try_clone()
    }

    /// Takes the signal: true if there was one since the last call, and no loop has taken it.
    pub fn take(&self) -> bool {
        let handle = self.handle.as_raw_handle();
        // SAFETY: the handle is an event's and open; nobody waits.
        unsafe { WaitForSingleObject(handle, 0) == WAIT_OBJECT_0 && ResetEvent(handle) != 0 }
    }
}

impl Source for Event {
    fn watch(&self) -> io::Result<Watch> {
        Ok(Watch::event(self.object()?))
    }
}

impl AsHandle for Event {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.handle.as_handle()
    }
}
