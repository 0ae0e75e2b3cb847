//! What is asked of a machine's agent besides commands: sessions, files, tunnels, and to be told of what
//! happens. Each request has a connection of its own, see [`cabana_protocol::service`].

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cabana_protocol::frame::{self, Kind, MAX_PAYLOAD};
use cabana_protocol::{
    EXEC_PORT, Entry, Event, GuestMessage, HostMessage, OwnerInfo, ProcessInfo, ProtocolError,
    Reply, Request, SessionInfo, SessionLimits, SessionSpec, ShareMount,
};

use crate::guest::{Guest, Pongs};
use crate::{Error, Stream};

/// How much of a file is sent at once.
const CHUNK: usize = 128 * 1024;

impl Guest {
    /// Makes a session. Commands run in it when their [`session`](crate::Command::session) is its name.
    pub fn create_session(&self, spec: &SessionSpec) -> Result<SessionInfo, Error> {
        self.about_session(&Request::CreateSession(spec.clone()))
    }

    /// Gives a session other limits.
    pub fn update_session(&self, name: &str, limits: SessionLimits) -> Result<SessionInfo, Error> {
        self.about_session(&Request::UpdateSession { name: name.to_owned(), limits })
    }

    /// Ends all processes of a session and deletes what it has.
    pub fn remove_session(&self, name: &str) -> Result<(), Error> {
        self.done(&Request::RemoveSession { name: name.to_owned() })
    }

