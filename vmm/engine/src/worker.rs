//! One worker, from the engine's side: its process, the link, and the way to its guest.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use cabana_os::{AsHandle, BorrowedHandle, Channel, LocalStream, OwnedHandle, process};
use cabana_protocol::ProtocolError;
use cabana_sandbox::egress::Event;
use cabana_sandbox::{Duplex, Link, Stream};
use cabana_worker::link::{self, Fault, Handle, Notice, Progress, Request, Role, Start};

use crate::Error;
use crate::config::WorkerKind;

/// A conversation that breaks is nearly always a machine that ended: its end is known this much later at
/// the most.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the word of a refusal may come after the end of what was refused.
const REFUSAL: Duration = Duration::from_millis(200);

/// How long a worker that was told to go may take. It is killed first, so this is the host's own time.
const FAREWELL: Duration = Duration::from_secs(2);

/// A running worker. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Worker {
    remote: Arc<Remote>,
}

/// What happened to the worker, told on its own thread.
pub(crate) enum Told {
    Progress(Progress),
    DiskFailed(String),
    Network(Box<Event>),
    Ended(Result<(), Fault>),
}

/// The worker as its guest's conversations see it.
#[derive(Debug)]
pub(crate) struct Remote {
    channel: Channel,
    pid: Option<u32>,
    next: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    refusals: Arc<Refusals>,
}

#[derive(Debug, Default)]
struct State {
    ended: Option<Result<(), Fault>>,
    /// The process is gone, and nobody reads the link any more.
    gone: bool,
    child: Option<Child>,
    calls: HashMap<u64, mpsc::Sender<Result<String, Fault>>>,
}

/// Conversations that the worker could not begin.
#[derive(Debug, Default)]
struct Refusals {
    faults: Mutex<HashMap<u64, Fault>>,
    added: Condvar,
}

impl Worker {
    /// Starts a worker and its machine; returns as soon as it is on its way.
    pub(crate) fn start(
        kind: &WorkerKind,
        start: Start,
        handles: &[OwnedHandle],
        tell: impl Fn(Told) + Send + 'static,
    ) -> Result<Self, Error> {
        let worker = Self::spawn(kind, &[], tell)?;
        let handles: Vec<_> = handles.iter().map(AsHandle::as_handle).collect();
        let request = Request::Start(Box::new(start));
        // A worker that is gone already is told of by the thread that listens.
        let _ = link::send(&worker.remote.channel, &request, &handles);
        Ok(worker)
    }

    /// Starts a worker that knows nothing yet but these variables.
    pub(crate) fn spawn(
        kind: &WorkerKind,
        environment: &[(String, String)],
        tell: impl Fn(Told) + Send + 'static,
    ) -> Result<Self, Error> {
        let (ours, theirs) = Channel::pair().map_err(Error::host("a socket"))?;
        let child = match kind.command()? {
            None => {
                cabana_worker::in_this_process(theirs).map_err(Error::host("a thread"))?;
                None
            }
            Some(mut command) => {
                let program = command.get_program().to_owned();
                process::bare(&mut command);
                command
                    .stdin(OwnedHandle::from(theirs))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                command.envs(environment.iter().map(|(name, value)| (name, value)));
                let child = command.spawn().map_err(|source| Error::Open {
                    what: "the worker",
                    path: program.into(),
                    source,
                })?;
                let tied = ours.set_peer(&child).and_then(|()| process::end_together(&child));
                tied.map_err(Error::host("the worker"))?;
                Some(child)
            }
        };
        let remote = Arc::new(Remote {
            channel: ours,
            pid: child.as_ref().map(Child::id),
            next: AtomicU64::new(1),
            state: Mutex::new(State { child, ..State::default() }),
            changed: Condvar::new(),
            refusals: Arc::default(),
        });
        let worker = Self { remote: Arc::clone(&remote) };
        let builder = thread::Builder::new().name("worker link".to_owned()).stack_size(256 << 10);
        builder.spawn(move || remote.listen(tell)).map_err(Error::host("a thread"))?;
        Ok(worker)
    }

