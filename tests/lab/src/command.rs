//! Commands in the lab: the host's side of an exec connection (`cabana_protocol::exec`).

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use cabana_protocol::exec::StdinWindow;
use cabana_protocol::{
    Decoder, Exec, ExecReply, ExecRequest, ExitStatus, Kind, ProtocolError, TtySize, write_frame,
    write_message,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::machine::{Shared, lock, memory_file};
use crate::tunnel::{Receiver, Sender};
use crate::{Error, Lab};

/// The signal of a program that writes where nobody reads.
const SIGPIPE: i32 = 13;

/// How much standard input travels in one frame.
const INPUT_CHUNK: usize = 64 * 1024;

/// Where output goes.
type Sink = Box<dyn Write + Send>;

/// A command, in the making: without more it runs in the caller's folder with the caller's
/// environment, has no input, and its output is thrown away.
pub struct Command {
    exec: Exec,
    input: Option<OwnedFd>,
    stdout: Sink,
    stderr: Sink,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("exec", &self.exec).finish_non_exhaustive()
    }
}

impl Command {
    /// A command and its arguments. A name without a slash is looked up in the `PATH` of its
    /// environment.
    pub fn new<A: Into<OsString>>(argv: impl IntoIterator<Item = A>) -> Self {
        let bytes = |string: OsString| string.into_vec();
        let variables = std::env::vars_os().map(|(name, value)| (bytes(name), bytes(value)));
        let exec = Exec {
            argv: argv.into_iter().map(|argument| bytes(argument.into())).collect(),
            env: variables.collect(),
            clear_env: true,
            cwd: std::env::current_dir().ok().map(|folder| bytes(folder.into())),
            ..Exec::default()
        };
        Self { exec, input: None, stdout: Box::new(io::sink()), stderr: Box::new(io::sink()) }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        let arguments = arguments.into_iter().map(|argument| argument.into().into_vec());
        self.exec.argv.extend(arguments);
        self
    }

    /// The folder to run in.
    #[must_use]
    pub fn cwd(mut self, folder: impl Into<PathBuf>) -> Self {
        self.exec.cwd = Some(folder.into().into_os_string().into_vec());
        self
    }

    /// Adds or replaces an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.exec.env.push((name.into().into_vec(), value.into().into_vec()));
        self
    }

    /// A terminal of this size for all three streams; output then arrives as standard output. `TERM`
    /// is as in the environment.
    #[must_use]
    pub fn terminal(mut self, size: TtySize) -> Self {
        self.exec.tty = Some(size);
        self
    }

    /// Standard input from an open file, pipe, socket or terminal.
    #[must_use]
    pub fn input(mut self, stream: impl Into<OwnedFd>) -> Self {
        self.input = Some(stream.into());
        self.exec.stdin = true;
        self
    }

    /// Standard input of these bytes.
    pub fn input_bytes(self, bytes: &[u8]) -> Result<Self, Error> {
        Ok(self.input(memory_file(bytes).map_err(Error::system("hold the command's input"))?))
    }

    /// Where standard output goes.
    #[must_use]
    pub fn stdout(mut self, sink: impl Write + Send + 'static) -> Self {
        self.stdout = Box::new(sink);
        self
    }

    /// Where standard error goes.
    #[must_use]
    pub fn stderr(mut self, sink: impl Write + Send + 'static) -> Self {
        self.stderr = Box::new(sink);
        self
    }
}

/// What a command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Lab {
    /// Runs a command to its end.
    pub fn run(&self, command: Command) -> Result<ExitStatus, Error> {
        self.spawn(command)?.wait()
    }

    /// Runs a command to its end and keeps its output, in place of where it was to go.
    pub fn output(&self, command: Command) -> Result<Output, Error> {
        let (stdout, stderr) = (Buffer::default(), Buffer::default());
        let status = self.run(command.stdout(stdout.clone()).stderr(stderr.clone()))?;
        Ok(Output { status, stdout: stdout.take(), stderr: stderr.take() })
    }

    /// Starts a command; waits for its turn while [`PORTS`](crate::tunnel::PORTS) others run.
    pub fn spawn(&self, command: Command) -> Result<Running, Error> {
        let shared = Arc::clone(self.shared());
        let port = shared.take_port();
        let outward = port.try_clone().map_err(Error::system("use a port"))?;
        let control = Control(Arc::new(Mutex::new(Some(Sender::new(outward)))));
        let thread = {
            let control = control.clone();
            thread::spawn(move || {
                let mut receiver = Receiver::new(&port);
                let ended = converse(&shared, &mut receiver, &control, command);
                // A port that fails even here is out of step, and stays out of use.
                if control.finish() && receiver.drain().is_ok() {
                    shared.give_back(port);
                }
                ended
            })
        };
        Ok(Running { control, thread })
    }
}

/// A command that runs. Dropping this lets it run on.
#[derive(Debug)]
pub struct Running {
    control: Control,
    thread: JoinHandle<Result<ExitStatus, Error>>,
}

impl Running {
    /// A handle for signals and the terminal's size, for other threads too.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits for the command's end, after which all of its output has been written.
    pub fn wait(self) -> Result<ExitStatus, Error> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Reaches into a command that runs. After its end nothing happens.
#[derive(Clone, Debug)]
pub struct Control(Arc<Mutex<Option<Sender<UnixStream>>>>);

impl Control {
    /// Sends a Linux signal to the command's process group, or to its terminal's foreground group.
    pub fn signal(&self, number: i32) {
        self.request(&ExecRequest::Signal(number));
    }

