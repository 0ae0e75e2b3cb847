//! The bytes of every message of every generation, pinned by files.
//!
//! `goldens/v<generation>/<message>.hex` holds one whole frame. A message that no longer encodes to its
//! file is a broken promise to the machines, suspended or shipped, that speak the generation: give the
//! change a new generation instead.
//!
//! To add a generation: raise `PROTOCOL_VERSION`, run `CABANA_NEW_GOLDENS=1 cargo test -p
//! cabana-protocol --test goldens`, and commit the files of the new folder. The variable makes missing
//! files; it never changes one that exists. The folders of older generations stay as long as their
//! messages can be read.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::{env, fs};

use cabana_protocol::{
    Cause, Decoder, Entry, Event, Exec, ExecFailed, ExecReply, ExecRequest, ExitStatus, Failed,
    FailureKind, GuestMessage, Hello, HostMessage, Kind, Message, NetworkSetup, OwnerInfo,
    PROTOCOL_VERSION, ProcessInfo, Ready, Renew, Reply, Request, RootSetup, SessionCard,
    SessionInfo, SessionLimits, SessionSpec, Setup, SetupFailed, ShareMount, TtySize, write_frame,
};

/// Every message has a sample: a variant that is new does not compile here until it has a name, and
/// the test below finds the names that have no sample.
fn guest_name(message: &GuestMessage) -> &'static str {
    match message {
        GuestMessage::Hello(_) => "hello",
        GuestMessage::Ready(_) => "ready",
        GuestMessage::SetupFailed(_) => "setup-failed",
        GuestMessage::Pong(_) => "pong",
        GuestMessage::Stopped => "stopped",
        GuestMessage::Event(event) => match event {
            Event::OutOfMemory { .. } => "event-out-of-memory",
            Event::ProcessLimit { .. } => "event-process-limit",
            Event::SessionDied { .. } => "event-session-died",
            Event::ProcessEnded { .. } => "event-process-ended",
            Event::Lost(_) => "event-lost",
            Event::Listening { .. } => "event-listening",
            Event::ListeningEnded { .. } => "event-listening-ended",
        },
    }
}

fn host_name(message: &HostMessage) -> &'static str {
    match message {
        HostMessage::Setup(_) => "setup",
        HostMessage::Ping(_) => "ping",
        HostMessage::Shutdown => "shutdown",
        HostMessage::Renew(_) => "renew",
    }
}

fn request_name(message: &ExecRequest) -> &'static str {
    match message {
        ExecRequest::Exec(_) => "exec",
        ExecRequest::Signal(_) => "signal",
        ExecRequest::Resize(_) => "resize",
        ExecRequest::Attach { .. } => "attach",
        ExecRequest::Detach => "detach",
    }
}

fn reply_name(message: &ExecReply) -> &'static str {
    match message {
        ExecReply::Started { .. } => "started",
        ExecReply::Failed(failed) => match failed.kind {
            FailureKind::NotFound => "failed-not-found",
            FailureKind::PermissionDenied => "failed-permission-denied",
            FailureKind::BadCwd => "failed-bad-cwd",
            FailureKind::NoSession => "failed-no-session",
            FailureKind::NoProcess => "failed-no-process",
            FailureKind::Exhausted => "failed-exhausted",
            FailureKind::Other => "failed-other",
        },
        ExecReply::StdinTaken(_) => "stdin-taken",
        ExecReply::StdinClosed => "stdin-closed",
        ExecReply::Exited(ExitStatus::Code(_)) => "exited-code",
        ExecReply::Exited(ExitStatus::Signal(_)) => "exited-signal",
        ExecReply::Exited(ExitStatus::TimedOut) => "exited-timed-out",
        ExecReply::Attached { .. } => "attached",
        ExecReply::Detached => "detached",
    }
}

