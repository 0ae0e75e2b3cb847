//! A world for tests: a network namespace with addresses that look public, servers on them, and a resolver that
//! knows what a test tells it.

#![allow(dead_code, reason = "each suite uses a part")]

pub(crate) mod stack;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cabana_egress_host::{DomainName, EgressGate, Event, LookupError, Resolver};
use cabana_netstack::testing::{Guest, Weather};
use cabana_netstack::{Limits, MAX_MTU, Network, NetworkConfig};
use cabana_os::EventLoop;

/// The host that rules allow.
pub(crate) const GOOD: &str = "93.184.216.34";
/// Somebody else's.
pub(crate) const EVIL: &str = "198.51.100.66";
/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

/// A network behind a gate, and a guest in it.
pub(crate) fn network(gate: EgressGate) -> (Guest, Network, EventLoop) {
    let events = EventLoop::spawn("net").unwrap();
    let config = NetworkConfig {
        mtu: MAX_MTU,
        limits: Limits::default(),
        gate: Box::new(gate),
        publish: Vec::new(),
        capture: None,
    };
    let network = Network::start(config, events.handle()).unwrap();
    let guest = Guest::new(network.clone(), &events.handle(), Weather::default());
    (guest, network, events)
}

/// Set in the process that runs in the namespace.
const INSIDE: &str = "CABANA_TEST_NAMESPACE";

/// What a test has for itself.
const NAMESPACES: [&str; 3] = ["--net", "--mount", "--map-root-user"];

/// Runs the rest of a test in namespaces of its own, in a process of its own: whether this is it. In the
/// outer process the inner one has passed when this returns, or cannot be made, which is said.
pub(crate) fn in_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        for address in
            [GOOD, EVIL, "198.51.100.7", "169.254.169.254", "10.9.9.9", "192.168.7.7", "100.64.7.7"]
        {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        for address in
            ["2001:4860::34", "2001:4860::66", "64:ff9b::c633:6442", "2002:c633:6442::1", "fd99::1"]
        {
            ip(&format!("-6 addr add {address}/128 dev lo nodad"));
        }
        return true;
    }
    let unshare = |command: &mut Command| command.args(NAMESPACES).env(INSIDE, "1").status();
    if !unshare(Command::new("unshare").arg("true")).is_ok_and(|status| status.success()) {
        // Root needs no user namespace, which some hosts forbid.
        let root = Command::new("unshare").args(["--net", "true"]).status();
        if !root.is_ok_and(|status| status.success()) {
            println!("skipped: this host lets nobody make a network namespace here");
            return false;
        }
    }
    let this = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(NAMESPACES)
        .arg(this)
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        // Suites of the program that runs scripts know where it is.
        .envs(option_env!("CARGO_BIN_EXE_cabana-pac").map(|program| ("CABANA_PAC", program)))
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespace");
    false
}

/// A resolver that knows what it is told.
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<Mutex<HashMap<String, Vec<IpAddr>>>>);

impl Names {
    pub(crate) fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.0.lock().unwrap().insert(name.to_owned(), addresses);
    }

    /// How many names were asked for that begin so.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().filter(|name| name.starts_with("asked:")).cloned().collect()
    }
}

impl Resolver for Names {
    fn resolve(&self, name: &DomainName) -> Result<Vec<IpAddr>, LookupError> {
        let mut names = self.0.lock().unwrap();
        names.insert(format!("asked:{name}"), Vec::new());
        names.get(name.as_str()).cloned().ok_or(LookupError::Unknown)
    }
}

/// Events as they come.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    pub(crate) fn listener(&self) -> cabana_egress_host::Listener {
        let log = self.clone();
        Arc::new(move |event| log.0.lock().unwrap().push(event.clone()))
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for an event.
    pub(crate) fn wait<T>(&self, find: impl Fn(&Event) -> Option<T>) -> T {
        wait(|| self.0.lock().unwrap().iter().find_map(&find), || format!("{:?}", self.all()))
    }
}

/// Waits for something that another thread brings about.
pub(crate) fn wait<T>(mut done: impl FnMut() -> Option<T>, why: impl Fn() -> String) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < deadline, "it does not come: {}", why());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A server that keeps what it was sent and answers each connection once, after a blank line or at once.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Server {
    pub(crate) fn http(address: &str, answer: &'static str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                thread::spawn(move || serve(stream.unwrap(), &kept, answer));
            }
        });
        Self { address, seen }
    }

    /// What each connection sent so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Vec<u8>>>, answer: &str) {
    let index = {
        let mut seen = seen.lock().unwrap();
        seen.push(Vec::new());
        seen.len() - 1
    };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut seen = seen.lock().unwrap();
        seen[index].extend_from_slice(&buffer[..count]);
        if seen[index].ends_with(b"\r\n\r\n") {
            let length = answer.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}");
            let _ = stream.write_all(head.as_bytes());
        }
    }
}
