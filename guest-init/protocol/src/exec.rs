//! Messages of an exec connection: one command in the guest.
//!
//! The host's first frame is [`ExecRequest::Exec`]; the guest answers [`ExecReply::Started`] or, as its
//! last frame, [`ExecReply::Failed`]. Then, in any order:
//!
//! - host to guest: [`Kind::Stdin`] with bytes for standard input (an empty payload is its end),
//!   [`ExecRequest::Signal`], [`ExecRequest::Resize`];
//! - guest to host: [`Kind::Stdout`] and [`Kind::Stderr`] with output (with a terminal all of it is
//!   standard output), [`ExecReply::StdinTaken`], [`ExecReply::StdinClosed`].
//!
//! The guest's last frame is [`ExecReply::Exited`]; all output stands before it. The guest closes the
//! connection afterwards.
//!
//! Output is held back by the stream alone. Standard input has a window of its own, so that a signal
//! never waits behind input that the command does not read: the host may have at most
//! [`STDIN_WINDOW`] bytes under way that [`ExecReply::StdinTaken`] has not returned.
//! [`StdinWindow`] keeps that account. The guest may gather up to a quarter of the window before it
//! returns it, so a small input is never answered.
//!
//! A host that closes the connection, or its sending half, ends the command: its process group
//! receives SIGHUP and, a grace later, SIGKILL.
//!
//! A command that was started in the background ([`Exec::background`]) lives on. It is left by
//! [`ExecRequest::Detach`], after which everything that is under way still comes, and
//! [`ExecReply::Detached`] last, or by closing the connection, which loses what is under way. The guest
//! keeps up to [`OUTPUT_BUFFER`] bytes of output; a command that writes more waits. A later connection
//! whose first frame is [`ExecRequest::Attach`] is answered by [`ExecReply::Attached`] and then goes on as
//! the first would have, beginning with what was kept. It takes the command over from a connection that
//! is still attached, which is answered [`ExecReply::Detached`] in its turn.

use serde::{Deserialize, Serialize};

use crate::ProtocolError;
use crate::frame::{Kind, Message};

/// The most bytes of standard input that the host may have sent and the command not yet taken.
pub const STDIN_WINDOW: usize = 256 * 1024;

/// The most bytes of output that the guest keeps of a background command to which nobody is attached.
pub const OUTPUT_BUFFER: usize = 1024 * 1024;

/// What the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecRequest {
    /// The command to run: the first frame, and never again on the same connection.
    Exec(Exec),
    /// A Linux signal number, 1 to 64, for the command's process group; with a terminal, for the
    /// terminal's foreground process group.
    Signal(i32),
    /// The terminal has a new size. Without a terminal it is ignored.
    Resize(TtySize),
    /// Go on with a background command: the first frame in place of [`Exec`](Self::Exec).
    Attach {
        /// The number that [`ExecReply::Started`] gave it.
        process: u64,
    },
    /// Leave the command running and end the connection. One that is not in the background is ended, as
    /// by hanging up.
    Detach,
}

/// A command. Strings are bytes, as Linux has them; none may contain a zero byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The command and its arguments. A command without a slash is looked up in the `PATH` of `env`.
    pub argv: Vec<Vec<u8>>,
    /// Environment variables, added to the agent's defaults (`PATH`, `HOME`, `USER`, `LANG`, and
    /// with a terminal `TERM`); a later entry replaces an earlier one.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Leaves the defaults out: `env` is the whole environment.
    pub clear_env: bool,
    /// The working directory; if absent, `/` or the home of the session.
    pub cwd: Option<Vec<u8>>,
    /// Gives the command a terminal of this size as its standard input, output and error.
    pub tty: Option<TtySize>,
    /// `TERM` of the terminal, `xterm-256color` if absent; without a terminal it is ignored.
    pub term: Option<String>,
    /// Whether standard input comes over the connection; otherwise it is empty. A terminal always
    /// takes its input from the connection.
    pub stdin: bool,
    /// The session to run in; absent: in the machine itself, as its root.
    pub session: Option<String>,
    /// Milliseconds after which the command is ended: SIGTERM to its process group, and SIGKILL two
    /// seconds later. Its status is then [`ExitStatus::TimedOut`].
    pub timeout_ms: Option<u64>,
    /// Whether the command outlives its connection.
    pub background: bool,
}

