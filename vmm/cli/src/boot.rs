//! `cabana boot`: any kernel, with its serial port on the terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cabana_os::signals::{HANGUP, INTERRUPT, Signals, TERMINATE};
use cabana_sandbox::{BareConfig, BareDisk, BareMachine, Outcome};

use crate::args::BootArgs;
use crate::terminal::RawMode;
use crate::{Failure, TIMED_OUT};

/// Ctrl-] leaves, as in telnet.
const ESCAPE: u8 = 0x1d;

/// Who ended the machine, if it was not the guest.
#[derive(Default)]
struct Ending {
    timed_out: AtomicBool,
    signal: std::sync::atomic::AtomicI32,
}

pub(crate) fn boot(args: BootArgs) -> Result<u8, Failure> {
    let serial: Box<dyn Write + Send> = match &args.serial {
        Some(path) => Box::new(File::create(path).map_err(|error| {
            Failure::new(format!("cannot write the serial console to {}: {error}", path.display()))
        })?),
        None => Box::new(Unbuffered(io::stdout())),
    };
    let disks = args.disks.into_iter();
    let machine = Arc::new(BareMachine::start(BareConfig {
        cpus: args.cpus,
        memory: args.memory,
        kernel: args.kernel,
        initrd: args.initrd,
        command_line: args.cmdline,
        disks: disks.map(|disk| BareDisk { path: disk.path, read_only: disk.read_only }).collect(),
        serial,
    })?);
    let ending = Arc::new(Ending::default());
    let raw = args.serial.is_none().then(RawMode::enter).flatten();
    if args.serial.is_none() {
        type_in(&machine, raw.is_some())?;
    }
    watch_signals(&machine, &ending)?;
    if let Some(limit) = args.timeout {
        let (machine, ending) = (Arc::clone(&machine), Arc::clone(&ending));
        spawn("timeout", move || {
            thread::sleep(limit);
            ending.timed_out.store(true, Ordering::SeqCst);
            machine.stop();
        })?;
    }
    let outcome = machine.wait();
    drop(raw);
    match outcome {
        Outcome::Exit(status) => Ok(status),
        Outcome::Reset => Ok(0),
        Outcome::Stopped if ending.timed_out.load(Ordering::SeqCst) => Err(Failure {
            status: TIMED_OUT,
            sentence: "the time given by --timeout has passed".to_owned(),
        }),
        Outcome::Stopped => Ok(128 + ending.signal.load(Ordering::SeqCst) as u8),
        Outcome::TripleFault => Err(Failure::new(
            "the guest's processor gave up (triple fault); Linux also ends so under reboot=t",
        )),
        Outcome::Failed(why) => {
            Err(Failure::new(format!("the hypervisor stopped the machine: {why}")))
        }
    }
}

/// Standard input goes to the serial port; on a terminal Ctrl-] ends the machine.
fn type_in(machine: &Arc<BareMachine>, on_terminal: bool) -> Result<(), Failure> {
    let Some(port) = machine.serial() else { return Ok(()) };
    let machine = Arc::clone(machine);
    spawn("stdin", move || {
        let mut buffer = [0; 4096];
        let mut stdin = io::stdin();
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            let typed = &buffer[..count];
            if on_terminal && typed.contains(&ESCAPE) {
                return machine.stop();
            }
            port.type_in(typed);
        }
    })
}

fn watch_signals(machine: &Arc<BareMachine>, ending: &Arc<Ending>) -> Result<(), Failure> {
    let mut signals = Signals::new(&[HANGUP, INTERRUPT, TERMINATE])?;
    let (machine, ending) = (Arc::clone(machine), Arc::clone(ending));
    spawn("signals", move || {
        if let Some(signal) = signals.wait() {
            ending.signal.store(signal, Ordering::SeqCst);
            machine.stop();
        }
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new().name(name.to_owned()).stack_size(128 << 10).spawn(body)?;
    Ok(())
}

/// A guest writes byte by byte and a person wants to see each.
struct Unbuffered(io::Stdout);

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.0.flush()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
