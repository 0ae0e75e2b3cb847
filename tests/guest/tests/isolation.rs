//! Attempts to cross from one session into another, into the machine and into its host, by a list.
//!
//! `isolation/attacks.py` has those that a program in a session can make by itself. Each is made three
//! times at most: by the attacker's session, where it has to fail for the reason that stands here, and as
//! a control by the victim's own session or by the machine's root, where no wall is in the way, so that an
//! attempt which could never cross is found out. `docs/isolation.md` lists all of them with what stops each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cabana_sandbox::{
    Command, Entry, Error, Machine, MachineConfig, Process, ProcessEvent, Pulled, Scratch,
    SessionLimits, SessionSpec,
};
use cabana_test_guest::{Host, LIMIT, exec, finish, host, sh};

const ATTACKS: &str = include_str!("isolation/attacks.py");

/// The victim: a process with everything that has a name somewhere.
const VICTIM: &str = r"
import ctypes, os, signal, socket, sys
libc = ctypes.CDLL(None)
abstract = socket.socket(socket.AF_UNIX); abstract.bind('\0victim'); abstract.listen()
tcp = socket.create_server(('127.0.0.1', 7777))
tcp6 = socket.create_server(('::1', 7778), family=socket.AF_INET6)
assert libc.shmget(0x5ec2e7, 4096, 0o1600) >= 0
assert libc.semget(0x5ec2e7, 1, 0o1600) >= 0
assert libc.msgget(0x5ec2e7, 0o1600) >= 0
assert libc.syscall(240, b'victim', os.O_CREAT | os.O_RDWR, 0o600, None) >= 0
os.openpty()
for path in ['/dev/shm/victim', '/tmp/victim', '/var/tmp/victim', '/sessions/victim/secret']:
    open(path, 'w').write('secret')
print('ready', flush=True)
while True: signal.pause()
";

/// From where an attempt is made again, without the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Control {
    /// The victim's own session.
    Inside,
    /// The machine's root.
    Root,
    /// Nowhere: the kernel of the machine lacks it for everybody, or it would end what it is tried on.
    None,
}
use Control::{Inside, Root};

