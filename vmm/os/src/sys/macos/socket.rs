//! What sockets of this host tell of who is at their other end, and what they are told.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Whether the other end belongs to this user (`getpeereid(3)`).
pub(in crate::sys) fn is_own_user(stream: &UnixStream) -> bool {
    let (mut user, mut group) = (0, 0);
    // SAFETY: fills two numbers.
    let told = unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut user, &raw mut group) };
    told == 0 && user == rustix::process::geteuid().as_raw()
}

/// Lets a write to a socket whose peer is gone fail in place of ending the process (`SO_NOSIGPIPE`).
pub(in crate::sys) fn without_signal(stream: &UnixStream) -> io::Result<()> {
    let yes: libc::c_int = 1;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_NOSIGPIPE);
    let (at, len) = ((&raw const yes).cast(), size_of_val(&yes) as libc::socklen_t);
    // SAFETY: reads one number of the length that is told.
    match unsafe { libc::setsockopt(stream.as_raw_fd(), level, option, at, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
