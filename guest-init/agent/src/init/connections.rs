//! Ending TCP connections whose other ends were left behind with the host of a snapshot. A program that
//! waited for such a peer would wait for ever: it is not there to say anything.

use std::fs;
use std::mem;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Ends every TCP connection of a program in the guest to a peer outside of it, as a reset by the peer
/// would. Who ends meanwhile needs nothing.
pub(super) fn end_all() {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number != process::id() as i32) {
        let sockets = sockets(number);
        let handle = Pid::from_raw(number).filter(|_| !sockets.is_empty());
        let Some(Ok(handle)) = handle.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            continue;
        };
        for socket in sockets {
            if let Ok(socket) = pidfd_getfd(&handle, socket, PidfdGetfdFlags::empty()) {
                end(socket);
            }
        }
    }
}

/// The descriptors of a process that are sockets.
fn sockets(process: i32) -> Vec<RawFd> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let is_socket = |entry: &fs::DirEntry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    };
    entries.filter(is_socket).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn end(socket: OwnedFd) {
    // Any socket: what it is not is answered with an error.
    let socket = TcpStream::from(socket);
    let outside = socket.peer_addr().is_ok_and(|peer| !peer.ip().is_loopback());
    if !outside || kind(&socket) != Some(libc::SOCK_STREAM) {
        return;
    }
    // SAFETY: `sockaddr` is plain data, for which all zeros is a value.
    let mut nobody: libc::sockaddr = unsafe { mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the kernel reads an address of the given size. To connect to nobody ends a connection
    // (connect(2)); whoever reads or writes hears of a reset.
    let _ = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, size(&nobody)) };
}

/// The socket's type (`SO_TYPE`).
fn kind(socket: &TcpStream) -> Option<libc::c_int> {
    let mut kind: libc::c_int = 0;
    let mut len = size(&kind);
    // SAFETY: the kernel writes a number of at most the given size, and its size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(kind)
}

fn size<T>(value: &T) -> libc::socklen_t {
    mem::size_of_val(value) as libc::socklen_t
}
