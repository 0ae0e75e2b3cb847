//! Packets between two processes (a named pipe that keeps messages whole), many and without waiting.
//!
//! One read is under way from the first look on, and at most one write, into and from memory that belongs to the pipe.

use std::fmt;
use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    ERROR_IO_INCOMPLETE, ERROR_IO_PENDING, ERROR_MORE_DATA, HANDLE,
};
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};

use super::event::Event;
use super::handle::FromHandle;
use super::pipe::{self, is_end};
use super::poller::{Possible, Source, Watch};

/// Bytes under way in each direction.
const UNDER_WAY: u32 = 4 << 20;
/// The longest packet that is read.
const ROOM: usize = 128 << 10;
/// How long somebody who waits sleeps between two looks.
const NAP: Duration = Duration::from_millis(1);

/// One end. Each packet arrives whole and in order, or not at all.
#[derive(Debug)]
pub struct Packets {
    pipe: Arc<Pipe>,
}

/// The end itself, and what is under way.
#[derive(Debug)]
pub(super) struct Pipe {
    handle: OwnedHandle,
    reads: Mutex<Transfer>,
    writes: Mutex<Transfer>,
}

/// A read or a write, and its memory, which the system uses until it is done.
struct Transfer {
    event: Event,
    place: Box<OVERLAPPED>,
    bytes: Vec<u8>,
    begun: bool,
}

// SAFETY: the structure is the system's to fill while a transfer is under way, and ours otherwise, under a lock.
unsafe impl Send for Transfer {}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Transfer {
    fn new(room: usize) -> io::Result<Self> {
        let (event, place) = (Event::new()?, Box::default());
        Ok(Self { event, place, bytes: vec![0; room], begun: false })
    }

    /// How it stands: the bytes moved, or an error, or `None` while it is under way.
    fn result(&mut self, pipe: HANDLE) -> Option<io::Result<usize>> {
        let mut moved = 0;
        // SAFETY: the structure is that of the transfer; the call does not wait.
        if unsafe { GetOverlappedResult(pipe, &raw const *self.place, &raw mut moved, 0) } != 0 {
            return Some(Ok(moved as usize));
        }
        match last_error() {
            (ERROR_IO_INCOMPLETE, _) => None,
            (_, error) => Some(Err(error)),
        }
    }

    /// Begins one; `call` is told the memory, its length and the structure.
    fn begin(&mut self, call: impl FnOnce(*mut u8, u32, *mut OVERLAPPED) -> i32) -> io::Result<()> {
        *self.place = OVERLAPPED { hEvent: self.event.raw(), ..OVERLAPPED::default() };
        let (bytes, len) = (self.bytes.as_mut_ptr(), self.bytes.len() as u32);
        self.begun = true;
        if call(bytes, len, &raw mut *self.place) == 0 {
            match last_error() {
                (ERROR_IO_PENDING | ERROR_MORE_DATA, _) => {}
                (_, error) => {
                    self.begun = false;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends what is under way, so that the memory may go.
    fn end(&mut self, pipe: HANDLE) {
        if !self.begun {
            return;
        }
        // SAFETY: ends this pipe's transfer of this structure, if it is under way at all.
        unsafe { CancelIoEx(pipe, &raw const *self.place) };
        while self.result(pipe).is_none() {
            thread::sleep(NAP);
        }
        self.begun = false;
    }
}

impl Pipe {
    fn raw(&self) -> HANDLE {
        self.handle.as_raw_handle()
    }

    /// Begins to read if nobody has.
    fn listen(&self, reads: &mut Transfer) -> io::Result<()> {
        if reads.begun {
            return Ok(());
        }
        reads.begin(|bytes, len, place| {
            // SAFETY: the memory stays until the read is done (`Transfer`).
            unsafe { ReadFile(self.raw(), bytes, len, ptr::null_mut(), place) }
        })
    }

    pub(super) fn possible(&self) -> Possible {
        let mut reads = lock(&self.reads);
        let read = match self.listen(&mut reads) {
            Ok(()) => reads.result(self.raw()),
            Err(error) => Some(Err(error)),
        };
        drop(reads);
        let mut writes = lock(&self.writes);
        let written = if writes.begun { writes.result(self.raw()) } else { Some(Ok(0)) };
        Possible {
            readable: read.is_some(),
            writable: written.is_some(),
            ended: matches!(read, Some(Err(error)) if is_end(&error)),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let pipe = self.raw();
        for transfer in [&mut self.reads, &mut self.writes] {
            transfer.get_mut().unwrap_or_else(PoisonError::into_inner).end(pipe);
        }
    }
}

impl Packets {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = Self::handles()?;
        Ok((Self::from_handle(one)?, Self::from_handle(other)?))
    }

    /// Both ends, for other processes.
    pub fn handles() -> io::Result<(OwnedHandle, OwnedHandle)> {
        pipe::pair(UNDER_WAY)
    }

    /// Sends a packet of two parts. False if the peer has to read before; an error once it is gone.
    pub fn try_send(&self, head: &[u8], body: &[u8]) -> io::Result<bool> {
        let mut writes = lock(&self.pipe.writes);
        if writes.begun {
            match writes.result(self.pipe.raw()) {
                None => return Ok(false),
                Some(result) => result?,
            };
        }
        writes.bytes.clear();
        writes.bytes.extend_from_slice(head);
        writes.bytes.extend_from_slice(body);
        writes.begin(|bytes, len, place| {
            // SAFETY: the memory stays until the write is done (`Transfer`).
            unsafe { WriteFile(self.pipe.raw(), bytes, len, ptr::null_mut(), place) }
        })?;
        Ok(true)
    }

    /// Sends a packet of two parts; waits while the peer reads too little.
    pub fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        while !self.try_send(head, body)? {
            thread::sleep(NAP);
        }
        Ok(())
    }

    /// Takes the next packet into `room`; `None` if there is none yet. No bytes: the peer is gone. What does not
    /// fit is lost.
    pub fn try_receive(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        let mut reads = lock(&self.pipe.reads);
        let read = match self.pipe.listen(&mut reads) {
            Ok(()) => reads.result(self.pipe.raw()),
            Err(error) => Some(Err(error)),
        };
        let received = match read {
            None => return Ok(None),
            Some(Err(error)) if is_end(&error) => return Ok(Some(0)),
            Some(result) => result?,
        };
        let received = received.min(room.len());
        room[..received].copy_from_slice(&reads.bytes[..received]);
        reads.begun = false;
        Ok(Some(received))
    }
}

impl FromHandle for Packets {
    fn from_handle(handle: OwnedHandle) -> io::Result<Self> {
        let (reads, writes) = (Transfer::new(ROOM)?, Transfer::new(0)?);
        let pipe = Pipe { handle, reads: Mutex::new(reads), writes: Mutex::new(writes) };
        Ok(Self { pipe: Arc::new(pipe) })
    }
}

impl Source for Packets {
    fn watch(&self) -> io::Result<Watch> {
        let objects = [&self.pipe.reads, &self.pipe.writes].map(|one| lock(one).event.object());
        let objects = objects.into_iter().collect::<io::Result<_>>()?;
        Ok(Watch::pipe(Arc::clone(&self.pipe), objects))
    }
}

fn last_error() -> (u32, io::Error) {
    let error = io::Error::last_os_error();
    (error.raw_os_error().unwrap_or_default() as u32, error)
}

fn lock(transfer: &Mutex<Transfer>) -> MutexGuard<'_, Transfer> {
    transfer.lock().unwrap_or_else(PoisonError::into_inner)
}
