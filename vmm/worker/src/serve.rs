//! The worker's life: from the first message to the machine's end.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cabana_os::confine::{self, Confinement};
use cabana_os::{AsHandle, BorrowedHandle, Channel, FromHandle, LocalStream, OwnedHandle, process};
use cabana_sandbox::journal::Home;
use cabana_sandbox::{
    BareConfig, BareMachine, CableConfig, Error, Link, MachineConfig, Outcome, Scratch, Share,
    ShareJournal, Vmm,
};

use crate::link::{self, Fault, Guest, Notice, Progress, Request, Role, Start, VERSION};
use crate::network;
use crate::splice::splice;

/// A worker was called by hand.
const NOT_CALLED_SO: u8 = 125;

/// How long is waited for the machine's end before it is waited again.
const LONG: Duration = Duration::from_secs(1 << 30);

/// The body of a worker process, whose standard input is its end of the channel. Its exit status is of
/// no interest to anybody who reads the notices.
pub fn run() -> u8 {
    process::close_inherited();
    // Without more, large shared folders work all the same, with less kept in mind.
    let _ = process::raise_open_files();
    process::learn();
    let served = io::stdin()
        .as_handle()
        .try_clone_to_owned()
        .and_then(|stdin| serve(Channel::from_handle(stdin)?, Place::Process));
    match served {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cabana worker: only the engine calls it ({error})");
            NOT_CALLED_SO
        }
    }
}

/// Serves a machine on a thread of this process: unconfined, for tests and for those who ask for it.
pub fn in_this_process(channel: Channel) -> io::Result<()> {
    let body = move || {
        // The engine hears of everything by the channel's end.
        let _ = serve(channel, Place::Thread);
    };
    thread::Builder::new().name("worker".to_owned()).spawn(body)?;
    Ok(())
}

/// Where a worker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a process of its own.
    Process,
    /// On a thread of the engine's process.
    Thread,
}

/// What was handed over with the start.
struct Parts {
    start: Start,
    handles: Vec<OwnedHandle>,
}

fn serve(channel: Channel, place: Place) -> io::Result<()> {
    let (start, handles) = match link::receive(&channel)? {
        Some((Request::Start(start), handles)) => (*start, handles),
        Some((Request::Network { call, start }, handles)) => {
            return network::serve(channel, place, call, &start, handles);
        }
        Some(_) => return Err(io::Error::other("the first message is no start")),
        None => return Ok(()),
    };
    let channel = Arc::new(channel);
    let end = |fault| link::send(&channel, &Notice::Ended(Err(fault)), &[]);
    if start.version != VERSION || start.handles.len() != handles.len() {
        let (worker, engine) = (VERSION, start.version);
        let message = format!("the worker speaks version {worker} and the engine {engine}");
        return end(Fault { code: "worker-version".to_owned(), message });
    }
    let mut parts = Parts { start, handles };
    if place == Place::Process {
        let parent = parts.take(|role| *role == Role::Parent);
        match parts.confine() {
            Ok(Confinement { system_calls, files }) => {
                let confined = Progress::Confined { system_calls, files };
                link::send(&channel, &Notice::Progress(confined), &[])?;
            }
            Err(message) => return end(Fault { code: "confine".to_owned(), message }),
        }
        report_panics(&channel);
        end_with_parent(&channel, parent)?;
    }
    let served = match parts.start.guest {
        Guest::Agent => serve_agent(&channel, parts, place),
        Guest::Bare => serve_bare(&channel, parts),
    };
    // Nothing comes after the end; a process has nothing to clean up.
    if place == Place::Process {
        process::end_now(0);
    }
    served
}

/// Ends this process when the engine's link or its process does.
pub(crate) fn end_with_parent(
    channel: &Arc<Channel>,
    parent: Option<OwnedHandle>,
) -> io::Result<()> {
    let watched = Arc::clone(channel);
    spawn("parent", move || {
        watched.wait_gone(parent.as_ref().map(AsHandle::as_handle));
        process::end_now(0);
    })
}

impl Parts {
    fn take(&mut self, wanted: impl Fn(&Role) -> bool) -> Option<OwnedHandle> {
        let at = self.start.handles.iter().position(|handle| wanted(&handle.role))?;
        self.start.handles.remove(at);
        Some(self.handles.remove(at))
    }

    fn each(&self) -> impl Iterator<Item = (&Role, BorrowedHandle<'_>)> {
        let roles = self.start.handles.iter().map(|handle| &handle.role);
        roles.zip(self.handles.iter().map(AsHandle::as_handle))
    }

    fn path(&self, wanted: impl Fn(&Role) -> bool) -> Option<PathBuf> {
        self.each().find(|(role, _)| wanted(role)).map(|(_, handle)| process::path_of(handle))
    }

    fn confine(&self) -> Result<Confinement, String> {
        if !self.start.confine {
            return Ok(Confinement { system_calls: false, files: false });
        }
        let files = self.each().filter_map(|(role, handle)| match role {
            Role::Kernel | Role::Initrd | Role::Image => Some((handle, false)),
            Role::Share { read_only, .. } => Some((handle, !read_only)),
            Role::Disk { .. } | Role::ShareRoot | Role::Journal | Role::Log | Role::Capture => {
                Some((handle, true))
            }
            Role::Parent | Role::Control | Role::Serial | Role::Cable { .. } => None,
        });
        confine::machine(files).map_err(|error| error.to_string())
    }

