//! The exec server: runs one command for the peer of a stream, see [`cabana_protocol::exec`].
//!
//! [`serve`] works over whatever can be polled, read and written: a vsock connection, a virtio-serial
//! port, a socket pair. It needs to be neither PID 1 nor root. One call serves one command with one
//! loop that never blocks on anything but `poll`.

mod child;
mod link;
mod streams;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use cabana_protocol::{ExecReply, ExecRequest, ExitStatus, Kind, ProtocolError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::child::Child;
use self::link::Link;
use self::streams::{Input, Output};

/// After the command ended, a background process of it may still hold its output open. Output is
/// forwarded on until there was none for this long.
const LINGER_QUIET: Duration = Duration::from_millis(25);

/// The longest time that a background process can delay the command's end.
const LINGER_MOST: Duration = Duration::from_millis(500);

/// Why an exec connection ended before the command's end was reported.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The peer closed the connection, it failed, or the peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// A system call failed that has no reason to.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl ExecError {
    fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System { what, source: errno.into() }
    }
}

/// Runs the command that the stream's peer asks for, from its first frame to the last reply, and closes
/// the stream. The stream is made non-blocking.
///
/// When the connection ends early, the command ends with it.
///
/// # Errors
///
/// [`ExecError`] when the end could not be reported. A command that cannot be started is not an
/// error: the peer was told.
pub fn serve<S: AsFd>(stream: S) -> Result<(), ExecError> {
    let mut link = Link::new(stream.as_fd())?;
    let ExecRequest::Exec(exec) = link.receive()? else {
        return Err(ProtocolError::OutOfTurn("a request before `Exec`").into());
    };
    let (child, input, outputs) = match child::spawn(&exec) {
        Ok(spawned) => spawned,
        Err(failed) => return link.finish(&ExecReply::Failed(failed)),
    };
    link.send(&ExecReply::Started { pid: child.pid(), process: 0 })?;
    let mut session = Session { link, child, input, outputs, ended: None };
    match session.run() {
        Ok(status) => session.link.finish(&ExecReply::Exited(status)),
        Err(error) => {
            let Session { child, input, outputs, ended, .. } = session;
            if ended.is_none() {
                child.end(|| drop((input, outputs)));
            }
            Err(error)
        }
    }
}

/// A command that runs.
struct Session<'a> {
    link: Link<'a>,
    child: Child,
    input: Input,
    outputs: [Output; 2],
    ended: Option<Ended>,
}

/// The command ended; its output may not yet have.
struct Ended {
    status: ExitStatus,
    at: Instant,
    last_output: Instant,
}

/// What an entry of the poll set stands for.
#[derive(Clone, Copy)]
enum Source {
    Link,
    Child,
    Input,
    Output(usize),
}