    pub(crate) fn link(&self) -> Arc<dyn Link> {
        Arc::clone(&self.remote) as Arc<dyn Link>
    }

    /// Its process, if it has one.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.remote.pid
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.remote.lock().ended.is_some()
    }

    /// Waits for the machine's end.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let state = self.remote.lock();
        let state = self
            .remote
            .changed
            .wait_while(state, |state| state.ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match &state.ended {
            Some(Err(fault)) => Err(error(fault).into()),
            _ => Ok(()),
        }
    }

    /// Asks for something and waits for the answer.
    pub(crate) fn call(
        &self,
        request: impl FnOnce(u64) -> Request,
        handle: Option<&OwnedHandle>,
    ) -> Result<String, Error> {
        let handles: Vec<_> = handle.map(AsHandle::as_handle).into_iter().collect();
        self.call_with(request, &handles)
    }

    /// As [`call`](Self::call), with any number of handles.
    pub(crate) fn call_with(
        &self,
        request: impl FnOnce(u64) -> Request,
        handles: &[BorrowedHandle<'_>],
    ) -> Result<String, Error> {
        let call = self.remote.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::channel();
        {
            let mut state = self.remote.lock();
            if state.ended.is_none() {
                state.calls.insert(call, sender);
            } else {
                // Nobody will answer.
                drop(sender);
            }
        }
        if let Err(error) = link::send(&self.remote.channel, &request(call), handles)
            && error.kind() == io::ErrorKind::ArgumentListTooLong
        {
            self.remote.lock().calls.remove(&call);
            return Err(Error::Invalid("the request is too large".to_owned()));
        }
        // Without an answer there was an end.
        match answer.recv() {
            Ok(result) => result.map_err(|fault| error(&fault).into()),
            Err(_) => Err(self.remote.explain(ProtocolError::Closed).into()),
        }
    }

    /// Ends the machine as if its power had failed.
    pub(crate) fn stop(&self) {
        let _ = link::send(&self.remote.channel, &Request::Stop, &[]);
    }

    /// Waits until a killed worker is gone with all that it held.
    pub(crate) fn wait_gone(&self) {
        let state = self.remote.lock();
        drop(self.remote.changed.wait_timeout_while(state, FAREWELL, |state| !state.gone));
    }

    /// Ends the worker, whatever it does.
    pub(crate) fn kill(&self) {
        self.remote.channel.shut();
        if let Some(child) = &mut self.remote.lock().child {
            // One that is gone has been killed by somebody else.
            let _ = child.kill();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
        self.wait_gone();
    }
}

impl Remote {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listener's thread: to the worker's end.
    fn listen(&self, tell: impl Fn(Told)) {
        while let Ok(Some((notice, _))) = link::receive::<Notice>(&self.channel) {
            match notice {
                Notice::Progress(progress) => tell(Told::Progress(progress)),
                Notice::DiskFailed(message) => tell(Told::DiskFailed(message)),
                Notice::Network(event) => tell(Told::Network(event)),
                Notice::Refused { conversation, fault } => {
                    self.refusals.add(conversation, fault);
                }
                Notice::Answer { call, result } => {
                    if let Some(caller) = self.lock().calls.remove(&call) {
                        let _ = caller.send(result);
                    }
                }
                Notice::Ended(ended) => self.end(ended, &tell),
            }
        }
        let child = self.lock().child.take();
        let how = child.map(|mut child| {
            // It has closed its end; one that hangs all the same goes now.
            let _ = child.kill();
            child.wait()
        });
        let message = match how {
            Some(Ok(status)) => format!("the machine's worker died ({})", in_words(status)),
            Some(Err(_)) | None => "the machine's worker died".to_owned(),
        };
        self.end(Err(Fault { code: "worker-died".to_owned(), message }), &tell);
        self.lock().gone = true;
        self.changed.notify_all();
    }

    /// The first end counts.
    fn end(&self, ended: Result<(), Fault>, tell: &impl Fn(Told)) {
        {
            let mut state = self.lock();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(ended.clone());
            state.calls.clear();
        }
        self.changed.notify_all();
        tell(Told::Ended(ended));
    }
}

impl Link for Remote {
    fn connect(&self, port: u32) -> Result<Stream, cabana_sandbox::Error> {
        let host = |source| cabana_sandbox::Error::Host { what: "a socket", source };
        let (ours, theirs) = LocalStream::pair().map_err(host)?;
        let conversation = self.next.fetch_add(1, Ordering::Relaxed);
        let request = Request::Connect { conversation, port };
        if link::send(&self.channel, &request, &[theirs.as_handle()]).is_err() {
            return Err(self.explain(ProtocolError::Closed));
        }
        let refusals = Arc::clone(&self.refusals);
        let answered = AtomicBool::new(false);
        Ok(Conversation { socket: ours, number: conversation, refusals, answered }.into())
    }

    fn explain(&self, error: ProtocolError) -> cabana_sandbox::Error {
        if let ProtocolError::Io(source) = &error
            && let Some(Refused(fault)) = source.get_ref().and_then(|inner| inner.downcast_ref())
        {
            return self::error(fault);
        }
        let broken = matches!(error, ProtocolError::Io(_) | ProtocolError::Closed);
        match self.wait_end(if broken { PATIENCE } else { Duration::ZERO }) {
            Some(Err(error)) => error,
            Some(Ok(())) => cabana_sandbox::Error::Stopped,
            None if broken => cabana_sandbox::Error::Agent("it closed the connection".to_owned()),
            None => cabana_sandbox::Error::Protocol(error),
        }
    }

    fn wait_end(&self, limit: Duration) -> Option<Result<(), cabana_sandbox::Error>> {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |state| state.ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        Some(match state.ended.as_ref()? {
            Ok(()) => Ok(()),
            Err(fault) => Err(error(fault)),
        })
    }
}

impl Refusals {
    fn add(&self, conversation: u64, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).insert(conversation, fault);
        self.added.notify_all();
    }

    /// Why a conversation ended before its first byte, if the worker refused it. Its word of that and the
    /// end come on different sockets.
    fn take(&self, conversation: u64) -> Option<Fault> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut faults, _) = self
            .added
            .wait_timeout_while(faults, REFUSAL, |faults| !faults.contains_key(&conversation))
            .unwrap_or_else(PoisonError::into_inner);
        faults.remove(&conversation)
    }
}

