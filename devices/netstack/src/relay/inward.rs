//! Connections from the host into the guest, by published ports.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use cabana_os::Interest;

use super::{FIRST_EPHEMERAL, Outside, ROUND, Record, Relay};
use crate::config::{GATEWAY_V4, GATEWAY_V6};
use crate::gate::{Flow, Protocol};

/// How long a listener rests when the host has no more descriptors.
const REST: Duration = Duration::from_millis(200);

impl Relay {
    /// Somebody connects to a published port.
    pub(super) fn take_connections(&mut self, index: usize) {
        let now = self.now();
        for _ in 0..ROUND {
            let Some(listener) = self.listeners.get_mut(index) else { return };
            let guest = listener.guest;
            match listener.socket.accept() {
                Ok((socket, _)) => self.connect_inward(socket2::Socket::from(socket), guest),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    listener.resting = Some(now + REST);
                    if let Some(token) = listener.token {
                        let _ = self.events.modify(token, Interest::NONE);
                    }
                    return;
                }
            }
        }
    }

    fn connect_inward(&mut self, socket: socket2::Socket, guest: SocketAddr) {
        let now = self.now();
        let gateway = if guest.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() };
        let from = SocketAddr::new(gateway, self.next_port);
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
        let opened =
            socket.set_nonblocking(true).ok().and_then(|()| self.stack.connect(now, from, guest));
        let Some(id) = opened else {
            let _ = socket.set_linger(Some(Duration::ZERO));
            return;
        };
        let flow = Flow { protocol: Protocol::Tcp, source: guest, destination: from };
        let outside = Outside::Held { datagrams: Vec::new() };
        self.records.insert(id, Record { flow, outside, gated: false, sent: 0, received: 0 });
        if self.watch(id, Ok(socket), false).is_none() {
            self.stack.abort(now, id);
        } else if let Some(Record { outside: Outside::Stream(stream), .. }) =
            self.records.get_mut(&id)
        {
            stream.inward = true;
        }
    }
}