    /// Gives its terminal another size.
    pub fn resize(&self, size: TtySize) {
        self.request(&ExecRequest::Resize(size));
    }

    /// A port that does not take a request is a machine that ended, which its reader finds out.
    fn request(&self, request: &ExecRequest) {
        let _ = self.send(|sender| write_message(sender, request));
    }

    fn send(
        &self,
        write: impl FnOnce(&mut Sender<UnixStream>) -> Result<(), ProtocolError>,
    ) -> Result<(), ProtocolError> {
        lock(&self.0).as_mut().map_or(Ok(()), write)
    }

    /// Ends the outward direction; whether the port took it.
    fn finish(&self) -> bool {
        lock(&self.0).take().is_some_and(|sender| sender.finish().is_ok())
    }
}

/// Carries a command's conversation from its request to its exit status.
fn converse(
    shared: &Shared,
    receiver: &mut Receiver<&UnixStream>,
    control: &Control,
    command: Command,
) -> Result<ExitStatus, Error> {
    let Command { exec, input, mut stdout, mut stderr } = command;
    control.send(|sender| write_message(sender, &ExecRequest::Exec(exec)))?;
    let gate = Arc::new(Gate::new().map_err(Error::system("make the command's input"))?);
    let pump = input.map(|stream| {
        let (gate, control) = (Arc::clone(&gate), control.clone());
        thread::spawn(move || pump(&stream, &gate, &control))
    });
    let ended = relay(shared, receiver, control, &gate, &mut stdout, &mut stderr);
    gate.close();
    if let Some(pump) = pump {
        let _ = pump.join();
    }
    ended
}

/// Takes frames until the command's end, and writes its output as it comes.
fn relay(
    shared: &Shared,
    receiver: &mut Receiver<&UnixStream>,
    control: &Control,
    gate: &Gate,
    stdout: &mut Sink,
    stderr: &mut Sink,
) -> Result<ExitStatus, Error> {
    let mut decoder = Decoder::new();
    loop {
        while let Some(frame) = decoder.next_frame()? {
            let sink = match frame.kind {
                Kind::Stdout => &mut *stdout,
                Kind::Stderr => &mut *stderr,
                _ => {
                    match frame.message()? {
                        ExecReply::Started { .. } => {}
                        ExecReply::Attached { .. } | ExecReply::Detached => {
                            let answer = "an answer to what was not asked";
                            return Err(ProtocolError::OutOfTurn(answer).into());
                        }
                        ExecReply::StdinTaken(taken) => gate.taken(taken)?,
                        ExecReply::StdinClosed => gate.close(),
                        ExecReply::Exited(status) => return Ok(status),
                        ExecReply::Failed(failed) => return Err(Error::NotStarted(failed)),
                    }
                    continue;
                }
            };
            if sink.write_all(frame.payload).and_then(|()| sink.flush()).is_err() {
                // As if the command itself had written where nobody reads.
                *sink = Box::new(io::sink());
                control.signal(SIGPIPE);
            }
        }
        match decoder.fill(receiver) {
            Ok(0) => return Err(ProtocolError::Closed.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(shared.ended()),
        }
    }
}

/// Sends the input's bytes as the window allows, until its end or until the gate closes.
fn pump(stream: &OwnedFd, gate: &Gate, control: &Control) {
    let mut chunk = vec![0; INPUT_CHUNK];
    while let Some(room) = gate.wait_open() {
        let mut ready = [
            PollFd::new(stream, PollFlags::IN),
            PollFd::from_borrowed_fd(gate.closed.as_fd(), PollFlags::IN),
        ];
        if poll(&mut ready, None).is_err() {
            continue;
        }
        if !ready[1].revents().is_empty() {
            return;
        }
        let room = room.min(chunk.len());
        // What cannot be read is at its end.
        let read = rustix::io::read(stream, &mut chunk[..room]).unwrap_or(0);
        gate.sent(read);
        let sent = control.send(|sender| write_frame(sender, Kind::Stdin, &chunk[..read]));
        if read == 0 || sent.is_err() {
            return;
        }
    }
}

/// Lets input through while the command takes it.
struct Gate {
    /// `None` once the command wants no more.
    window: Mutex<Option<StdinWindow>>,
    changed: Condvar,
    /// Readable once the gate is closed, for `poll`.
    closed: UnixStream,
    close: UnixStream,
}

impl Gate {
    fn new() -> io::Result<Self> {
        let (closed, close) = UnixStream::pair()?;
        Ok(Self {
            window: Mutex::new(Some(StdinWindow::new())),
            changed: Condvar::new(),
            closed,
            close,
        })
    }

    /// Waits until bytes may be sent and says how many, or `None` once the gate is closed.
    fn wait_open(&self) -> Option<usize> {
        let mut window = lock(&self.window);
        loop {
            match window.as_ref()?.open() {
                0 => window = self.changed.wait(window).unwrap_or_else(PoisonError::into_inner),
                open => return Some(open),
            }
        }
    }

    /// Bytes, no more than `wait_open` allowed, are on their way.
    fn sent(&self, bytes: usize) {
        if let Some(window) = lock(&self.window).as_mut() {
            let _ = window.send(bytes);
        }
    }

    fn taken(&self, bytes: u32) -> Result<(), ProtocolError> {
        let taken = lock(&self.window).as_mut().map_or(Ok(()), |window| window.taken(bytes));
        self.changed.notify_one();
        taken
    }

    fn close(&self) {
        *lock(&self.window) = None;
        self.changed.notify_one();
        let _ = self.close.shutdown(std::net::Shutdown::Both);
    }
}

/// A sink that keeps what is written.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
