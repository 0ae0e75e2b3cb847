//! Connections between a guest and real sockets of the host's loopback.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cabana_netstack::testing::{Guest, Weather};
use cabana_netstack::{Cable, FrameLink, Limits, MACHINE_V4, Plug, Publish};
use cabana_os::{EventLoop, Packets};
use common::{Open, World, noise, wait_until};
use smoltcp::socket::tcp::{Socket, State};

/// A server that takes one connection and hands it to `serve`.
fn serve_on(
    address: &str,
    serve: impl FnOnce(TcpStream) + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (address, thread::spawn(move || serve(listener.accept().unwrap().0)))
}

fn serve(serve: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, thread::JoinHandle<()>) {
    serve_on("127.0.0.1:0", serve)
}

/// Sends 8 MiB each way at once, through whatever weather, and compares.
fn both_ways(address: &str, weather: Weather, len: usize, mtu: u16) {
    let world = World::new(Open::everything());
    let guest = Guest::with_mtu(world.network.clone(), &world.events.handle(), weather, mtu);
    both_ways_of(guest, &world, address, len);
}

fn both_ways_of(mut guest: Guest, world: &World, address: &str, len: usize) {
    let (there, back) = (noise(1, len), noise(2, len));
    let (expected, answer) = (there.clone(), back.clone());
    let (to, server) = serve_on(address, move |mut stream| {
        let mut reading = stream.try_clone().unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            reading.read_to_end(&mut bytes).unwrap();
            bytes
        });
        stream.write_all(&answer).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(reader.join().unwrap() == expected, "what the guest sent arrived otherwise");
    });
    let socket = guest.connect(to);
    let mut sent = 0;
    let mut received = Vec::new();
    guest.wait(socket, |socket| {
        if socket.may_send() && sent < there.len() {
            sent += socket.send_slice(&there[sent..]).unwrap();
            if sent == there.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    received.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
        (sent == there.len() && received.len() >= back.len()).then_some(())
    });
    assert!(received == back, "what the host sent arrived otherwise");
    server.join().unwrap();
    wait_until(|| world.network.counters().stack.flows == 0);
    let counters = world.network.counters();
    assert_eq!((counters.bytes_sent, counters.bytes_received), (len as u64, len as u64));
    assert_eq!(counters.stack.memory, 0);
}

#[test]
fn bytes_go_both_ways_at_once() {
    both_ways("127.0.0.1:0", Weather::default(), 8 << 20, 65_520);
}

#[test]
fn bytes_go_both_ways_over_a_cable_between_processes() {
    let world = World::new(Open::everything());
    let (here, there) = Packets::pair().unwrap();
    let card = EventLoop::spawn("card").unwrap();
    let plug = Plug::new(world.network.clone(), there, world.events.handle()).unwrap();
    let cable = Cable::new(here, card.handle()).unwrap();
    let guest = Guest::new(cable, &card.handle(), Weather::default());
    both_ways_of(guest, &world, "127.0.0.1:0", 8 << 20);
    drop(plug);
}

#[test]
fn a_cable_outlives_neither_of_its_ends() {
    let world = World::new(Open::everything());
    let (here, there) = Packets::pair().unwrap();
    let card = EventLoop::spawn("card").unwrap();
    let plug = Plug::new(world.network.clone(), there, world.events.handle()).unwrap();
    let cable = Cable::new(here, card.handle()).unwrap();
    // A card that takes nothing hears of the end all the same, and its loop comes to rest.
    cable.start(true, Arc::new(|| {}));
    drop(plug);
    wait_until(|| !cable.receive(&mut |_| {}));
    cable.transmit(&[0; 60]);
    let (here, there) = Packets::pair().unwrap();
    let _plug = Plug::new(world.network.clone(), there, world.events.handle()).unwrap();
    here.send(&[9, 9, 9], &[]).unwrap();
    here.send(&[0], &[]).unwrap();
    drop(here);
}

#[test]
fn bytes_go_both_ways_over_ipv6() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this host has no IPv6 loopback");
        return;
    }
    both_ways("[::1]:0", Weather::default(), 8 << 20, 65_520);
}

#[test]
fn small_packets_do_too() {
    both_ways("127.0.0.1:0", Weather::default(), 2 << 20, 1500);
}

#[test]
fn loss_doubling_and_reordering_break_nothing() {
    both_ways("127.0.0.1:0", Weather { lost: 10, doubled: 20, late: 30 }, 1 << 20, 1500);
}

#[test]
fn a_half_closed_connection_carries_the_other_half() {
    let (to, server) = serve(|mut stream| {
        let mut asked = String::new();
        stream.read_to_string(&mut asked).unwrap();
        // Long after the guest has said that it sends no more.
        thread::sleep(Duration::from_millis(50));
        write!(stream, "{asked}? yes").unwrap();
    });
    let world = World::new(Open::everything());
    let mut guest = world.guest();
    let socket = guest.connect(to);
    guest.send_all(socket, b"there", true);
    assert_eq!(guest.receive_all(socket), b"there? yes");
    server.join().unwrap();
}

