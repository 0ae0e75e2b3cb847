//! What is closed when a process has ended already.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use super::process::own_handle;

/// The stack of what stays behind, which makes three system calls.
const STACK: usize = 16 << 10;

/// What stays behind is told.
struct Left {
    descriptor: RawFd,
    process: RawFd,
}

/// Has a descriptor closed once more after this process has ended, however it ends, by a child that does nothing else: for what
/// takes the kernel long to take apart, so that nobody waits for it who waits for this process. The descriptor is still to
/// be closed here. The child costs no memory but its stack, since it shares this process's, which stays as long as it does.
pub fn close_behind(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let process = own_handle()?;
    let left = Left { descriptor: descriptor.as_raw_fd(), process: process.as_raw_fd() };
    // Both are the child's, too, for as long as it lives.
    let left = Box::leak(Box::new(left));
    let stack = Box::leak(Box::new([0_u128; STACK / size_of::<u128>()]));
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the sets are places for what the calls write. The child has a stack of its own, runs `stay` alone, which
    // touches no memory but that and `left`, and takes no signal: it begins with this thread's mask.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
        let end = stack.as_mut_ptr_range().end.cast();
        let child = libc::clone(stay, end, libc::CLONE_VM, ptr::from_mut(left).cast());
        let result = if child < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        result
    }
}

/// The child's life: it has copies of all descriptors, closes those that it is not for, and waits for the process's end. Its
/// own end closes the rest.
extern "C" fn stay(left: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `close_behind` leaves it for ever. The calls touch no memory but `poll`, which is this stack's. `errno` is the
    // other thread's, and written if a call fails: before Linux 5.9, which has no `close_range`. The descriptors that then
    // stay open are closed at the end, too.
    unsafe {
        let Left { descriptor, process } = *left.cast::<Left>();
        let (low, high) = (descriptor.min(process), descriptor.max(process));
        for (first, last) in [(0, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)] {
            if first <= last {
                libc::syscall(libc::SYS_close_range, first, last, 0);
            }
        }
        let mut poll = libc::pollfd { fd: process, events: libc::POLLIN, revents: 0 };
        let (for_ever, mask) = (ptr::null::<libc::timespec>(), ptr::null::<libc::sigset_t>());
        libc::syscall(libc::SYS_ppoll, &raw mut poll, 1_usize, for_ever, mask, 0_usize);
    }
    0
}
