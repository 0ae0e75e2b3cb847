//! A guest that breaks every rule: the device answers, refuses or asks for a reset, and goes on.

mod guest;

use std::io::{Read, Write};
use std::time::Duration;

use cabana_os::EventLoop;
use cabana_virtio::testing::{Noise, Setup};
use cabana_vsock::{VsockConfig, VsockDevice, VsockError, VsockHost};

use guest::{
    CREDIT_REQUEST, CREDIT_UPDATE, Guest, Packet, Peer, REQUEST, RESPONSE, RST, RW, RX, SHUTDOWN,
    TX,
};

fn boot(events: &EventLoop) -> (Guest, VsockHost) {
    Guest::boot(events, VsockConfig::default())
}

/// The device still does what it is for.
fn assert_works(guest: &mut Guest, host: &VsockHost) {
    let listener = host.listen(77).unwrap();
    let mut peer = guest.connect(77, 77);
    let mut stream = listener.accept().unwrap();
    guest.write(&mut peer, b"up");
    let mut buf = [0; 2];
    stream.read_exact(&mut buf).unwrap();
    stream.write_all(&buf).unwrap();
    assert_eq!(guest.expect(&mut peer, RW).1, b"up");
    guest.send(Packet { flags: 3, ..peer.packet(SHUTDOWN) }, &[]);
    guest.expect(&mut peer, RST);
}

#[test]
fn packets_for_nobody_are_reset_but_resets_are_not() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let mut peer = Peer::new(1, 2);
    for op in [0, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, 0xffff] {
        guest.send(peer.packet(op), &[]);
        guest.expect(&mut peer, RST);
    }
    guest.send(peer.packet(RST), &[]);
    guest.expect_nothing();
    assert_works(&mut guest, &host);
}

#[test]
fn packets_that_are_not_the_guests_own_are_dropped() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let _listener = host.listen(1).unwrap();
    for src_cid in [0, 2, 4, u64::from(u32::MAX), u64::MAX, 3 << 32, 3 | 1 << 32] {
        guest.send(Packet { src_cid, ..Peer::new(1, 1).packet(REQUEST) }, &[]);
    }
    guest.expect_nothing();
    assert_works(&mut guest, &host);
}

#[test]
fn packets_to_other_hosts_and_of_other_types_are_reset() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let _listener = host.listen(1).unwrap();
    let request = Peer::new(9, 1).packet(REQUEST);
    for dst_cid in [0, 1, 3, 4, u64::MAX, 2 | 1 << 32] {
        guest.send(Packet { dst_cid, ..request }, &[]);
        let (reset, _) = guest.receive();
        assert_eq!((reset.op, reset.src_cid, reset.dst_cid), (RST, dst_cid, 3));
        assert_eq!((reset.src_port, reset.dst_port), (1, 9));
    }
    for kind in [0, 2, 3, 0xffff] {
        guest.send(Packet { kind, ..request }, &[]);
        let (reset, _) = guest.receive();
        assert_eq!((reset.op, reset.kind), (RST, kind));
    }
    assert_works(&mut guest, &host);
}

#[test]
fn payload_beyond_its_buffer_resets_the_connection() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1).unwrap();
    for (port, len) in [(1, 11), (2, 4096), (3, 256 << 10), (4, u32::MAX)] {
        let mut peer = guest.connect(port, 1);
        let mut stream = listener.accept().unwrap();
        guest.send(Packet { len, ..peer.packet(RW) }, &[0; 10]);
        guest.expect(&mut peer, RST);
        let error = stream.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{len}");
    }
    assert_works(&mut guest, &host);
}

#[test]
fn payload_behind_its_length_is_not_data() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1).unwrap();
    let mut peer = guest.connect(1, 1);
    let mut stream = listener.accept().unwrap();
    guest.send(Packet { len: 3, ..peer.packet(RW) }, b"abcdef");
    guest.send(Packet { len: 0, ..peer.packet(RW) }, b"ghi");
    guest.write(&mut peer, b"xyz");
    let mut buf = [0; 6];
    stream.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"abcxyz");
}

#[test]
fn headers_may_be_cut_anywhere_but_not_short() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let mut peer = Peer::new(1, 2);
    let bytes = peer.packet(RW).bytes();
    for len in [0, 1, 43] {
        guest.send_raw(&[&bytes[..len]]);
    }
    guest.expect_nothing();
    for at in 1..44 {
        guest.send_raw(&[&bytes[..at], &bytes[at..]]);
        guest.expect(&mut peer, RST);
    }
    // Room to write where there is something to read only.
    guest.driver.send(TX, &[], &[64]);
    guest.expect_nothing();
    assert_works(&mut guest, &host);
}

#[test]
fn a_second_request_on_an_open_connection_resets_it() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1).unwrap();
    let mut peer = guest.connect(1, 1);
    let mut stream = listener.accept().unwrap();
    guest.send(peer.packet(REQUEST), &[]);
    guest.expect(&mut peer, RST);
    assert!(stream.read(&mut [0; 1]).is_err());
    assert_works(&mut guest, &host);
}

#[test]
fn credit_that_makes_no_sense_never_moves_more_than_there_is_room_for() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1).unwrap();
    let mut peer = guest.connect(1, 1);
    let stream = listener.accept().unwrap();
    assert_eq!(stream.try_write(&[0; 1000]).unwrap(), 1000);
    guest.expect(&mut peer, RW);
    peer.buf_alloc = 1000;
    for nonsense in [1001, u32::MAX, 1 << 31] {
        peer.fwd_cnt = nonsense;
        guest.send(peer.packet(CREDIT_UPDATE), &[]);
        guest.drain();
        assert!(stream.try_write(&[0; 1000]).is_err(), "{nonsense}");
    }
    peer.fwd_cnt = 1000;
    guest.send(peer.packet(CREDIT_UPDATE), &[]);
    guest.drain();
    assert_eq!(stream.try_write(&[0; 2000]).unwrap(), 1000);
}

