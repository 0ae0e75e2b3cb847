//! Connections between a guest and threads of the host, through the real device and transport.

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use cabana_os::EventLoop;
use cabana_os::process::{processor_time, thread_time};
use cabana_virtio::testing::{Noise, Setup};

use cabana_vsock::{VsockConfig, VsockDevice, VsockError, VsockHost, VsockStream};

use guest::{
    CREDIT_REQUEST, CREDIT_UPDATE, EVENT, Guest, Packet, Peer, REQUEST, RESPONSE, RST, RW, SHUTDOWN,
};

fn boot(events: &EventLoop) -> (Guest, VsockHost) {
    Guest::boot(events, VsockConfig::default())
}

/// A connection that the guest made, both ends.
fn connected(guest: &mut Guest, host: &VsockHost) -> (Peer, VsockStream) {
    let listener = host.listen(1024).unwrap();
    let peer = guest.connect(5000, 1024);
    (peer, listener.accept().unwrap())
}

/// The reason inside an I/O error.
fn reason(error: &std::io::Error) -> VsockError {
    *error.get_ref().and_then(|inner| inner.downcast_ref()).expect("a VsockError")
}

#[test]
fn the_guest_connects_and_talks() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    assert_eq!(guest.driver.config(0, 8), 3u64.to_le_bytes());
    let (mut peer, mut stream) = connected(&mut guest, &host);
    assert_eq!((stream.guest_port(), stream.host_port()), (5000, 1024));
    assert_eq!(peer.host_alloc, 256 << 10);
    guest.write(&mut peer, b"hello ");
    guest.write(&mut peer, b"host");
    let mut buf = [0; 10];
    stream.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"hello host");
    stream.write_all(b"hello guest").unwrap();
    assert_eq!(guest.expect(&mut peer, RW).1, b"hello guest");
}

#[test]
fn what_has_come_is_shown_where_it_stands() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, mut stream) = connected(&mut guest, &host);
    guest.write(&mut peer, b"hello host");
    let mut buf = [0; 6];
    stream.read_exact(&mut buf).unwrap();
    let shown = |expected: &'static [u8]| {
        move |bytes: &[u8]| {
            assert_eq!(bytes, expected);
            Ok(())
        }
    };
    assert_eq!(stream.receive(shown(b"host")).unwrap(), 4);
    // What was shown to somebody who failed counts as read.
    guest.write(&mut peer, b"lost");
    let failed = stream.receive(|_| Err(ErrorKind::StorageFull.into()));
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::StorageFull);
    guest.write(&mut peer, b"more");
    assert_eq!(stream.receive(shown(b"more")).unwrap(), 4);
    // All that was shown is room for the guest again.
    let piece = vec![7; 60 << 10];
    let reading = thread::spawn(move || {
        let mut left = 100 * (60 << 10);
        while left > 0 {
            let count = stream
                .receive(|bytes| {
                    assert!(bytes.iter().all(|byte| *byte == 7));
                    Ok(())
                })
                .unwrap();
            left -= count;
        }
        stream
    });
    for _ in 0..100 {
        while peer.room() < piece.len() {
            let (packet, _) = guest.receive();
            peer.learn(&packet);
        }
        guest.write(&mut peer, &piece);
    }
    let stream = reading.join().unwrap();
    guest.send(Packet { flags: 3, ..peer.packet(SHUTDOWN) }, &[]);
    assert_eq!(stream.receive(|_| unreachable!()).unwrap(), 0);
}

#[test]
fn the_host_connects_and_talks() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let connecting = thread::spawn(move || host.connect(70));
    let mut peer = guest.accept(70);
    let mut stream = connecting.join().unwrap().unwrap();
    assert_eq!(stream.guest_port(), 70);
    stream.write_all(b"ping").unwrap();
    assert_eq!(guest.expect(&mut peer, RW).1, b"ping");
    guest.write(&mut peer, b"pong");
    let mut buf = [0; 100];
    assert_eq!(stream.read(&mut buf).unwrap(), 4);
    assert_eq!(&buf[..4], b"pong");
}

