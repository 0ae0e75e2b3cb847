//! The outer machine: started once, then used for any number of commands.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use crate::children::Dependent;
use crate::monitor::Monitor;
use crate::qemu::{self, Inherited};
use crate::tunnel::{BELL, PORTS, READY};
use crate::{Error, Parts, clock, initramfs};

/// How many lines of the console an error shows.
const CONSOLE_LINES: usize = 80;

/// A machine that neither says a word nor becomes ready for this long is stuck. It is no deadline for
/// the start: every line of the kernel's log counts as progress.
const STALL: Duration = Duration::from_secs(60);

/// How often the bell rings: what a lost interrupt costs at most.
const BELL_PERIOD: Duration = Duration::from_millis(250);

/// How often the start looks whether QEMU lives.
const LOOK: Duration = Duration::from_millis(100);

/// How the outer machine is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time in the machine counts executed instructions, one a nanosecond: repeatable, and slower.
    pub instruction_clock: bool,
    /// Folders of the host in which what the commands write stays; everything else is forgotten.
    pub writable: Vec<PathBuf>,
    /// The machine's memory in MiB.
    pub memory_mib: u32,
    /// The machine's transparent huge pages.
    pub huge_pages: HugePages,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instruction_clock: false,
            writable: Vec::new(),
            memory_mib: 4096,
            huge_pages: HugePages::Madvise,
        }
    }
}

/// The kernel's `transparent_hugepage=` setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// For all memory.
    Always,
    /// For memory that asks for it: what distributions choose.
    Madvise,
    /// For none.
    Never,
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Madvise => "madvise",
            Self::Never => "never",
        })
    }
}

/// A running outer machine. It ends when this is dropped, and with this process in any case.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    /// Dropped to end the keeper.
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// What commands that run need of the machine.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The ports that no command uses.
    free: Mutex<Vec<UnixStream>>,
    freed: Condvar,
    console: Arc<Console>,
    monitor: Mutex<Monitor>,
}

impl Lab {
    /// Boots an outer machine and waits until it takes commands.
    pub fn start(parts: &Parts, options: &Options) -> Result<Self, Error> {
        let writable = options.writable.iter().map(|path| canonical_folder(path));
        let writable = writable.collect::<Result<Vec<_>, _>>()?;
        let archive = initramfs::build(&parts.init, &parts.kernel.modules, &writable)?;
        let initramfs = memory_file(&archive).map_err(Error::system("make the initramfs"))?;
        let (mut near, far) = port_sockets().map_err(Error::system("make the ports"))?;
        let bell = near.split_off(PORTS).remove(0);
        bell.set_nonblocking(true).map_err(Error::system("make the ports"))?;
        let instruction_clock = options.instruction_clock;
        let (monitor, qemus) = UnixStream::pair()
            .and_then(|(near, far)| Ok((Monitor::new(near)?, far)))
            .map_err(Error::system("make the monitor's socket"))?;

        let console = Arc::new(Console::default());
        let (stop, stopped) = mpsc::channel();
        let (spawned, started) = mpsc::channel();
        let machine = Machine {
            parts: parts.clone(),
            options: options.clone(),
            ports: far,
            monitor: qemus.into(),
            initramfs,
            console: Arc::clone(&console),
        };
        // The children die with the thread that spawns them, so one thread stays for that.
        let keeper = thread::spawn(move || match machine.spawn() {
            Ok(children) => {
                let _ = spawned.send(Ok(()));
                while stopped.recv_timeout(BELL_PERIOD) == Err(RecvTimeoutError::Timeout) {
                    // That clock is to repeat, and nothing of the host's may come in between.
                    if !instruction_clock {
                        // A byte that finds no room says nothing that the others do not.
                        let _ = (&bell).write(&[0]);
                    }
                }
                drop(children);
            }
            Err(error) => drop(spawned.send(Err(error))),
        });
        let shared = Shared {
            free: Mutex::new(Vec::new()),
            freed: Condvar::new(),
            console,
            monitor: Mutex::new(monitor),
        };
        let lab = Self { shared: Arc::new(shared), stop: Some(stop), keeper: Some(keeper) };
        started.recv().unwrap_or_else(|_| Err(lab.shared.boot_error("its keeper ended")))?;
        for port in near {
            lab.shared.await_ready(&port)?;
            lab.shared.give_back(port);
        }
        Ok(lab)
    }