/// The attempts of `attacks.py`: name, what the attacker hears, and the control, which has to cross.
const ATTEMPTS: &[(&str, &str, Control)] = &[
    // Processes.
    ("kill-by-number", "ESRCH", Inside),
    ("kill-the-first-process", "EPERM", Control::None),
    ("pidfd-of-the-victim", "ESRCH", Root),
    ("see-the-victims-process", "not in /proc", Inside),
    ("environment-of-the-first-process", "EACCES", Root),
    ("root-of-the-first-process", "EACCES", Root),
    ("memory-of-the-first-process", "EACCES", Root),
    ("descriptors-of-the-first-process", "EACCES", Root),
    ("ptrace-the-first-process", "EPERM", Root),
    ("ptrace-by-the-machines-number", "ESRCH", Root),
    ("read-anothers-memory", "EPERM", Root),
    ("slow-the-victim-down", "ESRCH", Inside),
    ("go-before-others", "EACCES", Root),
    ("real-time-for-itself", "EPERM", Root),
    ("real-time-input-and-output", "EPERM", Root),
    ("limits-of-the-first-process", "EPERM", Root),
    ("raise-its-own-limits", "EPERM", Root),
    ("spared-when-memory-is-out", "EACCES", Root),
    // Names.
    ("abstract-socket-of-the-victim", "ECONNREFUSED", Inside),
    ("port-of-the-victim", "ECONNREFUSED", Inside),
    ("port-of-the-victim-by-ipv6", "ECONNREFUSED", Inside),
    ("connections-of-the-victim", "not in /proc/net/tcp", Inside),
    ("shared-memory-of-the-victim", "ENOENT", Inside),
    ("semaphores-of-the-victim", "ENOENT", Inside),
    ("messages-of-the-victim", "ENOENT", Inside),
    ("posix-queue-of-the-victim", "ENOENT", Inside),
    ("file-in-dev-shm", "ENOENT", Inside),
    ("file-in-tmp", "ENOENT", Inside),
    ("file-in-var-tmp", "ENOENT", Inside),
    ("home-by-its-path", "ENOENT", Inside),
    ("home-by-going-up", "ENOENT", Inside),
    ("home-by-the-root-of-a-process", "EACCES", Inside),
    ("file-by-its-handle", "EPERM", Root),
    ("hard-link-to-what-is-not-its-own", "EXDEV", Root),
    ("terminal-of-the-victim", "ENOENT", Inside),
    ("user-of-the-victim", "not in /etc/passwd", Inside),
    ("mounts-of-the-victim", "not in mountinfo", Inside),
    // Rights.
    ("become-root", "EPERM", Root),
    ("become-the-victim", "EPERM", Root),
    ("groups-of-root", "EPERM", Root),
    ("capabilities", "EPERM", Root),
    ("ambient-capabilities", "EPERM", Root),
    ("set-user-id-program", "effective user is its own", Root),
    ("program-with-capabilities", "EACCES", Root),
    ("set-user-id-of-its-own", "EPERM", Root),
    ("take-the-filter-off", "EINVAL", Control::None),
    ("new-privileges-again", "EINVAL", Control::None),
    // Namespaces and mounts.
    ("user-namespace", "EPERM", Root),
    ("user-namespace-by-clone", "EPERM", Root),
    ("user-namespace-by-clone3", "ENOSYS", Root),
    ("user-namespace-by-high-bits", "EPERM", Control::None),
    ("other-namespaces", "EPERM", Root),
    ("enter-a-namespace", "EPERM", Root),
    ("namespaces-of-the-first-process", "EACCES", Root),
    ("mount-a-tmpfs", "EPERM", Root),
    ("mount-over-etc-passwd", "EPERM", Root),
    ("mount-proc-anew", "EPERM", Root),
    ("mount-cgroups-anew", "EPERM", Root),
    ("mount-the-machines-disk", "EPERM", Root),
    ("make-the-root-writable", "EPERM", Root),
    ("unmount-what-it-sees", "EPERM", Root),
    ("change-the-root", "EPERM", Root),
    ("pivot-the-root", "EPERM", Control::None),
    ("new-mount-calls", "EPERM", Root),
    ("clone-a-tree-of-mounts", "EPERM", Root),
    ("attributes-of-a-mount", "EPERM", Root),
    // Devices and the kernel.
    ("vsock-to-the-host", "EAFNOSUPPORT", Root),
    ("vsock-by-high-bits", "EAFNOSUPPORT", Root),
    ("packet-socket", "EAFNOSUPPORT", Root),
    ("raw-socket", "EPERM", Root),
    ("kernel-events-by-netlink", "EAFNOSUPPORT", Root),
    ("own-network-interface", "EPERM", Root),
    ("raw-fuse", "EPERM", Root),
    ("device-node-of-the-disk", "EPERM", Root),
    ("machines-disk", "ENOENT", Root),
    ("machines-image", "ENOENT", Root),
    ("kernels-log", "ENOENT", Root),
    ("kernels-log-by-syslog", "EPERM", Root),
    ("exit-port-of-the-machine", "EPERM", Root),
    ("all-ports", "EPERM", Root),
    ("keyring", "ENOSYS", Control::None),
    ("keyring-of-the-session", "ENOSYS", Control::None),
    ("bpf-program", "EPERM", Control::None),
    ("performance-counters", "EPERM", Root),
    ("page-faults-in-user-space", "ENOSYS", Control::None),
    ("io-ring", "ENOSYS", Root),
    ("asynchronous-io", "ENOSYS", Root),
    ("watch-the-whole-file-system", "EPERM", Root),
    ("kernel-module", "EPERM", Control::None),
    ("another-kernel", "EPERM", Control::None),
    ("swap", "EPERM", Control::None),
    ("reboot", "EPERM", Root),
    ("clock", "EPERM", Control::None),
    ("name-of-the-machine", "EPERM", Root),
    ("accounting", "EPERM", Control::None),
    ("hang-up-terminals", "EPERM", Root),
    ("quotas", "EPERM", Control::None),
    ("old-memory-layout", "EPERM", Root),
    ("descriptor-table-of-the-processor", "ENOSYS", Control::None),
    ("calls-of-another-architecture", "signal 11", Control::None),
    ("calls-of-x32", "ENOSYS", Control::None),
    ("calls-of-a-later-kernel", "ENOSYS", Control::None),
    ("type-into-a-terminal", "ENOTTY", Root),
    ("out-of-the-quota", "ENOTTY", Root),
    ("immutable-file", "ENOTTY", Root),
    // The machine.
    ("write-to-etc", "EACCES", Root),
    ("make-a-program-of-the-machines", "EROFS", Root),
    ("read-shadow", "EACCES", Root),
    ("lease-on-a-shared-file", "EACCES", Root),
    ("where-cores-go", "EACCES", Root),
    ("settings-of-the-kernel", "EACCES", Root),
    ("write-to-sys", "EROFS", Root),
    ("own-memory-limit", "EROFS", Root),
    ("out-of-the-cgroup", "EROFS", Root),
    ("freeze-others", "EROFS", Root),
    ("cgroups-of-others", "it is the root of what it sees", Root),
    // Bombs.
    ("fork-bomb", "EAGAIN", Inside),
    ("thread-bomb", "EAGAIN", Inside),
    ("memory-bomb", "signal 9", Inside),
    ("shared-memory-bomb", "ENOSPC", Inside),
    ("fill-the-disk", "EDQUOT", Inside),
    ("fill-the-disk-by-tmp", "EDQUOT", Inside),
    ("reserve-the-disk", "EDQUOT", Inside),
    ("use-up-the-inodes", "EDQUOT", Inside),
    ("large-pipes", "EPERM", Root),
    ("use-up-the-terminals", "ENOSPC", Root),
];