#[test]
fn a_connection_can_be_asked_for_before_the_machine_runs() {
    let events = EventLoop::spawn("test").unwrap();
    let (device, host) = VsockDevice::new(VsockConfig::default(), events.handle());
    let listener = host.listen(9).unwrap();
    let connecting = {
        let host = host.clone();
        thread::spawn(move || host.connect(70))
    };
    thread::sleep(Duration::from_millis(20));
    // The driver begins with a reset.
    let mut guest = Guest::bare(device, Setup::default());
    guest.fill(16);
    guest.accept(70);
    let stream = connecting.join().unwrap().unwrap();
    assert_eq!(stream.guest_port(), 70);
    guest.connect(1, 9);
    assert_eq!(listener.accept().unwrap().guest_port(), 1);
}

#[test]
fn a_guest_out_of_a_snapshot_is_told_that_its_connections_are_gone() {
    let events = EventLoop::spawn("test").unwrap();
    let (device, host) = VsockDevice::new(VsockConfig::default(), events.handle());
    let mut guest = Guest::bare(device, Setup::default());
    guest.fill(16);
    let told = guest.driver.submit(EVENT, &[], &[4]);
    let connecting = {
        let host = host.clone();
        thread::spawn(move || host.connect(70))
    };
    let mut peer = guest.accept(70);
    let stream = connecting.join().unwrap().unwrap();
    assert!(guest.driver.poll(EVENT).is_none());
    // A pause alone changes nothing, and what was written meanwhile arrives.
    guest.driver.pause_and_resume();
    (&stream).write_all(b"on").unwrap();
    assert_eq!(guest.expect(&mut peer, RW).1, b"on");

    let (other, anew) = VsockDevice::new(VsockConfig::default(), events.handle());
    let listener = anew.listen(9).unwrap();
    guest.driver.move_to(other).unwrap();
    assert_eq!(
        guest.driver.wait_for(EVENT, told).written,
        [0; 4],
        "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET"
    );
    // What the guest still says of the old connection is answered with a reset.
    guest.write(&mut peer, b"late");
    assert_eq!(guest.receive().0.op, RST);
    guest.connect(1, 9);
    let accepted = listener.accept().unwrap();
    assert_eq!(accepted.guest_port(), 1);
    let connecting = thread::spawn(move || anew.connect(70));
    let fresh = guest.accept(70);
    connecting.join().unwrap().unwrap();
    assert!(fresh.host_port > peer.host_port, "a port is used twice");
    let (small, _) =
        VsockDevice::new(VsockConfig { guest_cid: 4, ..VsockConfig::default() }, events.handle());
    assert!(guest.driver.move_to(small).is_err());
}

#[test]
fn connections_are_refused_on_both_sides() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    // The guest's.
    let mut peer = Peer::new(1, 2);
    guest.send(peer.packet(REQUEST), &[]);
    guest.expect(&mut peer, RST);
    // The host's.
    let connecting = thread::spawn(move || host.connect(70));
    let (request, _) = guest.receive();
    let peer = Peer::new(70, request.src_port);
    guest.send(peer.packet(RST), &[]);
    assert_eq!(connecting.join().unwrap().unwrap_err(), VsockError::Refused(70));
    guest.expect_nothing();
}

#[test]
fn deadlines_end_waits_and_the_guest_hears_of_it() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let soon = || Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(host.connect_until(70, soon()).unwrap_err(), VsockError::TimedOut);
    let (request, _) = guest.receive();
    assert_eq!(request.op, REQUEST);
    let mut peer = Peer::new(70, request.src_port);
    guest.expect(&mut peer, RST);
    // The answer comes too late.
    guest.send(peer.packet(RESPONSE), &[]);
    guest.expect(&mut peer, RST);
    let listener = host.listen(5).unwrap();
    assert_eq!(listener.accept_until(soon()).unwrap_err(), VsockError::TimedOut);
    assert_eq!(host.listen(5).unwrap_err(), VsockError::PortTaken(5));
    drop(listener);
    host.listen(5).unwrap();
}

