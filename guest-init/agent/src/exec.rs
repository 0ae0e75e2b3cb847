//! Runs one command for the peer of a stream, see [`cabana_protocol::exec`].
//!
//! It works over whatever can be polled, read and written: a vsock connection, a virtio-serial port, a
//! socket pair. It needs to be neither PID 1 nor root. One call runs one command with one loop that never
//! blocks on anything but `poll`. A command in the background keeps its thread after its connection; later
//! connections are handed to it.

mod child;
mod link;
mod program;
mod streams;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use cabana_protocol::{
    Event, Exec, ExecFailed, ExecReply, ExecRequest, ExitStatus, FailureKind, Kind, ProcessInfo,
    ProtocolError,
};
use rustix::event::{PollFd, PollFlags, poll};

use self::child::Child;
pub(crate) use self::link::Link;
use self::streams::{Input, Kept, Output};
use crate::background::{Entry, Mail};
use crate::server::Server;
use crate::timespec;

/// After the command ended, a background process of it may still hold its output open. Output is
/// forwarded on until there was none for this long.
const LINGER_QUIET: Duration = Duration::from_millis(25);

/// The longest time that a background process can delay the command's end.
const LINGER_MOST: Duration = Duration::from_millis(500);

/// How long a command whose time is over has to end by itself after SIGTERM.
const TIMEOUT_GRACE: Duration = Duration::from_secs(2);

/// The most bytes of a command's words that are told in lists.
const WORDS: usize = 256;

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
    pub(crate) fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System { what, source: errno.into() }
    }
}

/// Runs a command to its end. When the connection ends early, the command ends with it, unless it is in
/// the background.
pub(crate) fn run(server: &Server, mut link: Link, exec: &Exec) -> Result<(), ExecError> {
    let session = match exec.session.as_ref().map(|name| server.session(name)).transpose() {
        Ok(session) => session,
        Err(error) => {
            let name = exec.session.as_deref().unwrap_or_default();
            let message = format!("session `{name}`: {error}");
            let kind = FailureKind::NoSession;
            return link.finish(&ExecReply::Failed(ExecFailed { kind, message }));
        }
    };
    let (child, input, outputs) = match child::spawn(exec, session.as_deref()) {
        Ok(started) => started,
        Err(failed) => return link.finish(&ExecReply::Failed(failed)),
    };
    let entry = if exec.background {
        match server.background().add(describe(exec, child.pid())) {
            Ok(Some(entry)) => Some(entry),
            unable => {
                child.end(|| drop((input, outputs)));
                let message = match unable {
                    Err(error) => format!("the command cannot be in the background: {error}"),
                    _ => "as many commands run in the background as can be".into(),
                };
                let kind = FailureKind::Exhausted;
                return link.finish(&ExecReply::Failed(ExecFailed { kind, message }));
            }
        }
    } else {
        None
    };
    let process = entry.as_ref().map_or(0, |entry| entry.number);
    link.send(&ExecReply::Started { pid: child.pid(), process })?;
    let _running = server.running(session.as_ref());
    drop(session);
    let run = Run {
        link: Some(link),
        child,
        input,
        outputs,
        kept: Kept::default(),
        ended: None,
        over: exec.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms)),
        timed_out: false,
    };
    match entry {
        Some(entry) => run.in_background(server, &entry),
        None => run.in_foreground(),
    }
}

/// Hands the connection to a background command.
pub(crate) fn attach(server: &Server, link: Box<Link>, process: u64) -> Result<(), ExecError> {
    let Err(mut link) = server.background().attach(process, link) else {
        return Ok(());
    };
    let kind = FailureKind::NoProcess;
    let message = format!("there is no background command {process}");
    link.finish(&ExecReply::Failed(ExecFailed { kind, message }))
}

fn describe(exec: &Exec, pid: u32) -> ProcessInfo {
    let mut words = exec.argv.join(&b' ');
    words.truncate(WORDS);
    ProcessInfo {
        process: 0,
        pid,
        session: exec.session.clone(),
        command: String::from_utf8_lossy(&words).into_owned(),
        attached: true,
        status: None,
    }
}

/// A command that runs.
struct Run {
    /// The host; a background command may be without.
    link: Option<Link>,
    child: Child,
    input: Input,
    outputs: [Output; 2],
    kept: Kept,
    ended: Option<Ended>,
    /// When the command's time is over, or its grace after that.
    over: Option<Instant>,
    timed_out: bool,
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
    Mail,
}

/// What a step has come to.
enum Step {
    Going,
    /// The command has ended and its output is sent, or kept.
    Finished(ExitStatus),
    /// The host leaves.
    Detach,
}

