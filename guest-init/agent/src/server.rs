//! Serves the host's connections: the first frame says what each is for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cabana_protocol::{Cause, Exec, ExecRequest, Kind, ProtocolError, Request};

use crate::background::Background;
use crate::events::Events;
use crate::exec::{self, ExecError, Link};
use crate::listeners::{Listeners, Running};
use crate::service::{self, Tunnels};
use crate::session::{Session, SessionError, Sessions};

/// What connections have in common.
#[derive(Debug)]
pub struct Server {
    sessions: Option<Sessions>,
    background: Arc<Background>,
    events: Arc<Events>,
    tunnels: Tunnels,
    /// In a machine.
    listeners: Option<Listeners>,
}

/// What a connection is for.
enum First {
    Exec(Exec),
    Attach(u64),
    Request(Request),
}

impl Server {
    /// A server of commands that has no sessions: it needs to be neither PID 1 nor root.
    ///
    /// # Errors
    ///
    /// The system refuses a descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            sessions: None,
            background: Arc::default(),
            events: Arc::new(Events::new()?),
            tunnels: Tunnels::default(),
            listeners: None,
        })
    }

    /// The server of a machine. `disk` is the root of its writable ext4 file system, if it has one.
    pub(crate) fn of_machine(disk: Option<OwnedFd>) -> io::Result<Self> {
        let mut server = Self::new()?;
        let (events, background) = (Arc::clone(&server.events), Arc::clone(&server.background));
        server.listeners = Some(Listeners::new(Arc::clone(&events)));
        server.sessions = Some(Sessions::new(disk, events, background));
        Ok(server)
    }

    /// Serves the peer of a stream from its first frame to the last reply, and closes the stream, which is
    /// made non-blocking. It can change what belongs to the calling thread alone: the thread is of no use
    /// for anything else afterwards.
    ///
    /// # Errors
    ///
    /// [`ExecError`] when the end could not be reported. A request that cannot be met is not an error:
    /// the peer was told.
    pub fn serve(&self, stream: impl Into<OwnedFd>) -> Result<(), ExecError> {
        let mut link = Link::new(stream.into())?;
        let first = link.receive(|frame| match frame.kind {
            Kind::ExecRequest => match frame.message()? {
                ExecRequest::Exec(exec) => Ok(First::Exec(exec)),
                ExecRequest::Attach { process } => Ok(First::Attach(process)),
                _ => Err(ProtocolError::OutOfTurn("a request before `Exec`")),
            },
            Kind::Request => Ok(First::Request(frame.message()?)),
            other => Err(ProtocolError::UnexpectedKind(other)),
        })?;
        match first {
            First::Exec(exec) => exec::run(self, link, &exec),
            First::Attach(process) => exec::attach(self, Box::new(link), process),
            First::Request(request) => service::serve(self, link, request),
        }
    }

    pub(crate) fn sessions(&self) -> Result<&Sessions, SessionError> {
        self.sessions
            .as_ref()
            .ok_or_else(|| SessionError::refused(Cause::Unsupported, "there are no sessions here"))
    }

    pub(crate) fn session(&self, name: &str) -> Result<Arc<Session>, SessionError> {
        self.sessions()?.find(name)
    }

    pub(crate) fn background(&self) -> &Background {
        &self.background
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Notes that a command has started, until what is returned is dropped.
    pub(crate) fn running(&self, session: Option<&Arc<Session>>) -> Option<Running> {
        self.listeners.as_ref().map(|listeners| listeners.running(session))
    }

    /// The host is another one, and is told what the one before knew.
    pub(crate) fn tell_again(&self) {
        if let Some(listeners) = &self.listeners {
            listeners.tell_again();
        }
    }

    pub(crate) fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }
}