/// Without receive buffers the device remembers a bounded number of resets, then takes no more
/// packets; nothing is lost once there are buffers.
#[test]
fn a_storm_of_nonsense_waits_in_the_guest() {
    let events = EventLoop::spawn("test").unwrap();
    let (device, host) = VsockDevice::new(VsockConfig::default(), events.handle());
    let mut guest = Guest::bare(device, Setup::default());
    let mut offered = 0;
    let mut used = 0;
    let mut in_flight = 0;
    let mut idle = 0;
    while idle < 100 {
        while in_flight < 100 {
            guest.driver.submit(TX, &[&Peer::new(offered, 2).packet(RW).bytes()], &[]);
            (offered, in_flight) = (offered + 1, in_flight + 1);
        }
        idle += 1;
        while guest.driver.poll(TX).is_some() {
            (used, in_flight, idle) = (used + 1, in_flight - 1, 0);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!((1024..1024 + 128).contains(&used), "{used} taken");
    for port in 0..offered {
        guest.fill(1);
        let reset = Packet::parse(&guest.driver.wait(RX).written);
        assert_eq!((reset.op, reset.dst_port), (RST, port));
    }
    while in_flight > 0 {
        guest.driver.wait(TX);
        in_flight -= 1;
    }
    guest.fill(100);
    assert_works(&mut guest, &host);
}

#[test]
fn a_receive_buffer_without_room_asks_for_a_reset() {
    let events = EventLoop::spawn("test").unwrap();
    for room in [1, 43, 44] {
        let (device, host) = VsockDevice::new(VsockConfig::default(), events.handle());
        let mut guest = Guest::bare(device, Setup::default());
        guest.driver.submit(RX, &[], &[room]);
        assert_eq!(host.connect(1).unwrap_err(), VsockError::Closed);
        assert!(guest.driver.wait_needs_reset().contains("no room"));
        assert_eq!(host.connect(1).unwrap_err(), VsockError::Closed);
        guest.reboot();
        guest.fill(100);
        assert_works(&mut guest, &host);
    }
}

#[test]
fn broken_rings_end_the_connections_until_a_reset() {
    let events = EventLoop::spawn("test").unwrap();
    for queue in [RX, TX] {
        let (device, host) = VsockDevice::new(VsockConfig::default(), events.handle());
        let mut guest = Guest::bare(device, Setup::default());
        guest.fill(50);
        let listener = host.listen(1).unwrap();
        guest.connect(1, 1);
        let mut stream = listener.accept().unwrap();
        guest.drain();
        guest.driver.set_avail_index(queue, 40_000);
        guest.driver.notify(queue);
        if queue == RX {
            assert!(stream.write(&[0; 1]).is_err());
        }
        assert!(stream.read(&mut [0; 1]).is_err());
        guest.driver.wait_needs_reset();
        guest.reboot();
        guest.fill(100);
        drop(listener);
        assert_works(&mut guest, &host);
    }
}

/// Packets with fields that are nearly right, in any order, while the host reads, writes and closes.
#[test]
fn noise_breaks_nothing() {
    let events = EventLoop::spawn("test").unwrap();
    let config = VsockConfig { max_connections: 16, buffer: 5000, ..VsockConfig::default() };
    let (mut guest, host) = Guest::boot(&events, config);
    let mut noise = Noise::new(77);
    let listener = host.listen(1).unwrap();
    let mut streams = Vec::new();
    let mut buf = vec![0; 3000];
    for _ in 0..30_000 {
        let odd = |noise: &mut Noise, usual: u64| match noise.below(40) {
            0 => noise.next(),
            1 => u64::MAX,
            2 => 0,
            _ => usual,
        };
        let payload = vec![1; noise.below(1500) as usize];
        let usual = [1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 7][noise.below(11) as usize];
        let op = odd(&mut noise, usual);
        let header = Packet {
            src_cid: odd(&mut noise, 3),
            dst_cid: odd(&mut noise, 2),
            src_port: noise.below(8) as u32,
            dst_port: odd(&mut noise, 1) as u32,
            len: odd(&mut noise, payload.len() as u64) as u32,
            kind: odd(&mut noise, 1) as u16,
            op: op as u16,
            flags: noise.below(5) as u32,
            buf_alloc: odd(&mut noise, 10_000) as u32,
            fwd_cnt: noise.below(10_000) as u32,
        };
        match noise.below(20) {
            0 => guest.send_raw(&[&header.bytes()[..noise.below(45) as usize]]),
            _ => guest.send(header, &payload),
        }
        while guest.poll().is_some() {}
        if let Ok(stream) = listener.accept_until(Some(std::time::Instant::now())) {
            streams.push(stream);
        }
        if !streams.is_empty() {
            let at = noise.below(streams.len() as u64) as usize;
            match noise.below(16) {
                0 => drop(streams.swap_remove(at)),
                1 => streams[at].shutdown(std::net::Shutdown::Write),
                2..6 => drop(streams[at].try_write(&payload)),
                _ => drop(streams[at].try_read(&mut buf)),
            }
        }
    }
    guest.drain();
    assert!(!guest.driver.needs_reset());
    drop((streams, listener));
    while guest.poll().is_some() {}
    guest.reboot();
    guest.fill(100);
    assert_works(&mut guest, &host);
}
