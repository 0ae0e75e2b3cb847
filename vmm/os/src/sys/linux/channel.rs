//! Messages with open handles between two processes (`unix(7)`, `SOCK_SEQPACKET`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recvmsg, sendmsg, shutdown, socketpair,
};

use crate::sys::{MAX_HANDLES, MAX_MESSAGE};

/// One end of a channel. Each message arrives whole, with its handles, or not at all.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Another handle to the same end.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()? })
    }

    /// Lets no call of this end wait longer than this: it then fails with `WouldBlock`.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&self.socket, timeout, Some(patience))?;
        }
        Ok(())
    }

    /// The other end is that process's from now on. The socket itself knows where handles go.
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "the same on every system")]
    pub fn set_peer(&self, _peer: &Child) -> io::Result<()> {
        Ok(())
    }

    /// Sends a message; waits while the peer reads too little. `BrokenPipe` once it is gone.
    pub fn send(&self, message: &[u8], handles: &[BorrowedFd<'_>]) -> io::Result<()> {
        if message.len() > MAX_MESSAGE || handles.len() > MAX_HANDLES {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !handles.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(handles));
        }
        loop {
            match sendmsg(
                &self.socket,
                &[IoSlice::new(message)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for a message; `None` once the peer is gone.
    pub fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut message = vec![0; MAX_MESSAGE];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut message)];
            match recvmsg(&self.socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        let mut handles = Vec::new();
        for item in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = item {
                handles.extend(received);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        message.truncate(received.bytes);
        // No message of this kind is empty.
        Ok((received.bytes > 0).then_some((message, handles)))
    }

    /// Ends the channel for both ends; what was sent before is still received.
    pub fn shut(&self) {
        // A peer that is gone has ended it already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Waits until the peer of this channel is gone, or the process of `other` has ended. Reads nothing.
    pub fn wait_gone(&self, other: Option<BorrowedFd<'_>>) {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::empty())];
        fds.extend(other.map(|process| PollFd::from_borrowed_fd(process, PollFlags::IN)));
        while !matches!(poll(&mut fds, None), Ok(ready) if ready > 0) {}
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
