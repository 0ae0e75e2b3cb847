//! What sockets of this host tell of who is at their other end.

use std::os::unix::net::UnixStream;

/// Whether the other end belongs to this user (`SO_PEERCRED`).
pub(in crate::sys) fn is_own_user(stream: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream);
    peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

/// Flags of each call say the same here.
#[cfg(test)]
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub(in crate::sys) fn without_signal(_stream: &UnixStream) -> std::io::Result<()> {
    Ok(())
}