impl Session<'_> {
    /// Moves bytes until the command has ended and its output is sent.
    fn run(&mut self) -> Result<ExitStatus, ExecError> {
        // Frames that came together with the request are here already; no poll tells of them.
        self.take_frames()?;
        self.input.write(&mut self.link)?;
        loop {
            if let Some(status) = self.finished() {
                return Ok(status);
            }
            for (source, ready) in self.wait()?.into_iter().flatten() {
                match source {
                    Source::Link => {
                        if ready.contains(PollFlags::OUT) {
                            self.link.flush()?;
                        }
                        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                            self.link.fill()?;
                            self.take_frames()?;
                        }
                    }
                    Source::Child => self.child_ended()?,
                    Source::Input => {}
                    Source::Output(index) => {
                        if self.outputs[index].read(&mut self.link)? > 0
                            && let Some(ended) = &mut self.ended
                        {
                            ended.last_output = Instant::now();
                        }
                    }
                }
            }
            // Input is tried whatever was ready: frames may just have brought some.
            self.input.write(&mut self.link)?;
            self.link.flush()?;
        }
    }

    /// Waits until something can be done, and says what. Output is read only when the last of it has
    /// been sent.
    fn wait(&self) -> Result<[Option<(Source, PollFlags)>; 5], ExecError> {
        let link_events =
            if self.link.is_flushed() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let read_output = self.link.is_flushed();
        let entries: [Option<(Source, BorrowedFd<'_>, PollFlags)>; 5] = [
            Some((Source::Link, self.link.as_fd(), link_events)),
            match self.ended {
                None => Some((Source::Child, self.child.pidfd(), PollFlags::IN)),
                Some(_) => None,
            },
            self.input.blocked_fd().map(|fd| (Source::Input, fd, PollFlags::OUT)),
            self.output_entry(0, read_output),
            self.output_entry(1, read_output),
        ];
        let mut polled = Vec::with_capacity(entries.len());
        polled.extend(
            entries.iter().flatten().map(|(_, fd, events)| PollFd::from_borrowed_fd(*fd, *events)),
        );
        match poll(&mut polled, self.timeout().as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok([None; 5]),
            Err(errno) => return Err(ExecError::system("poll")(errno)),
        }
        let mut revents = polled.iter().map(PollFd::revents);
        Ok(entries.map(|entry| {
            let ready = revents_of(entry.is_some(), &mut revents);
            entry.and_then(|(source, ..)| (!ready.is_empty()).then_some((source, ready)))
        }))
    }

    fn output_entry(
        &self,
        index: usize,
        wanted: bool,
    ) -> Option<(Source, BorrowedFd<'_>, PollFlags)> {
        let fd = self.outputs[index].fd()?;
        wanted.then_some((Source::Output(index), fd, PollFlags::IN))
    }

    /// While the command runs only events matter; afterwards silence does too.
    fn timeout(&self) -> Option<Timespec> {
        let ended = self.ended.as_ref()?;
        if !self.link.is_flushed() {
            return None;
        }
        let left = LINGER_QUIET.saturating_sub(ended.last_output.elapsed());
        Some(Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    /// The status, once the command has ended and its output has been sent.
    fn finished(&self) -> Option<ExitStatus> {
        let ended = self.ended.as_ref()?;
        if !self.link.is_flushed() {
            return None;
        }
        let closed = self.outputs.iter().all(|output| output.fd().is_none());
        let owed = self.outputs.iter().any(|output| output.owed() > 0);
        let lingered =
            ended.last_output.elapsed() >= LINGER_QUIET || ended.at.elapsed() >= LINGER_MOST;
        (closed || (lingered && !owed)).then_some(ended.status)
    }

    /// Handles the whole frames that have arrived.
    fn take_frames(&mut self) -> Result<(), ExecError> {
        while let Some(frame) = self.link.next_frame()? {
            match frame.kind {
                Kind::Stdin => self.input.push(frame.payload)?,
                Kind::ExecRequest => match frame.message()? {
                    ExecRequest::Exec(_) => {
                        return Err(ProtocolError::OutOfTurn("a second `Exec`").into());
                    }
                    ExecRequest::Signal(number) => {
                        if self.ended.is_none() {
                            self.child.signal(number)?;
                        }
                    }
                    ExecRequest::Resize(size) => self.child.resize(size),
                    ExecRequest::Attach { .. } => {
                        return Err(ProtocolError::OutOfTurn("`Attach` after `Exec`").into());
                    }
                    ExecRequest::Detach => return Err(ProtocolError::Closed.into()),
                },
                other => return Err(ProtocolError::UnexpectedKind(other).into()),
            }
        }
        Ok(())
    }

    /// Takes the command's status, and notes what of its output is still in the pipes.
    fn child_ended(&mut self) -> Result<(), ExecError> {
        let Some(status) = self.child.status()? else {
            return Ok(());
        };
        self.input.close();
        for output in &mut self.outputs {
            output.note_owed();
        }
        let now = Instant::now();
        self.ended = Some(Ended { status, at: now, last_output: now });
        Ok(())
    }
}

/// The next of the polled entries' events, if this entry was polled.
fn revents_of(polled: bool, revents: &mut impl Iterator<Item = PollFlags>) -> PollFlags {
    if polled { revents.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() }
}