/// A machine with a victim and an attacker, both sessions.
struct World {
    machine: Machine,
    victim: Process,
    victim_pid: u32,
    victim_uid: u32,
}

const ATTACKER: SessionLimits = SessionLimits {
    memory: Some(64 << 20),
    pids: Some(40),
    disk: Some(16 << 20),
    cpu_weight: None,
    cpu_max: None,
    io_read: None,
    io_write: None,
};

fn start(host: &Host) -> Machine {
    let config = MachineConfig {
        scratch: Scratch::Temporary {
            template: host.scratch.clone(),
            folder: std::env::temp_dir(),
        },
        ..host.machine()
    };
    Machine::start(&config).expect("a machine")
}

impl World {
    fn make(host: &Host) -> Self {
        let machine = start(host);
        let guest = machine.guest();
        guest.on_event(|_| {}).unwrap();
        let session = |name: &str, limits| {
            let spec = SessionSpec { name: name.into(), limits, ..SessionSpec::default() };
            guest.create_session(&spec).unwrap().uid
        };
        let victim_uid = session("victim", SessionLimits::default());
        session("attacker", ATTACKER);
        // A program of root's with the set-user-ID bit, and one with CAP_DAC_OVERRIDE (`struct
        // vfs_ns_cap_data`, version 2), which everybody in the machine may run.
        sh(
            &machine,
            "cp /usr/bin/id /usr/local/bin/root-id; chmod 4755 /usr/local/bin/root-id
             cp /usr/bin/cat /usr/local/bin/any-cat
             python3 -c 'import os; os.setxattr(\"/usr/local/bin/any-cat\", \"security.capability\", \
             bytes.fromhex(\"0100000202000000000000000000000000000000\"))'",
        )
        .succeeded();
        let command = Command {
            session: Some("victim".into()),
            ..Command::new(["python3", "-c", VICTIM, "victim-sleeper"])
        };
        let mut victim = machine.exec(&command).unwrap();
        let victim_pid = loop {
            match victim.next_event().unwrap() {
                ProcessEvent::Started(_) => {}
                ProcessEvent::Stdout(b"ready\n") => {
                    let pid = sh(&machine, "pgrep -f victim-sleeper | head -1").succeeded();
                    break pid.trim().parse().unwrap();
                }
                other => panic!("{other:?}"),
            }
        };
        let world = Self { machine, victim, victim_pid, victim_uid };
        for session in [Some("victim"), Some("attacker"), None] {
            world.put(session, "/var/tmp/attacks.py", ATTACKS.as_bytes());
        }
        world
    }

