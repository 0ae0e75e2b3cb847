//! One TCP connection with the guest: a smoltcp interface with one socket, so that a packet costs this
//! connection and no other.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::socket::tcp::{ConnectError, ListenError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as Span, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::packet::ETHERNET;

/// A guest that says nothing is asked this often whether it is still there: a network namespace that has
/// vanished closes nothing.
const KEEP_ALIVE: Span = Span::from_secs(75);
/// The same while there is something for it to take. smoltcp (0.14) lets its timers rest when bytes that are on their
/// way must be sent again and the guest, which had offered room for them, has taken the offer back. Linux does that when
/// it is short of memory, and does not say by itself when it no longer is. Its answers to these questions do: they bring
/// a window, or are the repeated acknowledgements that have the bytes sent again.
const ASK_AGAIN: Span = Span::from_secs(1);
/// A guest that answers nothing for this long is gone.
const TIMEOUT: Span = Span::from_secs(600);

/// How packets to the guest are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The largest IP packet.
    pub(crate) mtu: u16,
    /// The driver takes TCP packets whose checksum is left out (`VIRTIO_NET_F_GUEST_CSUM`).
    pub(crate) trusting: bool,
}

/// A frame that is being made: room for the largest one.
#[derive(Debug)]
pub(crate) struct Outbox {
    room: Box<[u8]>,
    len: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { room: vec![0; ETHERNET + usize::from(u16::MAX) + 1].into_boxed_slice(), len: 0 }
    }

    /// The frame that stands in it, and takes it out; its Ethernet header is not filled in.
    pub(crate) fn take(&mut self) -> Option<&mut [u8]> {
        match std::mem::take(&mut self.len) {
            0 => None,
            len => self.room.get_mut(..len),
        }
    }
}

/// What smoltcp takes for a network card: one packet in, one out.
struct Port<'a> {
    shape: Shape,
    packet: Option<&'a [u8]>,
    outbox: &'a mut Outbox,
}

struct Rx<'a>(&'a [u8]);
struct Tx<'a>(&'a mut Outbox);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let Outbox { room, len: filled } = self.0;
        match room.get_mut(ETHERNET..ETHERNET + len) {
            Some(packet) => {
                *filled = ETHERNET + len;
                fill(packet)
            }
            // No packet is larger than the MTU; if one were, it would be lost.
            None => fill(&mut vec![0; len]),
        }
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Rx<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        Some((Rx(self.packet.take()?), Tx(self.outbox)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Tx<'_>> {
        (self.outbox.len == 0).then_some(Tx(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        // What comes from the guest comes through memory; see `packet::udp`.
        checksum.tcp = if self.shape.trusting { Checksum::None } else { Checksum::Tx };
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.shape.mtu);
        capabilities.checksum = checksum;
        capabilities
    }
}

/// A connection with the guest.
pub(crate) struct Connection {
    shape: Shape,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The guest has said that it sends no more.
    guest_ended: bool,
    /// We have said it.
    ended: bool,
    /// When both had: the clock stands still from then on for smoltcp, which would throw away what nobody has
    /// read yet.
    over_since: Option<Duration>,
    /// The guest's last segment offered no room.
    shut: bool,
    /// Bytes of both buffers.
    pub(crate) memory: usize,
}

/// Why a connection cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot listen: {0}")]
    Listen(ListenError),
    #[error("cannot connect: {0}")]
    Connect(ConnectError),
}

impl Connection {
    /// The other end of a connection that the guest opens, before its first segment has been seen.
    pub(crate) fn listen(
        shape: Shape,
        local: SocketAddr,
        buffer: usize,
        seed: u64,
    ) -> Result<Self, OpenError> {
        let mut connection = Self::new(shape, local, buffer, seed);
        connection.socket().listen((local.ip(), local.port())).map_err(OpenError::Listen)?;
        Ok(connection)
    }

    /// A connection to the guest.
    pub(crate) fn connect(
        shape: Shape,
        local: SocketAddr,
        guest: SocketAddr,
        buffer: usize,
        seed: u64,
    ) -> Result<Self, OpenError> {
        let mut connection = Self::new(shape, local, buffer, seed);
        let socket = connection.sockets.get_mut::<Socket<'_>>(connection.handle);
        socket
            .connect(
                connection.interface.context(),
                (guest.ip(), guest.port()),
                (local.ip(), local.port()),
            )
            .map_err(OpenError::Connect)?;
        Ok(connection)
    }

