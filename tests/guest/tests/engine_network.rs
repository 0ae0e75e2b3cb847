//! Networks of the engine's machines and their sessions: who may reach what, under which address, and who says so.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use cabana_engine::{
    CommandSpec, Engine, EngineConfig, Events, Exit, Machine, MachineEvent, MachineSpec,
    NetworkEvent, NetworkSpec, NetworkWhat, PolicySpec, PublishSpec, Remember, Session,
    SessionSpec, WorkerKind,
};
use cabana_test_guest::namespaces::{EVIL, MIRROR, in_namespaces, run};
use cabana_test_guest::{Host, LIMIT, host};

/// Names of two servers, in `/etc/hosts` of the test's own.
fn names(folder: &std::path::Path) {
    let hosts = folder.join("hosts");
    fs::write(&hosts, format!("{MIRROR} one.test\n{EVIL} two.test\n")).unwrap();
    run("mount", &["--bind", hosts.to_str().unwrap(), "/etc/hosts"]);
}

/// Answers every connection with these words, and stays until the client goes.
fn serve(address: &str, words: &'static str) {
    let listener = TcpListener::bind((address, 80)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|read| read > 0) {
                    let length = words.len();
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    if stream.write_all((head + words).as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn allow(words: &[&str]) -> PolicySpec {
    let allow = words.iter().map(|word| (*word).to_owned()).collect();
    PolicySpec { allow, ..PolicySpec::default() }
}

fn machine(host: &Host, network: NetworkSpec) -> Machine {
    let worker = WorkerKind::Program(host.binary.clone());
    let engine = Engine::new(EngineConfig { worker, ..EngineConfig::default() }).unwrap();
    let spec = MachineSpec { cpus: 2, network: Some(network), ..MachineSpec::default() };
    engine.machine(spec).unwrap()
}

fn session(machine: &Machine, name: &str, policy: Option<PolicySpec>) -> Session {
    let name = name.to_owned();
    let spec = SessionSpec { name, network: true, policy, ..SessionSpec::default() };
    machine.create_session(spec).unwrap()
}

/// What a script says, whatever its end.
fn sh(machine: &Machine, session: Option<&Session>, script: &str) -> String {
    let session = session.map(|session| session.name().to_owned());
    let command = CommandSpec { session, ..CommandSpec::new(["sh", "-c", script]) };
    let output = machine.exec(&command).unwrap().output().unwrap();
    assert!(matches!(output.exit, Exit::Code(_)), "{script}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn fetch(name: &str) -> String {
    format!("curl -sS -m 60 http://{name}/ || echo failed")
}

/// The next event of the network that is one of these.
fn wait(events: &Events, wanted: impl Fn(&NetworkEvent) -> bool) -> NetworkEvent {
    let mut told = Vec::new();
    while let Some(event) = events.next_within(LIMIT) {
        match event {
            MachineEvent::Network { event } if wanted(&event) => return event,
            other => told.push(other),
        }
    }
    panic!("only {told:?}");
}

/// Tries to speak from the address of another session, and to become able to. Says what succeeded.
const FORGE: &str = r#"
import fcntl, socket, struct, sys
other4, other6 = sys.argv[1:3]
question = bytes.fromhex("abcd01000001000000000000") + b"\3two\4test\0" + bytes([0, 1, 0, 1])
def attempt(name, act):
    try:
        result = act()
        print(name, "worked", result or "")
    except OSError as error:
        print(name, "failed")
def ask(family, bind, gateway, *options):
    s = socket.socket(family, socket.SOCK_DGRAM)
    for option in options:
        s.setsockopt(*option)
    s.bind((bind, 0))
    s.settimeout(3)
    s.sendto(question, (gateway, 53))
    return s.recv(512).hex()
FREEBIND4, FREEBIND6 = (socket.IPPROTO_IP, 15, 1), (socket.IPPROTO_IPV6, 78, 1)
TRANSPARENT4, TRANSPARENT6 = (socket.IPPROTO_IP, 19, 1), (socket.IPPROTO_IPV6, 75, 1)
# Neighbours are known from now on.
attempt("own4", lambda: ask(socket.AF_INET, "0.0.0.0", "10.107.0.1") and "well")
attempt("own6", lambda: ask(socket.AF_INET6, "::", "fd00:107::1") and "well")
attempt("bind4", lambda: ask(socket.AF_INET, other4, "10.107.0.1"))
attempt("bind6", lambda: ask(socket.AF_INET6, other6, "fd00:107::1"))
attempt("free4", lambda: ask(socket.AF_INET, other4, "10.107.0.1", FREEBIND4))
attempt("free6", lambda: ask(socket.AF_INET6, other6, "fd00:107::1", FREEBIND6))
attempt("transparent4", lambda: ask(socket.AF_INET, other4, "10.107.0.1", TRANSPARENT4))
attempt("transparent6", lambda: ask(socket.AF_INET6, other6, "fd00:107::1", TRANSPARENT6))
def connect(family, bind, to, option):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(*option)
    s.bind((bind, 0))
    s.settimeout(3)
    s.connect((to, 53))
attempt("tcp4", lambda: connect(socket.AF_INET, other4, "10.107.0.1", FREEBIND4))
attempt("tcp6", lambda: connect(socket.AF_INET6, other6, "fd00:107::1", FREEBIND6))
def pktinfo():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(*FREEBIND6)
    s.settimeout(3)
    info = socket.inet_pton(socket.AF_INET6, other6) + struct.pack("I", 0)
    s.sendmsg([question], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)], 0, ("fd00:107::1", 53))
    return s.recv(512).hex()
attempt("pktinfo6", pktinfo)
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close())
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW, 0x300).close())
def ioctl(number, value):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(s, number, struct.pack("16s16s8x", b"net0", value))
attempt("mac", lambda: ioctl(0x8924, struct.pack("H6B", 1, 2, 0xca, 0xba, 1, 0, 2)))
attempt("address", lambda: ioctl(0x8916, struct.pack("HH4s", 2, 0, socket.inet_aton(other4))))
attempt("down", lambda: ioctl(0x8914, struct.pack("H", 0)))
"#;

