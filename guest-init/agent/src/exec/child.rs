//! Starting, signalling and ending the command's process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cabana_protocol::{Exec, ExecFailed, ExitStatus, FailureKind, Kind, ProtocolError, TtySize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize};

use super::ExecError;
use super::link::set_nonblocking;
use super::program::Program;
use super::streams::{Input, Output};
use crate::files;
use crate::fork;
use crate::session::{Session, confine, filter};
use crate::timespec;

/// How long a command whose connection ended has to end by itself after SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);

/// The command's process. It leads a session (of Linux) and a process group of its own.
pub(super) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// The master side of the command's terminal.
    terminal: Option<OwnedFd>,
}

impl Child {
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_pid() as u32
    }

    /// Readable when the process has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Takes the status of the ended process, after which its number may be another's.
    pub(super) fn status(&self) -> Result<Option<ExitStatus>, ExecError> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(self.pidfd()), options) {
            Ok(Some(status)) => status,
            Ok(None) | Err(Errno::INTR) => return Ok(None),
            Err(errno) => return Err(ExecError::system("waiting for the command")(errno)),
        };
        Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(ExitStatus::Code(code as u8)),
            (None, Some(signal)) => Some(ExitStatus::Signal(signal as u8)),
            (None, None) => None,
        })
    }

    /// Sends a signal to the process group, or to the one in the terminal's foreground.
    pub(super) fn signal(&self, number: i32) -> Result<(), ProtocolError> {
        if !(1..=64).contains(&number) {
            return Err(ProtocolError::BadSignal(number));
        }
        signal_group(self.foreground().unwrap_or(self.pid), number);
        Ok(())
    }

    /// Gives the terminal a new size; the kernel sends SIGWINCH.
    pub(super) fn resize(&self, size: TtySize) {
        if let Some(terminal) = &self.terminal {
            // It cannot fail on a terminal that is open.
            let _ = rustix::termios::tcsetwinsize(terminal, winsize(size));
        }
    }

    /// Ends the process group because its connection ended: closes its streams, sends SIGHUP and,
    /// after a grace or when the process itself has ended, SIGKILL to what is left.
    pub(super) fn end(self, close_streams: impl FnOnce()) {
        let foreground = self.foreground();
        let Self { pid, pidfd, terminal } = self;
        drop(terminal);
        close_streams();
        let groups = [Some(pid), foreground.filter(|group| *group != pid)];
        for group in groups.into_iter().flatten() {
            signal_group(group, libc::SIGHUP);
        }
        wait_readable(&pidfd, HANG_UP_GRACE);
        // Not yet waited for, the process still owns its number, and the group with it.
        for group in groups.into_iter().flatten() {
            signal_group(group, libc::SIGKILL);
        }
        while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
    }

    /// The process group in the terminal's foreground.
    fn foreground(&self) -> Option<Pid> {
        rustix::termios::tcgetpgrp(self.terminal.as_ref()?).ok()
    }
}

