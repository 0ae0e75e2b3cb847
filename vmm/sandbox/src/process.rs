//! One command in the guest, over its own connection.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use std::io::Write;
use std::net::Shutdown;

use crate::{Command, Error, Link, Stream};
use cabana_protocol::exec::StdinWindow;
use cabana_protocol::frame::{self, Kind};
use cabana_protocol::{ExecReply, ExecRequest, ExitStatus, Message, ProtocolError, TtySize};

/// A command that runs in the guest. Dropping it without having seen its end hangs it up.
#[derive(Debug)]
pub struct Process {
    stream: Stream,
    /// The payload of the frame received last.
    buffer: Vec<u8>,
    input: ProcessInput,
    link: Arc<dyn Link>,
    number: u64,
}

/// What happens to a [`Process`].
#[derive(Debug, PartialEq, Eq)]
pub enum ProcessEvent<'a> {
    /// It runs, under this process id of the guest.
    Started(u32),
    /// It wrote to standard output (with a terminal: everything it wrote).
    Stdout(&'a [u8]),
    /// It wrote to standard error.
    Stderr(&'a [u8]),
    /// It ended; nothing comes after.
    Exited(ExitStatus),
    /// It runs on in the background, without this end; nothing comes after.
    Detached,
}

/// The way into a [`Process`]: standard input, signals, the terminal's size. Cheap to clone, for
/// any thread.
#[derive(Clone, Debug)]
pub struct ProcessInput {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// To end it, whoever writes.
    ends: Stream,
    /// Whole frames only, one writer at a time.
    stream: Mutex<Stream>,
    window: Mutex<Window>,
    window_changed: Condvar,
}

#[derive(Debug)]
struct Window {
    account: StdinWindow,
    /// The command takes no more input.
    closed: bool,
}

impl Process {
    pub(crate) fn start(
        stream: Stream,
        command: &Command,
        link: Arc<dyn Link>,
    ) -> Result<Self, Error> {
        Self::begin(stream, &ExecRequest::Exec(command.clone()), link)
    }

    pub(crate) fn attach(stream: Stream, process: u64, link: Arc<dyn Link>) -> Result<Self, Error> {
        let mut attached = Self::begin(stream, &ExecRequest::Attach { process }, link)?;
        attached.number = process;
        // The agent will say how much the command takes.
        lock(&attached.input.shared.window).account = StdinWindow::attached(0);
        Ok(attached)
    }

    fn begin(stream: Stream, request: &ExecRequest, link: Arc<dyn Link>) -> Result<Self, Error> {
        let shared = Shared {
            ends: stream.clone(),
            stream: Mutex::new(stream.clone()),
            window: Mutex::new(Window { account: StdinWindow::new(), closed: false }),
            window_changed: Condvar::new(),
        };
        let input = ProcessInput { shared: Arc::new(shared) };
        input.send(request).map_err(|error| link.explain(error))?;
        Ok(Self { stream, buffer: Vec::new(), input, link, number: 0 })
    }

    /// The number by which a background command can be attached to; 0 for one that is not in the
    /// background, and before [`ProcessEvent::Started`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// [`ProcessInput::detach`].
    pub fn detach(&self) {
        self.input.detach();
    }

    /// The way in.
    pub fn input(&self) -> ProcessInput {
        self.input.clone()
    }

    /// Waits for what happens next. After [`ProcessEvent::Exited`] or an error nothing comes.
    pub fn next_event(&mut self) -> Result<ProcessEvent<'_>, Error> {
        let output = loop {
            match self.receive().map_err(|error| self.link.explain(error))? {
                Received::Output(kind) => break kind,
                Received::Reply(ExecReply::Started { pid, process }) => {
                    self.number = process;
                    return Ok(ProcessEvent::Started(pid));
                }
                Received::Reply(ExecReply::Exited(status)) => {
                    self.input.close_window();
                    return Ok(ProcessEvent::Exited(status));
                }
                Received::Reply(ExecReply::Failed(failed)) => {
                    self.input.close_window();
                    let shell_code = failed.kind.shell_code();
                    return Err(Error::Exec { shell_code, message: failed.message });
                }
                Received::Reply(ExecReply::StdinTaken(taken)) => {
                    self.input.open_window(taken).map_err(|error| self.link.explain(error))?;
                }
                Received::Reply(ExecReply::StdinClosed) => self.input.close_window(),
                Received::Reply(ExecReply::Attached { pid, window }) => {
                    lock(&self.input.shared.window).account = StdinWindow::attached(window);
                    self.input.shared.window_changed.notify_all();
                    return Ok(ProcessEvent::Started(pid));
                }
                Received::Reply(ExecReply::Detached) => {
                    self.input.close_window();
                    return Ok(ProcessEvent::Detached);
                }
            }
        };
        Ok(match output {
            Kind::Stderr => ProcessEvent::Stderr(&self.buffer),
            _ => ProcessEvent::Stdout(&self.buffer),
        })
    }

    fn receive(&mut self) -> Result<Received, ProtocolError> {
        let received = frame::read_frame(&mut self.stream, &mut self.buffer);
        let frame = received.and_then(|frame| frame.ok_or(ProtocolError::Closed));
        let frame = frame.inspect_err(|_| self.input.close_window())?;
        match frame.kind {
            kind @ (Kind::Stdout | Kind::Stderr) => Ok(Received::Output(kind)),
            _ => frame.message().map(Received::Reply),
        }
    }
}

