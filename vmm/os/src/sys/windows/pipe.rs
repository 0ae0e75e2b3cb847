//! Named pipes that keep messages whole, and transfers that wait: what packets, channels and streams are made of.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    ERROR_BROKEN_PIPE, ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_NO_DATA, ERROR_OPERATION_ABORTED,
    ERROR_PIPE_CONNECTED, ERROR_PIPE_NOT_CONNECTED, GENERIC_READ, GENERIC_WRITE, HANDLE,
    INVALID_HANDLE_VALUE, WAIT_OBJECT_0,
};
use windows_sys::Win32::Security::SECURITY_ATTRIBUTES;
use windows_sys::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, OPEN_EXISTING,
    PIPE_ACCESS_DUPLEX, ReadFile, SECURITY_IDENTIFICATION, SECURITY_SQOS_PRESENT, WriteFile,
};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Pipes::{
    ConnectNamedPipe, CreateNamedPipeW, PIPE_READMODE_MESSAGE, PIPE_REJECT_REMOTE_CLIENTS,
    PIPE_TYPE_MESSAGE, PIPE_UNLIMITED_INSTANCES, PIPE_WAIT, PeekNamedPipe, SetNamedPipeHandleState,
};
use windows_sys::Win32::System::Threading::{
    CreateEventW, INFINITE, SetEvent, WaitForMultipleObjects,
};

use super::event::Event;
use super::process::random_bytes;

/// Both ends of a pipe of messages, with room for so many bytes in each direction.
pub(super) fn pair(under_way: u32) -> io::Result<(OwnedHandle, OwnedHandle)> {
    let number = u128::from_le_bytes(random_bytes()?);
    let name = wide(&format!(r"\\.\pipe\cabana-{number:032x}"));
    let one = serve(&name, true, Some(1), under_way, None)?;
    Ok((one, open(&name)?))
}

/// An instance of a pipe that has a name; the first one only if the name is free.
pub(super) fn serve(
    name: &[u16],
    first: bool,
    most: Option<u32>,
    under_way: u32,
    security: Option<&SECURITY_ATTRIBUTES>,
) -> io::Result<OwnedHandle> {
    let mode = PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS;
    let first = if first { FILE_FLAG_FIRST_PIPE_INSTANCE } else { 0 };
    let access = PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | first;
    let most = most.unwrap_or(PIPE_UNLIMITED_INSTANCES);
    let security = security.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the name ends with a zero; the attributes are read.
    own(unsafe {
        CreateNamedPipeW(name.as_ptr(), access, mode, most, under_way, under_way, 0, security)
    })
}

/// The other end of a pipe that somebody serves. Who does learns of this process no more than who it is.
pub(super) fn open(name: &[u16]) -> io::Result<OwnedHandle> {
    let access = GENERIC_READ | GENERIC_WRITE;
    let flags = FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION;
    // SAFETY: the name ends with a zero; the rest is plain values.
    let pipe = own(unsafe {
        CreateFileW(name.as_ptr(), access, 0, ptr::null(), OPEN_EXISTING, flags, ptr::null_mut())
    })?;
    let mode = PIPE_READMODE_MESSAGE;
    // SAFETY: one value is read; the others stay as they are.
    let done = unsafe {
        SetNamedPipeHandleState(pipe.as_raw_handle(), &raw const mode, ptr::null(), ptr::null())
    };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(pipe) }
}

/// A text as the system takes it.
pub(super) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// The name of the pipe that stands for a path: the path itself if it is one of a pipe.
pub(super) fn name(path: &Path) -> io::Result<Vec<u16>> {
    let text = path.to_string_lossy();
    if text.starts_with(r"\\.\pipe\") {
        return Ok(wide(&text));
    }
    let whole = std::path::absolute(path)?.to_string_lossy().to_lowercase();
    // All but the backslash may stand in a name.
    Ok(wide(&format!(r"\\.\pipe\{}", whole.replace('\\', "/"))))
}

