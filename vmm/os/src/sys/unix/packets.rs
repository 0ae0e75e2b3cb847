//! Packets between two processes where no socket keeps them whole by itself (macOS): a stream, with the length
//! before each packet.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// The longest packet.
const LONGEST: usize = 128 << 10;
/// Bytes of a length.
const HEAD: usize = 4;

/// One end. Each packet arrives whole and in order, or not at all.
#[derive(Debug)]
pub struct Packets {
    socket: UnixStream,
    /// One packet at a time.
    sending: Mutex<()>,
    /// The beginning of a packet. No more is read than belongs to it, so that the socket says what there is.
    begun: Mutex<Vec<u8>>,
}

impl Packets {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Self::of(one)?, Self::of(other)?))
    }

    fn of(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, sending: Mutex::default(), begun: Mutex::default() })
    }

    /// Both ends, for other processes.
    pub fn handles() -> io::Result<(OwnedFd, OwnedFd)> {
        let (one, other) = Self::pair()?;
        Ok((one.into(), other.into()))
    }

    /// Sends a packet of two parts. False if the peer has to read before; an error once it is gone. A packet that has
    /// room for its beginning is sent whole, if that has to wait for the peer, too.
    pub fn try_send(&self, head: &[u8], body: &[u8]) -> io::Result<bool> {
        let len = head.len() + body.len();
        if len > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let packet = [&(len as u32).to_le_bytes(), head, body].concat();
        let _alone = lock(&self.sending);
        let mut sent = 0;
        while sent < packet.len() {
            match (&self.socket).write(&packet[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if sent == 0 {
                        return Ok(false);
                    }
                    self.wait_for_room()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends a packet of two parts; waits while the peer reads too little.
    pub fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        while !self.try_send(head, body)? {
            self.wait_for_room()?;
        }
        Ok(())
    }

    /// Takes the next packet into `room`; `None` if there is none yet. No bytes: the peer is gone. What does not
    /// fit is lost.
    pub fn try_receive(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        let mut begun = lock(&self.begun);
        loop {
            let whole = match begun.first_chunk::<HEAD>() {
                Some(len) => HEAD + u32::from_le_bytes(*len) as usize,
                None => HEAD,
            };
            if whole > HEAD + LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let have = begun.len();
            if have == whole && have > HEAD {
                let len = room.len().min(whole - HEAD);
                room[..len].copy_from_slice(&begun[HEAD..HEAD + len]);
                begun.clear();
                return Ok(Some(len));
            }
            begun.resize(whole, 0);
            let read = (&self.socket).read(&mut begun[have..]);
            begun.truncate(have + read.as_ref().map_or(0, |count| *count));
            match read {
                Ok(0) => return Ok(Some(0)),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::ConnectionReset => return Ok(Some(0)),
                    _ => return Err(error),
                },
            }
        }
    }

    fn wait_for_room(&self) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<OwnedFd> for Packets {
    fn from(socket: OwnedFd) -> Self {
        Self { socket: socket.into(), sending: Mutex::default(), begun: Mutex::default() }
    }
}

impl From<Packets> for OwnedFd {
    fn from(packets: Packets) -> Self {
        packets.socket.into()
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_stay_whole_on_a_stream() {
        let (here, there) = Packets::pair().unwrap();
        let (first, second) = (vec![1; LONGEST], vec![2; 3]);
        let sender = std::thread::spawn(move || {
            for _ in 0..100 {
                here.send(&[], &first).unwrap();
                here.send(&second, &[]).unwrap();
            }
            assert!(here.try_send(&first, &[0]).is_err());
        });
        let mut room = vec![0; LONGEST];
        let mut received = Vec::new();
        while received.last() != Some(&0) {
            if let Some(count) = there.try_receive(&mut room).unwrap() {
                assert!(room[..count].iter().all(|byte| *byte == if count > 3 { 1 } else { 2 }));
                received.push(count);
            }
        }
        sender.join().unwrap();
        assert_eq!(received, [[LONGEST, 3].repeat(100), vec![0]].concat());
        assert!(there.try_send(&[1], &[]).is_err());
    }

    #[test]
    fn a_length_that_nobody_may_send_is_an_error() {
        let (here, there) = Packets::pair().unwrap();
        (&here.socket).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(there.try_receive(&mut [0; 9]).is_err());
    }
}