#[test]
fn sessions_reach_what_they_may_under_their_own_addresses() {
    let Some(host) = host() else { return };
    if !in_namespaces("sessions_reach_what_they_may_under_their_own_addresses") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    names(folder.path());
    serve(MIRROR, "this is one");
    serve(EVIL, "this is two");
    let machine = machine(host, NetworkSpec::default());
    let events = machine.events();
    let one = session(&machine, "one", Some(allow(&["one.test"])));
    let two = session(&machine, "two", Some(allow(&["two.test"])));
    let like_all = session(&machine, "like-all", None);
    let alone = SessionSpec { name: "alone".to_owned(), ..SessionSpec::default() };
    let alone = machine.create_session(alone).unwrap();

    // Each has its own allowance, and what is told bears its name.
    for (session, own, others) in [(&one, "one", "two"), (&two, "two", "one")] {
        let words = sh(&machine, Some(session), &fetch(&format!("{own}.test")));
        assert_eq!(words, format!("this is {own}"));
        let flow = wait(&events, |event| matches!(event.what, NetworkWhat::Flow { .. }));
        assert_eq!(flow.session.as_deref(), Some(own));
        let NetworkWhat::Flow { host, port, verdict, .. } = flow.what else { unreachable!() };
        assert_eq!((host, port), (Some(format!("{own}.test")), 80));
        assert!(verdict.allowed && verdict.code == "allow-rule", "{verdict:?}");
        let refused = sh(&machine, Some(session), &fetch(&format!("{others}.test")));
        assert!(refused.contains("failed"), "{refused}");
        let denied = wait(
            &events,
            |event| matches!(&event.what, NetworkWhat::Query { verdict, .. } if !verdict.allowed),
        );
        assert_eq!(denied.session.as_deref(), Some(own));
    }
    for nobody in [None, Some(&like_all), Some(&alone)] {
        for name in ["one.test", "two.test", MIRROR] {
            let refused = sh(&machine, nobody, &fetch(name));
            assert!(refused.contains("failed"), "{nobody:?}: {refused}");
        }
    }
    let cards = sh(&machine, Some(&alone), "ls /sys/class/net");
    assert_eq!(cards, "lo\n");

    // Nobody speaks under another's address.
    let script = format!("python3 - 10.107.1.2 fd00:107::1:2 <<'END'\n{FORGE}\nEND");
    let forged = sh(&machine, Some(&one), &script);
    let (own, others) = forged.split_once("bind4").unwrap();
    assert_eq!(own, "own4 worked well\nown6 worked well\n");
    assert!(others.lines().count() == 14 && !others.contains("worked"), "{others}");
    assert!(machine.network().unwrap().forged > 0, "{:?}", machine.network());

    // Nor do they see each other, or the machine, or the machine them.
    let listen = "python3 -m http.server -b :: 9000 >/dev/null 2>&1 & \
                  until curl -gs -o /dev/null http://[::1]:9000/; do sleep 0.1; done; echo up";
    assert_eq!(sh(&machine, Some(&two), listen), "up\n");
    assert_eq!(sh(&machine, None, listen), "up\n");
    let tries = |to: &str| format!("curl -gs -m 3 -o /dev/null http://{to}:9000/; echo $?");
    for (from, to) in [
        (Some(&one), "10.107.1.2"),
        (Some(&one), "[fd00:107::1:2]"),
        (Some(&one), "10.107.0.2"),
        (Some(&one), "[fd00:107::2]"),
        (Some(&one), "localhost"),
        (None, "10.107.1.2"),
        (None, "[fd00:107::1:2]"),
    ] {
        assert_ne!(sh(&machine, from, &tries(to)), "0\n", "{to}");
    }
    let direct = "curl -s -m 3 --interface net0 -o /dev/null http://10.107.0.2:9000/; echo $?";
    assert_ne!(sh(&machine, Some(&one), direct), "0\n");

    // Other rules hold at once, also for what is open.
    let hold = "exec 3<>/dev/tcp/two.test/80; printf 'GET / HTTP/1.1\\r\\nHost: two.test\\r\\n\\r\\n' >&3; \
                head -n 1 <&3; cat <&3 >/dev/null; echo over";
    let held =
        CommandSpec { session: Some("two".to_owned()), ..CommandSpec::new(["bash", "-c", hold]) };
    let mut held = machine.exec(&held).unwrap();
    let mut said = String::new();
    let mut reloaded = false;
    while let Some(event) = held.next_event().unwrap() {
        if let cabana_engine::ProcessEvent::Stdout(bytes) = event {
            said.push_str(&String::from_utf8_lossy(bytes));
        }
        if said.contains("200 OK") && !reloaded {
            reloaded = true;
            let before = machine.network().unwrap().version;
            assert_eq!(two.set_policy(Some(allow(&["one.test"]))).unwrap(), before + 1);
        }
    }
    assert!(said.ends_with("over\n"), "{said}");
    assert_eq!(sh(&machine, Some(&two), &fetch("one.test")), "this is one");
    assert!(sh(&machine, Some(&two), &fetch("two.test")).contains("failed"));
    two.set_policy(None).unwrap();
    machine.set_policy(allow(&["two.test"])).unwrap();
    for session in [None, Some(&two), Some(&like_all)] {
        assert_eq!(sh(&machine, session, &fetch("two.test")), "this is two");
    }
    assert_eq!(machine.set_policy(allow(&["no rule"])).unwrap_err().code(), "invalid");

    // What one had is nobody's, and who comes after it has its address but not its rules.
    one.remove().unwrap();
    let after = session(&machine, "after", Some(allow(&[])));
    let address = "python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                   s.connect((\"10.107.0.1\", 53)); print(s.getsockname()[0])'";
    assert_eq!(sh(&machine, Some(&after), address), "10.107.1.1\n");
    assert!(sh(&machine, Some(&after), &fetch("one.test")).contains("failed"));

    // A machine that starts afresh has them again.
    two.set_policy(Some(allow(&["one.test"]))).unwrap();
    machine.stop();
    assert_eq!(sh(&machine, Some(&two), &fetch("one.test")), "this is one");
    assert_eq!(sh(&machine, Some(&like_all), &fetch("two.test")), "this is two");
    assert!(sh(&machine, Some(&after), &fetch("one.test")).contains("failed"));
}