fn own(handle: HANDLE) -> io::Result<OwnedHandle> {
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system made the handle for us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Whether an error says that the other end is gone.
pub(super) fn is_end(error: &io::Error) -> bool {
    let ends = [ERROR_BROKEN_PIPE, ERROR_NO_DATA, ERROR_PIPE_NOT_CONNECTED];
    ends.iter().any(|end| error.raw_os_error() == Some(*end as i32))
}

/// An end of a pipe whose transfers wait. Clones share what has come and gone.
#[derive(Debug)]
pub(super) struct Transfers {
    pipe: OwnedHandle,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// One transfer each way at a time, with what is signalled at its end.
    reads: Mutex<Event>,
    writes: Mutex<Event>,
    /// Signalled for good once nobody is to wait any more.
    over: OwnedHandle,
    /// The peer has said that nothing more comes.
    ended: AtomicBool,
    /// The peer was told the same.
    finished: AtomicBool,
}

/// A message or a part of one.
pub(super) struct Part {
    pub(super) len: usize,
    /// It is not the last part.
    pub(super) more: bool,
}

impl Transfers {
    pub(super) fn new(pipe: OwnedHandle) -> io::Result<Self> {
        // SAFETY: no security attributes and no name: nothing is pointed to. It stays signalled.
        let over = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
        if over.is_null() {
            return Err(io::Error::last_os_error());
        }
        let shared = Shared {
            reads: Mutex::new(Event::new()?),
            writes: Mutex::new(Event::new()?),
            // SAFETY: the system made the handle for us alone.
            over: unsafe { OwnedHandle::from_raw_handle(over) },
            ended: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        };
        Ok(Self { pipe, shared: Arc::new(shared) })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { pipe: self.pipe.try_clone()?, shared: Arc::clone(&self.shared) })
    }

    pub(super) fn handle(&self) -> &OwnedHandle {
        &self.pipe
    }

    pub(super) fn into_handle(self) -> OwnedHandle {
        self.pipe
    }

    /// Waits for a message, or what is left of one. Empty: nothing more comes.
    pub(super) fn read(&self, into: &mut [u8], patience: Option<Duration>) -> io::Result<Part> {
        let end = Part { len: 0, more: false };
        let event = self.shared.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.ended.load(Ordering::Acquire) {
            return Ok(end);
        }
        let (at, len) = (into.as_mut_ptr(), u32::try_from(into.len()).unwrap_or(u32::MAX));
        let read = self.transfer(&event, patience, |pipe, place| {
            // SAFETY: the memory is ours until the transfer is done, which is awaited.
            unsafe { ReadFile(pipe, at, len, ptr::null_mut(), place) }
        });
        let part = match read {
            Ok(part) => part,
            Err(error) if is_end(&error) => end,
            Err(error) => return Err(error),
        };
        if part.len == 0 {
            self.shared.ended.store(true, Ordering::Release);
        }
        Ok(part)
    }

    /// Sends a message, whole or not at all; waits while the peer reads too little. An empty one says that no more comes.
    pub(super) fn write(&self, message: &[u8], patience: Option<Duration>) -> io::Result<()> {
        let event = self.shared.writes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.finished.load(Ordering::Acquire) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let at = message.as_ptr();
        let written = self.transfer(&event, patience, |pipe, place| {
            // SAFETY: the memory is the caller's until the transfer is done, which is awaited.
            unsafe { WriteFile(pipe, at, len, ptr::null_mut(), place) }
        });
        match written {
            Ok(_) if self.is_over() => Err(io::ErrorKind::BrokenPipe.into()),
            Ok(_) => Ok(()),
            Err(error) if is_end(&error) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(error),
        }
    }

    /// Tells the peer that no more comes.
    pub(super) fn finish(&self, patience: Option<Duration>) {
        let told = self.write(&[], patience);
        // A peer that is gone, or reads nothing, hears of it when the last handle goes.
        drop(told);
        self.shared.finished.store(true, Ordering::Release);
    }

    /// Ends all waiting of this process.
    pub(super) fn end(&self) {
        self.shared.ended.store(true, Ordering::Release);
        // SAFETY: the handle is an event's and open.
        unsafe { SetEvent(self.shared.over.as_raw_handle()) };
    }

    fn is_over(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire) && self.shared.finished.load(Ordering::Acquire)
    }

    /// Waits until somebody has opened the other end of a served pipe.
    pub(super) fn connect(&self) -> io::Result<()> {
        let event = self.shared.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = self.transfer(&event, None, |pipe, place| {
            // SAFETY: the structure stays until the transfer is done, which is awaited.
            unsafe { ConnectNamedPipe(pipe, place) }
        });
        match connected {
            // It was there already, and may have gone again.
            Err(error) if error.raw_os_error() == Some(ERROR_PIPE_CONNECTED as i32) => Ok(()),
            Err(error) if error.raw_os_error() == Some(ERROR_NO_DATA as i32) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether the peer is gone and has left nothing to be read.
    pub(super) fn is_gone(&self) -> bool {
        let (none, pipe) = (ptr::null_mut(), self.pipe.as_raw_handle());
        // SAFETY: asks for nothing; the handle is a pipe's and open.
        unsafe {
            PeekNamedPipe(pipe, none, 0, ptr::null_mut(), ptr::null_mut(), ptr::null_mut()) == 0
        }
    }

    /// Begins a transfer and waits for its end. With patience over it is called off: `WouldBlock`; if waiting is over it
    /// is called off as one that moved nothing.
    fn transfer(
        &self,
        event: &Event,
        patience: Option<Duration>,
        call: impl FnOnce(HANDLE, *mut OVERLAPPED) -> i32,
    ) -> io::Result<Part> {
        let pipe = self.pipe.as_raw_handle();
        let mut place = OVERLAPPED { hEvent: event.raw(), ..OVERLAPPED::default() };
        let place = &raw mut place;
        if call(pipe, place) == 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error().map(|code| code as u32) {
                Some(ERROR_IO_PENDING | ERROR_MORE_DATA) => {}
                _ => return Err(error),
            }
        }
        let objects = [event.raw(), self.shared.over.as_raw_handle()];
        let limit = patience.map_or(INFINITE, |patience| patience.as_millis() as u32);
        // SAFETY: two handles that are open.
        let woken = unsafe { WaitForMultipleObjects(2, objects.as_ptr(), 0, limit) };
        if woken != WAIT_OBJECT_0 {
            // SAFETY: calls off this transfer, if it is still under way.
            unsafe { CancelIoEx(pipe, place) };
        }
        let mut moved = 0;
        // SAFETY: the structure is the transfer's; the call waits until the system has done with it and its memory.
        let fine = unsafe { GetOverlappedResult(pipe, place, &raw mut moved, 1) } != 0;
        let (error, len) = (io::Error::last_os_error(), moved as usize);
        match error.raw_os_error().map(|code| code as u32) {
            _ if fine => Ok(Part { len, more: false }),
            Some(ERROR_MORE_DATA) => Ok(Part { len, more: true }),
            Some(ERROR_OPERATION_ABORTED) if woken == WAIT_OBJECT_0 + 1 => {
                Ok(Part { len: 0, more: false })
            }
            Some(ERROR_OPERATION_ABORTED) => Err(io::ErrorKind::WouldBlock.into()),
            _ => Err(error),
        }
    }
}
