//! A guest for tests and benchmarks: smoltcp as its kernel, plugged into a [`FrameLink`] as a network card
//! would be, with bad weather on the way if a test wants it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cabana_os::{Event as Wake, LoopHandle, Timer, Token};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::{
    FrameLink, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, MACHINE_V4, MACHINE_V6, MAX_MTU, PREFIX_V4,
    PREFIX_V6,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test that waits looks again.
const TICK: Duration = Duration::from_millis(2);

/// What happens to frames on their way, each way: numbers out of 1000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Frames that vanish.
    pub lost: u64,
    /// Frames that arrive twice.
    pub doubled: u64,
    /// Frames that arrive behind the next ones.
    pub late: u64,
}

/// Frames as smoltcp's network card has them.
#[derive(Debug, Default)]
struct Card {
    mtu: usize,
    inbound: VecDeque<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.inbound.pop_front()?), Tx(&mut self.outbound)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Tx<'_>> {
        (self.outbound.len() < 64).then_some(Tx(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        // Both ends check, so that a wrong checksum would be found.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

struct Kernel {
    interface: Interface,
    sockets: SocketSet<'static>,
    card: Card,
    weather: Weather,
    late: Vec<Vec<u8>>,
    random: u64,
    /// Frames that no socket of the guest's is for: what a test looks at itself.
    seen: Vec<Vec<u8>>,
    keep_seen: bool,
    /// Frames of the test's own, sent as they are.
    own: Vec<Vec<u8>>,
}

/// A guest behind a link.
pub struct Guest {
    shared: Arc<Shared>,
    events: LoopHandle,
    tokens: [Token; 2],
    next_port: u16,
}

struct Shared {
    kernel: Mutex<Kernel>,
    stepped: Condvar,
    doorbell: Wake,
    /// Set to when the kernel has something to do though nothing came: nobody may be waiting.
    timer: Timer,
    began: Instant,
}

impl Guest {
    /// A guest with the machine's addresses.
    pub fn new(link: impl FrameLink + 'static, events: &LoopHandle, weather: Weather) -> Self {
        Self::with_mtu(link, events, weather, MAX_MTU)
    }

    /// A guest whose card has this MTU.
    pub fn with_mtu(
        link: impl FrameLink + 'static,
        events: &LoopHandle,
        weather: Weather,
        mtu: u16,
    ) -> Self {
        let mut card = Card { mtu: mtu.into(), ..Card::default() };
        let mut config = Config::new(GUEST_MAC.into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(MACHINE_V4.into(), PREFIX_V4)).unwrap();
            addresses.push(IpCidr::new(MACHINE_V6.into(), PREFIX_V6)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY_V4).unwrap();
        interface.routes_mut().add_default_ipv6_route(GATEWAY_V6).unwrap();
        let shared = Arc::new(Shared {
            kernel: Mutex::new(Kernel {
                interface,
                sockets: SocketSet::new(Vec::new()),
                card,
                weather,
                late: Vec::new(),
                random: 0x1234_5678_9abc_def1,
                seen: Vec::new(),
                keep_seen: false,
                own: Vec::new(),
            }),
            stepped: Condvar::new(),
            doorbell: Wake::new().unwrap(),
            timer: Timer::new().unwrap(),
            began: Instant::now(),
        });
        let doorbell = shared.doorbell.try_clone().unwrap();
        link.start(false, Arc::new(move || doorbell.signal()));
        let on_loop = Arc::clone(&shared);
        let doorbell = events.add_event(&shared.doorbell, move || on_loop.step(&link)).unwrap();
        let on_loop = Arc::clone(&shared);
        let timer = events.add_timer(&shared.timer, move || on_loop.doorbell.signal()).unwrap();
        shared.doorbell.signal();
        Self { shared, events: events.clone(), tokens: [doorbell, timer], next_port: 40_000 }
    }

    /// Begins a connection.
    pub fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        self.connect_from(
            match to.ip() {
                IpAddr::V4(_) => MACHINE_V4.into(),
                IpAddr::V6(_) => MACHINE_V6.into(),
            },
            to,
        )
    }

    /// Begins a connection from an address of the test's choice.
    pub fn connect_from(&mut self, from: IpAddr, to: SocketAddr) -> SocketHandle {
        self.next_port += 1;
        let port = self.next_port;
        self.with(|kernel| {
            let handle = kernel.sockets.add(new_socket());
            let socket = kernel.sockets.get_mut::<Socket<'_>>(handle);
            socket.connect(kernel.interface.context(), (to.ip(), to.port()), (from, port)).unwrap();
            handle
        })
    }

    /// A socket that takes one connection to this port.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        self.with(|kernel| {
            let mut socket = new_socket();
            socket.listen(port).unwrap();
            kernel.sockets.add(socket)
        })
    }

    /// Uses a socket.
    pub fn socket<R>(
        &self,
        handle: SocketHandle,
        act: impl FnOnce(&mut Socket<'static>) -> R,
    ) -> R {
        self.with(|kernel| act(kernel.sockets.get_mut(handle)))
    }

    /// The state of a socket.
    pub fn state(&self, handle: SocketHandle) -> State {
        self.socket(handle, |socket| socket.state())
    }

    /// Waits until `done` says so of a socket; the result of the last look.
    pub fn wait<R>(
        &self,
        handle: SocketHandle,
        mut done: impl FnMut(&mut Socket<'static>) -> Option<R>,
    ) -> R {
        self.wait_for(|kernel| done(kernel.sockets.get_mut(handle)))
    }

    /// Sends all of `bytes` and closes if `close`.
    pub fn send_all(&self, handle: SocketHandle, bytes: &[u8], close: bool) {
        let mut sent = 0;
        self.wait(handle, |socket| {
            if socket.may_send() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
            }
            assert!(socket.state() != State::Closed, "closed after {sent} bytes");
            (sent == bytes.len()).then_some(())
        });
        if close {
            self.socket(handle, Socket::close);
        }
    }

    /// Reads to the end of the stream.
    pub fn receive_all(&self, handle: SocketHandle) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.wait(handle, |socket| {
            while socket.can_recv() {
                socket
                    .recv(|room| {
                        bytes.extend_from_slice(room);
                        (room.len(), ())
                    })
                    .unwrap();
            }
            let began =
                !matches!(socket.state(), State::Listen | State::SynSent | State::SynReceived);
            (began && !socket.may_recv()).then_some(())
        });
        bytes
    }

    /// Puts a frame of the test's own on the wire.
    pub fn send_frame(&self, frame: Vec<u8>) {
        self.with(|kernel| {
            kernel.keep_seen = true;
            kernel.own.push(frame);
        });
    }

    /// Waits for a frame to the guest that `wanted` makes something of. Frames are kept from the first
    /// [`Guest::send_frame`] on.
    pub fn wait_frame<R>(&self, mut wanted: impl FnMut(&[u8]) -> Option<R>) -> R {
        self.wait_for(|kernel| kernel.seen.drain(..).find_map(|frame| wanted(&frame)))
    }

    /// Frames to the guest that came so far and nobody waited for.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(50));
        self.with(|kernel| std::mem::take(&mut kernel.seen))
    }

    fn with<R>(&self, act: impl FnOnce(&mut Kernel) -> R) -> R {
        let result = act(&mut self.shared.lock());
        self.shared.doorbell.signal();
        result
    }

    fn wait_for<R>(&self, mut done: impl FnMut(&mut Kernel) -> Option<R>) -> R {
        let deadline = Instant::now() + PATIENCE;
        let mut kernel = self.shared.lock();
        loop {
            if let Some(result) = done(&mut kernel) {
                drop(kernel);
                self.shared.doorbell.signal();
                return result;
            }
            assert!(Instant::now() < deadline, "it does not come");
            self.shared.doorbell.signal();
            kernel = self
                .shared
                .stepped
                .wait_timeout(kernel, TICK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for token in self.tokens {
            self.events.remove(token);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One round on the loop's thread: frames in, the guest's own work, frames out.
    fn step(&self, link: &impl FrameLink) {
        let mut kernel = self.lock();
        let kernel = &mut *kernel;
        loop {
            let mut inbound = Vec::new();
            while inbound.len() < 64
                && link.receive(&mut |outgoing| inbound.push(outgoing.frame.to_vec()))
            {}
            let quiet = inbound.is_empty();
            for frame in inbound {
                if kernel.keep_seen {
                    kernel.seen.push(frame.clone());
                }
                for mut frame in kernel.weathered(frame) {
                    // All of the guest's cards are one here.
                    frame[..6].copy_from_slice(&GUEST_MAC.0);
                    kernel.card.inbound.push_back(frame);
                }
            }
            let now = smoltcp::time::Instant::from_micros(self.began.elapsed().as_micros() as i64);
            kernel.interface.poll(now, &mut kernel.card, &mut kernel.sockets);
            let sent = kernel.card.outbound.drain(..).map(by_its_own_card);
            let outbound: Vec<_> = sent.chain(kernel.own.drain(..)).collect();
            let silent = outbound.is_empty();
            for frame in outbound {
                for frame in kernel.weathered(frame) {
                    link.transmit(&frame);
                }
            }
            link.flush();
            if quiet && silent {
                let delay = kernel.interface.poll_delay(now, &kernel.sockets);
                self.timer.set(delay.map(Duration::from));
                break;
            }
        }
        self.stepped.notify_all();
    }
}

impl Kernel {
    /// What becomes of a frame on its way.
    fn weathered(&mut self, frame: Vec<u8>) -> Vec<Vec<u8>> {
        let Weather { lost, doubled, late } = self.weather;
        if lost + doubled + late == 0 {
            return vec![frame];
        }
        let mut frames = Vec::new();
        if self.chance(lost) {
        } else if self.chance(doubled) {
            frames.extend([frame.clone(), frame]);
        } else if self.late.len() < 4 && self.chance(late) {
            self.late.push(frame);
        } else {
            frames.push(frame);
            frames.append(&mut self.late);
        }
        frames
    }

    fn chance(&mut self, out_of_1000: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < out_of_1000
    }
}

/// The frame as the card of its packet's source would send it.
fn by_its_own_card(mut frame: Vec<u8>) -> Vec<u8> {
    let source: Option<IpAddr> = match frame.get(14).map(|byte| byte >> 4) {
        Some(4) => frame.get(26..30).map(|bytes| <[u8; 4]>::try_from(bytes).unwrap().into()),
        Some(6) => frame.get(22..38).map(|bytes| <[u8; 16]>::try_from(bytes).unwrap().into()),
        _ => None,
    };
    if let Some(mac) = source.and_then(crate::hardware_of) {
        frame[6..12].copy_from_slice(&mac.0);
    }
    frame
}

fn new_socket() -> Socket<'static> {
    let ring = || SocketBuffer::new(vec![0; 512 << 10]);
    let mut socket = Socket::new(ring(), ring());
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    socket
}

/// The hardware address of the guest's card, for frames of a test's own.
pub const MAC: EthernetAddress = GUEST_MAC;