    fn new(shape: Shape, local: SocketAddr, buffer: usize, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let outbox = &mut Outbox { room: Box::default(), len: 0 };
        let mut interface =
            Interface::new(config, &mut Port { shape, packet: None, outbox }, Instant::ZERO);
        let bits = if local.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(local.ip().into(), bits));
        });
        // The host commits zeroed memory as it is touched: an idle connection costs a few pages.
        let ring = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(ring(), ring());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(TIMEOUT));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            shape,
            interface,
            sockets,
            handle,
            guest_ended: false,
            ended: false,
            over_since: None,
            shut: false,
            memory: 2 * buffer,
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn socket_ref(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// Takes a packet of the guest's; what must be answered at once stands in `outbox`.
    pub(crate) fn input(&mut self, now: Duration, packet: &[u8], outbox: &mut Outbox) {
        self.set_keep_alive(self.shut);
        self.shut = offers_nothing(packet);
        let mut port = Port { shape: self.shape, packet: Some(packet), outbox };
        self.interface.poll_ingress_single(instant(now), &mut port, &mut self.sockets);
        if self.ended {
            self.close();
        }
        let state = self.socket_ref().state();
        self.guest_ended |=
            matches!(state, State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
        if state == State::TimeWait {
            self.over_since.get_or_insert(now);
        }
    }

    /// Puts the next packet for the guest into `outbox`; false if there is none now.
    pub(crate) fn output(&mut self, now: Duration, outbox: &mut Outbox) -> bool {
        self.set_keep_alive(true);
        let mut port = Port { shape: self.shape, packet: None, outbox };
        let now = self.over_since.unwrap_or(now);
        self.interface.poll_egress(instant(now), &mut port, &mut self.sockets);
        outbox.len > 0
    }

    /// Says how soon smoltcp asks the guest, should it begin to rest now: `soon` if there is something to take.
    fn set_keep_alive(&mut self, soon: bool) {
        let socket = self.socket();
        let soon = soon && socket.send_queue() > 0;
        socket.set_keep_alive(Some(if soon { ASK_AGAIN } else { KEEP_ALIVE }));
    }

    /// When [`Connection::output`] has something without anybody having done anything.
    pub(crate) fn deadline(&mut self, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Duration::from_micros(at.total_micros().max(0) as u64))
    }

    /// Both ends have shaken hands.
    pub(crate) fn is_established(&self) -> bool {
        !matches!(self.socket_ref().state(), State::Listen | State::SynReceived | State::SynSent)
    }

    /// Nothing more will come of it, once [`Connection::output`] has nothing left: true with whether it was
    /// broken off. A guest that missed the last acknowledgement is answered with a reset when it asks again.
    pub(crate) fn is_over(&self) -> Option<bool> {
        let broken = !(self.guest_ended && self.ended);
        match self.socket_ref().state() {
            State::Closed if broken => Some(true),
            State::Closed | State::TimeWait if self.unread() == 0 => Some(broken),
            _ => None,
        }
    }

    /// The guest will send no more, and all that it sent has been read.
    pub(crate) fn guest_finished(&self) -> bool {
        self.guest_ended && self.unread() == 0
    }

    /// Bytes of the guest's that nobody has read.
    pub(crate) fn unread(&self) -> usize {
        self.socket_ref().recv_queue()
    }

    /// Shows the guest's bytes to `take`, which says how many it took.
    pub(crate) fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let socket = self.socket();
        socket
            .recv(|bytes| {
                let taken = take(bytes).min(bytes.len());
                (taken, taken)
            })
            .unwrap_or(0)
    }

    /// Whether there is room for bytes to the guest.
    pub(crate) fn has_room(&self) -> bool {
        self.socket_ref().can_send()
    }

    /// Lets `fill` write bytes for the guest into the room that there is; it says how many it wrote.
    pub(crate) fn write(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let socket = self.socket();
        socket
            .send(|room| {
                let filled = fill(room).min(room.len());
                (filled, filled)
            })
            .unwrap_or(0)
    }

    /// No more bytes for the guest after those written.
    pub(crate) fn finish(&mut self) {
        self.ended = true;
        self.close();
    }

    /// Says that no more comes, at the latest once the guest has all that came before. If it has said the same of
    /// itself, only then: what smoltcp still has to send in LAST-ACK it never sends to a guest that shut its window
    /// meanwhile, since it takes the segment that opens it for a doubled one.
    fn close(&mut self) {
        let socket = self.socket();
        if socket.state() != State::CloseWait || socket.send_queue() == 0 {
            socket.close();
        }
    }

    /// Breaks it off.
    pub(crate) fn abort(&mut self) {
        self.ended = false;
        self.socket().abort();
    }
}

/// Whether a TCP packet's window is shut.
fn offers_nothing(whole: &[u8]) -> bool {
    let header = match whole.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0xf) * 4,
        _ => 40,
    };
    whole.get(header + 14..header + 16) == Some(&[0, 0])
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(now.as_micros() as i64)
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("state", &self.socket_ref().state())
            .finish_non_exhaustive()
    }
}