#[test]
fn a_machine_that_is_up_publishes_asks_and_keeps_secrets() {
    let Some(host) = host() else { return };
    if !in_namespaces("a_machine_that_is_up_publishes_asks_and_keeps_secrets") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    names(folder.path());
    serve(MIRROR, "this is one");
    serve(EVIL, "this is two");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let log = folder.path().join("net.jsonl");
    let machine = machine(
        host,
        NetworkSpec {
            policy: PolicySpec { ask: true, ..allow(&["one.test"]) },
            publish: vec![PublishSpec { host: any, guest: 8000 }],
            secrets: vec!["TOKEN=abc@one.test".to_owned()],
            log: Some(log.clone()),
            capture: Some(folder.path().join("frames.pcap")),
            ..NetworkSpec::default()
        },
    );
    assert_eq!(machine.published().unwrap(), []);
    let events = machine.events();
    let token = sh(&machine, None, "echo $TOKEN; grep -c BEGIN $SSL_CERT_FILE");
    let mut lines = token.lines();
    assert!(lines.next().unwrap().starts_with("cabana-secret-"), "{token}");
    assert!(lines.next().unwrap().parse::<u32>().unwrap() > 0, "{token}");

    // A published port leads to a server.
    let server = CommandSpec::new(["python3", "-m", "http.server", "8000"]);
    let mut server = machine.exec(&server).unwrap();
    let published = machine.published().unwrap();
    let mut answer = String::new();
    while answer.is_empty() {
        // Reset while the server is on its way.
        let Ok(mut client) = TcpStream::connect(published[0]) else { continue };
        let _ = client.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let _ = client.read_to_string(&mut answer);
    }
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    server.input().hang_up();
    while matches!(server.next_event(), Ok(Some(_))) {}

    // What no rule decides is asked about: a no, and a yes that is remembered.
    let ask = |allow, remember| {
        // The server before has looked its own name up.
        let asked = wait(
            &events,
            |event| matches!(&event.what, NetworkWhat::Ask { host, .. } if host == "two.test"),
        );
        let NetworkWhat::Ask { ask, process, .. } = asked.what else { unreachable!() };
        // The guest says who wants it.
        let process = process.unwrap_or_default();
        assert!(process.starts_with("curl (") && process.ends_with(')'), "{process}");
        machine.answer(ask, allow, remember).unwrap();
    };
    let fetched = |answer: bool, remember| {
        let command = CommandSpec::new(["sh", "-c", &fetch("two.test")]);
        let process = machine.exec(&command).unwrap();
        ask(answer, remember);
        String::from_utf8_lossy(&process.output().unwrap().stdout).into_owned()
    };
    assert!(fetched(false, Remember::Once).contains("failed"));
    assert_eq!(fetched(true, Remember::Machine), "this is two");
    assert_eq!(sh(&machine, None, &fetch("two.test")), "this is two");

    let status = machine.network().unwrap();
    assert!(status.bytes_received > 0 && status.flows_opened > 0, "{status:?}");
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("two.test") && log.contains("\"event\":\"flow\""), "{log}");
    assert!(fs::metadata(folder.path().join("frames.pcap")).unwrap().len() > 100);

    // The network's worker is a process of its own, and its death is told.
    let worker = machine.status().worker.unwrap();
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children: String = tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default())
        .collect();
    let network = children.split_whitespace().find(|child| {
        let line = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
        **child != worker.to_string() && line.contains("worker")
    });
    run("kill", &["-9", network.unwrap()]);
    let mut told = Vec::new();
    loop {
        match events.next_within(LIMIT) {
            Some(MachineEvent::NetworkDied { .. }) => break,
            Some(other) => told.push(other),
            None => panic!("only {told:?}"),
        }
    }
    assert_eq!(sh(&machine, None, "echo still here"), "still here\n");
    machine.stop();
    assert_eq!(sh(&machine, None, &fetch("one.test")), "this is one");
}

