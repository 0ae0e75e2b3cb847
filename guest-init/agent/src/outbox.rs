//! Bytes on their way to the host. Large pieces are lent: the kernel sends them from where they stand
//! (`MSG_ZEROCOPY`, the kernel's `Documentation/networking/msg_zerocopy.rst`) and says on the socket's error queue
//! when it has done with them. Over vsock a lent byte is copied once on its way to the host, by the host.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::pages::Pages;

/// Bytes of a buffer, and the most that [`Outbox::room`] gives: one packet of vsock's.
pub const BUFFER: usize = 64 << 10;

/// What is worth lending: to pin pages and to hear of them costs as much as to copy a few.
const LENT: usize = 16 << 10;

/// `linux/errqueue.h`: what the error queue says of lent bytes.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;

/// Empty buffers that are kept, for all streams together.
const SPARE: usize = 4;

static POOL: Mutex<Vec<Pages>> = Mutex::new(Vec::new());

/// What waits to be sent on one stream, of any kind, and what was lent to the kernel. A stream that cannot borrow gets
/// copies.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<Buffer>,
    /// What is sent but may still be read, oldest first.
    lent: VecDeque<Buffer>,
    /// The stream can borrow; not known before the first large piece.
    lends: Option<bool>,
    /// Sends that have lent; the kernel numbers them from 0.
    sends: u32,
    /// Of these the kernel has done with so many.
    released: u32,
}

/// `pages[start..end]` is to be sent.
#[derive(Debug)]
struct Buffer {
    pages: Pages,
    start: usize,
    end: usize,
    /// [`Outbox::sends`] after the last that lent from here.
    lent: Option<u32>,
}

impl Outbox {
    /// Room for `size` bytes, at most [`BUFFER`], behind what waits. What is put there is queued by
    /// [`Outbox::queue`]. Fails when there is no memory.
    pub fn room(&mut self, size: usize) -> io::Result<&mut [u8]> {
        if self.waiting.back().is_none_or(|last| BUFFER - last.end < size) {
            let spare = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let pages = spare.map_or_else(|| Pages::new(BUFFER), Ok)?;
            self.waiting.push_back(Buffer { pages, start: 0, end: 0, lent: None });
        }
        let last = self.waiting.back_mut().ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(&mut last.pages[last.end..last.end + size])
    }

    /// Queues the first `length` bytes of the last [`Outbox::room`].
    pub fn queue(&mut self, length: usize) {
        if let Some(last) = self.waiting.back_mut() {
            last.end += length;
        }
    }