#[test]
fn the_hosts_end_of_stream_reaches_a_guest_that_goes_on_sending() {
    let (to, server) = serve(|mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
    });
    let world = World::new(Open::everything());
    let mut guest = world.guest();
    let socket = guest.connect(to);
    assert_eq!(guest.receive_all(socket), b"");
    guest.send_all(socket, &noise(3, 1 << 20), true);
    server.join().unwrap();
}

#[test]
fn the_guest_sees_a_refusal_and_a_reset_as_they_are() {
    // A port that was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = World::new(Open::everything());
    let mut guest = world.guest();
    let socket = guest.connect(closed);
    guest.wait(socket, |socket| (socket.state() == State::Closed).then_some(()));

    let (to, server) = serve(|stream| {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let began = Instant::now();
    let socket = guest.connect(to);
    guest.wait(socket, |socket| (socket.state() == State::Closed).then_some(()));
    server.join().unwrap();
    // Told, and not given up.
    assert!(began.elapsed() < Limits::default().handshake, "{:?}", began.elapsed());
}

#[test]
fn a_guest_that_breaks_off_resets_the_host() {
    let (to, server) = serve(|mut stream| {
        let error = stream.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    let world = World::new(Open::everything());
    let mut guest = world.guest();
    let socket = guest.connect(to);
    guest.wait(socket, |socket| (socket.state() == State::Established).then_some(()));
    guest.socket(socket, Socket::abort);
    server.join().unwrap();
}

#[test]
fn a_network_that_ends_resets_what_the_guest_had_not_finished() {
    let world = World::new(Open::everything());
    let mut guest = world.guest();
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let (to, server) = serve(move |mut stream| {
        let mut part = [0; 4];
        stream.read_exact(&mut part).unwrap();
        assert_eq!(&part, b"part");
        ended.send(()).unwrap();
        let error = stream.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    let socket = guest.connect(to);
    guest.send_all(socket, b"part", false);
    end.recv().unwrap();
    drop(guest);
    drop(world);
    server.join().unwrap();
}

#[test]
fn a_reader_that_stops_stops_the_writer_both_ways() {
    let (sender, may_read) = std::sync::mpsc::channel::<()>();
    let (to, server) = serve(move |mut stream| {
        stream.set_nonblocking(true).unwrap();
        let chunk = vec![7; 65_536];
        // The host writes until the guest, which does not read, stops it.
        let mut written = 0;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(500) {
            match stream.write(&chunk) {
                Ok(len) => written += len,
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
        may_read.recv().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert!(written < 64 << 20, "nobody stopped the host after {written} bytes");
    });
    let world = World::new(Open::everything());
    let mut guest = world.guest();
    let socket = guest.connect(to);
    let chunk = vec![9; 65_536];
    let mut sent = 0;
    let began = Instant::now();
    guest.wait(socket, |socket| {
        if socket.can_send() {
            sent += socket.send_slice(&chunk).unwrap();
        }
        (began.elapsed() > Duration::from_millis(700)).then_some(())
    });
    assert!(sent < 64 << 20, "nobody stopped the guest after {sent} bytes");
    let held = world.network.counters().stack.memory;
    assert!(held <= 2 << 20, "{held}");
    sender.send(()).unwrap();
    guest.socket(socket, Socket::close);
    guest.receive_all(socket);
    server.join().unwrap();
}

#[test]
fn a_connection_that_is_not_allowed_is_refused_before_anything_leaves() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let world = World::new(Open::nothing());
    let mut guest = world.guest();
    let socket = guest.connect(listener.local_addr().unwrap());
    guest.wait(socket, |socket| (socket.state() == State::Closed).then_some(()));
    assert!(listener.accept().is_err());
    assert_eq!(world.network.counters().denied, 1);
}

#[test]
fn a_thousand_downloads_at_once_all_complete() {
    cabana_os::process::raise_open_files().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut asked = [0; 4];
                stream.read_exact(&mut asked).unwrap();
                stream.write_all(&noise(u32::from_le_bytes(asked).into(), 20_000)).unwrap();
            });
        }
    });
    let world = World::new(Open::everything());
    let mut guest = world.guest();
    let sockets: Vec<_> = (1..=1000).map(|number: u32| (number, guest.connect(to))).collect();
    for (number, socket) in &sockets {
        guest.send_all(*socket, &number.to_le_bytes(), false);
    }
    for (number, socket) in sockets {
        assert!(guest.receive_all(socket) == noise(number.into(), 20_000), "{number}");
        guest.socket(socket, Socket::close);
    }
    wait_until(|| world.network.counters().stack.flows == 0);
}

#[test]
fn a_published_port_leads_into_the_guest() {
    let guest_port = SocketAddr::new(MACHINE_V4.into(), 8080);
    let publish = vec![Publish { host: "127.0.0.1:0".parse().unwrap(), guest: guest_port }];
    let world = World::with(Open::nothing(), Limits::default(), publish);
    let mut guest = world.guest();
    let socket = guest.listen(8080);
    let at = world.network.published()[0];
    let mut client = TcpStream::connect(at).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive_all(socket), b"hello");
    guest.send_all(socket, b"from the guest", true);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "from the guest");

    // Nobody listens any more: the host's client is reset.
    let mut client = TcpStream::connect(at).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
