//! A host whose network changes: interfaces and addresses that go and come back, another resolver, one family of
//! addresses alone. In namespaces that a test makes for itself, with the host's own resolver.

mod common;
#[path = "common/frames.rs"]
#[allow(dead_code, reason = "each suite uses a part")]
mod frames;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cabana_egress_host::{
    DomainName, EgressConfig, EgressPolicy, HostResolver, LookupError, Resolver, egress,
};
use cabana_netstack::testing::Guest;
use cabana_netstack::{MACHINE_V4, MACHINE_V6, Network};
use cabana_os::EventLoop;
use common::{EVIL, GOOD, in_namespace, ip, network};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{RData, Record, RecordType};
use smoltcp::socket::tcp::{Socket, State};

/// What a guest hears of at once it hears of within this: it looks for its neighbours once a second.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Bytes that a server sends at a time.
const BLOCK: usize = 64 << 10;

/// A guest that may reach everything that these words say.
fn guest(allow: &[&str]) -> (Guest, Network, EventLoop) {
    let allow = allow.iter().map(|word| (*word).to_owned()).collect();
    let policy = EgressPolicy { allow, ..EgressPolicy::default() };
    let (egress, gate) = egress(EgressConfig { policy, ..EgressConfig::default() }).unwrap();
    egress.assign(MACHINE_V4.into(), None);
    egress.assign(MACHINE_V6.into(), None);
    network(gate)
}

/// Puts a file of the test's in the place of one of the system's.
fn replace(path: &str, text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    // What is a link stays one.
    let path = Path::new(path).canonicalize().unwrap();
    let status = Command::new("mount").arg("--bind").args([file.path(), &path]).status().unwrap();
    assert!(status.success(), "{}", path.display());
    file
}

fn look_up(name: &str) -> Result<Vec<IpAddr>, LookupError> {
    HostResolver.resolve(&DomainName::parse(name).unwrap())
}

/// Whether a connection to `to` is refused, and how soon.
fn refused(guest: &mut Guest, to: &str) -> Duration {
    let began = Instant::now();
    let socket = guest.connect(to.parse::<SocketAddr>().unwrap());
    guest.wait(socket, |socket| (socket.state() == State::Closed).then_some(()));
    began.elapsed()
}

#[test]
fn an_interface_that_comes_back_breaks_no_transfer() {
    if !in_namespace("an_interface_that_comes_back_breaks_no_transfer") {
        return;
    }
    let listener = TcpListener::bind((GOOD, 80)).unwrap();
    let block: Vec<u8> = (0..BLOCK).map(|at| (at * 31 + at / 251) as u8).collect();
    let sent = block.clone();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for _ in 0..150 {
            stream.write_all(&sent).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    });
    let (mut guest, _network, _events) = guest(&[&format!("any://{GOOD}")]);
    let socket = guest.connect(format!("{GOOD}:80").parse().unwrap());
    guest.wait(socket, |socket| socket.can_recv().then_some(()));
    ip("link set lo down");
    ip(&format!("addr del {GOOD}/32 dev lo"));
    // There is no way now, and that is said, not waited for.
    let took = refused(&mut guest, &format!("{GOOD}:80"));
    assert!(took < AT_ONCE, "{took:?}");
    thread::sleep(Duration::from_secs(1));
    ip(&format!("addr add {GOOD}/32 dev lo"));
    ip("link set lo up");
    assert!(guest.receive_all(socket) == block.repeat(150));
    guest.socket(socket, Socket::close);
}

#[test]
fn where_the_host_has_no_way_the_guest_hears_it_at_once() {
    if !in_namespace("where_the_host_has_no_way_the_guest_hears_it_at_once") {
        return;
    }
    let (mut guest, _network, _events) =
        guest(&["any://203.0.113.0/24", "any://2001:db8::/32", "any://2001:4860::/32"]);
    for to in ["203.0.113.5:443", "[2001:db8::5]:443"] {
        let took = refused(&mut guest, to);
        assert!(took < AT_ONCE, "{to}: {took:?}");
    }
    // The other family is there, as on a host that has IPv6 alone.
    let listener = TcpListener::bind("[2001:4860::34]:443").unwrap();
    let socket = guest.connect(listener.local_addr().unwrap());
    guest.wait(socket, |socket| socket.may_send().then_some(()));
}

