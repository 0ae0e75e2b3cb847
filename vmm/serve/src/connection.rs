//! One client: its requests, its processes, its lines.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use cabana_api::{
    Bytes, Call, Fault, ForwardStatus, Greeting, MachineStatus, Outcome, Place, ProcessEvent,
    Reply, Request, VERSION,
};
use cabana_engine::{Error, Forward, Machine, Process, ProcessInput};
use serde_json::to_vec;

use crate::Server;

/// The longest line of a client's.
const MAX_LINE: u64 = 16 << 20;
/// Lines that wait for a slow client; who has more to say waits.
const WAITING: usize = 64;
/// Requests of a connection that are worked on at a time.
const MAX_CALLS: usize = 1024;
/// Inputs that wait for a process which takes none.
const MAX_INPUTS: usize = 64;
/// The longest file that is read in one answer.
const MAX_FILE: usize = 8 << 20;
/// The permissions of a file for which none are given.
const FILE_MODE: u32 = 0o644;

/// The server's lines to one client, written by a thread of their own.
#[derive(Debug)]
pub(crate) struct Lines {
    sender: SyncSender<Vec<u8>>,
}

impl Lines {
    pub(crate) fn start(mut writer: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let (sender, lines) = sync_channel::<Vec<u8>>(WAITING);
        let write = move || {
            for line in lines {
                if writer.write_all(&line).and_then(|()| writer.flush()).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("lines".to_owned()).stack_size(128 << 10).spawn(write)?;
        Ok(Arc::new(Self { sender }))
    }

    /// Says something; waits while the client reads too little. False once it reads no more.
    fn say(&self, reply: &Reply) -> bool {
        self.sender.send(line(reply)).is_ok()
    }

    /// Says something unless the client is behind.
    pub(crate) fn offer(&self, reply: &Reply) {
        let _ = self.sender.try_send(line(reply));
    }
}

fn line(message: &impl serde::Serialize) -> Vec<u8> {
    let mut line = to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What a client has going.
struct Connection {
    server: Arc<Server>,
    lines: Arc<Lines>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    processes: HashMap<u64, Inputs>,
    last_process: u64,
    forwards: HashMap<u64, Forward>,
    last_forward: u64,
    calls: usize,
}

/// The way into one process, by a thread of its own, which waits while the process takes no input.
#[derive(Clone)]
struct Inputs {
    direct: ProcessInput,
    queue: SyncSender<(u64, Input)>,
}

enum Input {
    Bytes(Vec<u8>),
    End,
}

/// Reads requests to the end of the stream, or to one that cannot be one.
pub(crate) fn serve(
    server: &Arc<Server>,
    mut reader: impl BufRead,
    lines: &Arc<Lines>,
) -> io::Result<()> {
    let connection = Arc::new(Connection {
        server: Arc::clone(server),
        lines: Arc::clone(lines),
        table: Mutex::default(),
    });
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let _ = lines.sender.send(line(&Greeting { cabana: VERSION, version }));
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut text)?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_LINE && text.last() != Some(&b'\n') {
            lines.say(&Reply::Misread {
                misread: format!("a line is longer than {MAX_LINE} bytes"),
            });
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Request>(&text) {
            Ok(request) => connection.take(request),
            Err(error) => {
                lines.say(&Reply::Misread { misread: error.to_string() });
            }
        }
    }
    // Those that still run are nobody's; those in the background run on.
    for inputs in connection.lock().processes.values() {
        inputs.direct.hang_up();
    }
    let forwards = std::mem::take(&mut connection.lock().forwards);
    drop(forwards);
    Ok(())
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: u64, outcome: Result<Outcome, Error>) {
        let outcome = outcome.unwrap_or_else(|error| Outcome::Error(fault(&error)));
        self.lines.say(&Reply::Answer { id, outcome });
    }

    /// Begins a request; what can wait does so on a thread of its own.
    fn take(self: &Arc<Self>, request: Request) {
        let Request { id, call } = request;
        match call {
            Call::Stdin { process, data } => match data.decode() {
                Some(bytes) => self.input(id, process, Input::Bytes(bytes)),
                None => self.answer(id, Err(Error::Invalid("the data is no base64".to_owned()))),
            },
            Call::StdinClose { process } => self.input(id, process, Input::End),
            Call::Signal { process, signal } => {
                let signalled = self.process(process).map(|inputs| inputs.direct.signal(signal));
                self.answer(id, signalled.map(|()| Outcome::Done(true)));
            }
            Call::Resize { process, size } => {
                let resized = self.process(process).map(|inputs| inputs.direct.resize(size));
                self.answer(id, resized.map(|()| Outcome::Done(true)));
            }
            Call::Detach { process } => {
                let left = self.process(process).map(|inputs| inputs.direct.detach());
                self.answer(id, left.map(|()| Outcome::Done(true)));
            }
            call => self.begin(id, call),
        }
    }

    fn begin(self: &Arc<Self>, id: u64, call: Call) {
        {
            let mut table = self.lock();
            if table.calls == MAX_CALLS {
                drop(table);
                let why =
                    format!("{MAX_CALLS} requests are being worked on; wait for their answers");
                return self.answer(id, Err(Error::Invalid(why)));
            }
            table.calls += 1;
        }
        let connection = Arc::clone(self);
        let body = move || {
            connection.work(id, call);
            connection.lock().calls -= 1;
        };
        let builder = thread::Builder::new().name("request".to_owned()).stack_size(256 << 10);
        if let Err(source) = builder.spawn(body) {
            self.lock().calls -= 1;
            self.answer(id, Err(Error::Host { what: "a thread", source }));
        }
    }

    fn work(self: &Arc<Self>, id: u64, call: Call) {
        let server = &self.server;
        let done = |()| Outcome::Done(true);
        let status = |machine: &Machine| Outcome::Machine(machine.status());
        let outcome = match call {
            Call::MachineCreate { spec } => server.create(spec).map(|machine| status(&machine)),
            Call::MachineStart(named) => server
                .find(&named.machine)
                .and_then(|machine| machine.start().map(|()| status(&machine))),
            Call::MachineList => {
                let all: Vec<MachineStatus> = server.list().iter().map(Machine::status).collect();
                Ok(Outcome::Machines(all))
            }
            Call::MachineShutdown(named) => {
                server.find(&named.machine).and_then(|machine| machine.shutdown()).map(done)
            }
            Call::MachineStop(named) => {
                server.find(&named.machine).map(|machine| machine.stop()).map(done)
            }
            Call::MachineSuspend(named) => {
                server.find(&named.machine).and_then(|machine| machine.suspend()).map(Outcome::Done)
            }
            Call::MachineRemove(named) => server.remove(&named.machine).map(done),
            Call::MachineConsole(named) => server
                .find(&named.machine)
                .and_then(|machine| machine.console())
                .map(Outcome::Console),
            Call::SessionCreate { machine, spec } => server
                .find(&machine)
                .and_then(|machine| machine.create_session(spec)?.status())
                .map(Outcome::Session),
            Call::SessionLimit { machine, session, limits } => server
                .find(&machine)
                .and_then(|machine| machine.session(&session)?.limit(limits))
                .map(Outcome::Session),
            Call::SessionList(named) => server
                .find(&named.machine)
                .and_then(|machine| machine.sessions())
                .map(Outcome::Sessions),
            Call::SessionRemove { machine, session } => server
                .find(&machine)
                .and_then(|machine| machine.session(&session)?.remove())
                .map(done),
            Call::NetworkStatus(named) => server
                .find(&named.machine)
                .and_then(|machine| machine.network())
                .map(Outcome::Network),
            Call::NetworkPolicy { place, policy } => server
                .find(&place.machine)
                .and_then(|machine| match &place.session {
                    Some(session) => machine.session(session)?.set_policy(policy),
                    None => machine.set_policy(policy.unwrap_or_default()),
                })
                .map(Outcome::Policy),
            Call::NetworkAnswer { machine, ask, allow, remember } => server
                .find(&machine)
                .and_then(|machine| machine.answer(ask, allow, remember))
                .map(done),
            Call::ShareAdd { place, share } => {
                self.place(&place).and_then(|place| place.add_share(&share)).map(done)
            }
            Call::ShareRemove { place, guest } => {
                self.place(&place).and_then(|place| place.remove_share(&guest)).map(done)
            }
            Call::ShareList(place) => {
                self.place(&place).and_then(|place| place.shares()).map(Outcome::Shares)
            }
            Call::CopyIn { place, copy } => self
                .place(&place)
                .and_then(|place| place.copy_in(absolute(&copy.host)?, &copy.guest))
                .map(Outcome::Copied),
            Call::CopyOut { place, copy } => self
                .place(&place)
                .and_then(|place| place.copy_out(&copy.guest, absolute(&copy.host)?))
                .map(Outcome::Copied),
            Call::WriteFile { place, path, data, mode } => match data.decode() {
                Some(bytes) => self
                    .place(&place)
                    .and_then(|place| place.write_file(&path, &bytes, mode.unwrap_or(FILE_MODE)))
                    .map(done),
                None => Err(Error::Invalid("the data is no base64".to_owned())),
            },
            Call::ReadFile { place, path } => self
                .place(&place)
                .and_then(|place| place.read_file(&path, MAX_FILE))
                .map(|bytes| Outcome::Data(Bytes::from(&bytes[..]))),
            Call::Forward { place, host, guest } => {
                let forward = self.place(&place).and_then(|place| place.forward(host, guest));
                forward.map(|forward| self.keep(forward))
            }
            Call::ForwardBack { place, guest, host } => self
                .place(&place)
                .and_then(|place| place.forward_back(guest, host))
                .map(|forward| self.keep(forward)),
            Call::ForwardEnd { forward } => {
                let ended = self.lock().forwards.remove(&forward);
                let name = forward.to_string();
                ended.map(|_| Outcome::Done(true)).ok_or(Error::NotFound { what: "forward", name })
            }
            Call::Exec { machine, command } => {
                let started = server.find(&machine).and_then(|machine| machine.exec(&command));
                return self.follow(id, started);
            }
            Call::Attach { machine, background } => {
                let attached = server.find(&machine).and_then(|machine| machine.attach(background));
                return self.follow(id, attached);
            }
            Call::BackgroundList(named) => server
                .find(&named.machine)
                .and_then(|machine| machine.background_commands())
                .map(Outcome::Backgrounds),
            Call::Stdin { .. }
            | Call::StdinClose { .. }
            | Call::Signal { .. }
            | Call::Resize { .. }
            | Call::Detach { .. } => {
                return;
            }
        };
        self.answer(id, outcome);
    }

    /// The place that a request names.
    fn place(&self, place: &Place) -> Result<cabana_engine::Place, Error> {
        let machine = self.server.find(&place.machine)?;
        match &place.session {
            Some(session) => Ok(machine.session(session)?.place().clone()),
            None => Ok(machine.place()),
        }
    }

    /// Gives a forward its number.
    fn keep(&self, forward: Forward) -> Outcome {
        let listens = forward.listens();
        let mut table = self.lock();
        table.last_forward += 1;
        let number = table.last_forward;
        table.forwards.insert(number, forward);
        Outcome::Forward(ForwardStatus { forward: number, listens })
    }

    fn process(&self, number: u64) -> Result<Inputs, Error> {
        let found = self.lock().processes.get(&number).cloned();
        let name = number.to_string();
        found.ok_or(Error::NotFound { what: "process", name })
    }

    fn input(&self, id: u64, process: u64, input: Input) {
        let queued = self.process(process).and_then(|inputs| {
            inputs.queue.try_send((id, input)).map_err(|error| match error {
                TrySendError::Full(_) => Error::Invalid(format!(
                    "{MAX_INPUTS} inputs wait for process {process}; wait for their answers"
                )),
                TrySendError::Disconnected(_) => {
                    Error::NotFound { what: "process", name: process.to_string() }
                }
            })
        });
        if let Err(error) = queued {
            self.answer(id, Err(error));
        }
    }

    /// Gives a process its number and its way in.
    fn register(self: &Arc<Self>, process: Process) -> Result<(u64, Process), Error> {
        let (queue, inputs) = sync_channel(MAX_INPUTS);
        let input = process.input();
        let (direct, lines) = (input.clone(), Arc::clone(&self.lines));
        let feed = move || {
            for (id, what) in inputs {
                let taken = match what {
                    Input::Bytes(bytes) => input.write_stdin(&bytes),
                    Input::End => {
                        input.close_stdin();
                        true
                    }
                };
                lines.say(&Reply::Answer { id, outcome: Outcome::Done(taken) });
            }
        };
        let builder = thread::Builder::new().name("input".to_owned()).stack_size(128 << 10);
        builder.spawn(feed).map_err(|source| Error::Host { what: "a thread", source })?;
        let mut table = self.lock();
        table.last_process += 1;
        let number = table.last_process;
        table.processes.insert(number, Inputs { direct, queue });
        Ok((number, process))
    }

    /// Answers with a process's number, and passes on what it says.
    fn follow(self: &Arc<Self>, id: u64, process: Result<Process, Error>) {
        match process.and_then(|process| self.register(process)) {
            Ok((number, process)) => {
                self.answer(id, Ok(Outcome::Process(number)));
                self.pump(number, process);
            }
            Err(error) => self.answer(id, Err(error)),
        }
    }

    /// Passes on what a process says, to its end or the client's.
    fn pump(&self, number: u64, mut process: Process) {
        loop {
            let event = match process.next_event() {
                Ok(Some(cabana_engine::ProcessEvent::Started(pid))) => {
                    ProcessEvent::Started { pid, background: process.background() }
                }
                Ok(Some(event)) => told(&event),
                Ok(None) => break,
                Err(error) => {
                    let Fault { code, message } = fault(&error);
                    ProcessEvent::Failed { code, message, status: error.status() }
                }
            };
            let last = matches!(
                event,
                ProcessEvent::Exited { .. } | ProcessEvent::Detached | ProcessEvent::Failed { .. }
            );
            if last {
                // Nobody is to find it after its end is known.
                self.lock().processes.remove(&number);
            }
            if !self.lines.say(&Reply::Process { process: number, event }) || last {
                break;
            }
        }
        self.lock().processes.remove(&number);
    }
}

fn told(event: &cabana_engine::ProcessEvent<'_>) -> ProcessEvent {
    use cabana_engine::ProcessEvent as Heard;
    match event {
        Heard::Started(pid) => ProcessEvent::Started { pid: *pid, background: None },
        Heard::Stdout(bytes) => ProcessEvent::Stdout { data: Bytes::from(*bytes) },
        Heard::Stderr(bytes) => ProcessEvent::Stderr { data: Bytes::from(*bytes) },
        Heard::Exited(exit) => ProcessEvent::Exited { exit: *exit },
        Heard::Detached => ProcessEvent::Detached,
    }
}

/// The server's own folder is nobody's business.
fn absolute(path: &Path) -> Result<&Path, Error> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::Invalid(format!("{} is not an absolute path of the host", path.display())))
}

fn fault(error: &Error) -> Fault {
    Fault { code: error.code().to_owned(), message: error.to_string() }
}
