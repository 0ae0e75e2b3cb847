//! TCP connections into the guest and out of it, each over a connection of its own to the host.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabana_protocol::{Cause, Failed, Kind, ProtocolError, Reply};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::refuse;
use crate::exec::{ExecError, Link};
use crate::server::Server;
use crate::session::Session;

/// How long a connection in the guest may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The most connections of one listener that the host has not taken yet; more wait in the kernel.
const WAITING: usize = 64;

/// Connections that wait for the host.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    waiting: BTreeMap<u64, (TcpStream, Option<Arc<Session>>)>,
}

/// Connects to a port in the guest.
pub(super) fn connect(
    mut link: Link,
    session: Option<&Arc<Session>>,
    address: &str,
    port: u16,
    about: &str,
) -> Result<(), ExecError> {
    let connected = enter(session.map(Arc::as_ref), address, port)
        .and_then(|address| TcpStream::connect_timeout(&address, CONNECT_LIMIT));
    match connected {
        Ok(socket) => {
            link.send(&Reply::Connected)?;
            relay(&mut link, &socket, session.map(Arc::as_ref))
        }
        Err(error) => refuse(&mut link, failed(about, &error)),
    }
}

/// Listens on a port in the guest and tells the host of each connection, until the host hangs up.
pub(super) fn listen(
    server: &Server,
    mut link: Link,
    session: Option<&Arc<Session>>,
    address: &str,
    port: u16,
    about: &str,
) -> Result<(), ExecError> {
    let listening = (|| {
        let listener = TcpListener::bind(enter(session.map(Arc::as_ref), address, port)?)?;
        listener.set_nonblocking(true)?;
        Ok((listener.local_addr()?.port(), listener))
    })();
    let (port, listener) = match listening {
        Ok(listening) => listening,
        Err(error) => return refuse(&mut link, failed(about, &error)),
    };
    link.send(&Reply::Listening { port })?;
    link.drain()?;
    let mut told = Vec::new();
    let result = tell_of_connections(server, &mut link, &listener, session, &mut told);
    let mut table = server.tunnels().lock();
    for number in told {
        table.waiting.remove(&number);
    }
    result
}

/// Takes a connection that the host was told of.
pub(super) fn accept(
    server: &Server,
    mut link: Link,
    connection: u64,
    about: &str,
) -> Result<(), ExecError> {
    let waiting = server.tunnels().lock().waiting.remove(&connection);
    let Some((socket, session)) = waiting else {
        let message = format!("{about}: it does not wait");
        return refuse(&mut link, Failed { cause: Cause::NotFound, message });
    };
    link.send(&Reply::Connected)?;
    relay(&mut link, &socket, session.as_deref())
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_of_connections(
    server: &Server,
    link: &mut Link,
    listener: &TcpListener,
    session: Option<&Arc<Session>>,
    told: &mut Vec<u64>,
) -> Result<(), ExecError> {
    loop {
        told.retain(|number| server.tunnels().lock().waiting.contains_key(number));
        let mut fds = vec![PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN)];
        fds.extend(session.map(|session| PollFd::from_borrowed_fd(session.ended(), PollFlags::IN)));
        if told.len() < WAITING {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(ExecError::system("poll")(errno)),
        }
        if session.is_some() && !fds[1].revents().is_empty() {
            return Ok(());
        }
        if !fds[0].revents().is_empty() {
            // The host says nothing here but that it hangs up.
            link.fill()?;
            if let Some(frame) = link.next_frame()? {
                return Err(ProtocolError::UnexpectedKind(frame.kind).into());
            }
        }
        match listener.accept() {
            Ok((socket, _)) => {
                let number = {
                    let mut table = server.tunnels().lock();
                    table.last += 1;
                    let number = table.last;
                    table.waiting.insert(number, (socket, session.map(Arc::clone)));
                    number
                };
                told.push(number);
                link.send(&Reply::Incoming { connection: number })?;
                link.drain()?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // That one is gone again, or there is no descriptor for it now.
            Err(_) => {}
        }
    }
}

/// Puts this thread into the session's network and reads an address.
fn enter(session: Option<&Session>, address: &str, port: u16) -> io::Result<SocketAddr> {
    let address: IpAddr =
        address.parse().map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
    if let Some(session) = session {
        session.enter_network()?;
    }
    Ok(SocketAddr::new(address, port))
}

fn failed(about: &str, error: &io::Error) -> Failed {
    let cause = match error.kind() {
        ErrorKind::InvalidInput => Cause::Invalid,
        ErrorKind::AddrInUse => Cause::Exists,
        ErrorKind::PermissionDenied => Cause::Denied,
        _ => Cause::Other,
    };
    Failed { cause, message: format!("{about}: {error}") }
}

/// Moves bytes both ways until both have ended, one end is gone, or the session has ended. Each way holds
/// at most one read and one frame, so that a side that does not read holds up its own way alone.
fn relay(link: &mut Link, socket: &TcpStream, session: Option<&Session>) -> Result<(), ExecError> {
    let broken = |error: io::Error| ExecError::System { what: "a tunnel", source: error };
    socket.set_nonblocking(true).map_err(broken)?;
    let _ = socket.set_nodelay(true);
    // Bytes of the host's that the socket has not taken.
    let (mut pending, mut start) = (Vec::new(), 0);
    let (mut host_ended, mut guest_ended, mut shut) = (false, false, false);
    loop {
        // To the guest.
        while start < pending.len() {
            match rustix::io::write(socket, &pending[start..]) {
                Ok(written) => start += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Ok(()),
            }
        }
        if start == pending.len() {
            pending.clear();
            start = 0;
            match link.next_frame()? {
                Some(frame) if frame.kind != Kind::Data || host_ended => {
                    return Err(ProtocolError::UnexpectedKind(frame.kind).into());
                }
                Some(frame) if frame.payload.is_empty() => host_ended = true,
                Some(frame) => {
                    pending.extend_from_slice(frame.payload);
                    continue;
                }
                None => {}
            }
            if host_ended && !shut {
                shut = true;
                let _ = socket.shutdown(Shutdown::Write);
            }
        }
        link.flush()?;
        if host_ended && guest_ended && link.is_flushed() {
            return Ok(());
        }

        let wants = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
        let link_events =
            wants(pending.is_empty(), PollFlags::IN) | wants(!link.is_flushed(), PollFlags::OUT);
        let socket_events = wants(link.is_flushed() && !guest_ended, PollFlags::IN)
            | wants(!pending.is_empty(), PollFlags::OUT);
        // What waits for nothing is left out: one that has ended would say so forever.
        let sources: [(Option<BorrowedFd<'_>>, PollFlags); 3] = [
            (session.map(Session::ended), PollFlags::IN),
            (Some(link.as_fd()), link_events),
            (Some(socket.as_fd()), socket_events),
        ];
        let mut fds = Vec::with_capacity(sources.len());
        for (fd, events) in sources {
            fds.extend(
                fd.filter(|_| !events.is_empty()).map(|fd| PollFd::from_borrowed_fd(fd, events)),
            );
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(ExecError::system("poll")(errno)),
        }
        if session.is_some() && fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
            return Ok(());
        }
        drop(fds);
        if pending.is_empty() {
            link.fill()?;
        }
        // To the host.
        if link.is_flushed() && !guest_ended {
            match link.send_data(Kind::Data, |room| rustix::io::read(socket, room))? {
                Ok(0) => {
                    guest_ended = true;
                    link.send_end()?;
                }
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Ok(()),
            }
        }
    }
}