    fn put(&self, session: Option<&str>, path: &str, bytes: &[u8]) {
        let mut push = self.machine.guest().push(session, path.as_bytes()).unwrap();
        let entry = Entry::File { path: Vec::new(), mode: 0o644, modified_ns: 0 };
        push.entry(&entry, &mut &*bytes).unwrap();
        push.finish().unwrap();
    }

    fn in_session(&self, session: &str, script: &str) -> cabana_test_guest::Ran {
        let command =
            Command { session: Some(session.into()), ..Command::new(["sh", "-c", script]) };
        exec(&self.machine, &command).expect("the session runs commands")
    }

    /// Makes attempts from somewhere; what came of each.
    fn attempt(&self, role: &str, names: &[&str]) -> BTreeMap<String, String> {
        let session = match role {
            "attacker" => Some("attacker".to_owned()),
            "inside" => Some("victim".to_owned()),
            _ => None,
        };
        let (pid, uid) = (self.victim_pid.to_string(), self.victim_uid.to_string());
        let mut words = vec!["python3", "/var/tmp/attacks.py", role, &pid, &uid];
        words.extend(names);
        let ran = exec(&self.machine, &Command { session, ..Command::new(words) }).unwrap();
        let text = ran.succeeded();
        let pair = |line: &str| {
            let (name, said) = line.split_once('\t').unwrap_or((line, ""));
            (name.to_owned(), said.to_owned())
        };
        text.lines().map(pair).collect()
    }

    /// The victim is alive and well, and the agent answers.
    fn is_well(&self) -> bool {
        let alive = sh(&self.machine, &format!("kill -0 {}", self.victim_pid)).status == 0;
        alive && self.in_session("victim", "test \"$(cat ~/secret)\" = secret").status == 0
    }
}

