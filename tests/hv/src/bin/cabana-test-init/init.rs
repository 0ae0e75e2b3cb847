//! As process 1 it loads the modules that lie beside it; then it is
//! the agent, or says what it finds and ends the machine. Otherwise it is a command that looks around.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::process::ExitCode;
use std::thread::available_parallelism;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Words of the kernel's command line: be the agent; reset the machine in place of switching it off.
const AGENT: &str = "cabana.agent";
const RESET: &str = "cabana.reset";

/// Where the modules are: their names sort in the order in which they load.
const MODULES: &str = "/sys";

pub(crate) fn main() -> ExitCode {
    if std::process::id() != 1 {
        return look_around();
    }
    let words = match prepare() {
        Ok(words) => words,
        Err(error) => {
            println!("init: {error}");
            String::new()
        }
    };
    if words.contains(AGENT) {
        cabana_agent::init::run();
    } else if let Err(error) = talk() {
        println!("init: {error}");
    }
    let reset = words.contains(RESET);
    let command = if reset { RebootCommand::Restart } else { RebootCommand::PowerOff };
    let _ = reboot(command);
    ExitCode::FAILURE
}

/// Loads the modules; returns the kernel's command line.
fn prepare() -> io::Result<String> {
    let mut modules = fs::read_dir(MODULES)?.collect::<io::Result<Vec<_>>>()?;
    modules.sort_by_key(fs::DirEntry::file_name);
    for module in modules {
        finit_module(File::open(module.path())?, c"", 0)?;
    }
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    let words = fs::read_to_string("/proc/cmdline");
    unmount("/proc", UnmountFlags::empty())?;
    words
}

/// Says what is there, and listens for a line.
fn talk() -> io::Result<()> {
    println!("init: {} processors", available_parallelism()?);
    mount("dev", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    let mut random = [0; 32];
    File::open("/dev/hwrng")?.read_exact(&mut random)?;
    println!("init: random bytes {}", random.iter().any(|&byte| byte != 0));
    println!("init: what?");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    println!("init: heard {}", line.trim().to_uppercase());
    Ok(())
}

/// Says how many processors there are, and leaves what the folder `/mnt/share` has for it there in capitals.
fn look_around() -> ExitCode {
    let look = || -> io::Result<usize> {
        let text = fs::read_to_string("/mnt/share/question")?;
        fs::write("/mnt/share/answer", text.to_uppercase())?;
        Ok(available_parallelism()?.get())
    };
    match look() {
        Ok(processors) => println!("{processors} processors"),
        Err(error) => println!("{error}"),
    }
    ExitCode::from(7)
}
