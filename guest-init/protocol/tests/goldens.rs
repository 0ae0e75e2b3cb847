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
use std::path::{Path, PathBuf};
use std::{env, fs};

use cabana_protocol::{
    Decoder, Exec, ExecFailed, ExecReply, ExecRequest, ExitStatus, FailureKind, GuestMessage,
    Hello, HostMessage, Kind, Message, PROTOCOL_VERSION, Ready, RootSetup, Setup, SetupFailed,
    ShareMount, TtySize, write_frame,
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
    }
}

fn host_name(message: &HostMessage) -> &'static str {
    match message {
        HostMessage::Setup(_) => "setup",
        HostMessage::Ping(_) => "ping",
        HostMessage::Shutdown => "shutdown",
    }
}

fn request_name(message: &ExecRequest) -> &'static str {
    match message {
        ExecRequest::Exec(_) => "exec",
        ExecRequest::Signal(_) => "signal",
        ExecRequest::Resize(_) => "resize",
    }
}

fn reply_name(message: &ExecReply) -> &'static str {
    match message {
        ExecReply::Started { .. } => "started",
        ExecReply::Failed(failed) => match failed.kind {
            FailureKind::NotFound => "failed-not-found",
            FailureKind::PermissionDenied => "failed-permission-denied",
            FailureKind::BadCwd => "failed-bad-cwd",
            FailureKind::Other => "failed-other",
        },
        ExecReply::StdinTaken(_) => "stdin-taken",
        ExecReply::StdinClosed => "stdin-closed",
        ExecReply::Exited(ExitStatus::Code(_)) => "exited-code",
        ExecReply::Exited(ExitStatus::Signal(_)) => "exited-signal",
    }
}

fn guest_samples() -> Vec<GuestMessage> {
    vec![
        GuestMessage::Hello(Hello {
            protocol: 1,
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
    ]
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
        }),
        HostMessage::Ping(300),
        HostMessage::Shutdown,
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
        }),
        ExecRequest::Signal(15),
        ExecRequest::Resize(TtySize { rows: 50, cols: 132 }),
    ]
}

fn reply_samples() -> Vec<ExecReply> {
    let failed =
        |kind| ExecReply::Failed(ExecFailed { kind, message: "`x` cannot be started".into() });
    vec![
        ExecReply::Started { pid: 4711 },
        failed(FailureKind::NotFound),
        failed(FailureKind::PermissionDenied),
        failed(FailureKind::BadCwd),
        failed(FailureKind::Other),
        ExecReply::StdinTaken(65_536),
        ExecReply::StdinClosed,
        ExecReply::Exited(ExitStatus::Code(200)),
        ExecReply::Exited(ExitStatus::Signal(9)),
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
    for (name, kind) in [("stdin", Kind::Stdin), ("stdout", Kind::Stdout), ("stderr", Kind::Stderr)]
    {
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