    /// The same error with the engine's names in place of ours.
    fn translate(&self, error: &Error) -> Fault {
        let mut fault = Fault::from(error);
        // From the last on: one number begins another.
        for (handle, fd) in self.start.handles.iter().zip(&self.handles).rev() {
            let ours = process::path_of(fd.as_handle()).display().to_string();
            fault.message = fault.message.replace(&ours, &handle.name);
        }
        fault
    }

    /// The cable to the network's worker.
    fn take_cable(&mut self) -> Option<CableConfig> {
        let mtu = self.each().find_map(|(role, _)| match role {
            Role::Cable { mtu } => Some(*mtu),
            _ => None,
        })?;
        let socket = self.take(|role| matches!(role, Role::Cable { .. }))?;
        Some(CableConfig { socket: Arc::new(socket), mtu })
    }

    fn config(&self) -> MachineConfig {
        let scratch = self.each().find_map(|(role, handle)| match role {
            Role::Disk { vanishing } => {
                Some(Scratch::Given { path: process::path_of(handle), vanishing: *vanishing })
            }
            _ => None,
        });
        let handles: Vec<_> = self.each().collect();
        let shares = handles.iter().enumerate().filter_map(|(index, (role, folder))| match role {
            Role::Share { guest, read_only, journal } => Some(Share {
                host: process::path_of(*folder),
                guest: guest.clone(),
                read_only: *read_only,
                journal: journal.and_then(|bytes| {
                    let [(_, home), (_, kept)] = handles.get(index + 1..index + 3)? else {
                        return None;
                    };
                    Some(share_journal(bytes, [*folder, *home, *kept]))
                }),
            }),
            _ => None,
        });
        let path = |role| self.path(|other| *other == role).unwrap_or_default();
        MachineConfig {
            cpus: self.start.cpus,
            memory: self.start.memory,
            kernel: path(Role::Kernel),
            agent: path(Role::Initrd),
            image: path(Role::Image),
            scratch: scratch.unwrap_or(Scratch::Memory),
            shares: shares.collect(),
            extra_command_line: self.start.command_line.clone(),
            ..MachineConfig::default()
        }
    }
}