#[test]
fn the_guest_half_closes_and_then_closes() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, mut stream) = connected(&mut guest, &host);
    guest.write(&mut peer, b"last");
    guest.send(Packet { flags: 2, ..peer.packet(SHUTDOWN) }, &[]);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last");
    // The other direction still works.
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(&mut peer, RW).1, b"answer");
    guest.send(Packet { flags: 1, ..peer.packet(SHUTDOWN) }, &[]);
    guest.expect(&mut peer, RST);
    let error = stream.write(b"x").unwrap_err();
    assert_eq!((error.kind(), reason(&error)), (ErrorKind::BrokenPipe, VsockError::Finished));
    drop(stream);
    guest.expect_nothing();
}

#[test]
fn data_before_the_guests_close_is_delivered_and_the_port_can_be_used_again() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1024).unwrap();
    for round in 0..5_u8 {
        let mut peer = guest.connect(5000, 1024);
        guest.write(&mut peer, &[round; 100]);
        guest.send(Packet { flags: 3, ..peer.packet(SHUTDOWN) }, &[]);
        guest.expect(&mut peer, RST);
        let mut all = Vec::new();
        listener.accept().unwrap().read_to_end(&mut all).unwrap();
        assert_eq!(all, [round; 100]);
    }
}

#[test]
fn the_host_half_closes_and_then_closes() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, mut stream) = connected(&mut guest, &host);
    stream.write_all(b"request").unwrap();
    stream.shutdown(Shutdown::Write);
    assert_eq!(guest.expect(&mut peer, RW).1, b"request");
    assert_eq!(guest.expect(&mut peer, SHUTDOWN).0.flags, 2);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.write(&mut peer, b"answer");
    let mut buf = [0; 6];
    stream.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"answer");
    drop(stream);
    assert_eq!(guest.expect(&mut peer, SHUTDOWN).0.flags, 3);
    // What is still under way disturbs nobody, and the guest confirms.
    guest.write(&mut peer, b"late");
    guest.send(peer.packet(RST), &[]);
    guest.expect_nothing();
    // Now it is unknown.
    guest.write(&mut peer, b"later");
    guest.expect(&mut peer, RST);
}

#[test]
fn shutting_down_reads_wakes_the_reader() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, stream) = connected(&mut guest, &host);
    let reader = stream.clone();
    let reading = thread::spawn(move || (&reader).read(&mut [0; 1]).unwrap());
    thread::sleep(Duration::from_millis(20));
    stream.shutdown(Shutdown::Read);
    assert_eq!(reading.join().unwrap(), 0);
    assert_eq!(guest.expect(&mut peer, SHUTDOWN).0.flags, 1);
}

#[test]
fn a_reset_by_the_guest_is_an_error_behind_the_data() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, mut stream) = connected(&mut guest, &host);
    guest.write(&mut peer, b"data");
    guest.send(peer.packet(RST), &[]);
    guest.drain();
    let mut buf = [0; 10];
    assert_eq!(stream.read(&mut buf).unwrap(), 4);
    let error = stream.read(&mut buf).unwrap_err();
    assert_eq!((error.kind(), reason(&error)), (ErrorKind::ConnectionReset, VsockError::Reset));
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_host_never_sends_beyond_the_guests_credit() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1024).unwrap();
    let mut peer = Peer { buf_alloc: 1000, ..Peer::new(5000, 1024) };
    guest.send(peer.packet(REQUEST), &[]);
    guest.expect(&mut peer, RESPONSE);
    let mut stream = listener.accept().unwrap();
    let sent: Vec<u8> = (0..5500_u32).map(|at| at as u8).collect();
    let bytes = sent.clone();
    let writing = thread::spawn(move || stream.write_all(&bytes).map(|()| stream).unwrap());
    let mut received = guest.expect(&mut peer, RW).1;
    assert_eq!(received.len(), 1000);
    // The guest is asked, and tells that it has no more.
    guest.expect(&mut peer, CREDIT_REQUEST);
    guest.send(peer.packet(CREDIT_UPDATE), &[]);
    thread::sleep(Duration::from_millis(20));
    while received.len() < sent.len() {
        peer.fwd_cnt += 500;
        guest.send(peer.packet(CREDIT_UPDATE), &[]);
        loop {
            let (packet, payload) = guest.receive();
            received.extend(payload);
            assert!(received.len() <= peer.fwd_cnt as usize + 1000, "beyond the credit");
            if packet.op == RW {
                break;
            }
            assert_eq!(packet.op, CREDIT_REQUEST);
        }
    }
    assert_eq!(received, sent);
    writing.join().unwrap();
}

