//! `cabana up`, `ps`, `exec`, `attach`, `shell`, `logs`, `down`: machines that stay up in the background. Each has a
//! holder ([`crate::hold`]), which is spoken to over its socket.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use cabana_api::{
    BackgroundStatus, Bytes, Call, CommandSpec, MachineEvent, MachineSpec, MachineState,
    MachineStatus, Named, Outcome, ProcessEvent, ShareSpec, TtySize,
};
use cabana_os::LocalStream;
use cabana_os::signals::{HANGUP, PIPE, QUIT, WINDOW};
use cabana_serve::{Asker, Client, ClientError, Incoming, Place, PlaceError};
use serde_json::json;

use crate::Failure;
use crate::args::{AttachArgs, ExecArgs, NamedArgs, PsArgs, ShellArgs, UpArgs};
use crate::hold::READY;
use crate::run::{self, environment};
use crate::signals::Forwarder;
use crate::terminal::{self, RawMode};
use crate::units::ShareArg;

/// What `shell` runs: the image's best shell.
const SHELL: &str = "command -v bash >/dev/null && exec bash -l; exec sh -l";

/// Input goes in pieces of this size, the next when the last was taken.
const PIECE: usize = 64 << 10;

pub(crate) type Conversation = Client<LocalStream, LocalStream>;

