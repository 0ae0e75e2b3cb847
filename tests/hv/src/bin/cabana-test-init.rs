//! Process 1 of the guests in `tests/linux_arm64.rs`: says what it finds, and ends the machine.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::process::ExitCode;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// The word of the kernel's command line by which it resets the machine in place of switching it off.
const RESET: &str = "cabana.reset";

fn main() -> ExitCode {
    if let Err(error) = run() {
        println!("init: {error}");
    }
    let reset = fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains(RESET));
    let command = if reset { RebootCommand::Restart } else { RebootCommand::PowerOff };
    let _ = reboot(command);
    ExitCode::FAILURE
}

fn run() -> io::Result<()> {
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    let processors = fs::read_to_string("/proc/cpuinfo")?.matches("processor\t:").count();
    println!("init: {processors} processors");
    for module in ["/virtio_mmio.ko", "/virtio-rng.ko"] {
        if let Ok(file) = File::open(module) {
            finit_module(file, c"", 0)?;
        }
    }
    mount("dev", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    let mut random = [0; 32];
    match File::open("/dev/hwrng") {
        Ok(mut device) => {
            device.read_exact(&mut random)?;
            println!("init: random bytes {}", random.iter().any(|&byte| byte != 0));
        }
        Err(error) => println!("init: no /dev/hwrng: {error}"),
    }
    println!("init: what?");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    println!("init: heard {}", line.trim().to_uppercase());
    Ok(())
}
