//! A flow's way: the gate is asked, a socket is put behind it, bytes are moved, it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Weak;

use cabana_os::Interest;

use super::names::Names;
use super::socket::{self, Echo, Stream};
use super::{Outside, ROUND, Record, Relay, Shared};
use crate::config;
use crate::gate::{Flow, FlowId, Opening, Protocol};
use crate::packet::Unreachable;

/// Where names are answered (RFC 1035 §4.2).
const NAMES_PORT: u16 = 53;
/// Datagrams of a flow that wait for the gate.
const MAX_HELD: usize = 16;

impl Relay {
    /// A new flow of the guest's.
    pub(super) fn ask(&mut self, id: FlowId, flow: Flow) {
        let names = config::is_gateway(flow.destination.ip())
            && flow.destination.port() == NAMES_PORT
            && flow.protocol != Protocol::Icmp;
        let outside = if names {
            Outside::Names(Names::default())
        } else {
            Outside::Held { datagrams: Vec::new() }
        };
        let record = Record { flow, outside, gated: !names, sent: 0, received: 0 };
        self.records.insert(id, record);
        if !names {
            let opening = self.gate.open(self.now(), id, &flow);
            self.open(id, opening);
        } else if flow.protocol == Protocol::Tcp {
            self.stack.accept(self.now(), id);
        }
    }

    /// What becomes of a flow that waits.
    pub(super) fn open(&mut self, id: FlowId, opening: Opening) {
        let Some(record) = self.records.get_mut(&id) else { return };
        let Outside::Held { datagrams } = &mut record.outside else { return };
        let waiting = std::mem::take(datagrams);
        let protocol = record.flow.protocol;
        let opened = match opening {
            Opening::Hold => {
                *datagrams = waiting;
                return;
            }
            Opening::Refuse => {
                self.counters.denied += 1;
                record.outside = Outside::Refused;
                None
            }
            Opening::Connect { to, inspect } if protocol == Protocol::Tcp => {
                self.watch(id, socket::connect(to), inspect)
            }
            Opening::Connect { to, .. } => self.watch_datagrams(id, to),
            Opening::Serve(socket) if protocol == Protocol::Tcp => {
                let ready = socket.set_nonblocking(true).map(|()| socket);
                self.watch(id, ready, false)
            }
            Opening::Serve(_) => None,
        };
        match (opened, protocol) {
            (Some(()), _) => {}
            (None, Protocol::Tcp) => return self.stack.reject(self.now(), id),
            (None, _) => {
                if let Some(record) = self.records.get_mut(&id) {
                    record.outside = Outside::Refused;
                }
            }
        }
        for datagram in waiting {
            self.send_datagram(id, datagram);
        }
    }

    /// Puts a socket that connects, or has, behind a connection of the guest's.
    pub(super) fn watch(
        &mut self,
        id: FlowId,
        socket: io::Result<socket2::Socket>,
        inspect: bool,
    ) -> Option<()> {
        let socket = socket.ok()?;
        let this = Weak::clone(&self.this);
        let token = self.events.add_edge(&socket, move |ready| on_socket(&this, id, ready)).ok()?;
        let stream = Stream::new(socket, token, inspect);
        self.records.get_mut(&id)?.outside = Outside::Stream(Box::new(stream));
        Some(())
    }

    fn watch_datagrams(&mut self, id: FlowId, to: SocketAddr) -> Option<()> {
        let record = self.records.get_mut(&id)?;
        let echo = (record.flow.protocol == Protocol::Icmp).then(|| Echo::new(to));
        let socket = match &echo {
            Some(echo) => echo.socket().ok()?,
            None => socket::datagrams(to).ok()?,
        };
        let this = Weak::clone(&self.this);
        let token = self.events.add_edge(&socket, move |ready| on_socket(&this, id, ready)).ok()?;
        record.outside = Outside::Datagrams { socket, token, echo };
        Some(())
    }

    /// A socket has become ready.
    pub(super) fn ready(&mut self, id: FlowId, ready: Interest) {
        let now = self.now();
        let Some(record) = self.records.get_mut(&id) else { return };
        if let Outside::Stream(stream) = &mut record.outside {
            stream.readable |= ready.readable;
            stream.writable |= ready.writable;
            if stream.connecting && ready.writable {
                if stream.failed() {
                    return self.stack.reject(now, id);
                }
                stream.connecting = false;
                // What the guest is told now it would not have been told otherwise.
                if !stream.inward && !self.stack.accept(now, id) {
                    return;
                }
            }
        }
        self.pump(id);
    }