/// Starts the command, in a session if one is given.
pub(super) fn spawn(
    exec: &Exec,
    session: Option<&Session>,
) -> Result<(Child, Input, [Output; 2]), ExecFailed> {
    let home = session.map(Session::home);
    let user = session.map(|session| session.name.as_str()).zip(home.as_deref());
    let program = Program::new(exec, user)?;
    let cwd = exec.cwd.as_deref().or(home.as_deref().map(str::as_bytes)).unwrap_or(b"/");
    let cwd = CString::new(cwd).map_err(|_| bad_cwd(exec, &io::ErrorKind::InvalidInput.into()))?;
    let no_streams = |error: io::Error| other(format!("the command cannot have streams: {error}"));
    let (ours, theirs) = match exec.tty {
        Some(size) => terminal(size, session)
            .map_err(|error| other(format!("the command cannot have a terminal: {error}")))?,
        None => pipes(exec.stdin).map_err(no_streams)?,
    };
    if session.is_some() {
        filter::program();
    }
    let (failed, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| no_streams(errno.into()))?;
    let no_session = |error: io::Error| ExecFailed {
        kind: FailureKind::NoSession,
        message: format!("entering the session: {error}"),
    };
    if let Some(session) = session {
        session.adopt_children().map_err(no_session)?;
    }
    // SAFETY: the child makes system calls alone until it executes the program or ends.
    let forked = unsafe { fork::fork(0, session.map(Session::cgroup)) };
    let forked = forked.map_err(|error| match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM) => ExecFailed {
            kind: FailureKind::Exhausted,
            message: format!("the command cannot have a process: {error}"),
        },
        _ => other(format!("the command cannot have a process: {error}")),
    })?;
    let Some(forked) = forked else {
        let start = Start {
            streams: theirs.each_ref().map(AsFd::as_fd),
            is_terminal: exec.tty.is_some(),
            cwd: &cwd,
            session,
            program: &program,
        };
        let (stage, error) = start.run();
        let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EINVAL).to_le_bytes();
        let _ = rustix::io::write(&tell, &[stage as u8, a, b, c, d]);
        fork::exit(127);
    };
    drop((theirs, tell));
    let mut answer = [0; 5];
    let told = loop {
        match rustix::io::read(&failed, &mut answer) {
            Err(Errno::INTR) => {}
            other => break other,
        }
    };
    let child = Child { pid: forked.pid, pidfd: forked.pidfd, terminal: ours.terminal };
    if told == Ok(0) {
        let [input, stdout, stderr] = ours.streams;
        let input = Input::new(input, exec.tty.is_some());
        let outputs = [Output::new(stdout, Kind::Stdout), Output::new(stderr, Kind::Stderr)];
        return Ok((child, input, outputs));
    }
    // It ends by itself.
    let _ = waitid(WaitId::PidFd(child.pidfd()), WaitIdOptions::EXITED);
    let [stage, a, b, c, d] = answer;
    let error = io::Error::from_raw_os_error(i32::from_le_bytes([a, b, c, d]));
    Err(match stage {
        stage if stage == Stage::Cwd as u8 => bad_cwd(exec, &error),
        stage if stage == Stage::Session as u8 => no_session(error),
        stage if stage == Stage::Program as u8 => start_failure(exec, &error),
        _ => other(format!("the command cannot be prepared: {error}")),
    })
}

/// Where a child that cannot go on stands.
#[derive(Clone, Copy)]
enum Stage {
    Prepare = 1,
    Session,
    Cwd,
    Program,
}

/// What happens between fork and exec. It makes system calls alone.
struct Start<'a> {
    streams: [BorrowedFd<'a>; 3],
    is_terminal: bool,
    cwd: &'a CString,
    session: Option<&'a Session>,
    program: &'a Program,
}

