//! A queue of the kernel's events (`kqueue(2)`), with the filters and times that it has on macOS.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

#[derive(Debug)]
pub(super) struct Kqueue(OwnedFd);

/// One change of what a queue is told of.
pub(super) fn change(
    ident: usize,
    filter: i16,
    flags: u16,
    fflags: u32,
    data: isize,
    token: u64,
) -> libc::kevent {
    libc::kevent { ident, filter, flags, fflags, data, udata: token as usize as *mut _ }
}

impl Kqueue {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: makes a descriptor; no memory is involved. It is closed in programs that are started.
        let queue = unsafe {
            let queue = libc::kqueue();
            if queue < 0 || libc::fcntl(queue, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(queue)
        };
        Ok(Self(queue))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    pub(super) fn apply(&self, change: libc::kevent) -> io::Result<()> {
        let queue = self.0.as_raw_fd();
        // SAFETY: one change is read, no event is written.
        let done =
            unsafe { libc::kevent(queue, &raw const change, 1, ptr::null_mut(), 0, ptr::null()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for events and puts as many into `ready` as it has room for.
    pub(super) fn wait(&self, ready: &mut Vec<libc::kevent>) {
        self.events(ready, ptr::null());
    }

    /// Takes an event if there is one; whether there was.
    pub(super) fn take(&self) -> bool {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut ready = Vec::with_capacity(1);
        self.events(&mut ready, &raw const now);
        !ready.is_empty()
    }

    fn events(&self, ready: &mut Vec<libc::kevent>, limit: *const libc::timespec) {
        ready.clear();
        let (queue, room) = (self.0.as_raw_fd(), ready.capacity() as i32);
        // SAFETY: no change is read; no more events are written than there is room for, and that many are there then.
        unsafe {
            let count = libc::kevent(queue, ptr::null(), 0, ready.as_mut_ptr(), room, limit);
            ready.set_len(usize::try_from(count).unwrap_or(0));
        }
    }
}

impl AsFd for Kqueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