#[test]
fn a_guest_that_fills_the_hosts_buffer_waits_for_the_reader() {
    let events = EventLoop::spawn("test").unwrap();
    let config = VsockConfig { buffer: 40_000, ..VsockConfig::default() };
    let (mut guest, host) = Guest::boot(&events, config);
    let (mut peer, mut stream) = connected(&mut guest, &host);
    assert_eq!(peer.room(), 40_000);
    guest.write(&mut peer, &vec![7; 40_000]);
    guest.expect_nothing();
    stream.read_exact(&mut vec![0; 19_999]).unwrap();
    guest.expect_nothing();
    // Asked for, the credit comes at once.
    guest.send(peer.packet(CREDIT_REQUEST), &[]);
    guest.expect(&mut peer, CREDIT_UPDATE);
    assert_eq!(peer.room(), 19_999);
    guest.write(&mut peer, &vec![8; 19_999]);
    stream.read_exact(&mut vec![0; 20_000]).unwrap();
    guest.expect(&mut peer, CREDIT_UPDATE);
    assert_eq!(peer.room(), 20_000);
    guest.write(&mut peer, &vec![9; 20_000]);
    let mut rest = vec![0; 40_000];
    stream.read_exact(&mut rest).unwrap();
    assert_eq!(rest[..20_000], [vec![7], vec![8; 19_999]].concat());
    assert_eq!(rest[20_000..], vec![9; 20_000]);
}

#[test]
fn a_guest_that_sends_beyond_its_credit_loses_the_connection() {
    let events = EventLoop::spawn("test").unwrap();
    let config = VsockConfig { buffer: 1000, ..VsockConfig::default() };
    let (mut guest, host) = Guest::boot(&events, config);
    let (mut peer, mut stream) = connected(&mut guest, &host);
    guest.write(&mut peer, &[1; 1000]);
    guest.write(&mut peer, &[2; 1]);
    guest.expect(&mut peer, RST);
    let mut buf = vec![0; 2000];
    assert_eq!(stream.read(&mut buf).unwrap(), 1000);
    assert_eq!(reason(&stream.read(&mut buf).unwrap_err()), VsockError::Reset);
}

#[test]
fn many_connections_keep_their_data_apart() {
    const COUNT: u32 = 500;
    let events = EventLoop::spawn("test").unwrap();
    let config = VsockConfig { backlog: COUNT as usize, ..VsockConfig::default() };
    let (mut guest, host) = Guest::boot(&events, config);
    let listener = host.listen(1).unwrap();
    let mut peers: Vec<Peer> = (0..COUNT).map(|port| guest.connect(port, 1)).collect();
    let streams: Vec<VsockStream> = (0..COUNT).map(|_| listener.accept().unwrap()).collect();
    for peer in &mut peers {
        let word = peer.guest_port.to_le_bytes();
        guest.write(peer, &word);
    }
    for (port, stream) in (0..).zip(&streams) {
        assert_eq!(stream.guest_port(), port);
        let mut word = [0; 4];
        (&*stream).read_exact(&mut word).unwrap();
        assert_eq!(u32::from_le_bytes(word), port);
        (&*stream).write_all(&word).unwrap();
        assert_eq!(guest.expect(&mut peers[port as usize], RW).1, word);
    }
}

/// More writers than receive buffers, and more data than credit.
#[test]
fn many_writers_share_the_receive_queue() {
    const WRITERS: u32 = 200;
    const EACH: usize = 300 << 10;
    let events = EventLoop::spawn("test").unwrap();
    let config = VsockConfig { backlog: WRITERS as usize, ..VsockConfig::default() };
    let (mut guest, host) = Guest::boot(&events, config);
    let listener = host.listen(1).unwrap();
    let mut peers: Vec<Peer> = (0..WRITERS).map(|port| guest.connect(port, 1)).collect();
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            let mut stream = listener.accept().unwrap();
            scope.spawn(move || {
                stream.write_all(&vec![stream.guest_port() as u8; EACH]).unwrap();
                // The guest confirms with the end of its side.
                assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
            });
        }
        let mut done = 0;
        while done < WRITERS {
            let (packet, payload) = guest.receive();
            let peer = &mut peers[packet.dst_port as usize];
            match packet.op {
                RW => {
                    assert!(payload.iter().all(|&byte| byte == packet.dst_port as u8));
                    let before = peer.fwd_cnt / (128 << 10);
                    peer.fwd_cnt += packet.len;
                    if peer.fwd_cnt as usize == EACH {
                        guest.send(Packet { flags: 3, ..peer.packet(SHUTDOWN) }, &[]);
                    } else if peer.fwd_cnt / (128 << 10) > before {
                        guest.send(peer.packet(CREDIT_UPDATE), &[]);
                    }
                }
                CREDIT_REQUEST => guest.send(peer.packet(CREDIT_UPDATE), &[]),
                RST => done += 1,
                _ => panic!("{packet:?}"),
            }
        }
    });
}