    /// All sessions, by name.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        match self.request(&Request::ListSessions)?.1 {
            Reply::Sessions(sessions) => Ok(sessions),
            other => Err(unexpected(other)),
        }
    }

    /// All background commands, in the order of their start.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, Error> {
        match self.request(&Request::ListProcesses)?.1 {
            Reply::Processes(processes) => Ok(processes),
            other => Err(unexpected(other)),
        }
    }

    /// The process that has a TCP or UDP socket of this address, as the guest says.
    pub fn find_owner(
        &self,
        session: Option<&str>,
        udp: bool,
        address: SocketAddr,
    ) -> Result<Option<OwnerInfo>, Error> {
        let session = session.map(str::to_owned);
        match self.request(&Request::FindOwner { session, udp, address })?.1 {
            Reply::Owner(owner) => Ok(owner),
            other => Err(unexpected(other)),
        }
    }

    /// Shows a folder that the machine's file server has to a session, or to the machine itself.
    pub fn add_share(&self, session: Option<&str>, share: &ShareMount) -> Result<(), Error> {
        let session = session.map(str::to_owned);
        self.done(&Request::AddShare { session, share: share.clone() })
    }

    /// Shows a folder no longer.
    pub fn remove_share(&self, session: Option<&str>, guest_path: &str) -> Result<(), Error> {
        let (session, guest_path) = (session.map(str::to_owned), guest_path.to_owned());
        self.done(&Request::RemoveShare { session, guest_path })
    }

    /// Holds every process of the guest but its agent, and lets go of its shares, so that the machine can
    /// be kept in a snapshot.
    pub fn freeze(&self) -> Result<(), Error> {
        self.done(&Request::Freeze)
    }

    /// Lets the guest go on after [`freeze`](Self::freeze).
    pub fn thaw(&self) -> Result<(), Error> {
        self.done(&Request::Thaw)
    }

    /// Begins to write files at a path of the guest.
    pub fn push(&self, session: Option<&str>, path: &[u8]) -> Result<Push, Error> {
        let request = Request::Push { session: session.map(str::to_owned), path: path.to_vec() };
        Ok(Push { stream: self.begin(&request)?, explain: self.explain() })
    }

    /// Begins to read a file or a folder of the guest.
    pub fn pull(&self, session: Option<&str>, path: &[u8]) -> Result<Pull, Error> {
        let request = Request::Pull { session: session.map(str::to_owned), path: path.to_vec() };
        let stream = self.begin(&request)?;
        Ok(Pull { stream, buffer: Vec::new(), explain: self.explain() })
    }

    /// Connects to a TCP port in the guest.
    pub fn connect(
        &self,
        session: Option<&str>,
        address: &str,
        port: u16,
    ) -> Result<Tunnel, Error> {
        let (session, address) = (session.map(str::to_owned), address.to_owned());
        self.tunnel(&Request::Connect { session, address, port })
    }

    /// Listens on a TCP port in the guest; 0 for any free one.
    pub fn listen(
        &self,
        session: Option<&str>,
        address: &str,
        port: u16,
    ) -> Result<Listener, Error> {
        let (session, address) = (session.map(str::to_owned), address.to_owned());
        match self.request(&Request::Listen { session, address, port })? {
            (stream, Reply::Listening { port }) => {
                Ok(Listener { stream, port, explain: self.explain() })
            }
            (_, other) => Err(unexpected(other)),
        }
    }

    /// Takes a connection that a [`Listener`] told of.
    pub fn accept(&self, connection: u64) -> Result<Tunnel, Error> {
        self.tunnel(&Request::Accept { connection })
    }

    /// Tells of everything that happens in the guest from now on, on a thread of its own, until the machine
    /// ends. It can be called once.
    pub fn on_event(&self, mut tell: impl FnMut(Event) + Send + 'static) -> Result<(), Error> {
        if self.listening.swap(true, Ordering::Relaxed) {
            return Err(Error::Protocol(ProtocolError::OutOfTurn("a second listener to events")));
        }
        let (mut control, pongs) = (self.control.clone(), Arc::clone(&self.pongs));
        let listen = move || {
            while let Ok(message) = frame::read_message::<GuestMessage>(&mut control) {
                match message {
                    GuestMessage::Event(event) => tell(event),
                    GuestMessage::Pong(number) => pongs.note(number),
                    GuestMessage::Stopped => return control.shutdown(Shutdown::Both),
                    _ => return,
                }
            }
        };
        let builder = thread::Builder::new().name("events".to_owned()).stack_size(128 << 10);
        builder.spawn(listen).map_err(Error::host("a thread"))?;
        Ok(())
    }

    /// How long the agent takes to answer; an error after `limit`. It takes [`on_event`](Self::on_event)
    /// to hear the answer.
    pub fn ping(&self, limit: Duration) -> Result<Duration, Error> {
        let (start, number) = (Instant::now(), self.pongs.next());
        let mut control = self.control.clone();
        frame::write_message(&mut control, &HostMessage::Ping(number))
            .map_err(|error| self.link.explain(error))?;
        if self.pongs.wait(number, limit) {
            Ok(start.elapsed())
        } else {
            Err(Error::Agent(format!("it did not answer within {limit:?}")))
        }
    }

    /// Sends a request, and its first answer.
    fn request(&self, request: &Request) -> Result<(Stream, Reply), Error> {
        let mut stream = self.begin(request)?;
        match frame::read_message(&mut stream).map_err(|error| self.link.explain(error))? {
            Reply::Failed(failed) => Err(refused(failed)),
            reply => Ok((stream, reply)),
        }
    }

    fn begin(&self, request: &Request) -> Result<Stream, Error> {
        let mut stream = self.link.connect(EXEC_PORT)?;
        frame::write_message(&mut stream, request).map_err(|error| self.link.explain(error))?;
        Ok(stream)
    }

    fn done(&self, request: &Request) -> Result<(), Error> {
        match self.request(request)?.1 {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn about_session(&self, request: &Request) -> Result<SessionInfo, Error> {
        match self.request(request)?.1 {
            Reply::Session(session) => Ok(session),
            other => Err(unexpected(other)),
        }
    }

    fn tunnel(&self, request: &Request) -> Result<Tunnel, Error> {
        match self.request(request)? {
            (stream, Reply::Connected) => {
                Ok(Tunnel { stream, buffer: Vec::new(), taken: 0, ended: false })
            }
            (_, other) => Err(unexpected(other)),
        }
    }

    fn explain(&self) -> Explain {
        Explain(Arc::clone(&self.link))
    }
}

/// Says why a conversation ended.
#[derive(Clone, Debug)]
struct Explain(Arc<dyn crate::Link>);

impl Explain {
    fn error(&self) -> impl Fn(ProtocolError) -> Error + '_ {
        |error| self.0.explain(error)
    }
}

fn unexpected(_: Reply) -> Error {
    Error::Protocol(ProtocolError::OutOfTurn("an answer to what was not asked"))
}

fn refused(failed: cabana_protocol::Failed) -> Error {
    Error::Refused { cause: failed.cause, message: failed.message }
}

/// Files on their way into the guest.
#[derive(Debug)]
pub struct Push {
    stream: Stream,
    explain: Explain,
}

impl Push {
    /// Sends a file with its bytes, a folder or a link.
    pub fn entry(&mut self, entry: &Entry, bytes: &mut dyn Read) -> Result<(), Error> {
        let mut write = |stream: &mut Stream| -> Result<(), ProtocolError> {
            frame::write_message(stream, entry)?;
            if let Entry::File { .. } = entry {
                let mut chunk = vec![0; CHUNK];
                loop {
                    let read = bytes.read(&mut chunk)?;
                    frame::write_frame(stream, Kind::Data, &chunk[..read])?;
                    if read == 0 {
                        break;
                    }
                }
            }
            Ok(())
        };
        write(&mut self.stream).map_err(self.explain.error())
    }