pub(crate) fn up(args: &UpArgs) -> Result<u8, Failure> {
    let place = Place::open()?;
    let spec = spec(args)?;
    let name = spec.name.clone();
    match place.connect(&name) {
        Err(PlaceError::NotUp(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(PlaceError::Taken(name).into()),
    }
    let log = place.log(&name);
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["hold", &serde_json::to_string(&spec)?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log)?)
        .spawn()?;
    let mut said = String::new();
    if let Some(stdout) = holder.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    if said.trim_end() != READY {
        let status = holder.wait()?;
        let why = fs::read_to_string(&log).unwrap_or_default();
        let why = why.trim().trim_start_matches("cabana: ").to_owned();
        let died = || format!("the machine's holder died ({status})");
        return Err(Failure::new(if why.is_empty() { died() } else { why }));
    }
    let mut client = connect(&place, &name)?;
    let shows = io::stderr().is_terminal() && !args.json;
    let started = client.call(Call::MachineStart(named(&name)), |incoming| {
        if let (true, Incoming::Machine(_, MachineEvent::Progress { step })) = (shows, incoming) {
            eprint!("\r\x1b[K{name}: {step}");
        }
    });
    if shows {
        eprint!("\r\x1b[K");
    }
    match started {
        Ok(Outcome::Machine(status)) if args.json => print(&status)?,
        Ok(_) => println!("{name} is up"),
        Err(error) => {
            let _ = client.call(Call::MachineRemove(named(&name)), |_| {});
            place.wait_gone(&name)?;
            return Err(error.into());
        }
    }
    Ok(0)
}

pub(crate) fn ps(args: &PsArgs) -> Result<u8, Failure> {
    let place = Place::open()?;
    if let Some(machine) = &args.machine {
        return background(&place, machine, args.json);
    }
    let mut all = Vec::new();
    for name in place.names()? {
        // One may go while the others are asked.
        let answer = connect(&place, &name)
            .and_then(|mut client| Ok(client.call(Call::MachineList, |_| {})?));
        if let Ok(Outcome::Machines(machines)) = answer {
            all.extend(machines);
        }
    }
    if args.json {
        print(&all)?;
        return Ok(0);
    }
    let cells = |status: &MachineStatus| {
        let MachineStatus { name, state, image, cpus, memory, processes, worker, .. } = status;
        let worker = worker.map_or_else(|| "-".to_owned(), |worker| worker.to_string());
        let (memory, state) = (format!("{}M", memory >> 20), state_name(*state).to_owned());
        [
            name.clone(),
            state,
            image.clone(),
            cpus.to_string(),
            memory,
            processes.to_string(),
            worker,
        ]
    };
    let head =
        ["NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "PROCESSES", "WORKER"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(all.iter().map(cells)).collect();
    table(&rows);
    Ok(0)
}

/// What runs in the background of a machine.
fn background(place: &Place, machine: &str, json: bool) -> Result<u8, Failure> {
    let mut client = connect(place, machine)?;
    let Outcome::Backgrounds(all) = client.call(Call::BackgroundList(named(machine)), |_| {})?
    else {
        return Err(ClientError::Nonsense("no list".to_owned()).into());
    };
    if json {
        print(&all)?;
        return Ok(0);
    }
    let cells = |status: &BackgroundStatus| {
        let BackgroundStatus { background, pid, session, command, attached, exit } = status;
        let state = match exit {
            Some(exit) => format!("ended with {}", exit.status()),
            None if *attached => "attached".to_owned(),
            None => "running".to_owned(),
        };
        let session = session.clone().unwrap_or_else(|| "-".to_owned());
        // What a guest has written is not a terminal's business.
        let command = command.escape_debug().to_string();
        [background.to_string(), state, pid.to_string(), session, command]
    };
    let head = ["NUMBER", "STATE", "PID", "SESSION", "COMMAND"].map(str::to_owned);
    table(&std::iter::once(head).chain(all.iter().map(cells)).collect::<Vec<_>>());
    Ok(0)
}

pub(crate) fn exec(args: ExecArgs) -> Result<u8, Failure> {
    if args.tty && !terminal::is_terminal(&io::stdin()) {
        return Err(Failure::new("standard input is no terminal; leave -t out"));
    }
    let text = |word: std::ffi::OsString| {
        word.into_string().map_err(|word| Failure::new(format!("{} is not UTF-8", word.display())))
    };
    let mut env = std::collections::BTreeMap::new();
    for (name, value) in environment(&args.env)? {
        let utf8 = |bytes| {
            String::from_utf8(bytes).map_err(|_| Failure::new("the environment is not UTF-8"))
        };
        env.insert(utf8(name)?, utf8(value)?);
    }
    if args.tty
        && let Ok(term) = std::env::var("TERM")
    {
        env.entry("TERM".to_owned()).or_insert(term);
    }
    let size = terminal::size();
    let command = CommandSpec {
        argv: args.command.into_iter().map(text).collect::<Result<_, _>>()?,
        env,
        cwd: args.workdir,
        tty: args.tty.then_some(TtySize { rows: size.rows, cols: size.cols }),
        stdin: args.tty
            || args.interactive
            || (!args.detach && !terminal::is_terminal(&io::stdin())),
        session: args.session,
        background: args.detach,
        ..CommandSpec::default()
    };
    if args.detach {
        return detach(&args.name, command, args.json);
    }
    let streams = Streams { tty: args.tty, stdin: command.stdin, leaves: false };
    run_in(&args.name, Call::Exec { machine: args.name.clone(), command }, streams)
}

/// Starts a command in the background and leaves it there.
fn detach(name: &str, command: CommandSpec, json: bool) -> Result<u8, Failure> {
    let mut client = connect(&Place::open()?, name)?;
    let call = Call::Exec { machine: name.to_owned(), command };
    let outcome = client.call(call, |_| {})?;
    let Outcome::Process(process) = outcome else {
        return Err(ClientError::Nonsense(format!("{outcome:?}")).into());
    };
    loop {
        match client.next_line()? {
            Incoming::Process(
                number,
                ProcessEvent::Started { pid, background: Some(background) },
            ) if number == process => {
                if json {
                    print(&json!({ "background": background, "pid": pid }))?;
                } else {
                    println!("{background}");
                }
                return Ok(0);
            }
            Incoming::Process(number, ProcessEvent::Failed { message, status, .. })
                if number == process =>
            {
                return Err(Failure { status, sentence: message });
            }
            _ => {}
        }
    }
}

pub(crate) fn attach(args: &AttachArgs) -> Result<u8, Failure> {
    let call = Call::Attach { machine: args.name.clone(), background: args.number };
    let stdin = args.interactive;
    run_in(&args.name, call, Streams { tty: false, stdin, leaves: true })
}

pub(crate) fn shell(args: ShellArgs) -> Result<u8, Failure> {
    let tty = terminal::is_terminal(&io::stdin());
    exec(ExecArgs {
        name: args.name,
        session: args.session,
        env: args.env,
        workdir: args.workdir,
        interactive: true,
        tty,
        detach: false,
        json: false,
        command: ["sh", "-c", SHELL].map(Into::into).into(),
    })
}

pub(crate) fn logs(args: &NamedArgs) -> Result<u8, Failure> {
    let mut client = connect(&Place::open()?, &args.name)?;
    if let Outcome::Console(console) =
        client.call(Call::MachineConsole(named(&args.name)), |_| {})?
    {
        if args.json {
            print(&json!({ "machine": args.name, "console": console }))?;
        } else {
            io::stdout().write_all(console.as_bytes())?;
        }
    }
    Ok(0)
}

pub(crate) fn down(args: &NamedArgs) -> Result<u8, Failure> {
    let place = Place::open()?;
    let ended = {
        let mut client = connect(&place, &args.name)?;
        client.call(Call::MachineRemove(named(&args.name)), |_| {})
    };
    place.wait_gone(&args.name)?;
    ended?;
    if args.json {
        print(&json!({ "machine": args.name, "down": true }))?;
    } else {
        println!("{} is down", args.name);
    }
    Ok(0)
}

fn spec(args: &UpArgs) -> Result<MachineSpec, Failure> {
    let absolute = |path: &std::path::PathBuf| std::path::absolute(path);
    let mut spec = MachineSpec {
        name: args.name.clone(),
        image: args.image.clone(),
        cpus: args.cpus,
        memory: args.memory,
        disk: args.disk.as_ref().map(absolute).transpose()?,
        kernel: args.kernel.as_ref().map(absolute).transpose()?,
        command_line: args.cmdline.clone(),
        share_roots: args.share_roots.iter().map(absolute).collect::<Result<_, _>>()?,
        journals: args.journals,
        network: args.network.spec(args.ask)?,
        suspend_after_ms: args.suspend_after.map(|idle| idle.as_millis() as u64),
        ..MachineSpec::default()
    };
    spec.shares = args.shares.iter().map(share).collect::<Result<_, _>>()?;
    Ok(spec)
}

/// A folder for a machine that is up.
pub(crate) fn share(arg: &ShareArg) -> Result<ShareSpec, Failure> {
    let (host, guest) = run::places(arg)?;
    Ok(ShareSpec { host, guest, read_only: arg.read_only, journal: arg.journal })
}

/// What a command has of this process.
#[derive(Clone, Copy)]
struct Streams {
    tty: bool,
    stdin: bool,
    /// SIGQUIT and the terminal's end leave it running, in place of being the command's.
    leaves: bool,
}

/// Follows a command in a machine that is up, with this process's streams, signals and terminal.
fn run_in(name: &str, call: Call, streams: Streams) -> Result<u8, Failure> {
    let Streams { tty, stdin, leaves } = streams;
    let signals = Forwarder::start()?;
    let mut client = connect(&Place::open()?, name)?;
    // Nothing is said of the process before the answer.
    let outcome = client.call(call, |_| {})?;
    let Outcome::Process(process) = outcome else {
        return Err(ClientError::Nonsense(format!("{outcome:?}")).into());
    };
    let asker = client.asker();
    signals.attach(move |signal| {
        let asked = match signal {
            WINDOW if tty => {
                let size = terminal::size();
                let size = TtySize { rows: size.rows, cols: size.cols };
                asker.ask(Call::Resize { process, size })
            }
            WINDOW => return,
            QUIT | HANGUP if leaves => asker.ask(Call::Detach { process }),
            signal => asker.ask(Call::Signal { process, signal }),
        };
        // A holder that is gone is told of by what it no longer says.
        drop(asked);
    });
    let (answered, answers) = channel();
    if stdin {
        let asker = client.asker();
        let feed = move || feed(process, &asker, &answers);
        thread::Builder::new().name("stdin".to_owned()).stack_size(256 << 10).spawn(feed)?;
    }
    let raw = if tty { RawMode::enter() } else { None };
    let ended = pump(&mut client, process, &answered);
    drop(raw);
    ended
}

/// Passes standard input on, a piece when the last has been taken.
fn feed(process: u64, asker: &Asker<LocalStream>, answers: &Receiver<(u64, Outcome)>) {
    let mut buffer = vec![0; PIECE];
    let mut stdin = io::stdin();
    loop {
        let asked = match stdin.read(&mut buffer) {
            Ok(0) => {
                let _ = asker.ask(Call::StdinClose { process });
                return;
            }
            Ok(count) => asker.ask(Call::Stdin { process, data: Bytes::from(&buffer[..count]) }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let Ok(id) = asked else { return };
        match answers.iter().find(|(answered, _)| *answered == id) {
            Some((_, Outcome::Done(true))) => {}
            _ => return,
        }
    }
}

/// Passes output on until the command has ended; its exit status.
fn pump(
    client: &mut Conversation,
    process: u64,
    answered: &Sender<(u64, Outcome)>,
) -> Result<u8, Failure> {
    let asker = client.asker();
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    loop {
        let event = match client.next_line()? {
            Incoming::Process(number, event) if number == process => event,
            Incoming::Answer(id, outcome) => {
                // Nobody waits for those of signals.
                let _ = answered.send((id, outcome));
                continue;
            }
            Incoming::Process(..) | Incoming::Machine(..) => continue,
        };
        let nonsense = || ClientError::Nonsense("output that is no base64".to_owned());
        let written = match event {
            ProcessEvent::Started { .. } => continue,
            ProcessEvent::Stdout { data } => {
                let bytes = data.decode().ok_or_else(nonsense)?;
                stdout.write_all(&bytes).and_then(|()| stdout.flush())
            }
            ProcessEvent::Stderr { data } => stderr.write_all(&data.decode().ok_or_else(nonsense)?),
            ProcessEvent::Exited { exit } => return Ok(exit.status()),
            ProcessEvent::Detached => return Ok(0),
            ProcessEvent::Failed { message, status, .. } => {
                return Err(Failure { status, sentence: message });
            }
        };
        if written.is_err() {
            // Nobody reads any more; the command learns of it as it would here.
            let _ = asker.ask(Call::Signal { process, signal: PIPE });
        }
    }
}

pub(crate) fn connect(place: &Place, name: &str) -> Result<Conversation, Failure> {
    let stream = place.connect(name)?;
    Ok(Client::new(stream.try_clone()?, stream)?)
}

pub(crate) fn named(machine: &str) -> Named {
    Named { machine: machine.to_owned() }
}

fn state_name(state: MachineState) -> &'static str {
    match state {
        MachineState::Idle => "idle",
        MachineState::Starting => "starting",
        MachineState::Running => "running",
        MachineState::Suspended => "suspended",
    }
}

pub(crate) fn print(value: &impl serde::Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
