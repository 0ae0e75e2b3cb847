//! The host's end of one connection.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, TryLockError};

use crate::VsockError;
use crate::host::Hub;
use crate::inbox::lock;
use crate::link::Link;
use crate::packet::{SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};
use crate::rx::Sent;

/// The host's end of a connection with the guest: a stream of bytes in each direction. Clones are
/// the same end; it is closed when the last one is dropped.
///
/// - A read gives what the guest has sent; `Ok(0)` once the guest has closed its end or shut it
///   down for writing. It fails with `ConnectionReset` ([`crate::VsockError::Reset`]) if the guest
///   broke the connection off, and with `BrokenPipe` ([`crate::VsockError::Closed`]) if the machine
///   is gone: what came before is delivered first in every case.
/// - [`VsockStream::receive`] shows what has come where it stands, which saves whoever passes it on a copy.
/// - A write returns once the bytes stand in the guest's buffers; it waits while the guest does not
///   read. It fails with `BrokenPipe` once the guest receives no more, or the machine is gone.
///
/// Threads use [`Read`] and [`Write`], which wait. A loop that must not wait uses
/// [`VsockStream::try_read`], [`VsockStream::try_write`] and [`VsockStream::set_waker`].
#[derive(Clone, Debug)]
pub struct VsockStream {
    handle: Arc<Handle>,
}

/// Closes the connection with the last clone.
#[derive(Debug)]
struct Handle {
    hub: Arc<Hub>,
    link: Arc<Link>,
}

impl VsockStream {
    pub(crate) fn new(hub: Arc<Hub>, link: Arc<Link>) -> Self {
        Self { handle: Arc::new(Handle { hub, link }) }
    }

    /// The port of the guest.
    pub fn guest_port(&self) -> u32 {
        self.handle.link.key.guest_port
    }

    /// The port of the host.
    pub fn host_port(&self) -> u32 {
        self.handle.link.key.host_port
    }

    /// Ends one direction or both for all clones. After `Write` the guest reads to the end of the
    /// stream; after `Read` its writes fail and reads here see the end.
    pub fn shutdown(&self, how: Shutdown) {
        let Handle { hub, link } = &*self.handle;
        let flags = match how {
            Shutdown::Read => SHUT_RECEIVE,
            Shutdown::Write => SHUT_SEND,
            Shutdown::Both => SHUT_BOTH,
        };
        hub.shut(link, flags);
    }

    /// Waits for bytes and shows some of them to `take` where they stand; says how many there were, 0 at the end of
    /// the stream. They count as read once `take` has returned, whether it failed or not. Errors are a read's, or those
    /// of `take`.
    pub fn receive(&self, take: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<usize> {
        self.handle.receive(take)
    }

    /// Reads what is there; `WouldBlock` if nothing is yet (or another thread waits for it).
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.handle.read(buf, false)
    }

    /// Writes what the guest has room for; `WouldBlock` if it has none now.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.handle.write(buf, false)
    }

    /// Sets what to call when a read or write that would have blocked is worth another try, and
    /// calls it at once if one is. One stream has one waker, whichever clone sets it. It may be
    /// called from any thread, once too often, and must not block: let it signal an event, wake a
    /// task, or send on a channel. It must not own a clone of the stream, which could then never
    /// close.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        self.handle.link.set_waker(Some(Arc::new(waker)));
    }
}

impl Handle {
    fn receive(&self, take: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<usize> {
        let mut current = lock(&self.link.current);
        let block = match current.take() {
            Some(block) => block,
            None => match self.link.next_block(true) {
                Ok(Some(block)) => block,
                Ok(None) => return Ok(0),
                Err(error) => return Err(blocked_or(error)),
            },
        };
        let taken = take(block.bytes());
        let len = block.bytes().len();
        self.hub.pool.put(block);
        drop(current);
        self.account(len);
        taken.map(|()| len)
    }

    fn read(&self, buf: &mut [u8], wait: bool) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let mut current = if wait {
            lock(&self.link.current)
        } else {
            match self.link.current.try_lock() {
                Ok(current) => current,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            }
        };
        let mut done = 0;
        while done < buf.len() {
            let mut block = match current.take() {
                Some(block) => block,
                None if done > 0 => match self.link.lock().inbox.pop() {
                    Some(block) => block,
                    None => break,
                },
                None => match self.link.next_block(wait) {
                    Ok(Some(block)) => block,
                    Ok(None) => return Ok(0),
                    Err(error) => return Err(blocked_or(error)),
                },
            };
            done += block.take(&mut buf[done..]);
            if block.is_empty() {
                self.hub.pool.put(block);
            } else {
                *current = Some(block);
            }
        }
        drop(current);
        self.account(done);
        Ok(done)
    }

    /// Gives the guest its credit back for `len` bytes that the reader took.
    fn account(&self, len: usize) {
        let owes = {
            let mut state = self.link.lock();
            state.connection.read(len as u32);
            state.connection.owes() && !state.queued
        };
        if owes {
            self.hub.send_owed(&self.link);
        }
    }

    fn write(&self, buf: &[u8], wait: bool) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.hub.send(&self.link, buf)? {
                Sent::Bytes(len) => return Ok(len),
                Sent::Blocked if wait => self.link.wait_writable(),
                Sent::Blocked => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
    }
}

/// Why there is no block to read.
fn blocked_or(error: Option<VsockError>) -> io::Error {
    error.map_or_else(|| io::ErrorKind::WouldBlock.into(), Into::into)
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.set_waker(None);
        self.hub.shut(&self.link, SHUT_BOTH);
    }
}

impl Read for &VsockStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.handle.read(buf, true)
    }
}

impl Write for &VsockStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.handle.write(buf, true)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for VsockStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Write for VsockStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