/// One stream to the guest, through the worker.
#[derive(Debug)]
struct Conversation {
    socket: LocalStream,
    number: u64,
    refusals: Arc<Refusals>,
    /// Something has come.
    answered: AtomicBool,
}

/// The worker could not begin a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
struct Refused(Fault);

impl Duplex for Conversation {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = self.socket.receive(buffer)?;
        if received > 0 {
            self.answered.store(true, Ordering::Relaxed);
        } else if !self.answered.load(Ordering::Relaxed)
            && let Some(fault) = self.refusals.take(self.number)
        {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, Refused(fault)));
        }
        Ok(received)
    }

    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.transmit(bytes)
    }

    fn shut(&self, how: Shutdown) {
        self.socket.shut(how);
    }
}

/// A worker's fault as an error of ours.
fn error(fault: &Fault) -> cabana_sandbox::Error {
    cabana_sandbox::Error::told(&fault.code, &fault.message)
}

fn in_words(status: ExitStatus) -> String {
    match (process::signal_of(status), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("status {code}"),
        (None, None) => "for no known reason".to_owned(),
    }
}

/// Handles for a worker, as they gather.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    pub(crate) list: Vec<Handle>,
    pub(crate) open: Vec<OwnedHandle>,
}

impl Handles {
    pub(crate) fn add(
        &mut self,
        role: Role,
        name: impl Into<String>,
        handle: impl Into<OwnedHandle>,
    ) {
        self.list.push(Handle { role, name: name.into() });
        self.open.push(handle.into());
    }
}
