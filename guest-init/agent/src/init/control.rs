//! The control connection, from the agent's side.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cabana_protocol::{Decoder, GuestMessage, HostMessage, ProtocolError, write_message};
use rustix::event::{PollFd, PollFlags, poll};

use crate::timespec;

pub(super) struct Control {
    stream: File,
    decoder: Decoder,
}

impl Control {
    pub(super) fn new(stream: OwnedFd) -> Self {
        Self { stream: stream.into(), decoder: Decoder::new() }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn send(&mut self, message: &GuestMessage) -> Result<(), ProtocolError> {
        write_message(&mut self.stream, message)
    }

    /// Waits for a message; `None` when the host closed the connection.
    pub(super) fn receive(&mut self) -> Result<Option<HostMessage>, ProtocolError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return frame.message().map(Some);
            }
            match self.fill() {
                Err(ProtocolError::Closed) => return Ok(None),
                other => other?,
            }
        }
    }

    /// A message that has arrived, without waiting.
    pub(super) fn poll_message(&mut self) -> Option<Result<HostMessage, ProtocolError>> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Some(frame.message()),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
            if !self.is_readable(Instant::now()) {
                return None;
            }
            if let Err(error) = self.fill() {
                return Some(Err(error));
            }
        }
    }

    /// Waits until the host closes the connection, at most until `end`.
    pub(super) fn wait_closed(&mut self, end: Instant) {
        let mut unwanted = [0; 512];
        while self.is_readable(end) {
            match self.stream.read(&mut unwanted) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
        }
    }

    /// Whether the stream becomes readable (or ends) until `end`.
    fn is_readable(&self, end: Instant) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&timespec(end))), Ok(ready) if ready > 0)
    }

    fn fill(&mut self) -> Result<(), ProtocolError> {
        match self.decoder.fill(&mut self.stream) {
            Ok(0) => Err(ProtocolError::Closed),
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                // The latter is what Linux says of a vsock connection that a snapshot has cut off.
                io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
                    Err(ProtocolError::Closed)
                }
                _ => Err(error.into()),
            },
        }
    }
}
