//! `cabana run`: a machine, a command in it, its streams and its end.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cabana_journal::{Home, journals};
use cabana_os::signals::{PIPE, TERMINATE, WINDOW};
use cabana_sandbox::egress::{Secret, Trust};
use cabana_sandbox::{
    Command, Error, KERNEL_FILE, Machine, MachineConfig, NetworkConfig, Process, ProcessEvent,
    ProcessInput, RestoreConfig, Scratch, Share, ShareJournal, Timeline,
};
use cabana_store::{Kind, Store};

use crate::args::RunArgs;
use crate::signals::Forwarder;
use crate::terminal::{self, RawMode};
use crate::trace::{self, Start};
use crate::units::ShareArg;
use crate::{Failure, TIMED_OUT, policy, snapshot};

const SIGKILL: i32 = 9;
/// What a command gets between SIGTERM and SIGKILL, and a machine between that and its end.
const GRACE: Duration = Duration::from_secs(2);
/// Names of the store's kernel and agent.
const DEFAULT: &str = "default";

pub(crate) fn run(args: RunArgs, started: Start) -> Result<u8, Failure> {
    run_in(args, started, None)
}

/// Keeps the machine in `snapshot` when the command has ended well.
pub(crate) fn keep(args: RunArgs, started: Start, snapshot: &Path) -> Result<u8, Failure> {
    run_in(args, started, Some(snapshot))
}

/// How the machine comes to be.
enum Origin {
    Boot(MachineConfig),
    Snapshot(RestoreConfig),
}

fn run_in(args: RunArgs, started: Start, keep: Option<&Path>) -> Result<u8, Failure> {
    let tty = args.tty;
    if tty && !terminal::is_terminal(&io::stdin()) {
        return Err(Failure::new("standard input is no terminal; leave -t out"));
    }
    // Without more, large shared folders work all the same, with less kept in mind.
    let _ = cabana_sandbox::raise_open_files();
    let signals = Forwarder::start()?;
    let expiry = args.timeout.map(Expiry::start).transpose()?;
    let mut command = command(&args)?;
    let secrets = policy::secrets(&args.network.secrets)?;
    for secret in &secrets {
        let placeholder = secret.placeholder().text.into_bytes();
        command.env.push((secret.name().as_bytes().to_vec(), placeholder));
    }
    let (host_trust, followed) = (args.network.host_trust, args.network.policy.clone());
    let trace_file = args.trace_boot.clone();
    let timeline = Arc::new(Timeline::new());
    started.mark(&timeline);
    // What outlives the machine has to be flushed; everything else goes with it.
    let orderly = !args.shares.is_empty() || args.disk.is_some();
    let origin = match args.from.clone() {
        Some(name) => Origin::Snapshot(restore_config(args, &name, secrets, &timeline)?),
        None => Origin::Boot(config(args, secrets, &timeline)?),
    };

    let machine = match &origin {
        Origin::Boot(config) => Machine::start(config)?,
        Origin::Snapshot(config) => Machine::restore(config)?,
    };
    for warning in machine.warnings() {
        eprintln!("cabana: {warning}");
    }
    if let Some(egress) = machine.egress() {
        followed.follow(egress.clone())?;
        let mut roots = if host_trust { Trust::of_this_host().pem() } else { String::new() };
        roots.push_str(egress.authority_pem().unwrap_or_default());
        if !roots.is_empty() {
            machine.trust(&roots)?;
            cabana_sandbox::trusting(&mut command);
        }
    }
    let mut trace = trace_file.map(|path| trace::Recorder::new(path, &machine, started));
    let mut process = machine.exec(&command)?;
    let input = process.input();
    signals.attach(move |signal| match signal {
        WINDOW if tty => input.resize(terminal::size()),
        WINDOW => {}
        signal => input.signal(signal),
    });
    if let Some(expiry) = &expiry {
        expiry.attach(process.input());
    }
    if command.stdin || tty {
        forward_stdin(process.input())?;
    }
    let raw = if tty { RawMode::enter() } else { None };
    let ended = pump(&mut process, &timeline);
    drop(raw);
    if let Some(trace) = &mut trace {
        trace.write(&timeline)?;
    }
    let timed_out = expiry.is_some_and(|expiry| expiry.passed());
    let status = match ended {
        _ if timed_out => TIMED_OUT,
        Ok(status) => status,
        Err(Error::Exec { shell_code, message }) => {
            return Err(Failure { status: shell_code, sentence: message });
        }
        Err(error) => return Err(error.into()),
    };
    if timed_out {
        eprintln!("cabana: the time given by --timeout has passed");
    }
    if let Some(path) = keep {
        if status != 0 {
            let why = format!("the command ended with {status}, so that the machine was not kept");
            return Err(Failure { status, sentence: why });
        }
        machine.snapshot(path)?;
    }
    let disk_failure = machine.disk_failure();
    machine.end_with_process();
    if orderly {
        machine.shutdown()?;
    }
    disk_failure.map_or(Ok(status), |error| Err(error.into()))
}