#[test]
fn connections_beyond_the_maximum_are_refused_and_closed_ones_make_room() {
    let events = EventLoop::spawn("test").unwrap();
    let config = VsockConfig { max_connections: 4, ..VsockConfig::default() };
    let (mut guest, host) = Guest::boot(&events, config);
    let listener = host.listen(1).unwrap();
    let mut peers: Vec<Peer> = (0..4).map(|port| guest.connect(port, 1)).collect();
    let mut fifth = Peer::new(4, 1);
    guest.send(fifth.packet(REQUEST), &[]);
    guest.expect(&mut fifth, RST);
    assert_eq!(host.connect(9).unwrap_err(), VsockError::TooMany(4));
    // The guest never confirms the end of this one.
    drop(listener.accept().unwrap());
    guest.expect(&mut peers[0], SHUTDOWN);
    guest.connect(4, 1);
}

#[test]
fn a_guest_may_reuse_a_port_that_the_host_has_closed() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1).unwrap();
    for _ in 0..3 {
        let mut peer = guest.connect(5, 1);
        drop(listener.accept().unwrap());
        guest.expect(&mut peer, SHUTDOWN);
    }
}

#[test]
fn connections_beyond_the_backlog_are_refused_and_a_dropped_listener_closes_the_rest() {
    let events = EventLoop::spawn("test").unwrap();
    let config = VsockConfig { backlog: 2, ..VsockConfig::default() };
    let (mut guest, host) = Guest::boot(&events, config);
    let listener = host.listen(1).unwrap();
    let mut peers: Vec<Peer> = (0..2).map(|port| guest.connect(port, 1)).collect();
    let mut third = Peer::new(2, 1);
    guest.send(third.packet(REQUEST), &[]);
    guest.expect(&mut third, RST);
    drop(listener);
    for peer in &mut peers {
        guest.expect(peer, SHUTDOWN);
    }
    guest.send(third.packet(REQUEST), &[]);
    guest.expect(&mut third, RST);
}

#[test]
fn a_loop_is_woken_and_never_blocked() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, stream) = connected(&mut guest, &host);
    let (wake, woken) = mpsc::channel();
    stream.set_waker(move || wake.send(()).unwrap());
    // It can be written to, so the waker was called at once.
    woken.recv_timeout(Duration::from_secs(10)).unwrap();
    let mut buf = [0; 10];
    assert_eq!(stream.try_read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
    guest.write(&mut peer, b"abc");
    woken.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(stream.try_read(&mut buf).unwrap(), 3);
    let big = vec![1; 1 << 20];
    let mut sent = 0;
    let error = loop {
        match stream.try_write(&big) {
            Ok(len) => sent += len,
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), sent), (ErrorKind::WouldBlock, 256 << 10));
    assert!(woken.try_recv().is_err());
    let mut received = 0;
    while received < sent {
        received += guest.receive().1.len();
    }
    peer.fwd_cnt = received as u32;
    guest.send(peer.packet(CREDIT_UPDATE), &[]);
    woken.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(stream.try_write(&big).unwrap() > 0);
    guest.send(peer.packet(RST), &[]);
    guest.drain();
    assert_eq!(reason(&stream.try_read(&mut buf).unwrap_err()), VsockError::Reset);
}