fn service_name(message: &Request) -> &'static str {
    match message {
        Request::CreateSession(_) => "create-session",
        Request::UpdateSession { .. } => "update-session",
        Request::RemoveSession { .. } => "remove-session",
        Request::ListSessions => "list-sessions",
        Request::ListProcesses => "list-processes",
        Request::AddShare { .. } => "add-share",
        Request::RemoveShare { .. } => "remove-share",
        Request::Push { .. } => "push",
        Request::Pull { .. } => "pull",
        Request::Connect { .. } => "connect",
        Request::Listen { .. } => "listen",
        Request::Accept { .. } => "accept",
        Request::Freeze => "freeze",
        Request::Thaw => "thaw",
        Request::FindOwner { .. } => "find-owner",
    }
}

fn service_reply_name(message: &Reply) -> &'static str {
    match message {
        Reply::Done => "done",
        Reply::Session(_) => "session",
        Reply::Sessions(_) => "sessions",
        Reply::Processes(_) => "processes",
        Reply::Connected => "connected",
        Reply::Listening { .. } => "listening",
        Reply::Incoming { .. } => "incoming",
        Reply::Owner(_) => "owner",
        Reply::Failed(failed) => match failed.cause {
            Cause::Invalid => "refused-invalid",
            Cause::NotFound => "refused-not-found",
            Cause::Exists => "refused-exists",
            Cause::Denied => "refused-denied",
            Cause::Exhausted => "refused-exhausted",
            Cause::Unsupported => "refused-unsupported",
            Cause::Other => "refused-other",
        },
    }
}

fn entry_name(message: &Entry) -> &'static str {
    match message {
        Entry::File { .. } => "entry-file",
        Entry::Folder { .. } => "entry-folder",
        Entry::Link { .. } => "entry-link",
        Entry::End => "entry-end",
    }
}

fn guest_samples() -> Vec<GuestMessage> {
    vec![
        GuestMessage::Hello(Hello {
            protocol: 2,
            agent_version: "0.1.0".into(),
            tsc_main: 0x0123_4567_89ab_cdef,
            monotonic_ns: 12_345_678,
        }),
        GuestMessage::Ready(Ready {
            tsc: u64::MAX,
            monotonic_ns: 23_456_789,
            warnings: vec!["mounting /dev/pts: no such device".into()],
        }),
        GuestMessage::SetupFailed(SetupFailed {
            what: "mounting share `src` on /src".into(),
            why: "/src is a file in the guest".into(),
        }),
        GuestMessage::Pong(300),
        GuestMessage::Stopped,
        GuestMessage::Event(Event::OutOfMemory {
            session: Some("chat-1".into()),
            pid: 4711,
            command: "python3".into(),
            memory: 123_456_789,
        }),
        GuestMessage::Event(Event::ProcessLimit { session: "chat-1".into() }),
        GuestMessage::Event(Event::SessionDied { session: "chat-1".into() }),
        GuestMessage::Event(Event::ProcessEnded { process: 300, status: ExitStatus::Code(1) }),
        GuestMessage::Event(Event::Lost(300)),
        GuestMessage::Event(Event::Listening {
            session: Some("chat-1".into()),
            address: ([127, 0, 0, 1], 8080).into(),
        }),
        GuestMessage::Event(Event::ListeningEnded {
            session: None,
            address: (Ipv6Addr::UNSPECIFIED, 8080).into(),
        }),
    ]
}

