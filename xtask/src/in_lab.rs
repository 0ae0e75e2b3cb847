//! One command in a lab of its own, with this process's terminal, input and signals.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use cabana_lab::{Architecture, Command, Control, Lab, Options, Parts, TtySize};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::failure::Failure;
use crate::progress::say;

/// The signals that reach the command.
const FORWARDED: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// How fast three ^C come from somebody who insists.
const INSIST: Duration = Duration::from_secs(2);

/// The variable by which a command can see that it runs in the lab.
const IN_LAB: &str = "CABANA_LAB";

/// Starts a lab, runs a command in it, and returns its exit status, 128 + n for signal n.
pub(crate) fn run(
    architecture: Architecture,
    options: &Options,
    argv: &[OsString],
) -> Result<ExitCode, Failure> {
    let parts = Parts::prepare_for(architecture, &mut |step| say(&format!("lab: {step}")))?;
    // Signals that come while the machine starts end this process, and it the machine.
    let lab = Lab::start(&parts, options)?;
    let terminal = Terminal::raw_if_interactive();
    let mut command = Command::new(argv).env(IN_LAB, "1").stdout(io::stdout()).stderr(io::stderr());
    if let Ok(input) = io::stdin().as_fd().try_clone_to_owned() {
        command = command.input(input);
    }
    if terminal.is_some() {
        command = command.terminal(window_size().unwrap_or(TtySize { rows: 24, cols: 80 }));
    }
    let running = lab.spawn(command)?;
    forward_signals(running.control())?;
    let status = running.wait()?;
    drop(terminal);
    Ok(ExitCode::from(status.shell_code()))
}

/// The caller's folder, unless it is one that the lab's machine has of its own.
pub(crate) fn current_folder() -> Option<PathBuf> {
    let folder = std::env::current_dir().ok()?;
    let own = ["/", "/tmp", "/run", "/dev", "/proc", "/sys"];
    (!own.iter().any(|own| folder == Path::new(own))).then_some(folder)
}

/// Passes signals on to the command until this process ends. Somebody who presses ^C three times
/// within [`INSIST`] wants an end whatever the command does: the lab's machine then ends with us.
fn forward_signals(control: Control) -> Result<(), Failure> {
    let numbers = FORWARDED.into_iter().chain([SIGWINCH]);
    let mut signals = Signals::new(numbers)
        .map_err(|error| Failure::Sentence(format!("cannot catch signals: {error}")))?;
    thread::spawn(move || {
        let mut interrupts = [None; 2];
        for signal in signals.forever() {
            if signal == SIGINT {
                let now = Instant::now();
                let [first, second] = interrupts;
                if first.is_some_and(|first| now.duration_since(first) < INSIST) {
                    std::process::exit(128 + SIGINT);
                }
                interrupts = [second, Some(now)];
            }
            match (signal, window_size()) {
                (SIGWINCH, Some(size)) => control.resize(size),
                (SIGWINCH, None) => {}
                _ => control.signal(signal),
            }
        }
    });
    Ok(())
}

/// The terminal's size, if there is a terminal.
fn window_size() -> Option<TtySize> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    Some(TtySize { rows: size.ws_row, cols: size.ws_col })
}

/// This process's terminal in raw mode, so that every key reaches the command's terminal. It is as
/// it was once this is dropped.
struct Terminal {
    before: Termios,
}

impl Terminal {
    /// If input and output are a terminal.
    fn raw_if_interactive() -> Option<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
