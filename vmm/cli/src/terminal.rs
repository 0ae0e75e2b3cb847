//! The terminal while a guest has it.

use std::io::IsTerminal;

pub(crate) use cabana_os::terminal::RawMode;
use cabana_sandbox::TtySize;

/// Is it a terminal?
pub(crate) fn is_terminal(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
}

/// The terminal's size, 80×24 if it has none.
pub(crate) fn size() -> TtySize {
    let (rows, cols) = cabana_os::terminal::size().unwrap_or((24, 80));
    TtySize { rows, cols }
}