fn network() -> NetworkSetup {
    NetworkSetup {
        interface: "eth0".into(),
        v4: [10, 107, 0, 2],
        v4_prefix: 16,
        v4_gateway: [10, 107, 0, 1],
        v6: [0xfd, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        v6_prefix: 64,
        v6_gateway: [0xfd, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    }
}

fn host_samples() -> Vec<HostMessage> {
    let entropy = std::array::from_fn(|index| index as u8);
    vec![
        HostMessage::Setup(Setup {
            realtime_ns: 1_700_000_000_123_456_789,
            hostname: "cabana".into(),
            entropy,
            root: RootSetup {
                image: "/dev/pmem0".into(),
                dax: true,
                scratch: Some("/dev/vda".into()),
            },
            shares: vec![
                ShareMount { name: "src".into(), guest_path: "/src".into(), read_only: false },
                ShareMount { name: "doc".into(), guest_path: "/usr/doc".into(), read_only: true },
            ],
            network: Some(network()),
        }),
        HostMessage::Ping(300),
        HostMessage::Shutdown,
        HostMessage::Renew(Renew {
            realtime_ns: 1_700_000_000_123_456_789,
            hostname: "fork".into(),
            entropy,
            shares: vec![ShareMount {
                name: "src".into(),
                guest_path: "/src".into(),
                read_only: false,
            }],
            network: true,
        }),
    ]
}

fn request_samples() -> Vec<ExecRequest> {
    vec![
        ExecRequest::Exec(Exec {
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), b"echo \xff".to_vec()],
            env: vec![(b"KEY".to_vec(), b"value".to_vec())],
            clear_env: true,
            cwd: Some(b"/src".to_vec()),
            tty: Some(TtySize { rows: 24, cols: 200 }),
            term: Some("xterm".into()),
            stdin: true,
            session: Some("chat-1".into()),
            timeout_ms: Some(90_000),
            background: true,
        }),
        ExecRequest::Signal(15),
        ExecRequest::Resize(TtySize { rows: 50, cols: 132 }),
        ExecRequest::Attach { process: 300 },
        ExecRequest::Detach,
    ]
}

fn reply_samples() -> Vec<ExecReply> {
    let failed =
        |kind| ExecReply::Failed(ExecFailed { kind, message: "`x` cannot be started".into() });
    vec![
        ExecReply::Started { pid: 4711, process: 300 },
        failed(FailureKind::NotFound),
        failed(FailureKind::PermissionDenied),
        failed(FailureKind::BadCwd),
        failed(FailureKind::NoSession),
        failed(FailureKind::NoProcess),
        failed(FailureKind::Exhausted),
        failed(FailureKind::Other),
        ExecReply::StdinTaken(65_536),
        ExecReply::StdinClosed,
        ExecReply::Exited(ExitStatus::Code(200)),
        ExecReply::Exited(ExitStatus::Signal(9)),
        ExecReply::Exited(ExitStatus::TimedOut),
        ExecReply::Attached { pid: 4711, window: 65_536 },
        ExecReply::Detached,
    ]
}

fn limits() -> SessionLimits {
    SessionLimits {
        memory: Some(1 << 28),
        pids: Some(512),
        cpu_weight: Some(200),
        cpu_max: Some(1500),
        io_read: Some(100 << 20),
        io_write: Some(50 << 20),
        disk: Some(1 << 30),
    }
}

fn session() -> SessionInfo {
    SessionInfo {
        name: "chat-1".into(),
        uid: 10_001,
        limits: limits(),
        shares: vec!["/src".into()],
        network: true,
        pids: 3,
        memory: 1 << 20,
        disk: 1 << 22,
    }
}

fn service_samples() -> Vec<Request> {
    let (name, session) = (String::from("chat-1"), Some(String::from("chat-1")));
    let share = ShareMount { name: "src".into(), guest_path: "/src".into(), read_only: false };
    vec![
        Request::CreateSession(SessionSpec {
            name: name.clone(),
            limits: limits(),
            shares: vec![share.clone()],
            network: Some(SessionCard {
                parent: "eth0".into(),
                mac: [2, 0xca, 0xba, 1, 0, 1],
                network: network(),
            }),
        }),
        Request::UpdateSession { name: name.clone(), limits: SessionLimits::default() },
        Request::RemoveSession { name },
        Request::ListSessions,
        Request::ListProcesses,
        Request::AddShare { session: session.clone(), share },
        Request::RemoveShare { session: session.clone(), guest_path: "/src".into() },
        Request::Push { session: session.clone(), path: b"in".to_vec() },
        Request::Pull { session: session.clone(), path: b"/etc/hosts".to_vec() },
        Request::Connect { session: session.clone(), address: "127.0.0.1".into(), port: 8080 },
        Request::Listen { session, address: "::1".into(), port: 0 },
        Request::Accept { connection: 300 },
        Request::Freeze,
        Request::Thaw,
        Request::FindOwner {
            session: Some("chat-1".into()),
            udp: true,
            address: ([10, 107, 1, 1], 40_000).into(),
        },
    ]
}