/// Passes output on until the command has ended; its exit status.
fn pump(process: &mut Process, timeline: &Timeline) -> Result<u8, Error> {
    let input = process.input();
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    let mut first = true;
    loop {
        let written = match process.next_event()? {
            // Nobody here asks to leave.
            ProcessEvent::Started(_) | ProcessEvent::Detached => continue,
            ProcessEvent::Exited(status) => {
                if first {
                    timeline.mark(trace::FIRST_OUTPUT);
                }
                return Ok(status.shell_code());
            }
            ProcessEvent::Stdout(bytes) => stdout.write_all(bytes).and_then(|()| stdout.flush()),
            ProcessEvent::Stderr(bytes) => stderr.write_all(bytes),
        };
        if std::mem::take(&mut first) {
            timeline.mark(trace::FIRST_OUTPUT);
        }
        if written.is_err() {
            // Nobody reads any more; the command learns of it as it would here.
            input.signal(PIPE);
        }
    }
}

fn forward_stdin(input: ProcessInput) -> Result<(), Failure> {
    let forward = move || {
        let mut buffer = vec![0; 64 << 10];
        let mut stdin = io::stdin();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return input.close_stdin(),
                Ok(count) if input.write_stdin(&buffer[..count]) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("stdin".to_owned()).stack_size(128 << 10).spawn(forward)?;
    Ok(())
}

/// A variable and its value.
type Variable = (Vec<u8>, Vec<u8>);

/// Variables as they are written: with their value, or to be passed on.
pub(crate) fn environment(words: &[OsString]) -> Result<Vec<Variable>, Failure> {
    let mut variables = Vec::new();
    for variable in words {
        let bytes = variable.clone().into_encoded_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(0) => return Err(Failure::new("--env wants a name before the equals sign")),
            Some(at) => variables.push((bytes[..at].to_vec(), bytes[at + 1..].to_vec())),
            None => {
                if let Some(value) = std::env::var_os(variable) {
                    variables.push((bytes, value.into_encoded_bytes()));
                }
            }
        }
    }
    Ok(variables)
}

fn command(args: &RunArgs) -> Result<Command, Failure> {
    let argv = args.command.iter().map(|word| word.clone().into_encoded_bytes());
    let mut command = Command::new(argv);
    command.env = environment(&args.env)?;
    command.cwd = args.workdir.clone().map(OsString::into_encoded_bytes);
    if args.tty {
        command.tty = Some(terminal::size());
        command.term = std::env::var("TERM").ok();
    }
    command.stdin = args.interactive || !terminal::is_terminal(&io::stdin());
    Ok(command)
}

/// A machine out of a snapshot. Its network is decided anew, but for there being one.
fn restore_config(
    args: RunArgs,
    name: &str,
    secrets: Vec<Secret>,
    timeline: &Arc<Timeline>,
) -> Result<RestoreConfig, Failure> {
    let (network, shares) = outside(args, secrets)?;
    Ok(RestoreConfig {
        snapshot: snapshot::locate(name)?,
        image: None,
        disk_folder: std::env::temp_dir(),
        shares,
        network,
        hostname: MachineConfig::default().hostname,
        timeline: Arc::clone(timeline),
        alone: true,
    })
}