impl Start<'_> {
    /// Executes the program; returns why it could not.
    fn run(&self) -> (Stage, io::Error) {
        if let Err(error) = self.prepare() {
            return (Stage::Prepare, error);
        }
        if let Some(session) = self.session {
            let enter = || {
                session.enter_all()?;
                confine::apply(session.uid)
            };
            if let Err(error) = enter() {
                return (Stage::Session, error);
            }
        }
        if let Err(errno) = rustix::process::chdir(self.cwd.as_c_str()) {
            return (Stage::Cwd, errno.into());
        }
        (Stage::Program, self.program.execute())
    }

    /// A session (of Linux) of its own, the streams, and nothing of the server's that a program would
    /// notice.
    fn prepare(&self) -> io::Result<()> {
        // The agent exempts itself from the out-of-memory killer; its commands are not exempt. Without
        // /proc there is nothing to undo.
        if let Ok(file) = rustix::fs::open(
            c"/proc/self/oom_score_adj",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            let _ = rustix::io::write(file, b"0");
        }
        rustix::process::setsid()?;
        for (stream, number) in self.streams.iter().zip(0..) {
            // SAFETY: makes the descriptor a standard stream of this process, which owns all three. None of
            // the originals is one: the agent's own are never closed.
            if unsafe { libc::dup2(stream.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if self.is_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        files::restore()?;
        // The agent's own priority is not for its commands.
        // SAFETY: sets the priority of this process.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        for signal in 1..32 {
            // SAFETY: resets a disposition; SIGKILL and SIGSTOP answer with an error, which is fine.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: an empty set of signals is all zeros; the kernel reads it.
        unsafe {
            let none: libc::sigset_t = std::mem::zeroed();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        }
        Ok(())
    }
}

/// Our ends of the command's streams.
struct Ours {
    streams: [Option<OwnedFd>; 3],
    terminal: Option<OwnedFd>,
}

fn pipes(stdin: bool) -> io::Result<(Ours, [OwnedFd; 3])> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (input, ours_in) = if stdin {
        let (reader, writer) = pipe()?;
        (reader, Some(writer))
    } else {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        (rustix::fs::open(c"/dev/null", flags, Mode::empty())?, None)
    };
    let ((ours_out, output), (ours_err, error)) = (pipe()?, pipe()?);
    let streams = [ours_in, Some(ours_out), Some(ours_err)];
    for stream in streams.iter().flatten() {
        set_nonblocking(stream.as_fd())?;
    }
    Ok((Ours { streams, terminal: None }, [input, output, error]))
}

/// A pseudo terminal: the slave is all of the command's streams.
fn terminal(size: TtySize, session: Option<&Session>) -> io::Result<(Ours, [OwnedFd; 3])> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = match session {
        Some(session) => session.open_terminal()?,
        None => openpt(flags)?,
    };
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    if let Some(session) = session {
        let owner = rustix::fs::Uid::from_raw(session.uid);
        rustix::fs::fchown(&slave, Some(owner), None)?;
    }
    let mut modes = rustix::termios::tcgetattr(&slave)?;
    modes.input_modes |= InputModes::IUTF8;
    rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes)?;
    rustix::termios::tcsetwinsize(&master, winsize(size))?;
    set_nonblocking(master.as_fd())?;
    let streams = [Some(master.try_clone()?), Some(master.try_clone()?), None];
    let slaves = [slave.try_clone()?, slave.try_clone()?, slave];
    Ok((Ours { streams, terminal: Some(master) }, slaves))
}

fn winsize(size: TtySize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

fn bad_cwd(exec: &Exec, error: &io::Error) -> ExecFailed {
    let cwd = String::from_utf8_lossy(exec.cwd.as_deref().unwrap_or(b"/"));
    ExecFailed { kind: FailureKind::BadCwd, message: format!("working directory `{cwd}`: {error}") }
}

/// Says why the program was not started.
fn start_failure(exec: &Exec, error: &io::Error) -> ExecFailed {
    let program = String::from_utf8_lossy(exec.argv.first().map_or(b"", Vec::as_slice));
    match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => ExecFailed {
            kind: FailureKind::NotFound,
            message: format!("`{program}`: no such file, or its interpreter is missing"),
        },
        io::ErrorKind::NotFound => ExecFailed {
            kind: FailureKind::NotFound,
            message: format!("`{program}`: command not found"),
        },
        io::ErrorKind::PermissionDenied => ExecFailed {
            kind: FailureKind::PermissionDenied,
            message: format!("`{program}`: permission denied, or not an executable file"),
        },
        _ => other(format!("`{program}` cannot be started: {error}")),
    }
}

pub(super) fn other(message: String) -> ExecFailed {
    ExecFailed { kind: FailureKind::Other, message }
}

/// Sends a signal to a process group that the caller knows to exist still; one that is gone needs none.
fn signal_group(group: Pid, number: i32) {
    // SAFETY: sends a signal; no memory is involved.
    unsafe { libc::kill(-group.as_raw_pid(), number) };
}

/// Waits until `fd` is readable or the time is over.
fn wait_readable(fd: &OwnedFd, most: Duration) {
    let end = std::time::Instant::now() + most;
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timespec(end))) {
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}
