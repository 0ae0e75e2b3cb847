//! Files and ports of a place in a machine: of a session, or of the machine itself.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use cabana_api::Copied;
use cabana_protocol::Entry;
use cabana_sandbox::Pulled;

use crate::running::Use;
use crate::{Error, Forward, Machine, copy};

/// A machine's inside as one of its sessions sees it, or as its root does: files and ports. Paths of the
/// guest are absolute or, in a session, begin at its home. Every call starts the machine if need be.
#[derive(Clone, Debug)]
pub struct Place {
    machine: Machine,
    session: Option<String>,
}

impl Machine {
    /// The machine's own files and ports, with its root's rights.
    pub fn place(&self) -> Place {
        Place::new(self.clone(), None)
    }
}

impl Place {
    pub(crate) fn new(machine: Machine, session: Option<String>) -> Self {
        Self { machine, session }
    }

    /// Copies a file or a folder of the host's, with all that is in it, into the guest. A `guest` that
    /// ends with a slash is a folder to put it in, otherwise its new name; missing folders are made. A
    /// link is followed only if it is what is named.
    pub fn copy_in(&self, host: &Path, guest: &str) -> Result<Copied, Error> {
        let (source, guest) = copy::Source::open(host, guest)?;
        let running = self.machine.in_use()?;
        let push = running.guest().push(self.session(), guest.as_bytes())?;
        copy::send(&source, push)
    }

    /// Copies a file or a folder of the guest's, with all that is in it, to the host. A `host` that is a
    /// folder, or ends with a slash, gets it under its own name. Files that are there are replaced; links
    /// in what is written to are not followed, so that nothing outside is reached.
    pub fn copy_out(&self, guest: &str, host: &Path) -> Result<Copied, Error> {
        let target = copy::Target::open(guest, host)?;
        let running = self.machine.in_use()?;
        let pull = running.guest().pull(self.session(), guest.as_bytes())?;
        copy::receive(&target, pull)
    }

    /// Writes a file in the guest; missing folders are made.
    pub fn write_file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
        let running = self.machine.in_use()?;
        let mut push = running.guest().push(self.session(), path.as_bytes())?;
        let modified_ns = copy::now();
        let entry = Entry::File { path: Vec::new(), mode, modified_ns };
        push.entry(&entry, &mut &*bytes)?;
        Ok(push.finish()?)
    }

    /// Reads a file in the guest of at most `most` bytes.
    pub fn read_file(&self, path: &str, most: usize) -> Result<Vec<u8>, Error> {
        let running = self.machine.in_use()?;
        let mut pull = running.guest().pull(self.session(), path.as_bytes())?;
        let mut content = Vec::new();
        while let Some(piece) = pull.next_piece()? {
            match piece {
                Pulled::Entry(Entry::File { .. }) => {}
                Pulled::Entry(_) => return Err(Error::Invalid(format!("{path} is no file"))),
                Pulled::Bytes(bytes) if content.len() + bytes.len() > most => {
                    return Err(Error::Invalid(format!("{path} is larger than {most} bytes")));
                }
                Pulled::Bytes(bytes) => content.extend_from_slice(bytes),
            }
        }
        Ok(content)
    }

    /// Connects to a TCP port in the guest.
    pub fn connect(&self, to: SocketAddr) -> Result<Tunnel, Error> {
        let running = self.machine.in_use()?;
        let tunnel = running.guest().connect(self.session(), &to.ip().to_string(), to.port())?;
        Ok(Tunnel { tunnel, _running: Arc::new(running) })
    }

    /// Listens on a TCP port in the guest; 0 is any free one.
    pub fn listen(&self, on: SocketAddr) -> Result<Listener, Error> {
        let running = self.machine.in_use()?;
        let inner = running.guest().listen(self.session(), &on.ip().to_string(), on.port())?;
        let on = SocketAddr::new(on.ip(), inner.port());
        Ok(Listener { inner, running: Arc::new(running), on })
    }

    /// Leads a TCP port of the host's to one of the guest's, for as long as the result is kept. Port 0 of
    /// the host is any free one. Each connection starts the machine if need be.
    pub fn forward(&self, host: SocketAddr, guest: SocketAddr) -> Result<Forward, Error> {
        Forward::start(self.clone(), host, guest)
    }

    /// Leads a TCP port of the guest's to one that the host reaches, for as long as the result is kept
    /// and the machine runs.
    pub fn forward_back(&self, guest: SocketAddr, host: SocketAddr) -> Result<Forward, Error> {
        Forward::start_back(self, guest, host)
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }
}

/// A TCP port in the guest. Dropping it ends it. It keeps the machine awake.
#[derive(Debug)]
pub struct Listener {
    inner: cabana_sandbox::Listener,
    running: Arc<Use>,
    on: SocketAddr,
}

impl Listener {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.on
    }

    /// Waits for a connection.
    pub fn accept(&mut self) -> Result<Tunnel, Error> {
        let connection = self.inner.next_connection()?;
        let tunnel = self.running.guest().accept(connection)?;
        Ok(Tunnel { tunnel, _running: Arc::clone(&self.running) })
    }

    pub(crate) fn closer(&self) -> impl Fn() + Send + Sync + use<> {
        self.inner.closer()
    }
}

/// A TCP connection in the guest, from the host's side. Reading and writing may be done by two threads,
/// each with a clone; it keeps the machine awake.
#[derive(Clone, Debug)]
pub struct Tunnel {
    tunnel: cabana_sandbox::Tunnel,
    _running: Arc<Use>,
}

impl Tunnel {
    /// Ends what is sent into the guest; the other way goes on.
    pub fn finish(&mut self) -> io::Result<()> {
        self.tunnel.finish()
    }

    /// Ends both ways, for all clones.
    pub fn close(&self) {
        self.tunnel.close();
    }
}

impl Read for Tunnel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tunnel.read(buffer)
    }
}

impl Write for Tunnel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tunnel.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tunnel.flush()
    }
}