#[test]
fn a_writer_waits_for_receive_buffers() {
    let events = EventLoop::spawn("test").unwrap();
    for setup in [Setup::default(), Setup::plain()] {
        let (device, host) = VsockDevice::new(VsockConfig::default(), events.handle());
        let mut guest = Guest::bare(device, setup);
        let listener = host.listen(1).unwrap();
        let peer = Peer::new(1, 1);
        guest.send(peer.packet(REQUEST), &[]);
        let mut stream = listener.accept().unwrap();
        let writing = thread::spawn(move || stream.write_all(&vec![5; 20_000]).map(|()| stream));
        thread::sleep(Duration::from_millis(20));
        assert!(guest.driver.poll(guest::RX).is_none());
        let mut received = 0;
        for round in 0.. {
            guest.fill(1);
            let used = guest.driver.wait(guest::RX).written;
            let packet = Packet::parse(&used);
            assert_eq!(packet.op, if round == 0 { RESPONSE } else { RW });
            received += packet.len;
            if received == 20_000 {
                break;
            }
        }
        writing.join().unwrap().unwrap();
    }
}

#[test]
fn one_write_is_one_interrupt() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, stream) = connected(&mut guest, &host);
    guest.expect_nothing();
    // The driver asks for an interrupt at the next buffer.
    guest.write(&mut peer, b"x");
    guest.send(peer.packet(CREDIT_REQUEST), &[]);
    guest.expect(&mut peer, CREDIT_UPDATE);
    let before = guest.driver.interrupts();
    assert_eq!(stream.try_write(&vec![1; 64 << 10]).unwrap(), 64 << 10);
    assert!(guest.driver.interrupts() <= before + 1);
    let mut received = 0;
    while received < 64 << 10 {
        received += guest.receive().1.len();
    }
}

#[test]
fn a_device_that_goes_ends_everything() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, mut stream) = connected(&mut guest, &host);
    guest.write(&mut peer, b"data");
    guest.drain();
    let listener = host.listen(7).unwrap();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept().unwrap_err());
        let connecting = scope.spawn(|| host.connect(70).unwrap_err());
        let writing = scope.spawn(|| {
            let mut writer = stream.clone();
            loop {
                if let Err(error) = writer.write(&vec![0; 65536]) {
                    return error;
                }
            }
        });
        thread::sleep(Duration::from_millis(50));
        drop(guest);
        assert_eq!(accepting.join().unwrap(), VsockError::Closed);
        assert_eq!(connecting.join().unwrap(), VsockError::Closed);
        let error = writing.join().unwrap();
        assert_eq!((error.kind(), reason(&error)), (ErrorKind::BrokenPipe, VsockError::Closed));
    });
    let mut buf = [0; 10];
    assert_eq!(stream.read(&mut buf).unwrap(), 4);
    assert_eq!(reason(&stream.read(&mut buf).unwrap_err()), VsockError::Closed);
    assert_eq!(host.connect(70).unwrap_err(), VsockError::Closed);
    assert_eq!(host.listen(70).unwrap_err(), VsockError::Closed);
}

#[test]
fn a_reset_of_the_device_during_a_transfer_ends_it_and_the_listener_stays() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let listener = host.listen(1).unwrap();
    for round in 0..20_u32 {
        let mut peer = guest.connect(round, 1);
        let stream = listener.accept().unwrap();
        thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut buf = vec![0; 10_000];
                loop {
                    match (&stream).read(&mut buf) {
                        Ok(0) => panic!("that was no end"),
                        Ok(_) => {}
                        Err(error) => return reason(&error),
                    }
                }
            });
            let writing = scope.spawn(|| {
                loop {
                    if let Err(error) = (&stream).write(&[1; 10_000]) {
                        return reason(&error);
                    }
                }
            });
            for _ in 0..round {
                guest.write(&mut peer, &[1; 4000]);
            }
            guest.reboot();
            assert_eq!(reading.join().unwrap(), VsockError::Closed);
            assert_eq!(writing.join().unwrap(), VsockError::Closed);
        });
        guest.fill(128);
    }
}

/// A stream of bytes that both ends can make.
struct Pattern(Noise);

