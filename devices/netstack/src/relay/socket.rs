//! The host's sockets.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use cabana_os::{Token, net};
use socket2::{Domain, Protocol, Socket, Type};

use crate::gate::{FlowId, Gate, Inspection};
use crate::stack::Stack;

/// Echo request and reply (RFC 792, RFC 4443 §4).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// A socket that has begun to connect.
pub(super) fn connect(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // The guest's own stack decides when to send.
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Ok(()) => Ok(socket),
        Err(error) if net::connect_goes_on(&error) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// A socket for datagrams to one address, which hears of nobody else.
pub(super) fn datagrams(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.connect(&to.into())?;
    Ok(socket)
}

/// Echo requests by a ping socket, which needs no privileges where the host allows it
/// (`net.ipv4.ping_group_range` on Linux).
pub(super) struct Echo {
    to: SocketAddr,
}

impl Echo {
    pub(super) fn new(to: SocketAddr) -> Self {
        Self { to: SocketAddr::new(to.ip(), 0) }
    }

    pub(super) fn socket(&self) -> io::Result<Socket> {
        let protocol = if self.to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let socket = Socket::new(Domain::for_address(self.to), Type::DGRAM, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.to.into())?;
        Ok(socket)
    }

    fn types(&self) -> (u8, u8) {
        if self.to.is_ipv4() { ECHO_V4 } else { ECHO_V6 }
    }

    /// The message to send: `payload` is the sequence number and the data. The host fills in identifier and
    /// checksum.
    pub(super) fn request(&self, payload: &[u8]) -> Vec<u8> {
        let mut message = vec![self.types().0, 0, 0, 0, 0, 0];
        message.extend_from_slice(payload);
        message
    }

    /// Sequence number and data of a reply.
    pub(super) fn reply<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        (*message.first()? == self.types().1).then(|| message.get(6..))?
    }
}

/// What a round moved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// The host's side is broken off.
    pub(super) broken: bool,
    /// The gate forbade what the guest sent.
    pub(super) refused: bool,
}

/// The host's side of a connection.
pub(super) struct Stream {
    socket: Socket,
    pub(super) token: Token,
    /// Still on its way.
    pub(super) connecting: bool,
    /// It came from the host: the guest is the one that answers.
    pub(super) inward: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The other side sends no more.
    ended: bool,
    /// The other side has been told that the guest sends no more.
    shut: bool,
    inspect: bool,
    /// Inspected bytes that wait for the socket.
    passed: Vec<u8>,
}

impl Stream {
    pub(super) fn new(socket: Socket, token: Token, inspect: bool) -> Self {
        Self {
            socket,
            token,
            connecting: true,
            inward: false,
            readable: false,
            writable: false,
            ended: false,
            shut: false,
            inspect,
            passed: Vec::new(),
        }
    }

    /// Whether the connection, which is no longer on its way, never stood. One that has been reset since may have
    /// neither an error any more nor a peer, which is found when it is read.
    pub(super) fn failed(&self) -> bool {
        !matches!(self.socket.take_error(), Ok(None))
    }

    /// Moves what can be moved.
    pub(super) fn pump(&mut self, id: FlowId, stack: &mut Stack, gate: &mut dyn Gate) -> Moved {
        let mut moved = Moved::default();
        self.outward(id, stack, gate, &mut moved);
        if !moved.broken && !moved.refused {
            self.homeward(id, stack, &mut moved);
        }
        moved
    }

    /// From the guest to the host.
    fn outward(&mut self, id: FlowId, stack: &mut Stack, gate: &mut dyn Gate, moved: &mut Moved) {
        loop {
            if !self.send_passed(moved) || moved.broken {
                return;
            }
            if self.inspect {
                let mut verdict = Inspection::Watch;
                let passed = &mut self.passed;
                let taken = stack.read(id, |bytes| {
                    verdict = gate.inspect(id, bytes, passed);
                    bytes.len()
                });
                match verdict {
                    Inspection::Watch => {}
                    Inspection::Pass => self.inspect = false,
                    Inspection::Refuse => {
                        moved.refused = true;
                        return;
                    }
                }
                if taken == 0 {
                    break;
                }
                continue;
            }
            if !self.writable {
                return;
            }
            let (socket, writable) = (&self.socket, &mut self.writable);
            let mut broken = false;
            let taken = stack.read(id, |bytes| match socket.send(bytes) {
                Ok(sent) => sent,
                Err(error) => {
                    broken = !goes_on(&error, writable);
                    0
                }
            });
            moved.sent += taken as u64;
            moved.broken |= broken;
            if taken == 0 {
                break;
            }
        }
        if !moved.broken && !self.shut && self.passed.is_empty() && stack.guest_finished(id) {
            self.shut = true;
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Sends what the gate let pass; false while some of it waits.
    fn send_passed(&mut self, moved: &mut Moved) -> bool {
        while !self.passed.is_empty() {
            if !self.writable {
                return false;
            }
            match self.socket.send(&self.passed) {
                Ok(sent) => {
                    moved.sent += sent as u64;
                    self.passed.drain(..sent);
                }
                Err(error) => {
                    moved.broken |= !goes_on(&error, &mut self.writable);
                    if moved.broken {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// From the host to the guest.
    fn homeward(&mut self, id: FlowId, stack: &mut Stack, moved: &mut Moved) {
        while self.readable && !self.ended {
            let (mut ended, mut broken) = (false, false);
            let (socket, readable, shut) = (&self.socket, &mut self.readable, self.shut);
            let filled = stack.write(id, |room| match Read::read(&mut &*socket, room) {
                Ok(0) => {
                    // A half that is still open has a peer, unless it was reset: not every host says so twice.
                    broken = !shut && socket.peer_addr().is_err();
                    ended = true;
                    0
                }
                Ok(len) => len,
                Err(error) => {
                    broken = !goes_on(&error, readable);
                    0
                }
            });
            moved.received += filled as u64;
            if broken {
                moved.broken = true;
                return;
            }
            if ended {
                self.ended = true;
                stack.finish(id);
            }
            if filled == 0 {
                return;
            }
        }
    }

    /// Whether the host's side has everything that the guest wanted to send.
    pub(super) fn finished(&self) -> bool {
        self.shut
    }

    /// Ends the host's side: the peer sees a reset if the guest broke off, else the end of the stream.
    pub(super) fn close(self, broken: bool) {
        if broken {
            let _ = self.socket.set_linger(Some(Duration::ZERO));
        }
    }
}

/// Whether an error means only that there is nothing to do now; then notes it.
fn goes_on(error: &io::Error, possible: &mut bool) -> bool {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            *possible = false;
            true
        }
        io::ErrorKind::Interrupted => true,
        _ => false,
    }
}
