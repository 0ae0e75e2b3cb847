//! The server's end of the connection.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use cabana_protocol::frame::{HEADER, header};
use cabana_protocol::{Decoder, ExecReply, Frame, Kind, Message, ProtocolError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::ExecError;

/// A non-blocking stream, cut into frames on the way in, gathered on the way out.
pub(super) struct Link<'a> {
    stream: BorrowedFd<'a>,
    decoder: Decoder,
    /// Bytes to send: `outbox[start..end]`. What stands beyond `end` is room.
    outbox: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Link<'a> {
    pub(super) fn new(stream: BorrowedFd<'a>) -> Result<Self, ExecError> {
        set_nonblocking(stream).map_err(ExecError::system("making the connection non-blocking"))?;
        Ok(Self { stream, decoder: Decoder::new(), outbox: Vec::new(), start: 0, end: 0 })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'a> {
        self.stream
    }

    /// Waits for one message.
    pub(super) fn receive<M: Message>(&mut self) -> Result<M, ExecError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame.message()?);
            }
            self.wait(PollFlags::IN)?;
            self.fill()?;
        }
    }

    /// Reads what has arrived.
    pub(super) fn fill(&mut self) -> Result<(), ExecError> {
        match self.decoder.fill(&mut Reader(self.stream)) {
            Ok(0) => Err(ProtocolError::Closed.into()),
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(ProtocolError::Io(error).into()),
        }
    }

    /// The next whole frame that has arrived.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        self.decoder.next_frame()
    }

    /// Queues a reply.
    pub(super) fn send(&mut self, reply: &ExecReply) -> Result<(), ExecError> {
        let frame = reply.to_frame()?;
        self.room(frame.len()).copy_from_slice(&frame);
        self.end += frame.len();
        Ok(())
    }

    /// Queues a frame whose payload, at most `most` bytes, `read` puts in its place. Nothing is queued
    /// when it reads nothing or fails.
    pub(super) fn send_data(
        &mut self,
        kind: Kind,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, ExecError> {
        let frame = self.room(HEADER + most);
        let (head, payload) = frame.split_at_mut(HEADER);
        let length = match read(payload) {
            Ok(0) => return Ok(Ok(0)),
            Ok(length) => length.min(most),
            Err(errno) => return Ok(Err(errno)),
        };
        head.copy_from_slice(&header(kind, length)?);
        self.end += HEADER + length;
        Ok(Ok(length))
    }

    /// Whether everything queued has been sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.start == self.end
    }

    /// Sends as much as the stream takes now.
    pub(super) fn flush(&mut self) -> Result<(), ExecError> {
        while self.start < self.end {
            match rustix::io::write(self.stream, &self.outbox[self.start..self.end]) {
                Ok(0) | Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(ProtocolError::Closed.into());
                }
                Ok(written) => self.start += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(ProtocolError::Io(errno.into()).into()),
            }
        }
        self.start = 0;
        self.end = 0;
        Ok(())
    }

    /// Sends the last reply and everything before it.
    pub(super) fn finish(&mut self, reply: &ExecReply) -> Result<(), ExecError> {
        self.send(reply)?;
        loop {
            self.flush()?;
            if self.is_flushed() {
                return Ok(());
            }
            self.wait(PollFlags::OUT)?;
        }
    }

    fn wait(&self, events: PollFlags) -> Result<(), ExecError> {
        match poll(&mut [PollFd::from_borrowed_fd(self.stream, events)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(ExecError::system("poll")(errno)),
        }
    }

    /// `size` bytes of room behind what is queued.
    fn room(&mut self, size: usize) -> &mut [u8] {
        if self.outbox.len() < self.end + size {
            self.outbox.resize(self.end + size, 0);
        }
        &mut self.outbox[self.end..self.end + size]
    }
}

/// Makes reads and writes of `fd` return at once.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

/// Whether a later attempt may succeed.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

struct Reader<'a>(BorrowedFd<'a>);

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(self.0, buffer) {
            // A peer that is gone, with or without unread bytes, has closed.
            Err(Errno::CONNRESET) => Ok(0),
            other => Ok(other?),
        }
    }
}