impl Exec {
    /// A command with its arguments and everything else as the agent has it: no standard input, no
    /// terminal.
    pub fn new<A: Into<Vec<u8>>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// The size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// What the guest answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecReply {
    /// The command runs.
    Started {
        /// Its process identifier in the guest.
        pid: u32,
        /// The number by which it can be attached to, if it is a background command. It is used once in
        /// the machine's life.
        process: u64,
    },
    /// The command could not be started.
    Failed(ExecFailed),
    /// The command, or the terminal, took this many bytes of standard input: the host's window grows
    /// by them.
    StdinTaken(u32),
    /// The command closed its standard input, or has none: what the host sent or sends of it is
    /// dropped.
    StdinClosed,
    /// The command ended and all of its output has been sent.
    Exited(ExitStatus),
    /// The connection goes on with a background command.
    Attached {
        /// Its process identifier in the guest.
        pid: u32,
        /// How many bytes of standard input the host may send now; the window that
        /// [`StdinTaken`](Self::StdinTaken) returns to.
        window: u32,
    },
    /// The command runs on without this connection: the last frame.
    Detached,
}

/// Why a command could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFailed {
    /// The cause, for programs.
    pub kind: FailureKind,
    /// The cause, for people: one sentence.
    pub message: String,
}

/// The causes for which a command could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// There is no such command.
    NotFound,
    /// The command exists but may not be executed.
    PermissionDenied,
    /// The working directory does not exist, is not a directory or may not be entered.
    BadCwd,
    /// There is no such session.
    NoSession,
    /// There is no such background command.
    NoProcess,
    /// A limit of processes or memory is reached, the machine's or the session's.
    Exhausted,
    /// Anything else, for example an empty `argv` or a file that is not a program.
    Other,
}

impl FailureKind {
    /// The exit status by which shells report this cause: 127 for a missing command, 126 for the
    /// rest.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::PermissionDenied
            | Self::BadCwd
            | Self::NoSession
            | Self::NoProcess
            | Self::Exhausted
            | Self::Other => 126,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this status, 0 to 255.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
    /// It was ended because its time was over.
    TimedOut,
}

impl ExitStatus {
    /// The exit status by which shells report this end: 128 + n for signal n, and 124, as `timeout(1)`
    /// has it, for a time that was over.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::TimedOut => 124,
        }
    }
}

/// The host's account of the standard input that it may still send.
#[derive(Clone, Debug)]
pub struct StdinWindow {
    open: usize,
}

impl StdinWindow {
    /// A whole window, as at the start of a command.
    pub fn new() -> Self {
        Self { open: STDIN_WINDOW }
    }

    /// The window that an [`ExecReply::Attached`] tells of; a larger one is cut to a whole window.
    pub fn attached(window: u32) -> Self {
        Self { open: STDIN_WINDOW.min(window as usize) }
    }

    /// How many bytes may be sent now.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Notes that `sent` bytes were sent.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::WindowExceeded`] when they are more than [`open`](Self::open) allows.
    pub fn send(&mut self, sent: usize) -> Result<(), ProtocolError> {
        match self.open.checked_sub(sent) {
            Some(open) => {
                self.open = open;
                Ok(())
            }
            None => Err(ProtocolError::WindowExceeded { excess: sent - self.open }),
        }
    }

    /// Notes an [`ExecReply::StdinTaken`].
    ///
    /// # Errors
    ///
    /// [`ProtocolError::WindowExceeded`] when the guest returns more than was sent.
    pub fn taken(&mut self, taken: u32) -> Result<(), ProtocolError> {
        let under_way = STDIN_WINDOW - self.open;
        let taken = taken as usize;
        if taken > under_way {
            return Err(ProtocolError::WindowExceeded { excess: taken - under_way });
        }
        self.open += taken;
        Ok(())
    }
}

impl Default for StdinWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl Message for ExecRequest {
    const KIND: Kind = Kind::ExecRequest;
}

impl Message for ExecReply {
    const KIND: Kind = Kind::ExecReply;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_closes_and_opens_again() {
        let mut window = StdinWindow::new();
        window.send(STDIN_WINDOW).unwrap();
        assert_eq!(window.open(), 0);
        assert!(matches!(window.send(1), Err(ProtocolError::WindowExceeded { excess: 1 })));
        window.taken(100).unwrap();
        assert_eq!(window.open(), 100);
    }

    #[test]
    fn a_guest_cannot_open_the_window_beyond_its_size() {
        let mut window = StdinWindow::new();
        window.send(10).unwrap();
        assert!(matches!(window.taken(u32::MAX), Err(ProtocolError::WindowExceeded { .. })));
        assert_eq!(window.open(), STDIN_WINDOW - 10);
    }

    #[test]
    fn shell_codes() {
        assert_eq!(ExitStatus::Code(3).shell_code(), 3);
        assert_eq!(ExitStatus::Signal(15).shell_code(), 143);
        assert_eq!(ExitStatus::Signal(255).shell_code(), 255);
        assert_eq!(FailureKind::NotFound.shell_code(), 127);
        assert_eq!(FailureKind::PermissionDenied.shell_code(), 126);
    }
}
