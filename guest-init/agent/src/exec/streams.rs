//! The command's standard input and outputs.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cabana_protocol::exec::{OUTPUT_BUFFER, STDIN_WINDOW};
use cabana_protocol::{ExecReply, Kind, ProtocolError};
use rustix::io::Errno;

use super::ExecError;
use super::link::{Link, MOST_AT_ONCE};

/// How many bytes are taken before the host is told.
const TAKEN_CHUNK: usize = STDIN_WINDOW / 4;

/// What a terminal understands as the end of input (`VEOF`, ^D).
const END_OF_INPUT: u8 = 4;

/// Standard input: what the host sent and the command has not yet taken.
pub(super) struct Input {
    fd: Option<OwnedFd>,
    is_terminal: bool,
    waiting: VecDeque<u8>,
    /// Bytes taken of which the host has not been told.
    taken: usize,
    /// The host has sent the end of input.
    ended: bool,
}

impl Input {
    /// Input into a pipe or, if so marked, a terminal; without a descriptor it is empty.
    pub(super) fn new(fd: Option<OwnedFd>, is_terminal: bool) -> Self {
        Self { fd, is_terminal, waiting: VecDeque::new(), taken: 0, ended: false }
    }

    /// Takes a frame of input.
    pub(super) fn push(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        if self.fd.is_none() {
            return Ok(());
        }
        if self.ended {
            return Err(ProtocolError::OutOfTurn("standard input after its end"));
        }
        let excess = (self.taken + self.waiting.len() + payload.len()).saturating_sub(STDIN_WINDOW);
        if excess > 0 {
            return Err(ProtocolError::WindowExceeded { excess });
        }
        if payload.is_empty() {
            self.ended = true;
            if self.is_terminal {
                self.waiting.push_back(END_OF_INPUT);
            }
        }
        Ok(self.waiting.write_all(payload)?)
    }

    /// The descriptor to wait for while the command does not take its input.
    pub(super) fn blocked_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.waiting.is_empty() { None } else { self.fd.as_ref().map(AsFd::as_fd) }
    }

    /// Gives the command as much as it takes now, and tells the host if there is one.
    pub(super) fn write(&mut self, link: Option<&mut Link>) -> Result<(), ExecError> {
        let Some(fd) = &self.fd else {
            return Ok(());
        };
        while !self.waiting.is_empty() {
            match rustix::io::write(fd, self.waiting.as_slices().0) {
                Ok(written) => {
                    self.waiting.drain(..written);
                    self.taken += written;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.close();
                    return link.map_or(Ok(()), |link| link.send(&ExecReply::StdinClosed));
                }
            }
        }
        if self.ended && self.waiting.is_empty() && !self.is_terminal {
            self.close();
        } else if self.taken >= TAKEN_CHUNK
            && let Some(link) = link
        {
            link.send(&ExecReply::StdinTaken(self.taken as u32))?;
            self.taken = 0;
        }
        Ok(())
    }

    /// What another host may send: the window that it is told, and the account begins anew. `None` when
    /// the command takes no input any more.
    pub(super) fn reopen(&mut self) -> Option<u32> {
        self.taken = 0;
        if self.fd.is_none() || self.ended {
            return None;
        }
        Some(STDIN_WINDOW.saturating_sub(self.waiting.len()) as u32)
    }

    /// Drops what is waiting and whatever follows.
    pub(super) fn close(&mut self) {
        self.fd = None;
        self.waiting = VecDeque::new();
    }
}

/// Standard output or standard error.
pub(super) struct Output {
    fd: Option<OwnedFd>,
    kind: Kind,
    owed: usize,
}

impl Output {
    pub(super) fn new(fd: Option<OwnedFd>, kind: Kind) -> Self {
        Self { fd, kind, owed: 0 }
    }

    /// The descriptor, until its end was read.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Queues what there is to read, or keeps it while there is no host, and says how much.
    pub(super) fn read(
        &mut self,
        link: Option<&mut Link>,
        kept: &mut Kept,
    ) -> Result<usize, ExecError> {
        let Some(fd) = &self.fd else {
            return Ok(0);
        };
        let read = match link {
            Some(link) => link.send_data(self.kind, |room| rustix::io::read(fd, room))?,
            None => kept.read(self.kind, fd),
        };
        match read {
            Ok(0) => self.close(),
            Ok(length) => {
                self.owed = self.owed.saturating_sub(length);
                return Ok(length);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal that no process has open any more answers EIO.
            Err(_) => self.close(),
        }
        Ok(0)
    }

    /// Notes how much was written before now and not yet read.
    pub(super) fn note_owed(&mut self) {
        let waiting = self.fd.as_ref().and_then(|fd| rustix::io::ioctl_fionread(fd).ok());
        self.owed = waiting.unwrap_or(0) as usize;
    }

    /// How much of [`note_owed`](Self::note_owed)'s bytes is still to be read.
    pub(super) fn owed(&self) -> usize {
        self.owed
    }

    fn close(&mut self) {
        self.fd = None;
        self.owed = 0;
    }
}

/// Output that waits for a host.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pieces: Vec<(Kind, Vec<u8>)>,
    length: usize,
}

impl Kept {
    /// Whether more can be kept.
    pub(super) fn has_room(&self) -> bool {
        self.length < OUTPUT_BUFFER
    }

    /// Queues everything for a host.
    pub(super) fn give(&mut self, link: &mut Link) -> Result<(), ExecError> {
        self.length = 0;
        for (kind, bytes) in self.pieces.drain(..) {
            for frame in bytes.chunks(MOST_AT_ONCE) {
                link.send_bytes(kind, frame)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, kind: Kind, fd: &OwnedFd) -> Result<usize, Errno> {
        let most = MOST_AT_ONCE.min(OUTPUT_BUFFER.saturating_sub(self.length));
        if self.pieces.last().is_none_or(|(last, _)| *last != kind) {
            self.pieces.push((kind, Vec::new()));
        }
        let Some((_, bytes)) = self.pieces.last_mut() else { return Ok(0) };
        let start = bytes.len();
        bytes.resize(start + most, 0);
        let read = rustix::io::read(fd, &mut bytes[start..]);
        bytes.truncate(start + *read.as_ref().unwrap_or(&0));
        self.length += read.as_ref().unwrap_or(&0);
        read
    }
}
