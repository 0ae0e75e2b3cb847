//! The lines of this generation stay as they are: `goldens/` has one of each, and
//! `docs/serve.schema.json` their schema. `UPDATE_GOLDENS=1 cargo test -p cabana-api` writes what is new.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::{env, fs};

use cabana_api::{
    BackgroundStatus, Bytes, Call, CommandSpec, Copied, CopySpec, Exit, Fault, ForwardStatus,
    Greeting, MachineEvent, MachineSpec, MachineState, MachineStatus, Named, NetworkEvent,
    NetworkSpec, NetworkStatus, NetworkVerdict, NetworkWhat, Outcome, Place, PolicySpec,
    ProcessEvent, PublishSpec, Remember, Reply, Request, SessionLimits, SessionSpec, SessionStatus,
    ShareSpec, TtySize, VERSION, schema,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn compare(path: &Path, text: &str) {
    if env::var_os("UPDATE_GOLDENS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        return fs::write(path, text).unwrap();
    }
    let golden = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; see the top of this file", path.display());
}

fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, lines: &[T]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    let mut text = String::new();
    for line in lines {
        let json = serde_json::to_string(line).unwrap();
        let back: T = serde_json::from_str(&json).unwrap();
        assert_eq!(&back, line, "{json}");
        text += &json;
        text.push('\n');
    }
    compare(&folder.join(name), &text);
}

fn named() -> Named {
    Named { machine: "m".to_owned() }
}

fn shares() -> Vec<ShareSpec> {
    vec![ShareSpec {
        host: PathBuf::from("/h"),
        guest: "/g".to_owned(),
        read_only: true,
        journal: Some(1 << 30),
    }]
}

fn policy() -> PolicySpec {
    PolicySpec {
        allow: vec!["pypi".to_owned()],
        deny: vec!["a.example".to_owned()],
        ask: true,
        ech: false,
    }
}

fn network() -> NetworkSpec {
    NetworkSpec {
        policy: policy(),
        sessions: [("s".to_owned(), PolicySpec::default())].into(),
        publish: vec![PublishSpec { host: ([127, 0, 0, 1], 8080).into(), guest: 80 }],
        secrets: vec!["TOKEN=x@a.example".to_owned()],
        proxy: Some("none".to_owned()),
        host_trust: true,
        log: Some("/log".into()),
        capture: Some("/pcap".into()),
        mtu: Some(1500),
    }
}

fn network_status() -> NetworkStatus {
    NetworkStatus {
        published: vec![([127, 0, 0, 1], 8080).into()],
        version: 2,
        policy: policy(),
        flows: 3,
        bytes_sent: 1000,
        ..NetworkStatus::default()
    }
}

fn network_events() -> Vec<NetworkEvent> {
    let verdict = || NetworkVerdict {
        allowed: true,
        rule: Some("pypi: pypi.org".to_owned()),
        code: "allow-rule".to_owned(),
        reason: "a rule allows it".to_owned(),
        policy: 1,
    };
    let address = [93, 184, 216, 34].into();
    let (host, protocol) = (|| "pypi.org".to_owned(), || "tcp".to_owned());
    let what = [
        NetworkWhat::Flow {
            flow: 7,
            protocol: protocol(),
            host: Some(host()),
            address,
            port: 443,
            verdict: verdict(),
        },
        NetworkWhat::Query { host: host(), addresses: vec![address], verdict: verdict() },
        NetworkWhat::Closed { flow: 7, sent: 10, received: 20 },
        NetworkWhat::Failed { flow: 7, why: "the proxy refused".to_owned() },
        NetworkWhat::Ask {
            ask: 1,
            protocol: protocol(),
            host: host(),
            port: Some(443),
            process: Some("pip (42)".to_owned()),
        },
        NetworkWhat::Answered { ask: 1, allowed: false },
        NetworkWhat::Policy { policy: 2 },
        NetworkWhat::Lost { events: 5 },
        NetworkWhat::Listening { address, port: 8080 },
        NetworkWhat::ListeningEnded { address, port: 8080 },
    ];
    what.into_iter().map(|what| NetworkEvent { session: Some("s".to_owned()), what }).collect()
}

