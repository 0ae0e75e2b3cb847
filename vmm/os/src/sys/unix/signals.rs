//! Signals to this process, by the numbers that Linux has for them: what is told to guests means the same everywhere.

use std::io;

use signal_hook::consts;
use signal_hook::iterator::Signals as Caught;

/// The numbers here and there.
const NUMBERS: [(i32, i32); 7] = [
    (consts::SIGHUP, HANGUP),
    (consts::SIGINT, INTERRUPT),
    (consts::SIGQUIT, QUIT),
    (consts::SIGUSR1, USER1),
    (consts::SIGUSR2, USER2),
    (consts::SIGTERM, TERMINATE),
    (consts::SIGWINCH, WINDOW),
];

pub use crate::sys::signal_numbers::*;

/// Signals that are caught from now on, for good.
pub struct Signals(Caught);

impl Signals {
    /// Catches these; what is no number of a signal here is left out.
    pub fn new(wanted: &[i32]) -> io::Result<Self> {
        let caught = NUMBERS.iter().filter(|(_, linux)| wanted.contains(linux));
        Ok(Self(Caught::new(caught.map(|(own, _)| *own))?))
    }

    /// Waits for the next.
    pub fn wait(&mut self) -> Option<i32> {
        let own = self.0.forever().next()?;
        NUMBERS.iter().find(|(number, _)| *number == own).map(|(_, linux)| *linux)
    }
}