#[test]
fn every_attempt_is_held_and_would_cross_without_the_wall() {
    let Some(host) = host() else { return };
    let world = World::make(host);
    let mut wrong = Vec::new();
    let names: Vec<&str> = ATTEMPTS.iter().map(|(name, ..)| *name).collect();
    let attacked = world.attempt("attacker", &names);
    for (name, why, _) in ATTEMPTS {
        let said = attacked.get(*name).map_or("nothing", String::as_str);
        println!("{name}: {said}");
        if said != format!("held: {why}") {
            wrong.push(format!("{name}: {said}, not held by {why}"));
        }
    }
    assert!(world.is_well(), "the victim is not well");
    for (role, control) in [("inside", Inside), ("root", Root)] {
        let names: Vec<&str> = ATTEMPTS
            .iter()
            .filter(|attempt| attempt.2 == control)
            .map(|(name, ..)| *name)
            .collect();
        let said = world.attempt(role, &names);
        for name in names {
            let said = said.get(name).map_or("nothing", String::as_str);
            if said != "crossed" {
                wrong.push(format!("{name}: the control ({role}) is {said}, so it shows nothing"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    drop(world.victim);
}

/// What the host copies for a session, and what stays of one, by name.
const AROUND: &[&str] = &[
    "link-in-the-way-of-a-push",
    "link-to-the-victim-in-the-way-of-a-push",
    "fifo-in-the-way-of-a-push",
    "path-out-of-a-push",
    "link-in-the-way-of-a-pull",
    "link-inside-what-is-pulled",
    "fifo-in-the-way-of-a-pull",
    "link-in-tmp-that-waits-for-the-victim",
    "kill-everything",
    "process-that-outlives-its-session",
    "files-of-a-removed-session",
];

#[test]
fn what_a_session_leaves_in_the_way_leads_nowhere() {
    let Some(host) = host() else { return };
    let world = World::make(host);
    let guest = world.machine.guest();
    let attacker = |script: &str| world.in_session("attacker", script);
    let file = |path: &str| Entry::File { path: path.into(), mode: 0o644, modified_ns: 0 };
    let push = |base: &str, path: &str| {
        let mut push = guest.push(Some("attacker"), base.as_bytes()).unwrap();
        let _ = push.entry(&file(path), &mut &b"planted"[..]);
        push.finish().map_err(|error| error.code())
    };
    let pull = |session: Option<&str>, path: &str| -> Result<Vec<Entry>, &'static str> {
        let mut pull = guest.pull(session, path.as_bytes()).map_err(|error| error.code())?;
        let mut entries = Vec::new();
        while let Some(piece) = pull.next_piece().map_err(|error| error.code())? {
            if let Pulled::Entry(entry) = piece {
                entries.push(entry);
            }
        }
        Ok(entries)
    };

    attacker("ln -s /etc ~/etc; ln -s /sessions/victim ~/box; mkfifo ~/fifo; mkdir ~/plain")
        .succeeded();
    assert_eq!(push("plain/x", ""), Ok(()), "the control");
    assert_eq!(push("etc/planted", ""), Err("denied"));
    assert_eq!(push("box/planted", ""), Err("refused"));
    assert_eq!(push("fifo", ""), Err("refused"));
    assert_eq!(push("plain", "../../victim/planted"), Err("invalid"));
    sh(&world.machine, "test ! -e /etc/planted").succeeded();
    assert_eq!(world.in_session("victim", "test ! -e ~/planted").status, 0);

    attacker("ln -s /etc/shadow ~/report; mkdir ~/all; ln -s /etc/passwd ~/all/passwd").succeeded();
    assert!(pull(None, "/etc/shadow").is_ok(), "the control");
    assert_eq!(pull(Some("attacker"), "report"), Err("denied"));
    let all = pull(Some("attacker"), "all").unwrap();
    let target = b"/etc/passwd".to_vec();
    assert!(all.contains(&Entry::Link { path: b"passwd".to_vec(), target }), "{all:?}");
    assert_eq!(pull(Some("attacker"), "fifo"), Err("invalid"));

    attacker("ln -s ~/stolen /tmp/report; mkdir -m 777 /tmp/shared").succeeded();
    world.in_session("victim", "echo private > /tmp/report; test ! -e /tmp/shared").succeeded();
    attacker("test ! -e ~/stolen; test -L /tmp/report").succeeded();

    // Everything that it may signal is its own; its own sleeper shows that the signal was sent.
    let sleeper = Command { session: Some("attacker".into()), ..Command::new(["sleep", "1000"]) };
    let mut sleeper = world.machine.exec(&sleeper).unwrap();
    let _ = attacker("kill -9 -1");
    assert_eq!(finish(&mut sleeper).unwrap().status, 137);
    assert!(world.is_well());

    let spec = SessionSpec { name: "gone".into(), ..SessionSpec::default() };
    let uid = guest.create_session(&spec).unwrap().uid;
    world
        .in_session("gone", "setsid sleep 98765 >/dev/null 2>&1 & for f in ~ /tmp /var/tmp /dev/shm; do echo x > $f/left; done")
        .succeeded();
    sh(&world.machine, "pgrep -f 'sleep 9876[5]'").succeeded();
    guest.remove_session("gone").unwrap();
    sh(&world.machine, "! pgrep -f 'sleep 9876[5]'").succeeded();
    sh(&world.machine, &format!("test ! -e /sys/fs/cgroup/sessions/{uid}")).succeeded();
    guest.create_session(&spec).unwrap();
    world
        .in_session(
            "gone",
            "for f in ~ /tmp /var/tmp /dev/shm; do test ! -e $f/left || exit 1; done",
        )
        .succeeded();
    drop(world.victim);
}

/// Bombs that are judged by what others notice, by name.
const BOMBS: &[&str] =
    &["use-up-the-open-files", "take-the-processors", "bombs-while-the-agent-answers"];

/// Opens files in 14 processes, says so, and keeps them.
const OPEN_FILES: &str = r"
import os, resource, signal
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
reader, writer = os.pipe()
for _ in range(14):
    if os.fork() == 0:
        count = 0
        try:
            while True: os.open('/dev/null', 0); count += 1
        except OSError: pass
        os.write(writer, b'%d\n' % count)
        signal.pause()
said = b''
while said.count(b'\n') < 14: said += os.read(reader, 100)
print(sum(map(int, said.split())), flush=True)
signal.pause()
";

#[test]
fn a_bomb_in_one_session_is_noticed_by_nobody_else() {
    let Some(host) = host() else { return };
    let world = World::make(host);
    // A software processor below two hypervisors is no measure of a second.
    let patience =
        if std::env::var_os("CABANA_LAB").is_some() { LIMIT } else { Duration::from_secs(1) };
    let answers = |what: &str| {
        let took = world.machine.guest().ping(patience).unwrap();
        println!("the agent answers within {took:?} during {what}");
    };
    let in_attacker = |words: &[&str]| {
        let command = Command { session: Some("attacker".into()), ..Command::new(words.to_vec()) };
        world.machine.exec(&command).unwrap()
    };

    let mut bomb = in_attacker(&["python3", "-c", OPEN_FILES]);
    let opened: u64 = loop {
        match bomb.next_event().unwrap() {
            ProcessEvent::Started(_) => {}
            ProcessEvent::Stdout(said) => {
                break String::from_utf8_lossy(said).trim().parse().unwrap();
            }
            other => panic!("{other:?}"),
        }
    };
    println!("{opened} files are open");
    assert!(world.is_well());
    // With a common limit that this would reach, the victim would notice.
    let limited = "old=$(cat /proc/sys/fs/file-max); echo 50000 > /proc/sys/fs/file-max; echo $old";
    let old = sh(&world.machine, limited).succeeded();
    let command = Command { session: Some("victim".into()), ..Command::new(["cat", "secret"]) };
    let noticed = exec(&world.machine, &command);
    assert!(!matches!(&noticed, Ok(ran) if ran.status == 0), "the control: {noticed:?}");
    sh(&world.machine, &format!("echo {} > /proc/sys/fs/file-max", old.trim())).succeeded();
    drop(bomb);

    let hog =
        in_attacker(&["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait"]);
    answers("a race for the processors");
    assert!(world.is_well());
    drop(hog);

    let forks = in_attacker(&["sh", "-c", "b() { b | b & }; b; sleep 1000"]);
    let eats = "x = []\nwhile True: x.append(bytearray(1 << 20))";
    let memory = in_attacker(&["python3", "-c", eats]);
    let disk = in_attacker(&["sh", "-c", "cat /dev/zero > ~/full"]);
    for _ in 0..3 {
        answers("bombs of all kinds");
        assert!(world.is_well());
    }
    drop((forks, memory, disk));
    world.machine.guest().remove_session("attacker").unwrap();
    assert!(world.is_well());
    drop(world.victim);
}

/// What a root of the guest does to the agent and to its conversation with the host: a name, a program of
/// its own, and whether the machine lives on.
const ABUSES: &[(&str, &str, bool)] = &[
    ("signals-to-the-agent", "for s in range(1, 32): os.kill(1, s) if s not in (19,) else None", true),
    (
        "agent-from-inside-the-guest",
        "for cid in (1, 3, 4):
    try:
        c = socket.socket(socket.AF_VSOCK); c.settimeout(2); c.connect((cid, 1024))
        c.send(frame(8, b'\\x03')); assert not c.recv(100), 'it answers'
    except OSError: pass",
        true,
    ),
    (
        "ports-of-the-host",
        "answered = []
for port in list(range(1, 1200)) + [5000, 8080]:
    try:
        c = socket.socket(socket.AF_VSOCK); c.settimeout(1); c.connect((2, port)); answered.append(port)
        c.send(os.urandom(64))
    except OSError: pass
assert set(answered) <= {1024, 1025}, answered",
        true,
    ),
    (
        "connections-without-end",
        "kept = []
for _ in range(3000):
    try:
        c = socket.socket(socket.AF_VSOCK); c.settimeout(1); c.connect((2, 1024)); kept.append(c)
    except OSError: break
print(len(kept))",
        true,
    ),
    ("garbage-on-the-control-connection", "control().send(os.urandom(4096))", false),
    ("frame-that-is-too-long", "control().send(struct.pack('<IB', 0xffffffff, 1))", false),
    ("frame-of-no-kind", "control().send(struct.pack('<IB', 1, 200) + b'x')", false),
    ("message-out-of-turn", "control().send(frame(1, b'\\x01\\x00\\x00\\x00'))", false),
    ("forged-farewell", "control().send(frame(1, b'\\x04'))", false),
    (
        "events-without-end",
        "c = control()
for _ in range(20000): c.sendall(frame(1, b'\\x05\\x01\\x01x'))",
        true,
    ),
    ("input-window-returned-twice", "own().send(frame(4, b'\\x02\\xff\\xff\\xff\\xff\\x0f')); time.sleep(60)", true),
    ("forged-end-of-a-command", "own().send(frame(4, b'\\x04\\x00\\x07') + os.urandom(999)); time.sleep(60)", true),
    ("output-of-no-command", "[s.send(frame(9, b'\\x00')) for s in [own()]]; time.sleep(60)", true),
];

/// Takes the agent's own sockets from it, as only root can.
const THIEF: &str = r"
import ctypes, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def frame(kind, payload): return struct.pack('<IB', len(payload), kind) + payload
def stolen():
    agent = os.pidfd_open(1)
    for number in range(3, 256):
        fd = libc.syscall(438, agent, number, 0)
        if fd < 0: continue
        try:
            s = socket.socket(fileno=fd)
            if s.family == socket.AF_VSOCK: yield s, s.getpeername()
        except OSError: pass
def control(): return next(s for s, peer in stolen() if peer == (2, 1024))
def own(): return [s for s, peer in stolen() if peer[0] == 2 and peer[1] not in (1024, 1025)][-1]
";

#[test]
fn a_root_of_the_guest_gains_nothing_by_abusing_the_protocol() {
    let Some(host) = host() else { return };
    let mut machine: Option<Machine> = None;
    for (name, program, lives) in ABUSES {
        let world = machine.take().unwrap_or_else(|| {
            let machine = start(host);
            machine.guest().on_event(|_| {}).unwrap();
            machine
        });
        let begun = Instant::now();
        let command = Command::new(["python3", "-c", &format!("{THIEF}\n{program}")]);
        // Whatever the host is told of this command: it ends, and with a word that has a type.
        let ran = exec(&world, &Command { stdin: true, ..command });
        let said = match &ran {
            Ok(ran) => format!("status {}, {}", ran.status, String::from_utf8_lossy(&ran.stderr)),
            Err(error) => format!("{}: {error}", error.code()),
        };
        println!("{name}: {said} after {:?}", begun.elapsed());
        assert!(!said.contains("Error"), "{name} has not been tried: {said}");
        match *name {
            "forged-end-of-a-command" => assert_eq!(ran.unwrap().status, 7),
            "input-window-returned-twice" | "output-of-no-command" => {
                assert!(matches!(ran, Err(Error::Protocol(_))), "{name}: {said}");
            }
            _ => {}
        }
        assert!(begun.elapsed() < LIMIT);
        if *lives {
            world.guest().ping(LIMIT).unwrap();
            sh(&world, "true").succeeded();
            machine = Some(world);
        } else {
            // A guest that breaks the protocol ends itself, or is of no more use; the host is well.
            let after = exec(&world, &Command::new(["true"]));
            println!("{name}: afterwards {after:?}");
            world.stop();
        }
    }
}

#[test]
fn the_guide_lists_every_attempt() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/isolation.md");
    let guide = fs::read_to_string(path).unwrap();
    let (_, list) = guide.split_once("## The attempts").expect("a list");
    let list = list.split("\n## ").next().unwrap_or(list);
    let rows = list.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut listed = BTreeSet::new();
    for row in rows {
        let (names, wall) = row.split_once(" | ").expect("two columns");
        assert!(wall.trim_end_matches(" |").len() > 8, "{row} says what stops it");
        for name in names.split(", ") {
            let name = name.trim_matches('`').to_owned();
            assert!(listed.insert(name.clone()), "{name} is listed twice");
        }
    }
    let made = ATTEMPTS.iter().map(|(name, ..)| *name);
    let made = made.chain(AROUND.iter().copied()).chain(BOMBS.iter().copied());
    let made: BTreeSet<String> =
        made.chain(ABUSES.iter().map(|(name, ..)| *name)).map(str::to_owned).collect();
    assert_eq!(listed, made);
    assert!(made.len() >= 60, "{}", made.len());
    println!("{} attempts", made.len());
}