#[test]
fn requests() {
    let spec = MachineSpec {
        name: "m".to_owned(),
        disk: Some("/disk".into()),
        shares: shares(),
        share_roots: vec!["/home".into()],
        network: Some(network()),
        suspend_after_ms: Some(1000),
        ..MachineSpec::default()
    };
    let command = CommandSpec {
        env: [("A".to_owned(), "b".to_owned())].into(),
        cwd: Some("/src".to_owned()),
        tty: Some(TtySize { rows: 24, cols: 80 }),
        stdin: true,
        timeout_ms: Some(5000),
        session: Some("s".to_owned()),
        background: true,
        ..CommandSpec::new(["sh", "-c", "true"])
    };
    let calls = [
        Call::MachineCreate { spec },
        Call::MachineStart(named()),
        Call::MachineList,
        Call::MachineShutdown(named()),
        Call::MachineStop(named()),
        Call::MachineSuspend(named()),
        Call::MachineRemove(named()),
        Call::MachineConsole(named()),
        Call::Exec { machine: "m".to_owned(), command },
        Call::Stdin { process: 1, data: Bytes::from(&b"text\n"[..]) },
        Call::Stdin { process: 1, data: Bytes::from(&b"\xff\x00"[..]) },
        Call::StdinClose { process: 1 },
        Call::Signal { process: 1, signal: 15 },
        Call::Resize { process: 1, size: TtySize { rows: 25, cols: 132 } },
    ];
    let background = [
        Call::BackgroundList(named()),
        Call::Attach { machine: "m".to_owned(), background: 3 },
        Call::Detach { process: 1 },
    ];
    let calls = calls.into_iter().chain(of_sessions()).chain(background).chain(of_networks());
    let requests: Vec<_> = (1..).zip(calls).map(|(id, call)| Request { id, call }).collect();
    golden("requests.jsonl", &requests);
}

fn limits() -> SessionLimits {
    SessionLimits {
        memory: Some(64 << 20),
        pids: Some(100),
        cpu_weight: Some(50),
        cpu_max: Some(1500),
        io_read: Some(1 << 20),
        io_write: Some(2 << 20),
        disk: Some(1 << 30),
    }
}

fn of_networks() -> [Call; 3] {
    let place = Place { machine: "m".to_owned(), session: Some("s".to_owned()) };
    [
        Call::NetworkStatus(named()),
        Call::NetworkPolicy { place, policy: Some(policy()) },
        Call::NetworkAnswer {
            machine: "m".to_owned(),
            ask: 1,
            allow: true,
            remember: Remember::Session,
        },
    ]
}

fn of_sessions() -> [Call; 14] {
    let (machine, session) = (|| "m".to_owned(), || "s".to_owned());
    let spec = SessionSpec {
        name: session(),
        limits: limits(),
        shares: shares(),
        network: true,
        policy: Some(policy()),
    };
    let place = || Place { machine: machine(), session: Some(session()) };
    let copy = || CopySpec { host: "/h".into(), guest: "g".to_owned() };
    let local = |port| ([127, 0, 0, 1], port).into();
    [
        Call::SessionCreate { machine: machine(), spec },
        Call::SessionLimit { machine: machine(), session: session(), limits: limits() },
        Call::SessionList(named()),
        Call::SessionRemove { machine: machine(), session: session() },
        Call::CopyIn { place: place(), copy: copy() },
        Call::CopyOut { place: Place { session: None, ..place() }, copy: copy() },
        Call::WriteFile {
            place: place(),
            path: "f".to_owned(),
            data: Bytes::from(&b"text"[..]),
            mode: Some(0o600),
        },
        Call::ReadFile { place: place(), path: "f".to_owned() },
        Call::Forward { place: place(), host: local(8080), guest: local(80) },
        Call::ForwardBack { place: place(), guest: local(0), host: local(5432) },
        Call::ForwardEnd { forward: 1 },
        Call::ShareAdd { place: place(), share: shares().remove(0) },
        Call::ShareRemove { place: Place { session: None, ..place() }, guest: "/g".to_owned() },
        Call::ShareList(place()),
    ]
}

