//! How many files the agent may have open: some for each command and each session, of which there are
//! hundreds. Its commands have the limit that the kernel gave.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Enough for a thousand sessions and thousands of commands.
const MOST: u64 = 65_536;

/// The limit that the kernel gave, once the agent has raised its own.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises the agent's limit.
pub(crate) fn raise() -> io::Result<()> {
    let given = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(MOST), maximum: Some(MOST) })?;
    // It is called once.
    let _ = GIVEN.set(given);
    Ok(())
}

/// Gives a command the limit that the kernel gave: between a fork and an exec.
pub(crate) fn restore() -> io::Result<()> {
    match GIVEN.get() {
        Some(given) => Ok(setrlimit(Resource::Nofile, *given)?),
        None => Ok(()),
    }
}
