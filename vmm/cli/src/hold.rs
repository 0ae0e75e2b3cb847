//! `cabana hold`: the background process that keeps one machine up for the verbs of [`crate::machines`].

use std::fs::File;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use cabana_api::MachineSpec;
use cabana_serve::{Place, Server};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::serve::engine;
use crate::{Failure, args};

/// What the holder says to who started it, once it can be spoken to.
pub(crate) const READY: &str = "ready";

/// How long clients may take to hear that their machine is down.
const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) fn hold(args: &args::HoldArgs) -> Result<u8, Failure> {
    let spec: MachineSpec = serde_json::from_str(&args.spec)?;
    let name = spec.name.clone();
    // Neither a terminal's end nor its Ctrl-C is meant for this process.
    let _ = rustix::process::setsid();
    let (taken, listener) = Place::open()?.take(&name)?;
    let server = Server::new(engine()?);
    server.create(spec)?;

    let (accepting, ending, held) = (server.clone(), server.clone(), name);
    spawn("socket", move || {
        let _ = accepting.serve_socket(&listener);
    })?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    spawn("signals", move || {
        for _ in signals.forever() {
            let _ = ending.remove(&held);
        }
    })?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{READY}").and_then(|()| stdout.flush())?;
    // Who reads the output of who started this is not to wait for this one's end.
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;

    server.wait_empty();
    drop(taken);
    server.wait_served(FAREWELL);
    Ok(0)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new().name(name.to_owned()).spawn(body)?;
    Ok(())
}
