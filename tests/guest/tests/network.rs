//! The network card in real guests.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use cabana_test_guest::{Call, LIMIT, host};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn python(script: &str) -> [String; 4] {
    ["--", "python3", "-c", script].map(str::to_owned)
}

fn run<'a>(options: &'a [&'a str], script: &str) -> Vec<String> {
    let words = ["run"].iter().chain(options).map(|word| (*word).to_owned());
    words.chain(python(script)).collect()
}

#[test]
fn without_a_network_there_is_only_loopback() {
    let Some(host) = host() else { return };
    let text = host.cabana(["run", "--", "ls", "/sys/class/net"]).end().succeeded();
    assert_eq!(text, "lo\n");
}

#[test]
fn the_card_is_set_up_and_nothing_leaves() {
    let Some(host) = host() else { return };
    let script = r#"
import errno, os, socket, struct, fcntl, time
print(open("/etc/resolv.conf").read().split())
print(open("/sys/class/net/eth0/mtu").read().strip(), open("/sys/class/net/eth0/address").read().strip())
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect(("192.0.2.1", 9))
print(probe.getsockname()[0])
probe = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
probe.connect(("2001:db8::1", 9))
print(probe.getsockname()[0])
for family, address in [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]:
    try:
        socket.create_connection((address, 80), 60)
        print("connected")
    except OSError as error:
        print(errno.errorcode[error.errno])
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.settimeout(60)
message = struct.pack("!BBHHH", 8, 0, 0, 77, 1) + b"cabana"
message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
raw.sendto(message, ("10.107.0.1", 0))
print(raw.recv(100)[20:] == b"\0\0" + struct.pack("!H", checksum(b"\0\0\0\0" + message[4:])) + message[4:])
"#;
    let text = host.cabana(run(&["--net"], script)).end().succeeded();
    let expected = [
        "['nameserver', '10.107.0.1', 'nameserver', 'fd00:107::1']",
        "65520 02:ca:ba:00:00:02",
        "10.107.0.2",
        "fd00:107::2",
        "ECONNREFUSED",
        "ECONNREFUSED",
        "True",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_published_port_carries_bytes_both_ways() {
    let Some(host) = host() else { return };
    let port = free_port();
    // Echoes everything, then says how much it was.
    let script = r#"
import socket
listener = socket.create_server(("0.0.0.0", 8000))
print("ready", flush=True)
stream, peer = listener.accept()
total = 0
while chunk := stream.recv(1 << 20):
    total += len(chunk)
    stream.sendall(chunk)
stream.sendall(b"%d" % total)
stream.close()
print(peer[0], flush=True)
# Whatever is under way when a machine ends is lost: the client says when it has it all.
listener.accept()
"#;
    let folder = tempfile::tempdir().unwrap();
    let capture = folder.path().join("frames.pcap");
    let publish = format!("{port}:8000");
    let pcap = capture.display().to_string();
    let mut running = host.cabana(run(&["--publish", &publish, "--pcap", &pcap], script)).start();
    running.wait_for("ready");

    let bytes: Vec<u8> = (0..4_000_000u32).map(|at| (at / 7) as u8).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&sent).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).unwrap();
    writer.join().unwrap();
    assert!(echoed.len() == bytes.len() + 7, "{}", echoed.len());
    assert!(echoed.starts_with(&bytes) && echoed.ends_with(b"4000000"));
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    let ended = running.end();
    assert_eq!(ended.succeeded(), "ready\n10.107.0.1\n");
    let captured = fs::read(&capture).unwrap();
    assert!(captured.starts_with(&[0x4d, 0x3c, 0xb2, 0xa1]), "a capture");
    assert!(captured.len() > 8_000_000, "{} bytes of frames", captured.len());
}

#[test]
fn a_machine_that_ends_breaks_a_stream_off() {
    let Some(host) = host() else { return };
    let port = free_port();
    // More than every buffer on the way holds.
    let script = r#"
import os, socket, threading, time
listener = socket.create_server(("0.0.0.0", 8000))
print("ready", flush=True)
stream, peer = listener.accept()
threading.Thread(target=lambda: stream.sendall(bytes(64 << 20)), daemon=True).start()
stream.recv(1)
os._exit(0)
"#;
    let publish = format!("{port}:8000");
    let mut running = host.cabana(run(&["--publish", &publish], script)).start();
    running.wait_for("ready");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    stream.write_all(b"x").unwrap();
    running.end().succeeded();
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let Some(host) = host() else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let publish = format!("{address}:80");
    let ended = host.cabana(["run", "--publish", &publish, "--", "true"]).end();
    assert_eq!(ended.status(), 125);
    assert!(ended.stderr.contains(&format!("cannot listen on {address}")), "{}", ended.stderr);
}

/// What a call costs is not the network's business; that a guest without a listener refuses is.
#[test]
fn a_guest_that_does_not_listen_refuses() {
    let Some(host) = host() else { return };
    let port = free_port();
    let publish = format!("{port}:8000");
    let call: Call =
        host.cabana(["run", "--publish", &publish, "--", "sh", "-c", "echo ready; cat"]);
    let mut running = call.open_input().start();
    running.wait_for("ready");
    let began = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "after {:?}", began.elapsed());
    running.close_input();
    running.end().succeeded();
}
