//! TCP ports that lead from the host into a guest, and from a guest to the host.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use cabana_os::net::stop_listening;

use crate::{Error, Place, Tunnel};

/// Connections of one port at a time; more are turned away.
const MOST: usize = 256;
/// How much is passed on at once.
const CHUNK: usize = 60 << 10;
/// How long the host may take to be connected to.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long is waited after a connection that could not be taken.
const BREATH: Duration = Duration::from_millis(50);
const STACK: usize = 256 << 10;

/// A TCP port that leads elsewhere. Dropping it ends it, with its connections.
pub struct Forward {
    listens: SocketAddr,
    connections: Arc<Connections>,
    stop: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug, Default)]
struct Connections {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    over: bool,
    last: u64,
    open: BTreeMap<u64, (TcpStream, Tunnel)>,
}

impl Forward {
    /// From the host into a guest.
    pub(crate) fn start(place: Place, host: SocketAddr, guest: SocketAddr) -> Result<Self, Error> {
        let listen = |source| Error::Listen { address: host, source };
        let listener = Arc::new(TcpListener::bind(host).map_err(listen)?);
        let listens = listener.local_addr().map_err(listen)?;
        let connections = Arc::new(Connections::default());
        let (accepting, all) = (Arc::clone(&listener), Arc::clone(&connections));
        spawn("forward", move || {
            loop {
                let accepted = accepting.accept();
                if all.lock().over {
                    return;
                }
                let Ok((socket, _)) = accepted else {
                    // Too many files are open; some will be closed.
                    thread::sleep(BREATH);
                    continue;
                };
                let (place, all) = (place.clone(), Arc::clone(&all));
                // A connection that cannot be made is closed, which is what its client sees.
                let _ = spawn("forwarded", move || {
                    if let Ok(tunnel) = place.connect(guest) {
                        all.relay(&socket, &tunnel);
                    }
                });
            }
        })?;
        let stop = Box::new(move || drop(stop_listening(&listener)));
        Ok(Self { listens, connections, stop })
    }

    /// From a guest to the host.
    pub(crate) fn start_back(
        place: &Place,
        guest: SocketAddr,
        host: SocketAddr,
    ) -> Result<Self, Error> {
        let mut listener = place.listen(guest)?;
        let (listens, stop) = (listener.address(), listener.closer());
        let connections = Arc::new(Connections::default());
        let all = Arc::clone(&connections);
        spawn("forward back", move || {
            // It ends with the machine, or when it is closed.
            while let Ok(tunnel) = listener.accept() {
                let all = Arc::clone(&all);
                let _ = spawn("forwarded", move || {
                    match TcpStream::connect_timeout(&host, CONNECT_LIMIT) {
                        Ok(socket) => all.relay(&socket, &tunnel),
                        Err(_) => tunnel.close(),
                    }
                });
            }
        })?;
        Ok(Self { listens, connections, stop: Box::new(stop) })
    }

    /// Where it is listened: on the host, or in the guest.
    pub fn listens(&self) -> SocketAddr {
        self.listens
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let mut table = self.connections.lock();
        table.over = true;
        for (socket, tunnel) in table.open.values() {
            let _ = socket.shutdown(Shutdown::Both);
            tunnel.close();
        }
        drop(table);
        (self.stop)();
    }
}

impl fmt::Debug for Forward {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Forward").field("listens", &self.listens).finish_non_exhaustive()
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes bytes both ways until both have ended or one broke.
    fn relay(&self, socket: &TcpStream, tunnel: &Tunnel) {
        let _ = socket.set_nodelay(true);
        let Some(number) = self.add(socket, tunnel) else { return tunnel.close() };
        let mut in_tunnel = tunnel.clone();
        thread::scope(|scope| {
            let builder = thread::Builder::new().name("to guest".to_owned()).stack_size(STACK);
            let into = builder.spawn_scoped(scope, || {
                let sent = pass(&mut &*socket, &mut in_tunnel).and_then(|()| in_tunnel.finish());
                if sent.is_err() {
                    in_tunnel.close();
                    let _ = socket.shutdown(Shutdown::Both);
                }
            });
            let mut from_tunnel = tunnel.clone();
            let passed = match into {
                Ok(_) => pass(&mut from_tunnel, &mut &*socket),
                Err(error) => Err(error),
            };
            if passed.and_then(|()| socket.shutdown(Shutdown::Write)).is_err() {
                from_tunnel.close();
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
        tunnel.close();
        self.lock().open.remove(&number);
    }

    fn add(&self, socket: &TcpStream, tunnel: &Tunnel) -> Option<u64> {
        let socket = socket.try_clone().ok()?;
        let mut table = self.lock();
        if table.over || table.open.len() == MOST {
            return None;
        }
        table.last += 1;
        let number = table.last;
        table.open.insert(number, (socket, tunnel.clone()));
        Some(number)
    }
}

fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let builder = thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    builder.spawn(body).map_err(Error::host("a thread"))?;
    Ok(())
}
