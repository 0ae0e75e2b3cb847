//! The lab's init: PID 1 of the outer machine.
//!
//! It loads kvm-amd, lays the host's files out under a tmpfs overlay, and starts itself again as the
//! server that runs commands for the host. The two are separate processes because PID 1 reaps every
//! orphan, which must not take an exit status away from the server.

mod ports;
mod world;

use std::io;
use std::process::{Command, ExitCode, exit};

use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// The argument with which PID 1 starts the server.
const SERVE: &str = "serve";

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(SERVE) {
        ports::serve();
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        eprintln!("lab-init: {error}");
    }
    // Nothing is lost: the shared folders are written through, everything else is memory.
    let _ = reboot(RebootCommand::Restart);
    exit(1)
}

/// Builds the world and reaps until the server ends, which it does only by a fault.
fn run() -> Result<(), world::Error> {
    world::build()?;
    let server = Command::new("/proc/self/exe")
        .arg(SERVE)
        .spawn()
        .map_err(|error| world::Error::new("start the server", error))?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() as u32 == server.id() => {
                let error = io::Error::other(format!("it ended ({status:?})"));
                return Err(world::Error::new("keep the server running", error));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(world::Error::new("wait for children", error.into())),
        }
    }
}