impl Run {
    /// Serves one host until the command has ended.
    fn in_foreground(mut self) -> Result<(), ExecError> {
        let status = match self.serve(None) {
            Ok(Step::Finished(status)) => Ok(status),
            Ok(_) => Err(ProtocolError::Closed.into()),
            Err(error) => Err(error),
        };
        let Self { link, child, input, outputs, ended, .. } = self;
        match (status, link) {
            (Ok(status), Some(mut link)) => link.finish(&ExecReply::Exited(status)),
            (status, _) => {
                if ended.is_none() {
                    child.end(|| drop((input, outputs)));
                }
                status.map(drop)
            }
        }
    }

    /// Serves one host after another until the command's end has been told, or is of no use to anybody.
    fn in_background(mut self, server: &Server, entry: &Entry) -> Result<(), ExecError> {
        let mut told = false;
        let result = loop {
            match self.serve(Some(entry)) {
                Ok(Step::Finished(status)) => {
                    if !told {
                        told = true;
                        entry.set_ended(status);
                        let process = entry.number;
                        server.events().tell(Event::ProcessEnded { process, status });
                    }
                    if let Some(mut link) = self.link.take()
                        && link.finish(&ExecReply::Exited(status)).is_ok()
                    {
                        break Ok(());
                    }
                }
                Ok(Step::Detach) => {
                    // The host has asked for it and reads on.
                    if let Some(mut link) = self.link.take() {
                        let _ = link.finish(&ExecReply::Detached);
                    }
                }
                Ok(Step::Going) => {}
                // The host is gone, or has broken the protocol.
                Err(ExecError::Protocol(_)) => drop(self.link.take()),
                Err(error) => break Err(error),
            }
            if self.link.is_none() {
                entry.set_attached(false);
            }
            match self.take_mail(entry) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(_) => drop(self.link.take()),
            }
        };
        if self.ended.is_none() {
            let Self { child, input, outputs, .. } = self;
            child.end(|| drop((input, outputs)));
        }
        if let Some(Mail::Attach(link)) = server.background().remove(entry) {
            return attach(server, link, entry.number);
        }
        result
    }

    /// Goes on with another host, if there is one; false when what is kept is of no use any more.
    fn take_mail(&mut self, entry: &Entry) -> Result<bool, ExecError> {
        let link = match entry.mail() {
            None => return Ok(true),
            Some(Mail::Forget) => return Ok(false),
            Some(Mail::Attach(link)) => *link,
        };
        if let Some(mut old) = self.link.replace(link) {
            let _ = old.send(&ExecReply::Detached).and_then(|()| old.flush());
        }
        entry.set_attached(true);
        if let Some(link) = &mut self.link {
            let window = self.input.reopen();
            let pid = self.child.pid();
            link.send(&ExecReply::Attached { pid, window: window.unwrap_or(0) })?;
            if window.is_none() {
                link.send(&ExecReply::StdinClosed)?;
            }
            self.kept.give(link)?;
        }
        Ok(true)
    }

    /// Moves bytes until the command has ended and its output is sent, the host leaves, or there is mail.
    fn serve(&mut self, entry: Option<&Entry>) -> Result<Step, ExecError> {
        // Frames that came together with the request are here already; no poll tells of them.
        if self.take_frames()? {
            return Ok(Step::Detach);
        }
        self.input.write(self.link.as_mut())?;
        loop {
            // Without a host an end waits for one.
            if self.link.is_some()
                && let Some(status) = self.finished()
            {
                return Ok(Step::Finished(status));
            }
            let told = self.ended.is_some();
            for (source, ready) in self.wait(entry)?.into_iter().flatten() {
                match source {
                    Source::Link => {
                        if let Some(link) = &mut self.link {
                            if ready.contains(PollFlags::OUT) {
                                link.flush()?;
                            }
                            if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                                link.fill()?;
                                if self.take_frames()? {
                                    return Ok(Step::Detach);
                                }
                            }
                        }
                    }
                    Source::Child => self.child_ended()?,
                    Source::Input => {}
                    Source::Output(index) => {
                        let read = self.outputs[index].read(self.link.as_mut(), &mut self.kept)?;
                        if read > 0
                            && let Some(ended) = &mut self.ended
                        {
                            ended.last_output = Instant::now();
                        }
                    }
                    Source::Mail => return Ok(Step::Going),
                }
            }
            self.keep_time()?;
            // Input is tried whatever was ready: frames may just have brought some.
            self.input.write(self.link.as_mut())?;
            if let Some(link) = &mut self.link {
                link.flush()?;
            } else if !told && let Some(ended) = &self.ended {
                // Once, so that the host hears of the end.
                return Ok(Step::Finished(ended.status));
            }
        }
    }

    /// Waits until something can be done, and says what. Output is read only when the last of it has
    /// been sent, or can be kept.
    fn wait(&self, entry: Option<&Entry>) -> Result<[Option<(Source, PollFlags)>; 6], ExecError> {
        let flushed = self.is_flushed();
        let link_events = if flushed { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let read_output = if self.link.is_some() { flushed } else { self.kept.has_room() };
        let entries: [Option<(Source, BorrowedFd<'_>, PollFlags)>; 6] = [
            self.link.as_ref().map(|link| (Source::Link, link.as_fd(), link_events)),
            match self.ended {
                None => Some((Source::Child, self.child.pidfd(), PollFlags::IN)),
                Some(_) => None,
            },
            self.input.blocked_fd().map(|fd| (Source::Input, fd, PollFlags::OUT)),
            self.output_entry(0, read_output),
            self.output_entry(1, read_output),
            entry.map(|entry| (Source::Mail, entry.wake(), PollFlags::IN)),
        ];
        let mut polled = Vec::with_capacity(entries.len());
        polled.extend(
            entries.iter().flatten().map(|(_, fd, events)| PollFd::from_borrowed_fd(*fd, *events)),
        );
        match poll(&mut polled, self.end_of_wait().map(timespec).as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok([None; 6]),
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

    fn is_flushed(&self) -> bool {
        self.link.as_ref().is_none_or(Link::is_flushed)
    }

    /// While the command runs only events and its own time matter; afterwards silence does too.
    fn end_of_wait(&self) -> Option<Instant> {
        match &self.ended {
            None => self.over,
            Some(ended) if self.link.is_some() && self.is_flushed() => {
                Some(ended.last_output + LINGER_QUIET)
            }
            Some(_) => None,
        }
    }

    /// Ends a command whose time is over: SIGTERM, a grace, SIGKILL.
    fn keep_time(&mut self) -> Result<(), ExecError> {
        let now = Instant::now();
        if self.ended.is_some() || self.over.is_none_or(|over| now < over) {
            return Ok(());
        }
        if self.timed_out {
            self.over = None;
            self.child.signal(libc::SIGKILL)?;
        } else {
            self.timed_out = true;
            self.over = Some(now + TIMEOUT_GRACE);
            self.child.signal(libc::SIGTERM)?;
            // A stopped process does not see SIGTERM before it goes on.
            self.child.signal(libc::SIGCONT)?;
        }
        Ok(())
    }

    /// The status, once the command has ended and its output has been sent.
    fn finished(&self) -> Option<ExitStatus> {
        let ended = self.ended.as_ref()?;
        if !self.is_flushed() {
            return None;
        }
        let closed = self.outputs.iter().all(|output| output.fd().is_none());
        let owed = self.outputs.iter().any(|output| output.owed() > 0);
        let lingered =
            ended.last_output.elapsed() >= LINGER_QUIET || ended.at.elapsed() >= LINGER_MOST;
        (closed || (lingered && !owed)).then_some(ended.status)
    }

    /// Handles the whole frames that have arrived; says whether the host leaves.
    fn take_frames(&mut self) -> Result<bool, ExecError> {
        let Some(link) = &mut self.link else { return Ok(false) };
        while let Some(frame) = link.next_frame()? {
            match frame.kind {
                Kind::Stdin => self.input.push(frame.payload)?,
                Kind::ExecRequest => match frame.message()? {
                    ExecRequest::Exec(_) | ExecRequest::Attach { .. } => {
                        return Err(ProtocolError::OutOfTurn("a second `Exec` or `Attach`").into());
                    }
                    ExecRequest::Signal(number) => {
                        if self.ended.is_none() {
                            self.child.signal(number)?;
                        }
                    }
                    ExecRequest::Resize(size) => self.child.resize(size),
                    ExecRequest::Detach => return Ok(true),
                },
                other => return Err(ProtocolError::UnexpectedKind(other).into()),
            }
        }
        Ok(false)
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
        let status = if self.timed_out { ExitStatus::TimedOut } else { status };
        let now = Instant::now();
        self.ended = Some(Ended { status, at: now, last_output: now });
        Ok(())
    }
}

/// The next of the polled entries' events, if this entry was polled.
fn revents_of(polled: bool, revents: &mut impl Iterator<Item = PollFlags>) -> PollFlags {
    if polled { revents.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() }
}