enum Received {
    Output(Kind),
    Reply(ExecReply),
}

impl ProcessInput {
    /// Gives the command bytes on its standard input; waits while it takes none. False once it takes
    /// no more: it has closed its input or has ended.
    pub fn write_stdin(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some(room) = self.wait_window(bytes.len().min(frame::MAX_PAYLOAD)) else {
                return false;
            };
            let (now, later) = bytes.split_at(room);
            if self.write(Kind::Stdin, now).is_err() {
                return false;
            }
            bytes = later;
        }
        true
    }

    /// Ends the command's standard input. A command that has ended does not mind.
    pub fn close_stdin(&self) {
        let _ = self.write(Kind::Stdin, &[]);
    }

    /// Sends a Linux signal to the command's process group. A command that has ended does not mind.
    pub fn signal(&self, signal: i32) {
        let _ = self.send(&ExecRequest::Signal(signal));
    }

    /// Leaves a background command running. What is under way is still to be taken, up to
    /// [`ProcessEvent::Detached`]. One that is not in the background ends.
    pub fn detach(&self) {
        let _ = self.send(&ExecRequest::Detach);
    }

    /// Breaks the connection off: the command is ended unless it is in the background, and whoever waits for it hears so.
    pub fn hang_up(&self) {
        self.shared.ends.shutdown(Shutdown::Both);
        self.close_window();
    }

    /// Says that the terminal has a new size.
    pub fn resize(&self, size: TtySize) {
        let _ = self.send(&ExecRequest::Resize(size));
    }

    fn send(&self, request: &ExecRequest) -> Result<(), ProtocolError> {
        let frame = request.to_frame()?;
        Ok(lock(&self.shared.stream).write_all(&frame)?)
    }

    fn write(&self, kind: Kind, bytes: &[u8]) -> Result<(), ProtocolError> {
        frame::write_frame(&mut *lock(&self.shared.stream), kind, bytes)
    }

    /// Waits until some of `wanted` bytes may be sent and counts them as sent.
    fn wait_window(&self, wanted: usize) -> Option<usize> {
        let mut window = lock(&self.shared.window);
        loop {
            if window.closed {
                return None;
            }
            let room = window.account.open().min(wanted);
            if room > 0 {
                window.account.send(room).ok()?;
                return Some(room);
            }
            window =
                self.shared.window_changed.wait(window).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open_window(&self, taken: u32) -> Result<(), ProtocolError> {
        lock(&self.shared.window).account.taken(taken)?;
        self.shared.window_changed.notify_all();
        Ok(())
    }

    fn close_window(&self) {
        lock(&self.shared.window).closed = true;
        self.shared.window_changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
