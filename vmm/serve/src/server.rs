//! The server: its machines, and the connections that drive them.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use cabana_api::{MachineSpec, Reply};
use cabana_engine::{Engine, Error, Machine};
use cabana_os::{LocalListener, LocalStream};

use crate::connection::{self, Lines};

/// How long a server that cannot take a connection waits.
const BREATH: Duration = Duration::from_millis(50);

/// Machines by name, for all connections. A machine goes when it is removed, or with the server.
#[derive(Debug)]
pub struct Server {
    engine: Engine,
    machines: Mutex<BTreeMap<String, Machine>>,
    /// Some machine has been removed.
    removed: Condvar,
    listeners: Mutex<Vec<Weak<Lines>>>,
    /// Connections that are being served.
    open: Mutex<usize>,
    closed: Condvar,
}

impl Server {
    /// A server without machines.
    pub fn new(engine: Engine) -> Arc<Self> {
        Arc::new(Self {
            engine,
            machines: Mutex::default(),
            removed: Condvar::new(),
            listeners: Mutex::default(),
            open: Mutex::default(),
            closed: Condvar::new(),
        })
    }

    /// Makes a machine; every connection hears what happens to it.
    pub fn create(self: &Arc<Self>, spec: MachineSpec) -> Result<Machine, Error> {
        let machine = self.engine.machine(spec)?;
        let (events, name) = (machine.events(), machine.name().to_owned());
        self.machines().insert(name.clone(), machine.clone());
        let server = Arc::downgrade(self);
        let forward = move || {
            for event in events {
                let Some(server) = Weak::upgrade(&server) else { return };
                server.tell(&Reply::Machine { machine: name.clone(), event });
            }
        };
        let builder = thread::Builder::new().name("events".to_owned()).stack_size(128 << 10);
        builder.spawn(forward).map_err(|source| Error::Host { what: "a thread", source })?;
        Ok(machine)
    }

    /// The machine of this name.
    pub fn find(&self, name: &str) -> Result<Machine, Error> {
        let found = self.machines().get(name).cloned();
        found.ok_or_else(|| Error::NotFound { what: "machine", name: name.to_owned() })
    }

    /// All machines, by name.
    pub fn list(&self) -> Vec<Machine> {
        self.machines().values().cloned().collect()
    }

    /// Ends a machine and forgets it.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let machine = self.find(name)?;
        let ended = machine.shutdown();
        machine.stop();
        self.machines().remove(name);
        self.removed.notify_all();
        ended
    }

    /// Waits until all machines have been removed.
    pub fn wait_empty(&self) {
        let machines = self.machines();
        let empty = self.removed.wait_while(machines, |machines| !machines.is_empty());
        drop(empty);
    }

    /// Serves one connection until the client has no more to say; what it started ends with it.
    pub fn serve(
        self: &Arc<Self>,
        reader: impl Read,
        writer: impl Write + Send + 'static,
    ) -> io::Result<()> {
        let lines = Lines::start(writer)?;
        self.listeners().push(Arc::downgrade(&lines));
        *self.open() += 1;
        let served = connection::serve(self, BufReader::new(reader), &lines);
        *self.open() -= 1;
        self.closed.notify_all();
        served
    }

    /// Waits until all clients have gone, at most for `limit`.
    pub fn wait_served(&self, limit: Duration) {
        drop(self.closed.wait_timeout_while(self.open(), limit, |open| *open > 0));
    }

    /// Serves every connection of this user's to a socket, for as long as it stands.
    pub fn serve_socket(self: &Arc<Self>, listener: &LocalListener) -> io::Result<()> {
        loop {
            let Ok(stream) = listener.accept() else {
                // Too many files are open; some will be closed.
                thread::sleep(BREATH);
                continue;
            };
            let server = Arc::clone(self);
            let body = move || {
                // A client that breaks off is no concern of the server's.
                let _ = stream.try_clone().and_then(|writer| server.serve(stream, Hangup(writer)));
            };
            thread::Builder::new().name("connection".to_owned()).spawn(body)?;
        }
    }

    fn tell(&self, reply: &Reply) {
        self.listeners().retain(|lines| {
            let Some(lines) = Weak::upgrade(lines) else { return false };
            lines.offer(reply);
            true
        });
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<String, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, usize> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Weak<Lines>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the client of the connection's end when the last line has been written.
struct Hangup(LocalStream);

impl Write for Hangup {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Hangup {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}