    /// Queues a copy of `bytes`.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(BUFFER) {
            self.room(piece.len())?.copy_from_slice(piece);
            self.queue(piece.len());
        }
        Ok(())
    }

    /// Whether everything queued has been sent.
    pub fn is_flushed(&self) -> bool {
        self.waiting.iter().all(|buffer| buffer.start == buffer.end)
    }

    /// Sends as much as the stream takes now; what it does not take is no error.
    pub fn flush(&mut self, stream: BorrowedFd<'_>) -> Result<(), Errno> {
        self.reclaim(stream)?;
        while let Some(buffer) = self.waiting.front_mut() {
            if buffer.start < buffer.end {
                let bytes = &buffer.pages[buffer.start..buffer.end];
                let lends =
                    bytes.len() >= LENT && *self.lends.get_or_insert_with(|| can_borrow(stream));
                let sent =
                    if lends { lend(stream, bytes) } else { rustix::io::write(stream, bytes) };
                match sent {
                    Ok(0) => return Err(Errno::PIPE),
                    Ok(sent) => buffer.start += sent,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => return Ok(()),
                    // As much is lent as may be.
                    Err(Errno::NOBUFS | Errno::NOMEM) if lends => {
                        self.lends = Some(false);
                        continue;
                    }
                    Err(errno) => return Err(errno),
                }
                if lends {
                    self.sends = self.sends.wrapping_add(1);
                    buffer.lent = Some(self.sends);
                }
            } else if let Some(buffer) = self.waiting.pop_front() {
                match buffer.lent {
                    Some(_) => self.lent.push_back(buffer),
                    None => give_back(buffer.pages),
                }
            }
        }
        Ok(())
    }

    /// Waits until everything queued has been sent.
    pub fn drain(&mut self, stream: BorrowedFd<'_>) -> Result<(), Errno> {
        loop {
            self.flush(stream)?;
            if self.is_flushed() {
                return Ok(());
            }
            match poll(&mut [PollFd::from_borrowed_fd(stream, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Takes back what the kernel has done with. Until then poll says `POLLERR` of the stream.
    pub fn reclaim(&mut self, stream: BorrowedFd<'_>) -> Result<(), Errno> {
        while self.released != self.sends
            && let Some((first, last)) = released(stream)?
        {
            if first == self.released {
                self.released = last.wrapping_add(1);
            } else {
                // Out of turn, as no transport of vsock does. What is lent stays lent; it ends with the stream.
                self.lends = Some(false);
            }
        }
        let is_released = |sends: u32| self.released.wrapping_sub(sends) as i32 >= 0;
        let done =
            self.lent.iter().take_while(|buffer| buffer.lent.is_none_or(is_released)).count();
        self.lent.drain(..done).for_each(|buffer| give_back(buffer.pages));
        Ok(())
    }
}

/// Keeps an empty buffer for the next who needs one.
fn give_back(pages: Pages) {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.len() < SPARE {
        pool.push(pages);
    }
}

/// Asks a stream to borrow what is sent with `MSG_ZEROCOPY`; false of one that cannot.
fn can_borrow(stream: BorrowedFd<'_>) -> bool {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of an int that lives.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    result == 0
}

fn lend(stream: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes live; that they do not change before the kernel has done with them is for their meaning alone:
    // it holds the pages.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| last_error())
}

/// The next sends with which the kernel has done, first and last; `None` if there are none yet.
fn released(stream: BorrowedFd<'_>) -> Result<Option<(u32, u32)>, Errno> {
    /// A control message (cmsg(3)) with a `sock_extended_err`, and room for the address that may follow.
    #[repr(C)]
    struct Notice {
        head: libc::cmsghdr,
        error: libc::sock_extended_err,
        address: [u64; 16],
    }
    // SAFETY: all of these are numbers and pointers, of which zero is a value.
    let (mut notice, mut message): (Notice, libc::msghdr) = unsafe { std::mem::zeroed() };
    message.msg_control = (&raw mut notice).cast();
    message.msg_controllen = size_of_val(&notice) as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the message names no buffer but the notice, which lives and is as large as it says.
    if unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) } < 0 {
        return match last_error() {
            Errno::AGAIN | Errno::INTR => Ok(None),
            errno => Err(errno),
        };
    }
    match notice.error {
        error if error.ee_origin == SO_EE_ORIGIN_ZEROCOPY => {
            Ok(Some((error.ee_info, error.ee_data)))
        }
        // Nothing else is awaited there.
        _ => Err(Errno::PROTO),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn pattern(at: usize) -> u8 {
        (at.wrapping_mul(0x9e37_79b9) >> 13) as u8
    }

    /// Sends a pattern in pieces of all sizes while `from` is read slowly, and says how often it had to lend.
    fn send_all(mut from: impl Read + Send + 'static, to: BorrowedFd<'_>, total: usize) -> Outbox {
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            from.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), total);
            assert!(got.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
        });
        let mut outbox = Outbox::default();
        let mut at = 0;
        while at < total {
            let size = [5, 60 << 10, 1, BUFFER, 4096, 20_000][at % 6].min(total - at);
            for (offset, byte) in outbox.room(size).unwrap().iter_mut().enumerate() {
                *byte = pattern(at + offset);
            }
            outbox.queue(size);
            at += size;
            outbox.drain(to).unwrap();
        }
        rustix::net::shutdown(to, rustix::net::Shutdown::Write).unwrap();
        reader.join().unwrap();
        outbox
    }

    #[test]
    fn what_is_lent_arrives_whole_and_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        to.set_nonblocking(true).unwrap();
        let from = listener.accept().unwrap().0;
        let mut outbox = send_all(from, to.as_fd(), 20 << 20);
        assert!(outbox.sends > 100, "a TCP connection borrows: {}", outbox.sends);
        for _ in 0..1000 {
            outbox.reclaim(to.as_fd()).unwrap();
            if outbox.lent.is_empty() {
                assert_eq!(outbox.released, outbox.sends);
                return;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{} buffers are still lent", outbox.lent.len());
    }

    #[test]
    fn what_cannot_borrow_gets_copies() {
        let (from, to) = UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        let outbox = send_all(from, to.as_fd(), 5 << 20);
        assert_eq!((outbox.sends, outbox.lent.len()), (0, 0));
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let (from, to) = UnixStream::pair().unwrap();
        drop(from);
        let mut outbox = Outbox::default();
        outbox.push(b"to nobody").unwrap();
        assert_eq!(outbox.flush(to.as_fd()), Err(Errno::PIPE));
    }
}