#[test]
fn programs_that_listen_are_told_of() {
    let Some(host) = host() else { return };
    let machine = machine(host, NetworkSpec::default());
    let events = machine.events();
    let one = session(&machine, "one", None);
    let alone = SessionSpec { name: "alone".to_owned(), ..SessionSpec::default() };
    let alone = machine.create_session(alone).unwrap();
    let listening = |what: &NetworkWhat| match what {
        NetworkWhat::Listening { address, port } => Some((true, format!("{address}"), *port)),
        NetworkWhat::ListeningEnded { address, port } => Some((false, format!("{address}"), *port)),
        _ => None,
    };
    let next = || {
        let event = wait(&events, |event| listening(&event.what).is_some());
        (event.session, listening(&event.what).unwrap())
    };

    // A server of a command that runs, in each kind of place; what other places have is not its.
    let serve = |session: Option<&Session>, address: &str, port: u16| {
        let session = session.map(|session| session.name().to_owned());
        let port = port.to_string();
        let words = ["python3", "-m", "http.server", "-b", address, &port];
        machine.exec(&CommandSpec { session, ..CommandSpec::new(words) }).unwrap()
    };
    for (session, address) in [(None, "0.0.0.0"), (Some(&one), "::"), (Some(&alone), "127.0.0.1")] {
        let name = session.map(|session| session.name().to_owned());
        let mut server = serve(session, address, 8080);
        assert_eq!(next(), (name.clone(), (true, address.to_owned(), 8080)));
        server.input().hang_up();
        while matches!(server.next_event(), Ok(Some(_))) {}
        assert_eq!(next(), (name, (false, address.to_owned(), 8080)));
    }

    // One that a command left behind, until its session is gone.
    let leave = "python3 -m http.server -b 127.0.0.1 8081 >/dev/null 2>&1 & echo left";
    assert_eq!(sh(&machine, Some(&one), leave), "left\n");
    let there = (Some("one".to_owned()), (true, "127.0.0.1".to_owned(), 8081));
    assert_eq!(next(), there);
    one.remove().unwrap();
    let (session, (open, ..)) = next();
    assert_eq!((session.as_deref(), open), (Some("one"), false));

    // What listens for the host's sake, by the app's own wish, is no news.
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let _own = machine.place().listen(local(8082)).unwrap();
    let server = serve(None, "0.0.0.0", 8083);
    assert_eq!(next(), (None, (true, "0.0.0.0".to_owned(), 8083)));
    server.input().hang_up();
}

