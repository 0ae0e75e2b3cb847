//! A guest's vsock driver, as small as it can be and without any rules of its own: a test says which
//! packet goes out.
#![allow(dead_code, unreachable_pub, reason = "each suite uses a part")]

use std::collections::VecDeque;

use cabana_os::EventLoop;
use cabana_virtio::testing::{Setup, TestDriver};
use cabana_vsock::{VsockConfig, VsockDevice, VsockHost};

pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const EVENT: u16 = 2;

pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// What Linux leaves of 4 KiB.
pub const RX_BUFFER: usize = 3776;

/// A packet's header, in the order of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Packet {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(44);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }
}

/// A connection as the guest counts it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub guest_port: u32,
    pub host_port: u32,
    /// What the guest says that it can buffer.
    pub buf_alloc: u32,
    /// What the guest's application has read.
    pub fwd_cnt: u32,
    /// What the guest has sent.
    pub sent: u32,
    /// What the host said last.
    pub host_alloc: u32,
    pub host_fwd: u32,
}

impl Peer {
    pub fn new(guest_port: u32, host_port: u32) -> Self {
        Self {
            guest_port,
            host_port,
            buf_alloc: 256 << 10,
            fwd_cnt: 0,
            sent: 0,
            host_alloc: 0,
            host_fwd: 0,
        }
    }

    pub fn packet(&self, op: u16) -> Packet {
        Packet {
            src_cid: 3,
            dst_cid: 2,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    pub fn learn(&mut self, packet: &Packet) {
        self.host_alloc = packet.buf_alloc;
        self.host_fwd = packet.fwd_cnt;
    }

    /// Bytes that the host can take.
    pub fn room(&self) -> usize {
        (self.host_alloc - self.sent.wrapping_sub(self.host_fwd)) as usize
    }
}

pub struct Guest {
    pub driver: TestDriver,
    /// Received while looking for something else.
    pub pending: VecDeque<(Packet, Vec<u8>)>,
    tx_in_flight: usize,
}

impl Guest {
    /// A machine with its driver up.
    pub fn boot(events: &EventLoop, config: VsockConfig) -> (Self, VsockHost) {
        Self::boot_with(events, config, Setup::default())
    }

    pub fn boot_with(events: &EventLoop, config: VsockConfig, setup: Setup) -> (Self, VsockHost) {
        let (device, host) = VsockDevice::new(config, events.handle());
        let mut guest = Self::bare(device, setup);
        guest.fill(128);
        (guest, host)
    }

    /// A driver that has offered no buffers.
    pub fn bare(device: VsockDevice, setup: Setup) -> Self {
        let driver = TestDriver::with(device, setup);
        Self { driver, pending: VecDeque::new(), tx_in_flight: 0 }
    }

    /// The driver starts anew, as at a reboot.
    pub fn reboot(&mut self) {
        self.driver.start();
        self.pending.clear();
        self.tx_in_flight = 0;
    }

    /// Offers receive buffers.
    pub fn fill(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.submit(RX, &[], &[RX_BUFFER]);
        }
    }

    /// Sends a packet of `header` as it is, and `payload`.
    pub fn send(&mut self, header: Packet, payload: &[u8]) {
        let bytes = header.bytes();
        if payload.is_empty() {
            self.send_raw(&[&bytes]);
        } else {
            self.send_raw(&[&bytes, payload]);
        }
    }

    pub fn send_raw(&mut self, pieces: &[&[u8]]) {
        while self.driver.poll(TX).is_some() {
            self.tx_in_flight -= 1;
        }
        if self.tx_in_flight >= 32 {
            self.driver.wait(TX);
            self.tx_in_flight -= 1;
        }
        self.driver.submit(TX, pieces, &[]);
        self.tx_in_flight += 1;
    }

    /// Waits until the device has taken every packet.
    pub fn drain(&mut self) {
        while self.tx_in_flight > 0 {
            self.driver.wait(TX);
            self.tx_in_flight -= 1;
        }
    }

    /// Sends `payload` as data of `peer`.
    pub fn write(&mut self, peer: &mut Peer, payload: &[u8]) {
        let len = payload.len() as u32;
        self.send(Packet { len, ..peer.packet(RW) }, payload);
        peer.sent = peer.sent.wrapping_add(len);
    }

    /// The next packet, and another buffer in place of its own.
    pub fn receive(&mut self) -> (Packet, Vec<u8>) {
        if let Some(packet) = self.pending.pop_front() {
            return packet;
        }
        let used = self.driver.wait(RX);
        self.fill(1);
        split(used.written)
    }

    /// The next packet, if one is there.
    pub fn poll(&mut self) -> Option<(Packet, Vec<u8>)> {
        if let Some(packet) = self.pending.pop_front() {
            return Some(packet);
        }
        let used = self.driver.poll(RX)?;
        self.fill(1);
        Some(split(used.written))
    }

    /// Waits for a packet that must be `op` for `peer`; its payload.
    pub fn expect(&mut self, peer: &mut Peer, op: u16) -> (Packet, Vec<u8>) {
        let (packet, payload) = self.receive();
        assert_eq!(packet.op, op, "{packet:?}");
        assert_eq!((packet.src_cid, packet.dst_cid, packet.kind), (2, 3, 1));
        assert_eq!((packet.src_port, packet.dst_port), (peer.host_port, peer.guest_port));
        peer.learn(&packet);
        (packet, payload)
    }

    /// Connects to a listener of the host.
    pub fn connect(&mut self, guest_port: u32, host_port: u32) -> Peer {
        let mut peer = Peer::new(guest_port, host_port);
        self.send(peer.packet(REQUEST), &[]);
        self.expect(&mut peer, RESPONSE);
        peer
    }

    /// Answers the host's request to connect to `guest_port`.
    pub fn accept(&mut self, guest_port: u32) -> Peer {
        let (request, _) = self.receive();
        assert_eq!((request.op, request.dst_port), (REQUEST, guest_port), "{request:?}");
        let mut peer = Peer::new(guest_port, request.src_port);
        peer.learn(&request);
        self.send(peer.packet(RESPONSE), &[]);
        peer
    }

    /// Nothing has come, although the device has taken everything.
    pub fn expect_nothing(&mut self) {
        self.drain();
        assert_eq!(self.poll(), None);
    }
}

fn split(mut bytes: Vec<u8>) -> (Packet, Vec<u8>) {
    let packet = Packet::parse(&bytes);
    let payload = bytes.split_off(44);
    assert_eq!(packet.len as usize, payload.len());
    (packet, payload)
}
