//! What the guest sends: frames into flows, or into an answer at once.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::IpProtocol;

use super::{Event, Stack, State, hardware, segment};
use crate::config;
use crate::gate::{Flow, FlowId, Protocol};
use crate::packet::{self, Content, Ip, Unreachable};

/// The largest first segment with all its options: two headers of 60 bytes.
const MAX_OPENING: usize = 128;

impl Stack {
    /// Takes a frame of the guest's.
    pub fn input(&mut self, now: Duration, frame: &[u8]) {
        self.counters.frames_in += 1;
        match packet::parse(frame) {
            Some(Content::Arp(sender, request)) => {
                let reply = packet::arp_reply(request, sender);
                self.answer(reply);
            }
            Some(Content::Ip(ip)) => self.input_ip(now, &ip),
            None => self.counters.ignored += 1,
        }
    }

    fn input_ip(&mut self, now: Duration, ip: &Ip<'_>) {
        // A guest that asks for a neighbour may do so from a link-local address, or from none.
        if ip.protocol == IpProtocol::Icmpv6
            && let Some(reply) = packet::neighbor_reply(ip)
        {
            return self.answer(Some(reply));
        }
        if is_for_many(ip.destination) {
            self.counters.ignored += 1;
            return;
        }
        if config::hardware_of(ip.source) != Some(ip.sender) {
            self.counters.forged += 1;
            return;
        }
        match ip.protocol {
            IpProtocol::Tcp => self.input_tcp(now, ip),
            IpProtocol::Udp => {
                let Some((source, destination, payload)) = packet::udp(ip) else {
                    self.counters.ignored += 1;
                    return;
                };
                let flow = flow(Protocol::Udp, ip, source, destination);
                self.input_datagram(now, flow, payload.to_vec());
            }
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.input_echo(now, ip),
            _ => {
                self.counters.ignored += 1;
                let error = packet::unreachable(Unreachable::Prohibited, ip.whole, ip.sender);
                self.answer(error);
            }
        }
    }

    fn input_tcp(&mut self, now: Duration, ip: &Ip<'_>) {
        let Some(segment) = packet::tcp(ip) else {
            self.counters.ignored += 1;
            return;
        };
        let flow = flow(Protocol::Tcp, ip, segment.source_port, segment.destination_port);
        match self.by_key.get(&flow) {
            Some(&id) => self.input_segment(now, id, ip.whole),
            None if segment.opens && !self.refused.holds(now, &flow, segment.sequence) => {
                self.open_tcp(now, flow, ip.whole);
            }
            None => {
                let reset = packet::reset(ip.whole, ip.sender);
                self.answer(reset);
            }
        }
    }

    fn open_tcp(&mut self, now: Duration, flow: Flow, whole: &[u8]) {
        // A silent loss: the guest tries again, and by then there may be room.
        if self.half_open >= self.limits.half_open
            || self.flows.len() >= self.limits.flows
            || whole.len() > MAX_OPENING
        {
            self.counters.over_limit += 1;
            return;
        }
        let id = self.insert(now, flow, State::Opening(whole.to_vec()));
        self.set_deadline(id, Some(now + self.limits.handshake));
        self.events.push_back(Event::Open(id, flow));
    }

    pub(super) fn input_segment(&mut self, now: Duration, id: FlowId, packet: &[u8]) {
        let Some(entry) = self.flows.get_mut(&id) else { return };
        let State::Live(connection) = &mut entry.state else {
            // The guest repeats its first segment, or gives up.
            if is_reset(packet) {
                self.remove(id, true);
            }
            return;
        };
        let guest = hardware(&entry.flow);
        connection.input(now, packet, &mut self.outbox);
        if let Some(reply) = self.outbox.take() {
            let mut reply = reply.to_vec();
            packet::put_ethernet(&mut reply, guest);
            self.answer(Some(reply));
        }
        self.touch(id);
        self.tell(id);
    }

    fn input_datagram(&mut self, now: Duration, flow: Flow, payload: Vec<u8>) {
        let id = match self.by_key.get(&flow) {
            Some(&id) => id,
            None if self.datagrams >= self.limits.datagram_flows
                || self.flows.len() >= self.limits.flows =>
            {
                self.counters.over_limit += 1;
                return;
            }
            None => {
                let id = self.insert(now, flow, State::Datagrams);
                self.set_deadline(id, Some(now + self.limits.idle));
                self.events.push_back(Event::Open(id, flow));
                id
            }
        };
        if let Some(entry) = self.flows.get_mut(&id) {
            entry.used = now;
        }
        self.events.push_back(Event::Datagram(id, payload));
    }

    fn input_echo(&mut self, now: Duration, ip: &Ip<'_>) {
        let Some(echo) = packet::echo_request(ip) else {
            self.counters.ignored += 1;
            return;
        };
        if config::is_gateway(ip.destination) {
            let reply = packet::echo_reply(ip.destination, ip.source, &echo, ip.sender);
            return self.answer(reply);
        }
        let mut message = echo.sequence.to_be_bytes().to_vec();
        message.extend_from_slice(echo.data);
        self.input_datagram(now, flow(Protocol::Icmp, ip, echo.ident, 0), message);
    }
}

fn flow(protocol: Protocol, ip: &Ip<'_>, source: u16, destination: u16) -> Flow {
    Flow {
        protocol,
        source: SocketAddr::new(ip.source, source),
        destination: SocketAddr::new(ip.destination, destination),
    }
}

/// Whether an address means nobody or more than one: such packets never leave.
fn is_for_many(address: IpAddr) -> bool {
    address.is_multicast()
        || address.is_unspecified()
        || match address {
            IpAddr::V4(v4) => v4.is_broadcast(),
            // Link-local: there is nobody on the link but the gateway.
            IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
        }
}

/// Whether a TCP packet is a reset.
fn is_reset(whole: &[u8]) -> bool {
    segment(whole).and_then(|segment| segment.get(13)).is_some_and(|flags| flags & 4 != 0)
}