impl Pattern {
    fn fill(&mut self, buf: &mut [u8]) {
        for word in buf.chunks_mut(8) {
            word.copy_from_slice(&self.0.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// 64 MiB each way at once, in pieces of every size.
#[test]
fn much_data_goes_both_ways_at_once() {
    const TOTAL: usize = 64 << 20;
    let events = EventLoop::spawn("test").unwrap();
    let (mut guest, host) = boot(&events);
    let (mut peer, stream) = connected(&mut guest, &host);
    let down: Vec<u8> = {
        let mut bytes = vec![0; TOTAL];
        Pattern(Noise::new(1)).fill(&mut bytes);
        bytes
    };
    let up: Vec<u8> = {
        let mut bytes = vec![0; TOTAL];
        Pattern(Noise::new(2)).fill(&mut bytes);
        bytes
    };
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut noise = Noise::new(3);
            let mut left = &down[..];
            while !left.is_empty() {
                let (now, later) = left.split_at(left.len().min(1 + noise.below(100_000) as usize));
                (&stream).write_all(now).unwrap();
                left = later;
            }
        });
        let reading = scope.spawn(|| {
            let mut noise = Noise::new(4);
            let mut buf = vec![0; 100_000];
            let mut left = &up[..];
            while !left.is_empty() {
                let max = left.len().min(1 + noise.below(100_000) as usize);
                let len = (&stream).read(&mut buf[..max]).unwrap();
                let (now, later) = left.split_at(len);
                assert!(buf[..len] == *now, "{} bytes before the end", left.len());
                left = later;
            }
        });
        let mut noise = Noise::new(5);
        let (mut to_send, mut to_check) = (&up[..], &down[..]);
        let mut told = 0;
        while !to_send.is_empty() || !to_check.is_empty() {
            let room = peer.room().min(to_send.len()).min(1 + noise.below(65_536) as usize);
            if room > 0 {
                let (now, later) = to_send.split_at(room);
                guest.write(&mut peer, now);
                to_send = later;
                told = peer.fwd_cnt;
            }
            let next = if room > 0 { guest.poll() } else { Some(guest.receive()) };
            let Some((packet, payload)) = next else { continue };
            peer.learn(&packet);
            let (now, later) = to_check.split_at(payload.len());
            assert!(payload == now, "{} bytes before the end", to_check.len());
            to_check = later;
            peer.fwd_cnt = peer.fwd_cnt.wrapping_add(packet.len);
            if packet.op == CREDIT_REQUEST || peer.fwd_cnt.wrapping_sub(told) > 128 << 10 {
                guest.send(peer.packet(CREDIT_UPDATE), &[]);
                told = peer.fwd_cnt;
            }
        }
        guest.drain();
        writing.join().unwrap();
        reading.join().unwrap();
    });
    assert!(!guest.driver.needs_reset());
}

/// 4 GiB from a guest to a reader of the host's, through the real device: by the clock, and by the processor time of
/// device and reader together, which other load does not lengthen.
#[test]
#[ignore = "measures; in a release build"]
fn what_the_device_alone_moves() {
    const TOTAL: usize = 4 << 30;
    let piece = vec![0x5a; 64 << 10];
    for run in 0..4 {
        let events = EventLoop::spawn("test").unwrap();
        let (mut guest, host) = boot(&events);
        let (mut peer, stream) = connected(&mut guest, &host);
        let begun = (Instant::now(), processor_time().as_secs_f64(), thread_time().as_secs_f64());
        let reading = thread::spawn(move || {
            let mut left = TOTAL;
            while left > 0 {
                left -= stream.receive(|_| Ok(())).unwrap();
            }
        });
        let mut left = TOTAL;
        while left > 0 {
            if peer.room() < piece.len() {
                let (packet, _) = guest.receive();
                peer.learn(&packet);
                continue;
            }
            guest.write(&mut peer, &piece);
            left -= piece.len();
        }
        reading.join().unwrap();
        let driver = thread_time().as_secs_f64() - begun.2;
        let work = processor_time().as_secs_f64() - begun.1 - driver;
        let rate = |seconds: f64| TOTAL as f64 / 1e9 / seconds;
        let (wall, work) = (rate(begun.0.elapsed().as_secs_f64()), rate(work));
        println!(
            "run {run}: {wall:.1} GB/s by the clock, {work:.1} GB/s of device and reader together"
        );
    }
}
