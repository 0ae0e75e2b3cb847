//! Messages with open handles between two processes: a pipe that keeps messages whole. A handle means something in its own
//! process alone, so who sends one makes one like it in the other process (`DuplicateHandle`), and the message says its
//! number. For that the other process has to be known; only who started it does, so handles go to children alone.

use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::process::Child;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    DUPLICATE_CLOSE_SOURCE, DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE, WAIT_TIMEOUT,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, WaitForSingleObject};

use super::handle::FromHandle;
use super::pipe::{self, Transfers};
use crate::sys::{MAX_HANDLES, MAX_MESSAGE};

/// Bytes under way in each direction.
const UNDER_WAY: u32 = 1 << 20;
/// Bytes before a message: how many handles come with it.
const HEAD: usize = 4;
/// Bytes of a handle's number.
const NUMBER: usize = 8;
/// The longest packet.
const ROOM: usize = HEAD + MAX_HANDLES * NUMBER + MAX_MESSAGE;
/// How long the end waits for room.
const FAREWELL: Duration = Duration::from_millis(100);
/// How often it is looked whether the peer is still there.
const LOOK: Duration = Duration::from_millis(200);

/// One end of a channel. Each message arrives whole, with its handles, or not at all.
#[derive(Debug)]
pub struct Channel {
    pipe: Transfers,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The child that has the other end; until one has, it is in this process. What a child sends brings no handles: their
    /// numbers would be its word.
    peer: Mutex<Option<OwnedHandle>>,
    /// Milliseconds; 0 is without end.
    patience: AtomicU64,
}

impl Channel {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = pipe::pair(UNDER_WAY)?;
        Ok((Self::from_handle(one)?, Self::from_handle(other)?))
    }

    /// Another handle to the same end.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { pipe: self.pipe.try_clone()?, shared: Arc::clone(&self.shared) })
    }

    /// Lets no call of this end wait longer than this: it then fails with `WouldBlock`.
    #[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let patience = patience.as_millis().clamp(1, u128::from(u32::MAX - 1)) as u64;
        self.shared.patience.store(patience, Ordering::Relaxed);
        Ok(())
    }

    /// The other end is that process's from now on: handles go there, and none come from there.
    pub fn set_peer(&self, peer: &Child) -> io::Result<()> {
        *self.peer() = Some(peer.as_handle().try_clone_to_owned()?);
        Ok(())
    }

    fn peer(&self) -> MutexGuard<'_, Option<OwnedHandle>> {
        self.shared.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn patience(&self) -> Option<Duration> {
        match self.shared.patience.load(Ordering::Relaxed) {
            0 => None,
            patience => Some(Duration::from_millis(patience)),
        }
    }

    /// Sends a message; waits while the peer reads too little. `BrokenPipe` once it is gone.
    pub fn send(&self, message: &[u8], handles: &[BorrowedHandle<'_>]) -> io::Result<()> {
        if message.len() > MAX_MESSAGE || handles.len() > MAX_HANDLES {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        let mut there = There { peer: self.peer(), handles: Vec::new() };
        for handle in handles {
            there.add(*handle)?;
        }
        let mut packet = Vec::with_capacity(HEAD + handles.len() * NUMBER + message.len());
        packet.extend_from_slice(&(handles.len() as u32).to_le_bytes());
        for handle in &there.handles {
            packet.extend_from_slice(&(*handle as u64).to_le_bytes());
        }
        packet.extend_from_slice(message);
        self.pipe.write(&packet, self.patience())?;
        // They are the peer's now.
        there.handles.clear();
        Ok(())
    }

    /// Waits for a message; `None` once the peer is gone.
    pub fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedHandle>)>> {
        let mut packet = vec![0; ROOM];
        let part = self.pipe.read(&mut packet, self.patience())?;
        if part.len == 0 {
            return Ok(None);
        }
        packet.truncate(part.len);
        let head =
            packet.first_chunk().filter(|_| !part.more).map(|count| u32::from_le_bytes(*count));
        let count = head.ok_or(io::ErrorKind::InvalidData)? as usize;
        let trusted = self.peer().is_none();
        if count > MAX_HANDLES || count > 0 && !trusted {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let begin = HEAD + count * NUMBER;
        let numbers = packet.get(HEAD..begin).ok_or(io::ErrorKind::InvalidData)?;
        let handles = numbers.chunks_exact(NUMBER).map(|number| {
            let number = u64::from_le_bytes(number.try_into().unwrap_or_default());
            // SAFETY: who started this process, or is this process, made the handle here for whoever gets the message.
            unsafe { OwnedHandle::from_raw_handle(number as usize as HANDLE) }
        });
        let handles = handles.collect();
        packet.drain(..begin);
        Ok(Some((packet, handles)))
    }

    /// Ends the channel for both ends; what was sent before is still received.
    pub fn shut(&self) {
        self.pipe.finish(Some(FAREWELL));
        self.pipe.end();
    }

    /// Waits until the peer of this channel is gone, or the process of `other` has ended. Reads nothing.
    pub fn wait_gone(&self, other: Option<BorrowedHandle<'_>>) {
        while !self.pipe.is_gone() {
            match other {
                None => thread::sleep(LOOK),
                // SAFETY: the handle is a process's and open.
                Some(other) => match unsafe {
                    WaitForSingleObject(other.as_raw_handle(), LOOK.as_millis() as u32)
                } {
                    WAIT_TIMEOUT => {}
                    _ => return,
                },
            }
        }
    }
}

impl FromHandle for Channel {
    fn from_handle(handle: OwnedHandle) -> io::Result<Self> {
        Ok(Self { pipe: Transfers::new(handle)?, shared: Arc::default() })
    }
}

impl From<Channel> for OwnedHandle {
    fn from(channel: Channel) -> Self {
        channel.pipe.into_handle()
    }
}

impl AsHandle for Channel {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.pipe.handle().as_handle()
    }
}

/// Handles made in the peer, which go again if they do not get there.
struct There<'a> {
    peer: MutexGuard<'a, Option<OwnedHandle>>,
    handles: Vec<HANDLE>,
}

impl There<'_> {
    fn process(&self) -> HANDLE {
        // SAFETY: a constant that stands for this process.
        let own = unsafe { GetCurrentProcess() };
        self.peer.as_ref().map_or(own, AsRawHandle::as_raw_handle)
    }

    fn add(&mut self, handle: BorrowedHandle<'_>) -> io::Result<()> {
        let (mut made, to) = (ptr::null_mut(), self.process());
        // SAFETY: both processes and the handle are open; the number is written.
        let done = unsafe {
            let (own, handle) = (GetCurrentProcess(), handle.as_raw_handle());
            DuplicateHandle(own, handle, to, &raw mut made, 0, 0, DUPLICATE_SAME_ACCESS)
        };
        if done == 0 {
            return Err(io::Error::last_os_error());
        }
        self.handles.push(made);
        Ok(())
    }
}

impl Drop for There<'_> {
    fn drop(&mut self) {
        let (process, none) = (self.process(), ptr::null_mut());
        for handle in &self.handles {
            // SAFETY: the handle was made there by us, and nobody has heard of it.
            unsafe {
                DuplicateHandle(process, *handle, none, none.cast(), 0, 0, DUPLICATE_CLOSE_SOURCE)
            };
        }
    }
}
