//! Networks that lose, delay and reorder packets, and many connections at once. `netem` makes the former, on the
//! loopback device of a network namespace that a test makes for itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use cabana_test_guest::namespaces::{MIRROR, in_namespaces, run};
use cabana_test_guest::{Host, host};

/// Longer than these take in the lab on a busy machine: a minute on an idle one, and two where others work too.
const LIMIT: Duration = Duration::from_secs(600);
/// Downloads at a time.
const DOWNLOADS: usize = 1000;
/// Bytes of each of them.
const EACH: usize = 64 << 10;

/// `len` bytes that are not the same anywhere else.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Runs a Python script in a guest that may reach the mirror; what it says.
fn python(host: &Host, script: &str) -> String {
    let words = ["run", "--allow", "any://93.184.216.34", "--", "python3", "-c", script];
    host.cabana(words).start().end_within(LIMIT).succeeded()
}

/// Three streams at a time that carry the same both ways and close half, and datagrams of which many arrive.
const TRANSFER: &str = r#"
import socket, threading
size = 4 << 20
data = bytes((at * 31 + at // 251) & 255 for at in range(size))
results = []
def connect():
    s = socket.create_connection(("93.184.216.34", 7))
    s.settimeout(300)
    return s
def echo():
    s = connect()
    def send():
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
    threading.Thread(target=send).start()
    back = bytearray()
    while chunk := s.recv(1 << 20):
        back += chunk
    results.append(back == data)
threads = [threading.Thread(target=echo) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(results)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect(("93.184.216.34", 7))
back = set()
for number in range(200):
    s.send(b"%d" % number)
try:
    while True:
        back.add(int(s.recv(100)))
except TimeoutError:
    pass
print(len(back) > 100 and back <= set(range(200)))
"#;

#[test]
#[ignore = "takes a minute in the lab"]
fn loss_delay_and_reordering_break_no_transfer() {
    let Some(host) = host() else { return };
    if !in_namespaces("loss_delay_and_reordering_break_no_transfer") {
        return;
    }
    let mirror = SocketAddr::new(MIRROR.parse().unwrap(), 7);
    let listener = TcpListener::bind(mirror).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                std::io::copy(&mut stream, &mut back)
            });
        }
    });
    let datagrams = UdpSocket::bind(mirror).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = datagrams.recv_from(&mut bytes) {
            let _ = datagrams.send_to(&bytes[..length], from);
        }
    });
    // As small as on a real network, so that there are many packets to lose.
    run("ip", &["link", "set", "lo", "mtu", "1500"]);
    for bad in ["delay 20ms 10ms loss 2%", "delay 10ms reorder 25% 50% duplicate 1%"] {
        let words = "qdisc replace dev lo root netem".split(' ').chain(bad.split(' '));
        let made = Command::new("tc").args(words).output().unwrap();
        if !made.status.success() {
            return println!("skipped: this kernel has no netem: {made:?}");
        }
        let before = dropped();
        assert_eq!(python(host, TRANSFER), "[True, True, True]\nTrue\n", "{bad}");
        assert!(!bad.contains("loss") || dropped() > before + 100, "{bad}");
    }
}

/// The packets that netem has lost.
fn dropped() -> u32 {
    let shown = Command::new("tc").args(["-s", "qdisc", "show", "dev", "lo"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    let (_, rest) = shown.split_once("(dropped ").unwrap();
    rest.split(',').next().unwrap().parse().unwrap()
}

const DOWNLOAD: &str = r#"
import asyncio, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
expected = bytes((at * 31 + at // 251) & 255 for at in range(64 << 10))
async def download():
    reader, writer = await asyncio.open_connection("93.184.216.34", 80)
    writer.write(b"GET / HTTP/1.1\r\nHost: 93.184.216.34\r\nConnection: close\r\n\r\n")
    answer = await reader.read(-1)
    writer.close()
    return answer.partition(b"\r\n\r\n")[2] == expected
async def main():
    results = await asyncio.gather(*(download() for _ in range(1000)))
    print(results.count(True))
asyncio.run(main())
"#;

#[test]
fn a_thousand_downloads_at_once_complete() {
    let Some(host) = host() else { return };
    if !in_namespaces("a_thousand_downloads_at_once_complete") {
        return;
    }
    cabana_os::process::raise_open_files().unwrap();
    let listener = TcpListener::bind((MIRROR.parse::<Ipv4Addr>().unwrap(), 80)).unwrap();
    // A queue of 128 overflows, and who is turned away tries again after seconds, and after more each time.
    rustix::net::listen(&listener, 4096).unwrap();
    // Nobody is answered before all have asked: they are open at the same time.
    let all = Arc::new(Barrier::new(DOWNLOADS));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, all) = (stream.unwrap(), Arc::clone(&all));
            let answer = move || {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                all.wait();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {EACH}\r\n\r\n");
                let _ = stream.write_all(&[head.as_bytes(), &pattern(EACH)].concat());
            };
            thread::Builder::new().stack_size(64 << 10).spawn(answer).unwrap();
        }
    });
    assert_eq!(python(host, DOWNLOAD), format!("{DOWNLOADS}\n"));
}
