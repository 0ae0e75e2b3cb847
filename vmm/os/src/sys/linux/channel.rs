//! Messages with open handles between two processes (`unix(7)`, `SOCK_SEQPACKET`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recvmsg, sendmsg, shutdown, socketpair,
};

/// The longest message in bytes.
pub const MAX_MESSAGE: usize = 128 << 10;
/// The most handles that one message carries (Linux's `SCM_MAX_FD`).
pub const MAX_HANDLES: usize = 253;

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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn messages_stay_whole_and_bring_their_handles() {
        let (here, there) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        here.send(b"first", &[writer.as_fd()]).unwrap();
        here.send(b"second", &[]).unwrap();
        drop(writer);
        let (message, handles) = there.receive().unwrap().unwrap();
        assert_eq!((message.as_slice(), handles.len()), (&b"first"[..], 1));
        let mut sent = File::from(handles.into_iter().next().unwrap());
        sent.write_all(b"through").unwrap();
        drop(sent);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let (message, handles) = there.receive().unwrap().unwrap();
        assert_eq!((message.as_slice(), handles.len()), (&b"second"[..], 0));
        drop(here);
        assert!(there.receive().unwrap().is_none());
        there.wait_gone(None);
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let (here, _there) = Channel::pair().unwrap();
        assert!(here.send(&vec![0; MAX_MESSAGE + 1], &[]).is_err());
        here.send(&vec![1; MAX_MESSAGE], &[]).unwrap();
    }
}
