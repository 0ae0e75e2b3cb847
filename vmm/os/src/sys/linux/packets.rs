//! Packets between two processes (`unix(7)`, `SOCK_SEQPACKET`), many and without waiting.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair, sockopt,
};

/// Bytes under way in each direction, as far as the host lets a user have so many.
const UNDER_WAY: usize = 4 << 20;

/// One end. Each packet arrives whole and in order, or not at all.
#[derive(Debug)]
pub struct Packets {
    socket: OwnedFd,
}

impl Packets {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for end in [&one, &other] {
            sockopt::set_socket_send_buffer_size(end, UNDER_WAY)?;
        }
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Both ends, for other processes.
    pub fn handles() -> io::Result<(OwnedFd, OwnedFd)> {
        let (one, other) = Self::pair()?;
        Ok((one.into(), other.into()))
    }

    /// Sends a packet of two parts. False if the peer has to read before; an error once it is gone.
    pub fn try_send(&self, head: &[u8], body: &[u8]) -> io::Result<bool> {
        let parts = [IoSlice::new(head), IoSlice::new(body)];
        loop {
            let mut none = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &parts, &mut none, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a packet of two parts; waits while the peer reads too little.
    pub fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        while !self.try_send(head, body)? {
            let mut room = [PollFd::new(&self.socket, PollFlags::OUT)];
            match poll(&mut room, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes the next packet into `room`; `None` if there is none yet. No bytes: the peer is gone. What does not
    /// fit is lost.
    pub fn try_receive(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match recv(&self.socket, &mut *room, RecvFlags::empty()) {
                Ok((received, _)) => return Ok(Some(received)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Ok(Some(0)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl From<OwnedFd> for Packets {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Packets> for OwnedFd {
    fn from(packets: Packets) -> Self {
        packets.socket
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
