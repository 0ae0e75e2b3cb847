use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cabana_netstack::{GUEST_MAC, Outgoing, Waker};
use cabana_os::EventLoop;
use cabana_virtio::testing::{NEXT, Noise, RawDescriptor, Setup, TestDriver, WRITE};

use super::*;

const SOON: Duration = Duration::from_secs(10);
const PLAIN: u64 = !F_MRG_RXBUF;

/// The other end of the cable.
struct Cable {
    sent: Mutex<Sender<Vec<u8>>>,
    inbound: Arc<Mutex<Inbound>>,
}

#[derive(Default)]
struct Inbound {
    frames: VecDeque<(Vec<u8>, Option<u16>)>,
    notify: Option<Waker>,
    trusting: Option<bool>,
}

impl FrameLink for Cable {
    fn start(&self, trusting: bool, notify: Waker) {
        let mut inbound = self.inbound.lock().unwrap();
        inbound.trusting = Some(trusting);
        inbound.notify = Some(notify);
    }

    fn transmit(&self, frame: &[u8]) {
        self.sent.lock().unwrap().send(frame.to_vec()).unwrap();
    }

    fn flush(&self) {}

    fn receive(&self, take: &mut dyn FnMut(Outgoing<'_>)) -> bool {
        let Some((frame, checksum_from)) = self.inbound.lock().unwrap().frames.pop_front() else {
            return false;
        };
        take(Outgoing { frame: &frame, checksum_from });
        true
    }
}

struct World {
    events: EventLoop,
    driver: TestDriver,
    sent: Receiver<Vec<u8>>,
    inbound: Arc<Mutex<Inbound>>,
}

impl World {
    fn new(setup: Setup) -> Self {
        let events = EventLoop::spawn("test").unwrap();
        let (sender, sent) = channel();
        let inbound = Arc::new(Mutex::new(Inbound::default()));
        let cable = Cable { sent: Mutex::new(sender), inbound: Arc::clone(&inbound) };
        let driver = TestDriver::with(Net::new(cable, GUEST_MAC, 65_520, events.handle()), setup);
        Self { events, driver, sent, inbound }
    }

    fn deliver(&self, frame: &[u8]) {
        let mut inbound = self.inbound.lock().unwrap();
        inbound.frames.push_back((frame.to_vec(), None));
        let notify = inbound.notify.clone().unwrap();
        drop(inbound);
        notify();
    }

