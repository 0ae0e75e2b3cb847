//! The server's end of the connection.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cabana_protocol::frame::{HEADER, header};
use cabana_protocol::{Decoder, Frame, Kind, Message, ProtocolError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::ExecError;
use crate::outbox::{BUFFER, Outbox};

/// The most bytes of a frame of data: with its header one packet of vsock's, and whole pages of a full pipe.
pub(crate) const MOST_AT_ONCE: usize = 60 << 10;
const _: () = assert!(HEADER + MOST_AT_ONCE <= BUFFER);

/// A non-blocking stream, cut into frames on the way in, gathered on the way out.
#[derive(Debug)]
pub(crate) struct Link {
    stream: OwnedFd,
    decoder: Decoder,
    outbox: Outbox,
}

impl Link {
    pub(crate) fn new(stream: OwnedFd) -> Result<Self, ExecError> {
        set_nonblocking(stream.as_fd())
            .map_err(ExecError::system("making the connection non-blocking"))?;
        Ok(Self { stream, decoder: Decoder::new(), outbox: Outbox::default() })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Waits for a frame and gives it to `take`.
    pub(crate) fn receive<T>(
        &mut self,
        take: impl FnOnce(Frame<'_>) -> Result<T, ProtocolError>,
    ) -> Result<T, ExecError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(take(frame)?);
            }
            self.wait()?;
            self.fill()?;
        }
    }

    /// Reads what has arrived.
    pub(crate) fn fill(&mut self) -> Result<(), ExecError> {
        self.outbox.reclaim(self.stream.as_fd()).map_err(lost)?;
        match self.decoder.fill(&mut Reader(self.stream.as_fd())) {
            Ok(0) => Err(ProtocolError::Closed.into()),
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(ProtocolError::Io(error).into()),
        }
    }

    /// The next whole frame that has arrived.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        self.decoder.next_frame()
    }

    /// Queues a message.
    pub(crate) fn send<M: Message>(&mut self, reply: &M) -> Result<(), ExecError> {
        self.push(&reply.to_frame()?)
    }

    /// Queues a frame whose payload, at most [`MOST_AT_ONCE`] bytes, `read` puts in its place. Nothing is queued
    /// when it reads nothing or fails.
    pub(crate) fn send_data(
        &mut self,
        kind: Kind,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, ExecError> {
        let frame = self.outbox.room(HEADER + MOST_AT_ONCE).map_err(no_memory)?;
        let (head, payload) = frame.split_at_mut(HEADER);
        let length = match read(payload) {
            Ok(0) => return Ok(Ok(0)),
            Ok(length) => length,
            Err(errno) => return Ok(Err(errno)),
        };
        head.copy_from_slice(&header(kind, length)?);
        self.outbox.queue(HEADER + length);
        Ok(Ok(length))
    }

    /// Queues a frame of bytes.
    pub(super) fn send_bytes(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), ExecError> {
        self.push(&header(kind, bytes.len())?)?;
        self.push(bytes)
    }

    /// Queues an empty frame of data, the end of a file or a tunnel.
    pub(crate) fn send_end(&mut self) -> Result<(), ExecError> {
        self.push(&header(Kind::Data, 0)?)
    }

    /// Whether everything queued has been sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outbox.is_flushed()
    }

    /// Sends as much as the stream takes now.
    pub(crate) fn flush(&mut self) -> Result<(), ExecError> {
        self.outbox.flush(self.stream.as_fd()).map_err(lost)
    }

    /// Sends the last message and everything before it.
    pub(crate) fn finish<M: Message>(&mut self, message: &M) -> Result<(), ExecError> {
        self.send(message)?;
        self.drain()
    }

    /// Waits until everything queued has been sent.
    pub(crate) fn drain(&mut self) -> Result<(), ExecError> {
        self.outbox.drain(self.stream.as_fd()).map_err(lost)
    }

    fn wait(&self) -> Result<(), ExecError> {
        match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(ExecError::system("poll")(errno)),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), ExecError> {
        self.outbox.push(bytes).map_err(no_memory)
    }
}

/// What the end of a stream means for its command.
fn lost(errno: Errno) -> ExecError {
    match errno {
        Errno::PIPE | Errno::CONNRESET => ProtocolError::Closed.into(),
        errno => ProtocolError::Io(errno.into()).into(),
    }
}

fn no_memory(source: io::Error) -> ExecError {
    ExecError::System { what: "memory for what the host is sent", source }
}

/// Makes reads and writes of `fd` return at once.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
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