fn service_reply_samples() -> Vec<Reply> {
    let failed =
        |cause| Reply::Failed(Failed { cause, message: "session `x`: there is none".into() });
    vec![
        Reply::Done,
        Reply::Session(session()),
        Reply::Sessions(vec![session()]),
        Reply::Processes(vec![ProcessInfo {
            process: 300,
            pid: 4711,
            session: Some("chat-1".into()),
            command: "sleep 60".into(),
            attached: true,
            status: Some(ExitStatus::Signal(9)),
        }]),
        Reply::Connected,
        Reply::Listening { port: 8080 },
        Reply::Incoming { connection: 300 },
        Reply::Owner(Some(OwnerInfo { pid: 4711, name: "curl".into() })),
        failed(Cause::Invalid),
        failed(Cause::NotFound),
        failed(Cause::Exists),
        failed(Cause::Denied),
        failed(Cause::Exhausted),
        failed(Cause::Unsupported),
        failed(Cause::Other),
    ]
}

fn entry_samples() -> Vec<Entry> {
    vec![
        Entry::File { path: b"a/b".to_vec(), mode: 0o644, modified_ns: 1_700_000_000_123_456_789 },
        Entry::Folder { path: b"a".to_vec(), mode: 0o755 },
        Entry::Link { path: b"l".to_vec(), target: b"a/b".to_vec() },
        Entry::End,
    ]
}

/// Adds the samples' frames under their names, and checks that they decode to what they were.
fn add<M: Message + PartialEq + Debug>(
    frames: &mut BTreeMap<String, Vec<u8>>,
    samples: Vec<M>,
    name: fn(&M) -> &'static str,
) {
    for sample in samples {
        let bytes = sample.to_frame().unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next_frame().unwrap().unwrap().message::<M>().unwrap(), sample);
        assert!(decoder.is_empty());
        assert!(frames.insert(name(&sample).into(), bytes).is_none(), "two of {}", name(&sample));
    }
}

/// Every frame of the current generation by its name.
fn frames() -> BTreeMap<String, Vec<u8>> {
    let mut frames = BTreeMap::new();
    add(&mut frames, guest_samples(), guest_name);
    add(&mut frames, host_samples(), host_name);
    add(&mut frames, request_samples(), request_name);
    add(&mut frames, reply_samples(), reply_name);
    add(&mut frames, service_samples(), service_name);
    add(&mut frames, service_reply_samples(), service_reply_name);
    add(&mut frames, entry_samples(), entry_name);
    let raw = [
        ("stdin", Kind::Stdin),
        ("stdout", Kind::Stdout),
        ("stderr", Kind::Stderr),
        ("data", Kind::Data),
    ];
    for (name, kind) in raw {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, kind, b"raw bytes\n").unwrap();
        frames.insert(name.into(), bytes);
    }
    frames
}

/// Sixteen bytes a line.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        for (index, byte) in line.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(text, "{space}{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("goldens/v{PROTOCOL_VERSION}"))
}

#[test]
fn every_message_encodes_to_its_golden_bytes() {
    let make = env::var_os("CABANA_NEW_GOLDENS").is_some();
    let frames = frames();
    for (name, bytes) in &frames {
        let path = folder().join(name).with_extension("hex");
        if make && !path.exists() {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&path, to_hex(bytes)).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; the head of this test tells how to make it", path.display())
        });
        assert_eq!(
            to_hex(bytes),
            golden,
            "`{name}` changed its bytes: this breaks generation {PROTOCOL_VERSION}; the head of this \
             test tells how to add another"
        );
    }
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".hex").unwrap_or(&name);
        assert!(frames.contains_key(name), "the message of goldens `{name}` is gone");
    }
}
