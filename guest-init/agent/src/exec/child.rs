//! Starting, signalling and ending the command's process.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cabana_protocol::{Exec, ExecFailed, ExitStatus, FailureKind, Kind, ProtocolError, TtySize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize};

use super::ExecError;
use super::link::set_nonblocking;
use super::streams::{Input, Output};

/// How long a command whose connection ended has to end by itself after SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);

/// The environment, unless the request clears it.
const DEFAULT_ENV: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LANG", "C.UTF-8"),
];

const DEFAULT_TERM: &str = "xterm-256color";

/// The command's process. It leads a session and a process group of its own.
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

/// Starts the command.
pub(super) fn spawn(exec: &Exec) -> Result<(Child, Input, [Output; 2]), ExecFailed> {
    let mut command = command(exec)?;
    let cwd = open_cwd(exec)?;
    let no_terminal =
        |error: io::Error| other(format!("the command cannot have a terminal: {error}"));
    let terminal =
        exec.tty.map(Terminal::open).transpose().map_err(|errno| no_terminal(errno.into()))?;
    if let Some(terminal) = &terminal {
        terminal.attach(&mut command).map_err(no_terminal)?;
    } else {
        command.stdin(if exec.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let is_terminal = terminal.is_some();
    // SAFETY: between fork and exec the closure makes system calls alone; it neither allocates nor
    // takes a lock.
    unsafe {
        command.pre_exec(move || prepare(is_terminal, cwd.as_ref().map(AsFd::as_fd)));
    }
    let mut process = command.spawn().map_err(|error| start_failure(exec, &error))?;
    // The terminal's slave and the working directory are the child's alone now.
    drop(command);

    match adopt(&mut process, terminal.map(|terminal| terminal.master)) {
        Ok(spawned) => Ok(spawned),
        Err(error) => {
            // Both fail only for a process that has ended already.
            let _ = process.kill();
            let _ = process.wait();
            Err(other(format!("the command was started, but its streams are lost: {error}")))
        }
    }
}

/// Takes the started process and its streams over.
fn adopt(
    process: &mut std::process::Child,
    terminal: Option<OwnedFd>,
) -> io::Result<(Child, Input, [Output; 2])> {
    let pid = Pid::from_child(process);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (input, stdout, stderr) = match &terminal {
        Some(master) => (Some(master.try_clone()?), Some(master.try_clone()?), None),
        None => (
            process.stdin.take().map(OwnedFd::from),
            process.stdout.take().map(OwnedFd::from),
            process.stderr.take().map(OwnedFd::from),
        ),
    };
    for fd in [&input, &stdout, &stderr].into_iter().flatten() {
        set_nonblocking(fd.as_fd())?;
    }
    let input = Input::new(input, terminal.is_some());
    let outputs = [Output::new(stdout, Kind::Stdout), Output::new(stderr, Kind::Stderr)];
    Ok((Child { pid, pidfd, terminal }, input, outputs))
}

/// The command with its arguments and environment.
fn command(exec: &Exec) -> Result<Command, ExecFailed> {
    let Some((program, arguments)) = exec.argv.split_first() else {
        return Err(other("no command was given".into()));
    };
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
    command.env_clear();
    if !exec.clear_env {
        command.envs(DEFAULT_ENV);
        if exec.tty.is_some() {
            command.env("TERM", DEFAULT_TERM);
        }
    }
    if let (Some(term), Some(_)) = (&exec.term, exec.tty) {
        command.env("TERM", term);
    }
    for (key, value) in &exec.env {
        if key.is_empty() || key.contains(&b'=') {
            let key = String::from_utf8_lossy(key);
            return Err(other(format!("`{key}` cannot be the name of an environment variable")));
        }
        command.env(OsStr::from_bytes(key), OsStr::from_bytes(value));
    }
    Ok(command)
}

/// Opens the working directory, so that its failure is not taken for the command's.
fn open_cwd(exec: &Exec) -> Result<Option<OwnedFd>, ExecFailed> {
    let cwd = exec.cwd.as_deref().unwrap_or(b"/");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(cwd, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(errno) => Err(ExecFailed {
            kind: FailureKind::BadCwd,
            message: format!(
                "working directory `{}`: {}",
                String::from_utf8_lossy(cwd),
                io::Error::from(errno)
            ),
        }),
    }
}

/// Runs in the child before the program: a session of its own, the terminal, and nothing of the
/// server's that a program would notice. `Command` has put the streams in place and empties the signal
/// mask.
fn prepare(is_terminal: bool, cwd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    rustix::process::setsid()?;
    if is_terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    if let Some(cwd) = cwd {
        rustix::process::fchdir(cwd)?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for signal in 1..32 {
        // SAFETY: resets a disposition; SIGKILL and SIGSTOP answer with an error, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // The agent exempts itself from the out-of-memory killer; its commands are not exempt. Without
    // /proc there is nothing to undo.
    if let Ok(file) = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        let _ = rustix::io::write(file, b"0");
    }
    Ok(())
}

/// A pseudo terminal for a command to come.
struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    fn open(size: TtySize) -> Result<Self, Errno> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let mut modes = rustix::termios::tcgetattr(&slave)?;
        modes.input_modes |= InputModes::IUTF8;
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes)?;
        rustix::termios::tcsetwinsize(&master, winsize(size))?;
        Ok(Self { master, slave })
    }

    /// Makes the terminal the command's standard streams.
    fn attach(&self, command: &mut Command) -> io::Result<()> {
        command.stdin(self.slave.try_clone()?);
        command.stdout(self.slave.try_clone()?);
        command.stderr(self.slave.try_clone()?);
        Ok(())
    }
}

fn winsize(size: TtySize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
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

fn other(message: String) -> ExecFailed {
    ExecFailed { kind: FailureKind::Other, message }
}

/// Sends a signal to a process group that the caller knows to exist still; one that is gone needs none.
fn signal_group(group: Pid, number: i32) {
    // SAFETY: sends a signal; no memory is involved.
    unsafe { libc::kill(-group.as_raw_pid(), number) };
}

/// Waits until `fd` is readable or the time is over.
fn wait_readable(fd: &OwnedFd, most: Duration) {
    let end = Instant::now() + most;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}
