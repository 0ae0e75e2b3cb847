//! Messages with open handles between two processes where no socket keeps them whole by itself (macOS): a stream, with
//! the length before each message, and the handles beside the length.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::sys::{MAX_HANDLES, MAX_MESSAGE};

/// Bytes of a length.
const HEAD: usize = 4;

/// One end of a channel. Each message arrives whole, with its handles, or not at all.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    /// One message at a time each way.
    sending: Arc<Mutex<()>>,
    receiving: Arc<Mutex<()>>,
}

impl Channel {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        for end in [&one, &other] {
            super::host_socket::without_signal(end)?;
        }
        Ok((OwnedFd::from(one).into(), OwnedFd::from(other).into()))
    }

    /// Another handle to the same end.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            sending: Arc::clone(&self.sending),
            receiving: Arc::clone(&self.receiving),
        })
    }

    /// Lets no call of this end wait longer than this: it then fails with `WouldBlock`.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))?;
        self.socket.set_write_timeout(Some(patience))
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
        let packet = [&(message.len() as u32).to_le_bytes(), message].concat();
        let _alone = lock(&self.sending);
        let sent = loop {
            let part = [IoSlice::new(&packet)];
            match sendmsg(&self.socket, &part, &mut ancillary, SendFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let rest = (&self.socket).write_all(&packet[sent..]);
        if rest.is_err() {
            // Half a message is none: the peer is to hear of the end.
            self.shut();
        }
        rest
    }

    /// Waits for a message; `None` once the peer is gone.
    pub fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let _alone = lock(&self.receiving);
        let mut head = [0; HEAD];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut head)];
            match recvmsg(&self.socket, &mut into, &mut ancillary, RecvFlags::empty()) {
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
        for handle in &handles {
            fcntl_setfd(handle, FdFlags::CLOEXEC)?;
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        (&self.socket).read_exact(&mut head[received.bytes..])?;
        let len = u32::from_le_bytes(head) as usize;
        if len > MAX_MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; len];
        (&self.socket).read_exact(&mut message)?;
        Ok(Some((message, handles)))
    }

    /// Ends the channel for both ends; what was sent before is still received.
    pub fn shut(&self) {
        // A peer that is gone has ended it already.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
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
        Self { socket: socket.into(), sending: Arc::default(), receiving: Arc::default() }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket.into()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn lock(one: &Mutex<()>) -> MutexGuard<'_, ()> {
    one.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_a_row_stay_apart_with_their_handles() {
        let (here, there) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let long = vec![7; MAX_MESSAGE];
        let sent = long.clone();
        let sender = std::thread::spawn(move || {
            here.send(b"plain", &[]).unwrap();
            here.send(b"first", &[writer.as_fd(), writer.as_fd()]).unwrap();
            here.send(&sent, &[writer.as_fd()]).unwrap();
            assert!(here.send(&[sent, vec![0]].concat(), &[]).is_err());
        });
        for (expected, count) in [(&b"plain"[..], 0), (b"first", 2), (&long, 1)] {
            let (message, handles) = there.receive().unwrap().unwrap();
            assert_eq!((message.as_slice(), handles.len()), (expected, count));
            for handle in handles {
                std::fs::File::from(handle).write_all(b"x").unwrap();
            }
        }
        sender.join().unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "xxx");
        assert!(there.receive().unwrap().is_none());
        there.wait_gone(None);
    }

    #[test]
    fn a_length_that_nobody_may_send_is_an_error() {
        let (here, there) = Channel::pair().unwrap();
        (&here.socket).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(there.receive().is_err());
    }
}