    /// Where a machine that is stuck stands: its processor's registers, seen a few times, and what its kernel says when
    /// it is made to panic. That is the machine's end.
    pub fn autopsy(&self) -> String {
        let registers = lock(&self.shared.monitor).autopsy();
        format!("{registers}{}", self.shared.console.tail())
    }

    /// What running commands share with this.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

impl Shared {
    /// A port of one's own, waiting while all are in use.
    pub(crate) fn take_port(&self) -> UnixStream {
        let mut free = lock(&self.free);
        loop {
            if let Some(port) = free.pop() {
                return port;
            }
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns a port on which no connection is open.
    pub(crate) fn give_back(&self, port: UnixStream) {
        lock(&self.free).push(port);
        self.freed.notify_one();
    }

    /// The machine ended under a command.
    pub(crate) fn ended(&self) -> Error {
        Error::Ended { console: self.console.tail() }
    }

    fn boot_error(&self, why: impl Into<String>) -> Error {
        Error::Boot { why: why.into(), console: self.console.tail() }
    }

    /// Waits until the init serves a port.
    fn await_ready(&self, mut port: &UnixStream) -> Result<(), Error> {
        port.set_read_timeout(Some(LOOK)).map_err(Error::system("set a port's timeout"))?;
        let mut byte = [0];
        loop {
            match port.read(&mut byte) {
                Ok(1) if byte[0] == READY => break,
                Ok(1) => return Err(self.boot_error("its init speaks another language")),
                // QEMU closed the socket.
                Ok(_) => {
                    thread::sleep(LOOK);
                    return Err(self.boot_error("QEMU ended"));
                }
                Err(error) if is_timeout(&error) => {
                    if self.console.silent_for() > STALL {
                        let why = format!("it said nothing for {} seconds", STALL.as_secs());
                        return Err(self.boot_error(why));
                    }
                }
                Err(error) => return Err(self.boot_error(error.to_string())),
            }
        }
        port.set_read_timeout(None).map_err(Error::system("set a port's timeout"))
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// A poisoned lock guards data that is whole all the same: nothing here panics half-way.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it takes to spawn the machine.
struct Machine {
    parts: Parts,
    options: Options,
    ports: Vec<OwnedFd>,
    monitor: OwnedFd,
    initramfs: OwnedFd,
    console: Arc<Console>,
}

impl Machine {
    /// Spawns the file servers and QEMU; QEMU comes first in the list, to be killed first.
    fn spawn(self) -> Result<[Dependent; 3], Error> {
        // The root is read as if nobody changed it; the writable folders notice what the host does.
        let (root, root_server) = self.file_server("always")?;
        let (shared, shared_server) = self.file_server("auto")?;
        let inherited = Inherited {
            shares: [("root", root.as_raw_fd()), ("shared", shared.as_raw_fd())],
            ports: self.ports.iter().map(AsRawFd::as_raw_fd).collect(),
            monitor: self.monitor.as_raw_fd(),
            initramfs: self.initramfs.as_raw_fd(),
        };
        let mut command = Process::new(&self.parts.qemu);
        let vmlinux = &self.parts.kernel.vmlinux;
        command.args(qemu::arguments(
            self.parts.architecture,
            &self.options,
            vmlinux,
            clock::tsc_khz(),
            &inherited,
        ));
        let mut files = self.ports;
        files.extend([root.into(), shared.into(), self.monitor, self.initramfs]);
        let qemu =
            spawn(&mut command, files, &self.console).map_err(Error::system("start QEMU"))?;
        Ok([qemu, root_server, shared_server])
    }

    /// Starts a server of the host's root, and returns the connection to it.
    fn file_server(&self, cache: &str) -> Result<(UnixStream, Dependent), Error> {
        let (listener, connection) =
            connected_listener().map_err(Error::system("make a file server's socket"))?;
        let mut command = Process::new(&self.parts.virtiofsd);
        command.arg(format!("--fd={}", listener.as_raw_fd()));
        if is_c_virtiofsd(&self.parts.virtiofsd) {
            command.args(["-f", "-o", "source=/", "-o", "sandbox=chroot", "-o", "log_level=err"]);
            command.arg("-o").arg(format!("cache={cache}"));
        } else {
            command.args(["--shared-dir=/", "--sandbox=none", "--log-level=error"]);
            command.arg(format!("--cache={cache}"));
        }
        // One request at a time: the machine has one processor, and a pool only adds hand-overs.
        command.arg("--thread-pool-size=0");
        let server = spawn(&mut command, vec![listener.into()], &self.console)
            .map_err(Error::system("start virtiofsd"))?;
        Ok((connection, server))
    }
}

/// QEMU 7.2's own virtiofsd, whose options differ from its successor's.
fn is_c_virtiofsd(path: &Path) -> bool {
    path.starts_with("/usr/lib/qemu")
}

/// Spawns a child whose words go to the console.
fn spawn(
    command: &mut Process,
    inherited: Vec<OwnedFd>,
    console: &Arc<Console>,
) -> io::Result<Dependent> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Dependent::spawn(command, inherited)?;
    let process = child.process();
    if let Some(stdout) = process.stdout.take() {
        console.follow(stdout);
    }
    if let Some(stderr) = process.stderr.take() {
        console.follow(stderr);
    }
    Ok(child)
}

/// A listening socket with one connection waiting, and that connection; no trace in any folder.
fn connected_listener() -> io::Result<(UnixListener, UnixStream)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let connection = UnixStream::connect(&path)?;
    Ok((listener, connection))
}

/// The ports' sockets, the bell's last: our ends and QEMU's.
fn port_sockets() -> io::Result<(Vec<UnixStream>, Vec<OwnedFd>)> {
    let pairs = (0..BELL).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>()?;
    Ok(pairs.into_iter().map(|(near, far)| (near, OwnedFd::from(far))).unzip())
}

/// A file in memory with these bytes.
pub(crate) fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Seek;
    let mut file = File::from(rustix::fs::memfd_create("cabana-lab", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// A writable folder by its real path, under which the machine shows it too.
fn canonical_folder(path: &Path) -> Result<PathBuf, Error> {
    let refuse = |why: String| Error::Writable { path: path.into(), why };
    let real = path.canonicalize().map_err(|error| refuse(error.to_string()))?;
    if !real.is_dir() {
        return Err(refuse("it is not a folder".into()));
    }
    let of_the_machine = ["/", "/dev", "/proc", "/sys", "/run", "/tmp"];
    if of_the_machine.iter().any(|own| real == Path::new(own)) {
        return Err(refuse("the lab's machine has its own".into()));
    }
    Ok(real)
}

/// The end of what the outer machine and the programs around it say.
#[derive(Debug)]
struct Console {
    lines: Mutex<(VecDeque<String>, Instant)>,
}

impl Default for Console {
    fn default() -> Self {
        Self { lines: Mutex::new((VecDeque::new(), Instant::now())) }
    }
}

impl Console {
    /// Takes every line of a pipe, on a thread that ends with it.
    fn follow(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        let console = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                let mut lines = lock(&console.lines);
                lines.1 = Instant::now();
                if lines.0.len() == CONSOLE_LINES {
                    lines.0.pop_front();
                }
                lines.0.push_back(line);
            }
        });
    }

    fn tail(&self) -> String {
        Vec::from(lock(&self.lines).0.clone()).join("\n")
    }

    fn silent_for(&self) -> Duration {
        lock(&self.lines).1.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_keeps_its_end() {
        let console = Arc::new(Console::default());
        let text = (0..100).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\r\n");
        console.follow(io::Cursor::new(text));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !console.tail().ends_with("line 99") && Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(console.tail().lines().count(), CONSOLE_LINES);
        assert!(console.tail().starts_with("line 20\n"));
    }

    #[test]
    fn a_writable_folder_must_be_a_folder_that_is_not_the_machines_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, why) in [
            (file.path(), "not a folder"),
            (Path::new("/nonexistent"), "No such file"),
            (Path::new("/usr/.."), "has its own"),
            (Path::new("/dev"), "has its own"),
        ] {
            let error = canonical_folder(path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(canonical_folder(folder.path()).is_ok());
    }

    #[test]
    fn a_memory_file_reads_from_its_start() {
        let mut text = String::new();
        File::from(memory_file(b"hello").unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