    /// Waits until everything is written.
    pub fn finish(mut self) -> Result<(), Error> {
        let end = frame::write_message(&mut self.stream, &Entry::End);
        end.map_err(self.explain.error())?;
        match frame::read_message(&mut self.stream).map_err(self.explain.error())? {
            Reply::Done => Ok(()),
            Reply::Failed(failed) => Err(refused(failed)),
            other => Err(unexpected(other)),
        }
    }
}

/// Files on their way out of the guest. What they are called and what they say is the guest's word.
#[derive(Debug)]
pub struct Pull {
    stream: Stream,
    buffer: Vec<u8>,
    explain: Explain,
}

/// A piece of a [`Pull`].
#[derive(Debug, PartialEq, Eq)]
pub enum Pulled<'a> {
    /// A file, whose bytes follow, a folder or a link.
    Entry(Entry),
    /// Bytes of the file; none are its end.
    Bytes(&'a [u8]),
}

impl Pull {
    /// The next piece; `None` at the end.
    pub fn next_piece(&mut self) -> Result<Option<Pulled<'_>>, Error> {
        let frame = frame::read_frame(&mut self.stream, &mut self.buffer)
            .and_then(|frame| frame.ok_or(ProtocolError::Closed))
            .map_err(self.explain.error())?;
        match frame.kind {
            Kind::Data => Ok(Some(Pulled::Bytes(frame.payload))),
            Kind::Entry => match frame.message().map_err(Error::Protocol)? {
                Entry::End => Ok(None),
                entry => Ok(Some(Pulled::Entry(entry))),
            },
            _ => match frame.message().map_err(Error::Protocol)? {
                Reply::Failed(failed) => Err(refused(failed)),
                other => Err(unexpected(other)),
            },
        }
    }
}

/// A TCP port of the guest's.
#[derive(Debug)]
pub struct Listener {
    stream: Stream,
    port: u16,
    explain: Explain,
}

impl Listener {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it from any thread: who waits for a connection hears an error.
    pub fn closer(&self) -> impl Fn() + Send + Sync + use<> {
        let stream = self.stream.clone();
        move || stream.shutdown(Shutdown::Both)
    }

    /// Waits for a connection; its number is for [`Guest::accept`].
    pub fn next_connection(&mut self) -> Result<u64, Error> {
        match frame::read_message(&mut self.stream).map_err(self.explain.error())? {
            Reply::Incoming { connection } => Ok(connection),
            other => Err(unexpected(other)),
        }
    }
}

/// A TCP connection in the guest, from the host's side. Reading and writing may be done by two threads,
/// each with a clone.
#[derive(Clone, Debug)]
pub struct Tunnel {
    stream: Stream,
    /// The frame received last, and how much of it was taken.
    buffer: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Tunnel {
    /// Ends what is sent into the guest; the other way goes on.
    pub fn finish(&mut self) -> std::io::Result<()> {
        frame::write_frame(&mut self.stream, Kind::Data, &[]).map_err(std::io::Error::other)
    }

    /// Ends both ways, for all clones.
    pub fn close(&self) {
        self.stream.shutdown(Shutdown::Both);
    }
}

impl Read for Tunnel {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.taken == self.buffer.len() && !self.ended {
            self.taken = 0;
            let frame = frame::read_frame(&mut self.stream, &mut self.buffer);
            match frame.map_err(std::io::Error::other)? {
                Some(frame) if frame.kind == Kind::Data => self.ended = frame.payload.is_empty(),
                _ => return Err(std::io::ErrorKind::ConnectionReset.into()),
            }
        }
        let rest = &self.buffer[self.taken..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.taken += length;
        Ok(length)
    }
}

impl Write for Tunnel {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(MAX_PAYLOAD)];
        if !bytes.is_empty() {
            frame::write_frame(&mut self.stream, Kind::Data, bytes)
                .map_err(std::io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Pongs {
    fn next(&self) -> u64 {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.asked += 1;
        numbers.asked
    }

    fn note(&self, number: u64) {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.answered = numbers.answered.max(number);
        self.changed.notify_all();
    }

    fn wait(&self, number: u64, limit: Duration) -> bool {
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let waited =
            self.changed.wait_timeout_while(numbers, limit, |numbers| numbers.answered < number);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
