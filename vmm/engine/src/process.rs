//! One command in a machine.

use std::sync::Arc;

use cabana_api::{CommandSpec, Exit, TtySize};
use cabana_protocol::{Exec, ExitStatus};
use cabana_sandbox::Guest;

use crate::Error;
use crate::running::Running;

/// A command that runs in a guest. Dropping it without having seen its end hangs it up; one in the background
/// runs on.
#[derive(Debug)]
pub struct Process {
    inner: cabana_sandbox::Process,
    /// It has started under this number, which is still to be told.
    started: Option<u32>,
    ended: bool,
    /// Keeps the machine from being suspended, and from going with its last handle.
    running: Option<Arc<Running>>,
}

/// What happens to a [`Process`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEvent<'a> {
    /// It runs, under this number of the guest.
    Started(u32),
    /// It wrote to standard output (with a terminal: everything it wrote).
    Stdout(&'a [u8]),
    /// It wrote to standard error.
    Stderr(&'a [u8]),
    /// It ended; nothing comes after.
    Exited(Exit),
    /// It runs on in the background without this end: it was left, or somebody else has attached to it;
    /// nothing comes after.
    Detached,
}

/// The way into a [`Process`]. Cheap to clone, for any thread.
#[derive(Clone, Debug)]
pub struct ProcessInput(cabana_sandbox::ProcessInput);

impl ProcessInput {
    /// Gives the command bytes on its standard input; waits while it takes none. False once it takes no
    /// more: it has closed its input or has ended.
    pub fn write_stdin(&self, bytes: &[u8]) -> bool {
        self.0.write_stdin(bytes)
    }

    /// Ends its standard input. A command that has ended does not mind.
    pub fn close_stdin(&self) {
        self.0.close_stdin();
    }

    /// Sends a Linux signal to its process group. A command that has ended does not mind.
    pub fn signal(&self, signal: i32) {
        self.0.signal(signal);
    }

    /// Says that its terminal has a new size.
    pub fn resize(&self, size: TtySize) {
        self.0.resize(tty(size));
    }

    /// Leaves a command in the background running. What is under way is still to be taken, up to
    /// [`ProcessEvent::Detached`]. One that is not in the background is ended.
    pub fn detach(&self) {
        self.0.detach();
    }

    /// Breaks the connection off: the command is ended unless it is in the background, and whoever waits for
    /// it hears so.
    pub fn hang_up(&self) {
        self.0.hang_up();
    }
}

/// What a command said, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
}

impl Process {
    pub(crate) fn start(running: Arc<Running>, command: &CommandSpec) -> Result<Self, Error> {
        let mut command = exec(command);
        if let Some(network) = running.network() {
            network.prepare(&mut command);
        }
        Self::begin(running, |guest| guest.exec(&command))
    }

    pub(crate) fn attach(running: Arc<Running>, background: u64) -> Result<Self, Error> {
        let mut attached = Self::begin(running, |guest| guest.attach(background))?;
        // Only then it is known how much input it takes, for which nobody should have to read events.
        if let Some(ProcessEvent::Started(pid)) = attached.next_event()? {
            attached.started = Some(pid);
        }
        Ok(attached)
    }

    fn begin(
        running: Arc<Running>,
        connect: impl FnOnce(&Guest) -> Result<cabana_sandbox::Process, cabana_sandbox::Error>,
    ) -> Result<Self, Error> {
        running.begin()?;
        match connect(running.guest()) {
            Ok(inner) => Ok(Self { inner, started: None, ended: false, running: Some(running) }),
            Err(error) => {
                running.finish();
                Err(error.into())
            }
        }
    }

    /// The way in: standard input, signals, the terminal's size. Cheap to clone, for any thread.
    pub fn input(&self) -> ProcessInput {
        ProcessInput(self.inner.input())
    }

    /// What others attach to it by, once [`ProcessEvent::Started`] has come; `None` for one that is not in the
    /// background.
    pub fn background(&self) -> Option<u64> {
        Some(self.inner.number()).filter(|number| *number != 0)
    }

    /// Waits for what happens next; `None` after its end.
    pub fn next_event(&mut self) -> Result<Option<ProcessEvent<'_>>, Error> {
        if let Some(pid) = self.started.take() {
            return Ok(Some(ProcessEvent::Started(pid)));
        }
        if self.ended {
            return Ok(None);
        }
        let event = self.inner.next_event();
        let last = |event: &_| {
            use cabana_sandbox::ProcessEvent as Heard;
            matches!(event, Heard::Exited(_) | Heard::Detached)
        };
        if event.as_ref().map_or(true, last) {
            self.ended = true;
            if let Some(running) = self.running.take() {
                running.finish();
            }
        }
        Ok(Some(match event? {
            cabana_sandbox::ProcessEvent::Started(pid) => ProcessEvent::Started(pid),
            cabana_sandbox::ProcessEvent::Stdout(bytes) => ProcessEvent::Stdout(bytes),
            cabana_sandbox::ProcessEvent::Stderr(bytes) => ProcessEvent::Stderr(bytes),
            cabana_sandbox::ProcessEvent::Exited(status) => ProcessEvent::Exited(exit(status)),
            cabana_sandbox::ProcessEvent::Detached => ProcessEvent::Detached,
        }))
    }

    /// Waits for its end and gathers what it says.
    pub fn output(mut self) -> Result<Output, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = self.next_event()? {
            match event {
                ProcessEvent::Started(_) => {}
                ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(bytes),
                ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(bytes),
                ProcessEvent::Exited(exit) => return Ok(Output { stdout, stderr, exit }),
                ProcessEvent::Detached => break,
            }
        }
        Err(Error::Invalid("the process has ended or was left before".to_owned()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.finish();
        }
    }
}

pub(crate) fn exit(status: ExitStatus) -> Exit {
    match status {
        ExitStatus::Code(code) => Exit::Code(code),
        ExitStatus::Signal(signal) => Exit::Signal(signal),
        ExitStatus::TimedOut => Exit::TimedOut,
    }
}

fn exec(command: &CommandSpec) -> Exec {
    let bytes = |text: &String| text.clone().into_bytes();
    Exec {
        argv: command.argv.iter().map(bytes).collect(),
        env: command.env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        clear_env: command.clear_env,
        cwd: command.cwd.as_ref().map(bytes),
        tty: command.tty.map(tty),
        term: None,
        stdin: command.stdin,
        timeout_ms: command.timeout_ms,
        session: command.session.clone(),
        background: command.background,
    }
}

fn tty(size: TtySize) -> cabana_protocol::TtySize {
    cabana_protocol::TtySize { rows: size.rows, cols: size.cols }
}