    fn transmit(&mut self, pieces: &[&[u8]]) {
        self.driver.send(TX, pieces, &[]);
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn the_configuration_tells_address_and_mtu() {
    let World { driver, .. } = World::new(Setup::default());
    assert_eq!(driver.config(0, 6), GUEST_MAC.0);
    assert_eq!(driver.config(10, 2), 65_520u16.to_le_bytes());
}

#[test]
fn the_link_learns_whether_checksums_may_be_left_out() {
    let world = World::new(Setup::default());
    assert_eq!(world.inbound.lock().unwrap().trusting, Some(true));
    let world = World::new(Setup { features: !F_GUEST_CSUM, ..Setup::default() });
    assert_eq!(world.inbound.lock().unwrap().trusting, Some(false));
}

#[test]
fn frames_of_every_size_leave_however_they_are_cut() {
    for setup in [Setup::default(), Setup::plain(), Setup { indirect: true, ..Setup::default() }] {
        let mut world = World::new(setup);
        for len in [0, 14, 60, 1514, 65_549] {
            let frame = pattern(len);
            let (one, other) = frame.split_at(len / 3);
            world.transmit(&[&[0; HEADER], one, other]);
            assert!(world.sent.recv_timeout(SOON).unwrap() == frame, "{len}");
            // Header and frame in one piece, and the header itself in two.
            let mut whole = vec![0; HEADER];
            whole.extend_from_slice(&frame);
            let (one, other) = whole.split_at(5);
            world.transmit(&[one, other]);
            assert!(world.sent.recv_timeout(SOON).unwrap() == frame, "{len}");
        }
    }
}

#[test]
fn what_is_no_frame_is_dropped_and_the_next_one_leaves() {
    let mut world = World::new(Setup::default());
    world.transmit(&[&[0; HEADER - 1]]);
    world.transmit(&[&[0; HEADER], &pattern(MAX_FRAME + 1)]);
    world.driver.send(TX, &[], &[64]);
    world.transmit(&[&[0xff; HEADER], b"a frame after all"]);
    assert_eq!(world.sent.recv_timeout(SOON).unwrap(), b"a frame after all");
    assert!(!world.driver.needs_reset());
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut world = World::new(Setup::default());
    for _ in 0..20 {
        world.driver.submit(RX, &[], &[4096]);
    }
    let frame = pattern(65_534);
    world.deliver(&frame);
    let mut received = Vec::new();
    let first = world.driver.wait(RX).written;
    let buffers = u16::from_le_bytes([first[10], first[11]]);
    assert_eq!(buffers, 17);
    received.extend_from_slice(&first[HEADER..]);
    for _ in 1..buffers {
        // All of them are there at once: a driver takes the first as a promise of the rest.
        received
            .extend_from_slice(&world.driver.poll(RX).expect("a buffer of the same frame").written);
    }
    assert!(received == frame);
    world.deliver(b"small");
    let small = world.driver.wait(RX).written;
    assert_eq!((&small[10..12], &small[HEADER..]), (&[1, 0][..], &b"small"[..]));
}

#[test]
fn a_frame_waits_for_the_buffers_that_it_needs() {
    for setup in [Setup::default(), Setup::plain()] {
        let mut world = World::new(setup);
        world.driver.submit(RX, &[], &[1000]);
        world.driver.submit(RX, &[], &[10, 90]);
        world.deliver(&pattern(3000));
        world.deliver(b"second");
        std::thread::sleep(Duration::from_millis(20));
        assert!(world.driver.poll(RX).is_none());
        world.driver.submit(RX, &[], &[2000]);
        let lengths = [(); 3].map(|()| world.driver.wait(RX).written.len());
        assert_eq!(lengths, [1000, 100, 3000 + HEADER - 1100]);
        world.driver.submit(RX, &[], &[2000]);
        assert_eq!(world.driver.wait(RX).written[HEADER..], *b"second");
    }
}

#[test]
fn a_checksum_that_is_left_out_is_told() {
    let mut world = World::new(Setup::default());
    world.driver.submit(RX, &[], &[2000]);
    world.inbound.lock().unwrap().frames.push_back((pattern(100), Some(34)));
    world.deliver(b"");
    let written = world.driver.wait(RX).written;
    assert_eq!(written[..HEADER], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
}

#[test]
fn a_driver_that_merges_none_loses_what_does_not_fit() {
    let mut world = World::new(Setup { features: PLAIN, ..Setup::default() });
    world.driver.submit(RX, &[], &[500]);
    world.deliver(&pattern(1000));
    world.deliver(b"fits");
    let written = world.driver.wait(RX).written;
    assert_eq!((&written[10..12], &written[HEADER..]), (&[1, 0][..], &b"fits"[..]));
}

#[test]
fn buffers_without_room_hold_nothing_up_for_ever() {
    let mut world = World::new(Setup { queue_size: Some(8), ..Setup::default() });
    for _ in 0..8 {
        world.driver.submit(RX, &[], &[16]);
    }
    // 128 bytes are all that this driver will ever have.
    world.deliver(&pattern(1000));
    world.deliver(b"small");
    let mut received = world.driver.wait(RX).written[HEADER..].to_vec();
    received.extend_from_slice(&world.driver.wait(RX).written);
    assert_eq!(received, b"small");
}

#[test]
fn a_queue_stops_where_it_stands_and_begins_anew() {
    let mut world = World::new(Setup::default());
    world.driver.submit(RX, &[], &[100]);
    world.deliver(&pattern(1000));
    std::thread::sleep(Duration::from_millis(20));
    // The driver resets the device while a frame waits for a second buffer.
    world.driver.write_register(0x70, 0);
    assert_eq!(world.driver.status(), 0);
}

#[test]
fn rings_that_are_broken_ask_for_a_reset() {
    for queue in [RX, TX] {
        let mut world = World::new(Setup::default());
        let circle = RawDescriptor { addr: 0x50_0000, len: 64, flags: NEXT | WRITE, next: 0 };
        world.driver.write_descriptor(queue, 0, circle);
        world.driver.offer(queue, 0);
        world.deliver(b"a frame that wants a buffer");
        world.driver.notify(queue);
        assert!(world.driver.wait_needs_reset().contains("too long"));
    }
}

#[test]
fn garbage_in_the_transmit_queue_breaks_nothing() {
    let mut noise = Noise::new(11);
    let mut world = World::new(Setup::default());
    for _ in 0..300 {
        let pieces: Vec<Vec<u8>> = (0..=noise.below(4))
            .map(|_| {
                let len =
                    if noise.below(20) == 0 { noise.below(100_000) } else { noise.below(200) };
                (0..len).map(|_| noise.next() as u8).collect()
            })
            .collect();
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        if total == 0 {
            continue;
        }
        world.transmit(&pieces);
        if (HEADER..=HEADER + MAX_FRAME).contains(&total) {
            assert_eq!(world.sent.recv_timeout(SOON).unwrap().len(), total - HEADER);
        }
    }
    assert!(world.sent.try_recv().is_err());
}

#[test]
fn a_card_in_another_machine_has_the_drivers_features_and_a_cable_of_its_own() {
    let mut world = World::new(Setup::default());
    let other = World::new(Setup { idle: true, ..Setup::default() });
    let (sender, sent) = channel();
    let inbound = Arc::clone(&other.inbound);
    let cable = Cable { sent: Mutex::new(sender), inbound: Arc::clone(&inbound) };
    let card = Net::new(cable, GUEST_MAC, 65_520, other.events.handle());
    let head = world.driver.submit(RX, &[], &[4096]);
    world.driver.move_to(card).unwrap();
    assert_eq!(inbound.lock().unwrap().trusting, Some(true), "the features are the driver's");
    world.driver.send(TX, &[&[0; HEADER], b"a frame of the guest"], &[]);
    assert_eq!(sent.recv_timeout(SOON).unwrap(), b"a frame of the guest");
    other.deliver(b"a frame for the guest");
    let got = world.driver.wait_for(RX, head).written;
    assert_eq!(&got[HEADER..], b"a frame for the guest");
    let cable = Cable { sent: Mutex::new(channel().0), inbound };
    let smaller = Net::new(cable, GUEST_MAC, 1500, other.events.handle());
    assert!(world.driver.move_to(smaller).is_err());
}