#[test]
fn names_are_asked_of_whom_the_host_asks_now() {
    if !in_namespace("names_are_asked_of_whom_the_host_asks_now") {
        return;
    }
    let server = |at: &'static str, answer: &'static str| {
        let socket = UdpSocket::bind((at, 53)).unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let asked = Message::from_vec(&bytes[..length]).unwrap();
                let query: Query = asked.queries[0].clone();
                let mut message = Message::new(asked.id, MessageType::Response, OpCode::Query);
                if query.query_type() == RecordType::A {
                    let address = RData::A(answer.parse().unwrap());
                    message.add_answer(Record::from_rdata(query.name().clone(), 60, address));
                }
                message.add_query(query);
                socket.send_to(&message.to_vec().unwrap(), from).unwrap();
            }
        });
    };
    server("127.0.0.1", GOOD);
    server("127.0.0.2", EVIL);
    let options = "options timeout:1 attempts:1\n";
    let home = format!("nameserver 127.0.0.1\n{options}");
    let file = replace("/etc/resolv.conf", &home);
    assert_eq!(look_up("a.example"), Ok(vec![GOOD.parse().unwrap()]));
    // A VPN comes, and its resolver with it.
    fs::write(file.path(), format!("# the office\nnameserver 127.0.0.2\n{options}")).unwrap();
    assert_eq!(look_up("a.example"), Ok(vec![EVIL.parse().unwrap()]));
    // Nobody answers for names: that passes.
    fs::write(file.path(), format!("# nobody here\nnameserver 127.0.0.3\n{options}")).unwrap();
    assert_eq!(look_up("a.example"), Err(LookupError::Failed));
    fs::write(file.path(), home).unwrap();
    assert_eq!(look_up("a.example"), Ok(vec![GOOD.parse().unwrap()]));
}

#[test]
fn a_host_with_one_family_of_addresses_answers_with_that_one() {
    if !in_namespace("a_host_with_one_family_of_addresses_answers_with_that_one") {
        return;
    }
    let hosts = "203.0.113.5 both.example\n2001:4860::34 both.example\n203.0.113.6 far.example\n";
    let _hosts = replace("/etc/hosts", hosts);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(look_up("both.example"), Ok(vec![address("2001:4860::34")]));
    // Where there is no way at all the guest hears it from the connection.
    assert_eq!(look_up("far.example"), Ok(vec![address("203.0.113.6")]));
    // IPv4 comes, and IPv6 goes.
    ip("addr add 203.0.113.5/32 dev lo");
    let mut both = look_up("both.example").unwrap();
    both.sort();
    assert_eq!(both, [address("203.0.113.5"), address("2001:4860::34")]);
    ip("-6 addr del 2001:4860::34/128 dev lo");
    assert_eq!(look_up("both.example"), Ok(vec![address("203.0.113.5")]));
}

#[test]
fn an_address_of_ipv4_is_reached_through_nat64() {
    if !in_namespace("an_address_of_ipv4_is_reached_through_nat64") {
        return;
    }
    // 203.0.113.5 behind the prefix.
    let through = "64:ff9b::cb00:7105";
    ip(&format!("-6 addr add {through}/128 dev lo nodad"));
    ip("-6 route add default dev lo");
    let hosts = replace("/etc/hosts", "64:ff9b::c000:aa ipv4only.arpa\n");
    let listener = TcpListener::bind((through, 443)).unwrap();
    let echo = UdpSocket::bind((through, 7)).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = echo.recv_from(&mut bytes) {
            echo.send_to(&bytes[..length], from).unwrap();
        }
    });
    let allow = ["any://203.0.113.0/24", "any://10.9.9.9"];
    let (mut guest, _network, _events) = guest(&allow);
    let socket = guest.connect("203.0.113.5:443".parse().unwrap());
    guest.wait(socket, |socket| socket.may_send().then_some(()));
    listener.accept().unwrap();
    let own = SocketAddr::new(MACHINE_V4.into(), 5555);
    guest.send_frame(frames::udp(own, "203.0.113.5:7".parse().unwrap(), b"hello"));
    let back = guest.wait_frame(|frame| frames::as_udp(frame).filter(|(_, to, _)| *to == 5555));
    assert_eq!(back, (7, 5555, b"hello".to_vec()));
    // Nobody is behind another one, and what no rule allows is as closed as ever.
    for to in ["203.0.113.6:443", "203.0.114.5:443"] {
        refused(&mut guest, to);
    }
    // Where IPv4 is there, it is not translated.
    let near = TcpListener::bind(("10.9.9.9", 443)).unwrap();
    let socket = guest.connect("10.9.9.9:443".parse().unwrap());
    guest.wait(socket, |socket| socket.may_send().then_some(()));
    near.accept().unwrap();
    drop(hosts);
}