fn config(
    args: RunArgs,
    secrets: Vec<Secret>,
    timeline: &Arc<Timeline>,
) -> Result<MachineConfig, Failure> {
    let store = Store::open()?;
    let image = store.find(Kind::Image, &args.image)?;
    let agent = store.find(Kind::Agent, DEFAULT)?.file("agent.cpio")?;
    let kernel = match &args.kernel {
        Some(kernel) => kernel.clone(),
        None => store.find(Kind::Kernel, DEFAULT)?.file(KERNEL_FILE)?,
    };
    let template = image.file(cabana_builder::SCRATCH)?;
    let scratch = match &args.disk {
        Some(path) => Scratch::Persistent { path: path.clone(), template },
        None => Scratch::Temporary { template, folder: std::env::temp_dir() },
    };
    let (cpus, memory) = (args.cpus, args.memory);
    let extra_command_line = args.cmdline.clone();
    let (network, shares) = outside(args, secrets)?;
    timeline.mark("artifacts found");
    Ok(MachineConfig {
        cpus,
        memory,
        kernel,
        agent,
        image: image.file(cabana_builder::ROOT)?,
        scratch,
        network,
        shares,
        extra_command_line,
        timeline: Arc::clone(timeline),
        alone: true,
        ..MachineConfig::default()
    })
}

/// What the machine has to do with outside.
fn outside(
    args: RunArgs,
    secrets: Vec<Secret>,
) -> Result<(Option<NetworkConfig>, Vec<Share>), Failure> {
    let asked = args.network;
    let network = if asked.any() {
        Some(NetworkConfig {
            egress: asked.policy.read()?,
            publish: asked.publish,
            capture: asked.pcap,
            secrets,
            proxies: policy::proxies(&asked.proxy)?,
            log: asked.net_log,
            ..NetworkConfig::default()
        })
    } else {
        None
    };
    let shares = args.shares.iter().map(share).collect::<Result<_, _>>()?;
    Ok((network, shares))
}

/// A share, with its journal made when missing.
fn share(arg: &ShareArg) -> Result<Share, Failure> {
    let (host, guest) = places(arg)?;
    let home = arg.journal.map(|_| Home::make(&journals(), &host)).transpose()?;
    let journal = home.zip(arg.journal).map(|(home, bytes)| ShareJournal { home, bytes });
    Ok(Share { host, guest, read_only: arg.read_only, journal })
}

/// The absolute paths of a share, the host's and the guest's: a relative one of the host's counts from here.
pub(crate) fn places(arg: &ShareArg) -> Result<(PathBuf, String), Failure> {
    let host = std::path::absolute(&arg.host).unwrap_or_else(|_| arg.host.clone());
    let guest = match &arg.guest {
        Some(guest) => guest.clone(),
        None => same_path(&host).ok_or_else(|| {
            let host = host.display();
            Failure::new(format!("{host} has no plain name; say --share {host}:/GUEST/PATH"))
        })?,
    };
    Ok((host, guest))
}

/// The host's path as one for the guest, without `.` and `..`.
fn same_path(host: &std::path::Path) -> Option<String> {
    let mut clean = PathBuf::new();
    for part in host.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    // None of Windows' paths is one.
    clean.into_os_string().into_string().ok().filter(|path| path.starts_with('/'))
}

/// Ends what runs when its time is over.
struct Expiry {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    passed: AtomicBool,
    input: std::sync::Mutex<Option<ProcessInput>>,
}

impl Expiry {
    fn start(limit: Duration) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let watch = move || {
            thread::sleep(limit);
            watched.passed.store(true, Ordering::SeqCst);
            for signal in [TERMINATE, SIGKILL] {
                match &*watched.input.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
                    Some(input) => input.signal(signal),
                    None => break,
                }
                thread::sleep(GRACE);
            }
            // No command yet, or one that even SIGKILL did not end.
            eprintln!("cabana: the time given by --timeout has passed");
            std::process::exit(TIMED_OUT.into());
        };
        thread::Builder::new().name("timeout".to_owned()).stack_size(128 << 10).spawn(watch)?;
        Ok(Self { shared })
    }

    fn attach(&self, input: ProcessInput) {
        *self.shared.input.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(input);
    }

    fn passed(&self) -> bool {
        self.shared.passed.load(Ordering::SeqCst)
    }
}
