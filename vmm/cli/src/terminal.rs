//! The terminal in raw mode while a guest has it.

use std::os::fd::AsFd;

use cabana_sandbox::TtySize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Restores the terminal when dropped.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Every key goes to the guest; `None` if standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Is it a terminal?
pub(crate) fn is_terminal(fd: impl AsFd) -> bool {
    isatty(fd)
}

/// The terminal's size, 80×24 if it has none.
pub(crate) fn size() -> TtySize {
    match tcgetwinsize(rustix::stdio::stdin()) {
        Ok(size) if size.ws_row > 0 => TtySize { rows: size.ws_row, cols: size.ws_col },
        _ => TtySize { rows: 24, cols: 80 },
    }
}
