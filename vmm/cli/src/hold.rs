//! `cabana hold`: the background process that keeps one machine up for the verbs of [`crate::machines`].

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use cabana_api::MachineSpec;
use cabana_os::process;
use cabana_os::signals::{INTERRUPT, Signals, TERMINATE};
use cabana_serve::{Place, Server};

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
    process::detach();
    let (taken, listener) = Place::open()?.take(&name)?;
    let server = Server::new(engine()?);
    server.create(spec)?;

    let (accepting, ending, held) = (server.clone(), server.clone(), name);
    spawn("socket", move || {
        let _ = accepting.serve_socket(&listener);
    })?;
    let mut signals = Signals::new(&[INTERRUPT, TERMINATE])?;
    spawn("signals", move || {
        while signals.wait().is_some() {
            let _ = ending.remove(&held);
        }
    })?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{READY}").and_then(|()| stdout.flush())?;
    // Who reads the output of who started this is not to wait for this one's end.
    process::silence()?;

    server.wait_empty();
    drop(taken);
    server.wait_served(FAREWELL);
    Ok(0)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new().name(name.to_owned()).spawn(body)?;
    Ok(())
}