/// The journal of a folder, by the folder, the journal's own, and where it keeps things.
fn share_journal(bytes: u64, folders: [BorrowedHandle<'_>; 3]) -> ShareJournal {
    let [share, folder, kept] = folders.map(process::path_of);
    ShareJournal { home: Home::given(share, folder, kept), bytes }
}

/// A machine with an agent: streams are passed on until it has ended and all of them have.
fn serve_agent(channel: &Arc<Channel>, mut parts: Parts, place: Place) -> io::Result<()> {
    let control = parts.take(|role| *role == Role::Control);
    let control = control.ok_or_else(|| io::Error::other("no control socket"))?;
    let control = LocalStream::from_handle(control)?;
    let cable = parts.take_cable();
    let vmm = match Vmm::start(&MachineConfig {
        cable,
        alone: place == Place::Process,
        ..parts.config()
    }) {
        Ok(vmm) => Arc::new(vmm),
        Err(error) => {
            return link::send(channel, &Notice::Ended(Err(parts.translate(&error))), &[]);
        }
    };
    // What the machine opened again is its own.
    drop(parts);
    link::send(channel, &Notice::Progress(Progress::Booting), &[])?;
    let splices = Arc::new(Splices::default());
    let (machine, notices, guard) =
        (Arc::clone(&vmm), Arc::clone(channel), Splices::begin(&splices));
    spawn("control", move || {
        let _guard = guard;
        // An end without an agent is told by the watch below.
        if let Ok(stream) = machine.accept() {
            let _ = link::send(&notices, &Notice::Progress(Progress::Connected), &[]);
            let _ = splice(&stream, control);
        }
    })?;
    let (machine, notices, open) = (Arc::clone(&vmm), Arc::clone(channel), Arc::clone(&splices));
    spawn("end", move || {
        let link = machine.link();
        if let Some(Error::DiskFailed(message)) = machine.wait_disk_failure() {
            let _ = link::send(&notices, &Notice::DiskFailed(message), &[]);
        }
        let ended = loop {
            if let Some(ended) = link.wait_end(LONG) {
                break ended;
            }
        };
        let ended = ended.map_err(|error| Fault::from(&error));
        let _ = link::send(&notices, &Notice::Ended(ended), &[]);
        // What the guest has said is delivered, however long the engine takes to read it.
        open.wait_all();
        if place == Place::Process {
            process::end_now(0);
        }
    })?;
    while let Some((request, handles)) = link::receive(channel)? {
        if let Request::Attach { call, name, read_only, journal } = &request {
            let (path, journal) = match (&handles[..], journal) {
                ([folder], None) => (process::path_of(folder.as_handle()), None),
                ([folder, home, kept], Some(bytes)) => {
                    let journal =
                        share_journal(*bytes, [folder, home, kept].map(AsHandle::as_handle));
                    (journal.home.share.clone(), Some(journal))
                }
                _ => return Err(io::Error::other("a share without its handles")),
            };
            answer(channel, *call, &vmm.attach_share(name, &path, *read_only, journal.as_ref()))?;
            continue;
        }
        let handle = handles.into_iter().next();
        match (request, handle) {
            (Request::Connect { conversation, port }, Some(socket)) => {
                let socket = LocalStream::from_handle(socket)?;
                let (link, notices) = (vmm.link(), Arc::clone(channel));
                let guard = Splices::begin(&splices);
                spawn("conversation", move || {
                    let _guard = guard;
                    converse(link.as_ref(), conversation, port, socket, &notices);
                })?;
            }
            (Request::Detach { call, name }, _) => {
                answer(channel, call, &vmm.detach_share(&name))?;
            }
            (Request::Pause { call }, file) => {
                let paused = if vmm.pause() { Ok(()) } else { Err(Error::Stopped) };
                if let (Ok(()), Some(file)) = (&paused, file) {
                    // Without room for its memory on the disk the machine stands still all the same.
                    let _ = vmm.park(&File::from(file));
                }
                answer(channel, call, &paused)?;
            }
            (Request::Resume { call }, _) => {
                vmm.resume();
                answer(channel, call, &Ok(()))?;
            }
            (Request::Console { call }, _) => {
                let result = Ok(vmm.console().text());
                link::send(channel, &Notice::Answer { call, result }, &[])?;
            }
            (Request::Stop, _) => vmm.stop(),
            (request, _) => return Err(io::Error::other(format!("out of turn: {request:?}"))),
        }
    }
    Ok(())
}

pub(crate) fn answer(channel: &Channel, call: u64, result: &Result<(), Error>) -> io::Result<()> {
    let result = result.as_ref().map(|()| String::new()).map_err(Fault::from);
    link::send(channel, &Notice::Answer { call, result }, &[])
}

fn converse(link: &dyn Link, conversation: u64, port: u32, socket: LocalStream, notices: &Channel) {
    match link.connect(port) {
        Ok(stream) => {
            // Both ends hear of a stream that breaks.
            let _ = splice(&stream, socket);
        }
        Err(error) => {
            let refused = Notice::Refused { conversation, fault: Fault::from(&error) };
            let _ = link::send(notices, &refused, &[]);
        }
    }
}

/// A machine without an agent.
fn serve_bare(channel: &Arc<Channel>, mut parts: Parts) -> io::Result<()> {
    let serial = parts.take(|role| *role == Role::Serial);
    let kernel = parts.path(|role| *role == Role::Kernel).unwrap_or_default();
    let started = BareMachine::start(BareConfig {
        cpus: parts.start.cpus,
        memory: parts.start.memory,
        kernel,
        initrd: parts.path(|role| *role == Role::Initrd),
        command_line: parts.start.command_line.clone(),
        disks: Vec::new(),
        serial: match serial {
            Some(handle) => Box::new(File::from(handle)),
            None => Box::new(io::sink()),
        },
    });
    let machine = match started {
        Ok(machine) => Arc::new(machine),
        Err(error) => {
            return link::send(channel, &Notice::Ended(Err(parts.translate(&error))), &[]);
        }
    };
    link::send(channel, &Notice::Progress(Progress::Booting), &[])?;
    let (ending, notices) = (Arc::clone(&machine), Arc::clone(channel));
    spawn("end", move || {
        let ended = match ending.wait() {
            Outcome::Exit(0) | Outcome::Reset => Ok(()),
            Outcome::Stopped => Err(Fault::from(&Error::Stopped)),
            Outcome::Failed(why) => Err(Fault::from(&Error::Hypervisor(why))),
            outcome => Err(Fault { code: "guest".to_owned(), message: format!("{outcome:?}") }),
        };
        let _ = link::send(&notices, &Notice::Ended(ended), &[]);
    })?;
    while let Some((request, _)) = link::receive(channel)? {
        if let Request::Stop = request {
            machine.stop();
        }
    }
    Ok(())
}

/// Tells the engine of a panic, which ends this process.
pub(crate) fn report_panics(channel: &Arc<Channel>) {
    let channel = Arc::clone(channel);
    std::panic::set_hook(Box::new(move |panic| {
        let fault = Fault { code: "worker-died".to_owned(), message: panic.to_string() };
        let _ = link::send(&channel, &Notice::Ended(Err(fault)), &[]);
        std::process::abort();
    }));
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(256 << 10).spawn(body)?;
    Ok(())
}

/// How many streams are being passed on.
#[derive(Debug, Default)]
struct Splices {
    open: Mutex<usize>,
    closed: Condvar,
}

/// One of them.
struct Splicing(Arc<Splices>);

impl Splices {
    fn begin(all: &Arc<Self>) -> Splicing {
        *all.open.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Splicing(Arc::clone(all))
    }

    fn wait_all(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.closed.wait_while(open, |open| *open > 0));
    }
}

impl Drop for Splicing {
    fn drop(&mut self) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.closed.notify_all();
    }
}