    /// Moves what can be moved between a flow's two sides.
    pub(super) fn pump(&mut self, id: FlowId) {
        let now = self.now();
        let Some(record) = self.records.get_mut(&id) else { return };
        match &mut record.outside {
            Outside::Stream(stream) => {
                if stream.connecting {
                    return;
                }
                let moved = stream.pump(id, &mut self.stack, &mut *self.gate);
                record.sent += moved.sent;
                record.received += moved.received;
                self.counters.bytes_sent += moved.sent;
                self.counters.bytes_received += moved.received;
                if moved.refused {
                    self.counters.denied += 1;
                }
                if moved.broken || moved.refused {
                    self.stack.abort(now, id);
                }
            }
            Outside::Datagrams { socket, echo, .. } => {
                let room = &mut *self.room;
                for _ in 0..ROUND {
                    let len = match io::Read::read(&mut &*socket, room) {
                        Ok(len) => len,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                        // Nobody is at the other end, or was not when the last datagram arrived.
                        Err(_) => {
                            self.stack.unreachable(id, Unreachable::Port, &[]);
                            continue;
                        }
                    };
                    let Some(bytes) = room.get(..len) else { return };
                    let payload = match echo {
                        Some(echo) => echo.reply(bytes),
                        None => Some(bytes),
                    };
                    if let Some(payload) = payload
                        && self.stack.datagram(now, id, payload)
                    {
                        record.received += payload.len() as u64;
                        self.counters.bytes_received += payload.len() as u64;
                    }
                }
                self.again.push(id);
                if let Some(shared) = self.this.upgrade() {
                    shared.wake.signal();
                }
            }
            Outside::Names(names) => {
                let mut messages = Vec::new();
                let fine = names.pump(id, &mut self.stack, &mut messages);
                let flow = record.flow;
                for message in messages {
                    self.gate.query(now, id, &flow, &message);
                }
                if !fine {
                    self.stack.abort(now, id);
                }
            }
            Outside::Held { .. } | Outside::Refused => {}
        }
    }

    pub(super) fn send_datagram(&mut self, id: FlowId, payload: Vec<u8>) {
        let now = self.now();
        let Some(record) = self.records.get_mut(&id) else { return };
        match &mut record.outside {
            Outside::Held { datagrams } => {
                if datagrams.len() < MAX_HELD {
                    datagrams.push(payload);
                }
            }
            Outside::Refused => self.stack.unreachable(id, Unreachable::Prohibited, &payload),
            Outside::Datagrams { socket, echo, .. } => {
                let message = match echo {
                    Some(echo) => &echo.request(&payload),
                    None => &payload,
                };
                // The first call may give the error of an earlier datagram. What the host cannot send is
                // lost, as on any network.
                if socket.send(message).or_else(|_| socket.send(message)).is_ok() {
                    record.sent += payload.len() as u64;
                    self.counters.bytes_sent += payload.len() as u64;
                }
            }
            Outside::Names(_) => {
                let flow = record.flow;
                self.gate.query(now, id, &flow, &payload);
            }
            Outside::Stream(_) => {}
        }
    }

    pub(super) fn answer(&mut self, id: FlowId, message: &[u8]) {
        let now = self.now();
        let Some(record) = self.records.get_mut(&id) else { return };
        let Outside::Names(names) = &mut record.outside else { return };
        if record.flow.protocol == Protocol::Udp {
            self.stack.datagram(now, id, message);
        } else if names.answer(id, message, &mut self.stack).is_none() {
            self.stack.abort(now, id);
        }
    }

    /// A flow is gone on the guest's side.
    pub(super) fn close(&mut self, id: FlowId, broken: bool) {
        let now = self.now();
        let Some(record) = self.records.remove(&id) else { return };
        match record.outside {
            Outside::Stream(stream) => {
                self.events.remove(stream.token);
                stream.close(broken);
            }
            Outside::Datagrams { token, .. } => self.events.remove(token),
            Outside::Held { .. } | Outside::Refused | Outside::Names(_) => {}
        }
        if record.gated {
            self.gate.closed(now, id, record.sent, record.received);
        }
    }
}

fn on_socket(this: &Weak<Shared>, id: FlowId, ready: Interest) {
    if let Some(shared) = this.upgrade() {
        let mut relay = shared.lock();
        relay.ready(id, ready);
        relay.settle();
    }
}