#[test]
fn a_script_names_the_proxies_of_a_confined_worker_and_of_a_run() {
    let Some(host) = host() else { return };
    if !in_namespaces("a_script_names_the_proxies_of_a_confined_worker_and_of_a_run") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    names(folder.path());
    serve(MIRROR, "by the proxy");
    serve(EVIL, "directly");
    let script = folder.path().join("proxy.pac");
    let body = "function FindProxyForURL(url, host) { return 'PROXY one.test:80' }";
    fs::write(&script, body).unwrap();
    let policy = allow(&["two.test"]);
    let word = format!("pac+file://{}", script.display());
    let proxy = Some(word.clone());
    let machine = machine(host, NetworkSpec { policy, proxy, ..NetworkSpec::default() });
    assert_eq!(sh(&machine, None, &fetch("two.test")), "by the proxy");

    let (fetch, words) =
        (fetch("two.test"), ["run", "--allow", "two.test", "--proxy", &word, "--"]);
    let run = || host.cabana(words.into_iter().chain(["sh", "-c", &fetch]));
    assert_eq!(run().end().succeeded(), "by the proxy");
    let missing = "cannot start /no/such/program, which the proxies' script needs";
    run().env("CABANA_PAC", "/no/such/program").end().failed_with(125, &[missing]);
    fs::write(&script, "function FindProxyForURL(url, host) { for (;;); }").unwrap();
    assert_eq!(run().end().stdout, b"failed\n");
}
