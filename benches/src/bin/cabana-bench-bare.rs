//! The smallest machine that the engine makes, in a process of its own: a kernel, an initramfs, one
//! vCPU, no device. Says on standard output when what happened, one `nanoseconds name` a line on the
//! monotonic clock, and ends with the guest's exit status.
//!
//! `cabana-bench-bare KERNEL INITRAMFS MEMORY_MIB COMMAND_LINE`

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;

use cabana_boot::{Initrd, Kernel};
use cabana_machine::{Machine, Outcome, Setup, Timeline};

type Failure = Box<dyn std::error::Error>;

fn main() {
    let Err(failure) = run();
    eprintln!("cabana-bench-bare: {failure}");
    exit(125)
}

fn run() -> Result<Infallible, Failure> {
    let timeline = Arc::new(Timeline::new());
    timeline.mark("process start");
    let mut arguments = std::env::args_os().skip(1);
    let mut next = || arguments.next().ok_or("an argument is missing");
    let (kernel, initrd) = (PathBuf::from(next()?), PathBuf::from(next()?));
    let mebibytes: u64 = next()?.to_string_lossy().parse()?;
    let command_line = next()?.to_string_lossy().into_owned();
    let setup = Setup {
        cpus: 1,
        memory: mebibytes << 20,
        kernel: Kernel::open(&kernel)?,
        initrd: Some(Initrd::open(&initrd)?),
        command_line,
        devices: Vec::new(),
        device_memory: Vec::new(),
        serial: None,
        timeline: Arc::clone(&timeline),
    };
    let vm = cabana_sandbox::hypervisor().create_x86_vm()?;
    timeline.mark("VM created");
    let machine = Machine::start(vm, setup)?;
    let outcome = machine.wait();
    timeline.mark("ended");
    for mark in timeline.marks() {
        println!("{} {}", mark.at.as_nanos(), mark.name);
    }
    machine.enlarge_kernel();
    match outcome {
        // As in `cabana`, the process's end takes the machine apart.
        Outcome::Exit(status) => exit(status.into()),
        outcome => Err(format!("the machine ended otherwise: {outcome:?}").into()),
    }
}