#[test]
fn replies() {
    golden("greeting.jsonl", &[Greeting { cabana: VERSION, version: "0.1.0".to_owned() }]);
    let status = MachineStatus {
        name: "m".to_owned(),
        state: MachineState::Running,
        generation: 1,
        image: "default".to_owned(),
        cpus: 1,
        memory: 512 << 20,
        shares: shares(),
        worker: Some(42),
        processes: 2,
    };
    let session = SessionStatus {
        name: "s".to_owned(),
        uid: Some(10_000),
        limits: limits(),
        shares: shares(),
        network: false,
        policy: None,
        pids: 3,
        memory: 1 << 20,
        disk: 4096,
    };
    let background = BackgroundStatus {
        background: 3,
        pid: 7,
        session: Some("s".to_owned()),
        command: "sleep 10".to_owned(),
        attached: false,
        exit: Some(Exit::Code(0)),
    };
    let outcomes = [
        Outcome::Done(true),
        Outcome::Machine(status.clone()),
        Outcome::Machines(vec![status]),
        Outcome::Process(1),
        Outcome::Console("last words\n".to_owned()),
        Outcome::Session(session.clone()),
        Outcome::Sessions(vec![session]),
        Outcome::Copied(Copied { entries: 2, bytes: 3000 }),
        Outcome::Data(Bytes::from(&b"text"[..])),
        Outcome::Forward(ForwardStatus { forward: 1, listens: ([127, 0, 0, 1], 8080).into() }),
        Outcome::Shares(shares()),
        Outcome::Backgrounds(vec![background]),
        Outcome::Network(network_status()),
        Outcome::Policy(2),
        Outcome::Error(Fault { code: "not-found".to_owned(), message: "there is no m".to_owned() }),
    ];
    let answers = (1..).zip(outcomes).map(|(id, outcome)| Reply::Answer { id, outcome });
    let data = || Bytes::from(&b"out\n"[..]);
    let processes = [
        ProcessEvent::Started { pid: 7, background: None },
        ProcessEvent::Started { pid: 7, background: Some(3) },
        ProcessEvent::Detached,
        ProcessEvent::Stdout { data: data() },
        ProcessEvent::Stderr { data: Bytes::from(&b"\xff"[..]) },
        ProcessEvent::Exited { exit: Exit::Code(3) },
        ProcessEvent::Exited { exit: Exit::Signal(9) },
        ProcessEvent::Exited { exit: Exit::TimedOut },
        ProcessEvent::Failed {
            code: "exec".to_owned(),
            message: "no: command not found".to_owned(),
            status: 127,
        },
    ];
    let processes = processes.into_iter().map(|event| Reply::Process { process: 1, event });
    let machines = [
        MachineEvent::Starting { generation: 1 },
        MachineEvent::Progress { step: "booting".to_owned() },
        MachineEvent::Ready { warnings: vec!["a share is slow".to_owned()] },
        MachineEvent::Suspended,
        MachineEvent::Resumed,
        MachineEvent::DiskFailed { message: "the host's disk is full".to_owned() },
        MachineEvent::OutOfMemory {
            session: Some("s".to_owned()),
            pid: 7,
            command: "cc1plus".to_owned(),
            memory: 64 << 20,
        },
        MachineEvent::ProcessLimit { session: "s".to_owned() },
        MachineEvent::SessionDied { session: "s".to_owned() },
        MachineEvent::BackgroundEnded { background: 3, exit: Exit::Code(0) },
        MachineEvent::Lost { events: 5 },
        MachineEvent::Died { code: "worker-died".to_owned(), message: "signal 9".to_owned() },
        MachineEvent::Stopped,
    ];
    let networks = network_events().into_iter().map(|event| MachineEvent::Network { event });
    let died = MachineEvent::NetworkDied { message: "signal 9".to_owned() };
    let machines = machines.into_iter().chain(networks).chain([died]);
    let machines =
        machines.into_iter().map(|event| Reply::Machine { machine: "m".to_owned(), event });
    let misread = [Reply::Misread { misread: "expected value".to_owned() }];
    let replies: Vec<_> = answers.chain(processes).chain(machines).chain(misread).collect();
    golden("replies.jsonl", &replies);
}

#[test]
fn the_schema_is_the_documented_one() {
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/serve.schema.json"), &text);
}

#[test]
fn what_is_left_out_has_a_default_and_what_is_misspelt_is_told() {
    let request = r#"{"id":1,"call":"machine-create","spec":{"name":"m"}}"#;
    let request: Request = serde_json::from_str(request).unwrap();
    let Call::MachineCreate { spec } = request.call else { panic!("{request:?}") };
    assert_eq!(spec, MachineSpec { name: "m".to_owned(), ..MachineSpec::default() });
    let misspelt = r#"{"id":1,"call":"machine-create","spec":{"memroy":1}}"#;
    let error = serde_json::from_str::<Request>(misspelt).unwrap_err();
    assert!(error.to_string().contains("memroy"), "{error}");
}
