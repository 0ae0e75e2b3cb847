//! Passes bytes between a stream of the guest's and a socket of the engine's.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::thread;

use cabana_os::LocalStream;
use cabana_sandbox::Stream;

/// Enough that a bulk transfer is not dominated by system calls.
const CHUNK: usize = 64 << 10;

/// Splices until both directions have ended; returns when the guest's has.
pub(crate) fn splice(guest: &Stream, engine: LocalStream) -> io::Result<()> {
    let (mut from_engine, mut to_guest) = (engine.try_clone()?, guest.clone());
    thread::Builder::new().name("to guest".to_owned()).stack_size(256 << 10).spawn(move || {
        let end = match pass(&mut from_engine, &mut to_guest) {
            // The engine has no more to say.
            Ok(()) => Shutdown::Write,
            Err(_) => Shutdown::Both,
        };
        to_guest.shutdown(end);
    })?;
    let mut to_engine = engine;
    if pass_on(guest, &mut to_engine).is_ok() {
        return to_engine.shutdown(Shutdown::Write);
    }
    // The engine has hung up, or the machine is gone: both hear of it.
    guest.shutdown(Shutdown::Both);
    to_engine.shutdown(Shutdown::Both)
}

/// What the guest says goes to the engine's socket from where the device has put it.
fn pass_on(guest: &Stream, engine: &mut LocalStream) -> io::Result<()> {
    while guest.pass_on(&mut [], |bytes| engine.write_all(bytes))? > 0 {}
    Ok(())
}

fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
