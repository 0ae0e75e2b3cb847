//! Sessions of one machine: made, used, limited, removed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;

use cabana_sandbox::{
    Command, Entry, Error, Event, ExitStatus, Guest, Machine, MachineConfig, ProcessEvent, Pulled,
    Scratch, SessionLimits, SessionSpec, TtySize,
};
use cabana_test_guest::{LIMIT, Ran, exec, host};

struct World {
    machine: Machine,
    events: Arc<Events>,
}

/// Everything that the agent has told.
#[derive(Default)]
struct Events {
    told: Mutex<Vec<Event>>,
    changed: Condvar,
}

impl World {
    fn wait_for(&self, wanted: impl Fn(&Event) -> bool) {
        let told = self.events.told.lock().unwrap();
        let missing = |told: &mut Vec<Event>| !told.iter().any(&wanted);
        let (told, waited) = self.events.changed.wait_timeout_while(told, LIMIT, missing).unwrap();
        assert!(!waited.timed_out(), "{told:?}");
    }
}

/// The machine of all cases here, which ends with this process. Sessions have a disk.
fn world() -> Option<&'static World> {
    static WORLD: OnceLock<World> = OnceLock::new();
    let host = host()?;
    Some(WORLD.get_or_init(|| {
        let config = MachineConfig {
            cpus: 2,
            scratch: Scratch::Temporary {
                template: host.scratch.clone(),
                folder: std::env::temp_dir(),
            },
            ..host.machine()
        };
        let machine = Machine::start(&config).expect("a machine");
        let events = Arc::new(Events::default());
        let log = Arc::clone(&events);
        let note = move |event| {
            log.told.lock().unwrap().push(event);
            log.changed.notify_all();
        };
        machine.guest().on_event(note).unwrap();
        World { machine, events }
    }))
}

/// A session that is removed in the end.
struct Session<'a> {
    guest: &'a Guest,
    machine: &'a Machine,
    name: String,
}

impl<'a> Session<'a> {
    fn create(world: &'a World, name: &str, limits: SessionLimits) -> Self {
        let spec = SessionSpec { name: name.into(), limits, ..SessionSpec::default() };
        let guest = world.machine.guest();
        guest.create_session(&spec).unwrap();
        Self { guest, machine: &world.machine, name: name.into() }
    }

    fn command(&self, script: &str) -> Command {
        Command { session: Some(self.name.clone()), ..Command::new(["sh", "-ec", script]) }
    }

    fn sh(&self, script: &str) -> Ran {
        exec(self.machine, &self.command(script)).expect("the session runs commands")
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // A failing case has its own words.
        let removed = self.guest.remove_session(&self.name);
        if !thread::panicking() {
            removed.unwrap();
        }
    }
}

fn no_limits() -> SessionLimits {
    SessionLimits::default()
}

#[test]
fn a_session_is_a_user_with_a_home_of_its_own() {
    let Some(world) = world() else { return };
    let session = Session::create(world, "chat-1", no_limits());
    let said = session
        .sh("id -un; id -u; id -G; pwd; echo $HOME $USER; hostname; touch file; ls -A; \
             cat /proc/self/status | grep -E '^(CapEff|CapBnd|CapPrm|NoNewPrivs|Seccomp):'")
        .succeeded();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "chat-1");
    let uid: u32 = lines[1].parse().unwrap();
    assert!((10_000..60_000).contains(&uid));
    assert_eq!(lines[2], lines[1]);
    assert_eq!(lines[3], "/sessions/chat-1");
    assert_eq!(lines[4], "/sessions/chat-1 chat-1");
    assert_eq!(lines[5], "chat-1");
    assert_eq!(lines[6], "file");
    let status: Vec<String> = lines[7..]
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        status,
        [
            "CapPrm: 0000000000000000",
            "CapEff: 0000000000000000",
            "CapBnd: 0000000000000000",
            "NoNewPrivs: 1",
            "Seccomp: 2"
        ]
    );
}

#[test]
fn a_session_sees_its_own_devices_files_and_processes_alone() {
    let Some(world) = world() else { return };
    let (one, two) = (
        Session::create(world, "see-1", no_limits()),
        Session::create(world, "see-2", no_limits()),
    );
    two.sh("echo secret >~/file; echo secret >/tmp/file; echo secret >/dev/shm/file").succeeded();
    assert_eq!(
        one.sh("ls /sessions; ls -A /tmp /var/tmp /dev/shm /run").succeeded(),
        "see-1\n/dev/shm:\n\n/run:\n\n/tmp:\n\n/var/tmp:\n"
    );
    let devices = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(one.sh("echo $(ls /dev)").succeeded().trim(), devices);
    // The agent's own limit of open files is not for its commands.
    assert_eq!(one.sh("ulimit -n; ulimit -Hn").succeeded(), "1024\n4096\n");
    // The keeper, the shell and what it starts.
    assert_eq!(one.sh("ls /proc | grep -c '^[0-9]'").succeeded().trim(), "4");
    assert_eq!(one.sh("ls /sys/class/net; cat /proc/self/cgroup").succeeded(), "lo\n0::/\n");
    one.sh("! touch /usr/x 2>/dev/null; ! touch /x 2>/dev/null; ! touch /etc/x 2>/dev/null; \
            ! touch /dev/x 2>/dev/null; ! touch /sys/fs/cgroup/x 2>/dev/null; touch /tmp/x /var/tmp/x").succeeded();
}

#[test]
fn a_name_is_taken_once_and_bad_requests_are_told() {
    let Some(world) = world() else { return };
    let guest = world.machine.guest();
    let _session = Session::create(world, "taken", no_limits());
    let spec = |name: &str| SessionSpec { name: name.into(), ..SessionSpec::default() };
    let code = |result: Result<_, Error>| {
        result.map(|_: cabana_sandbox::SessionInfo| ()).unwrap_err().code()
    };
    assert_eq!(code(guest.create_session(&spec("taken"))), "exists");
    for bad in ["", "../x", "a/b", "a b", ".x"] {
        assert_eq!(code(guest.create_session(&spec(bad))), "invalid", "{bad}");
    }
    let weak = SessionLimits { memory: Some(1), ..no_limits() };
    assert_eq!(
        code(guest.create_session(&SessionSpec { limits: weak, ..spec("weak") })),
        "invalid"
    );
    assert_eq!(guest.remove_session("no-such").unwrap_err().code(), "not-found");
    let command = Command { session: Some("no-such".into()), ..Command::new(["true"]) };
    match exec(&world.machine, &command) {
        Err(Error::Exec { shell_code: 126, message }) => {
            assert!(message.contains("no-such"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_that_runs_out_is_the_sessions_own_event() {
    let Some(world) = world() else { return };
    let limits = SessionLimits { memory: Some(48 << 20), ..no_limits() };
    let (greedy, other) =
        (Session::create(world, "greedy", limits), Session::create(world, "modest", no_limits()));
    let ran = greedy.sh("exec python3 -c 'x = bytearray(200 << 20)'");
    assert_eq!(ran.status, 137);
    let killed = |event: &Event| match event {
        Event::OutOfMemory { session, command, memory, .. } => {
            session.as_deref() == Some("greedy")
                && command == "python3"
                && (10 << 20..64 << 20).contains(memory)
        }
        _ => false,
    };
    world.wait_for(killed);
    other.sh("true").succeeded();
    greedy.sh("echo alive").succeeded();
}

#[test]
fn a_fork_bomb_is_the_sessions_own_event() {
    let Some(world) = world() else { return };
    let limits = SessionLimits { pids: Some(40), memory: Some(64 << 20), ..no_limits() };
    let (bomb, other) =
        (Session::create(world, "bomb", limits), Session::create(world, "calm", no_limits()));
    let mut running = world.machine.exec(&bomb.command("b() { b | b & }; b; sleep 1000")).unwrap();
    world.wait_for(|event| *event == Event::ProcessLimit { session: "bomb".into() });
    world.machine.guest().ping(LIMIT).unwrap();
    other.sh("true").succeeded();
    drop(bomb);
    while let Ok(event) = running.next_event() {
        if let ProcessEvent::Exited(status) = event {
            assert_ne!(status, ExitStatus::Code(0));
            break;
        }
    }
}

#[test]
fn a_quota_ends_a_sessions_writing_and_nobody_elses() {
    let Some(world) = world() else { return };
    let limits = SessionLimits { disk: Some(8 << 20), ..no_limits() };
    let spec = SessionSpec { name: "probe".into(), limits, ..SessionSpec::default() };
    match world.machine.guest().create_session(&spec) {
        Ok(_) => world.machine.guest().remove_session("probe").unwrap(),
        Err(error) => {
            assert_eq!(error.code(), "unsupported", "{error}");
            return println!("skipped: {error}");
        }
    }
    let (full, other) =
        (Session::create(world, "full", limits), Session::create(world, "free", no_limits()));
    let ran = full.sh(
        "dd if=/dev/zero of=/tmp/a bs=1M count=5 2>&1; dd if=/dev/zero of=b bs=1M count=5 2>&1",
    );
    assert_ne!(ran.status, 0);
    assert!(ran.text().contains("Disk quota exceeded"), "{}", ran.text());
    let used = world.machine.guest().sessions().unwrap();
    let used = used.iter().find(|session| session.name == "full").unwrap().disk;
    assert!((7 << 20..=8 << 20).contains(&used), "{used}");
    other.sh("dd if=/dev/zero of=a bs=1M count=10 2>/dev/null").succeeded();
    full.sh("rm b /tmp/a; dd if=/dev/zero of=c bs=1M count=6 2>/dev/null").succeeded();
    // A larger quota counts at once.
    let larger = SessionLimits { disk: Some(32 << 20), ..no_limits() };
    world.machine.guest().update_session("full", larger).unwrap();
    full.sh("dd if=/dev/zero of=d bs=1M count=16 2>/dev/null").succeeded();
}

#[test]
fn a_background_command_outlives_its_connection_and_loses_nothing() {
    let Some(world) = world() else { return };
    let session = Session::create(world, "back", no_limits());
    // More than is kept: it waits for somebody who reads.
    let command = Command {
        background: true,
        stdin: true,
        ..session.command("read line; seq 1 300000; echo $line >&2; exit 7")
    };
    let mut first = world.machine.exec(&command).unwrap();
    assert!(matches!(first.next_event().unwrap(), ProcessEvent::Started(_)));
    let number = first.number();
    assert_ne!(number, 0);
    first.detach();
    assert_eq!(first.next_event().unwrap(), ProcessEvent::Detached);
    let listed = world.machine.guest().processes().unwrap();
    let listed = listed.iter().find(|process| process.process == number).unwrap();
    assert_eq!((listed.session.as_deref(), listed.attached), (Some("back"), false));

    let mut second = world.machine.guest().attach(number).unwrap();
    assert!(matches!(second.next_event().unwrap(), ProcessEvent::Started(_)));
    assert!(second.input().write_stdin(b"end\n"));
    let mut stdout = Vec::new();
    // Some of it is read, then the reader leaves and another takes over.
    while stdout.len() < 100_000 {
        if let ProcessEvent::Stdout(bytes) = second.next_event().unwrap() {
            stdout.extend_from_slice(bytes);
        }
    }
    second.detach();
    loop {
        match second.next_event().unwrap() {
            ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(bytes),
            ProcessEvent::Detached => break,
            other => panic!("{other:?}"),
        }
    }
    let mut third = world.machine.guest().attach(number).unwrap();
    let mut stderr = Vec::new();
    let status = loop {
        match third.next_event().unwrap() {
            ProcessEvent::Started(_) => {}
            ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(bytes),
            ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(bytes),
            ProcessEvent::Exited(status) => break status,
            ProcessEvent::Detached => panic!("nobody else is there"),
        }
    };
    let expected = (1..=300_000).fold(String::new(), |text, number| text + &format!("{number}\n"));
    assert!(stdout == expected.as_bytes(), "{} of {} bytes", stdout.len(), expected.len());
    assert_eq!((status, stderr.as_slice()), (ExitStatus::Code(7), &b"end\n"[..]));
    let gone = world.machine.guest().attach(number).unwrap().next_event().map(|_| ());
    assert!(matches!(gone, Err(Error::Exec { .. })), "{gone:?}");
}

#[test]
fn a_command_whose_time_is_over_ends() {
    let Some(world) = world() else { return };
    let session = Session::create(world, "late", no_limits());
    let timed = |script: &str| {
        let command = Command { timeout_ms: Some(300), ..session.command(script) };
        exec(&world.machine, &command).unwrap()
    };
    let ran = timed("echo before; sleep 1000; echo after");
    assert_eq!((ran.status, ran.text().as_str()), (124, "before\n"));
    // One that does not mind is killed.
    assert_eq!(timed("trap '' TERM; while :; do sleep 1; done").status, 124);
    let quick = Command { timeout_ms: Some(600_000), ..session.command("exit 3") };
    assert_eq!(exec(&world.machine, &quick).unwrap().status, 3);
}

#[test]
fn files_are_pushed_and_pulled_with_the_sessions_rights() {
    let Some(world) = world() else { return };
    let (guest, session) = (world.machine.guest(), Session::create(world, "files", no_limits()));
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let mut push = guest.push(Some("files"), b"in").unwrap();
    let folder = Entry::Folder { path: b"".to_vec(), mode: 0o755 };
    push.entry(&folder, &mut std::io::empty()).unwrap();
    let file = |path: &str| Entry::File {
        path: path.into(),
        mode: 0o640,
        modified_ns: 1_600_000_000_000_000_000,
    };
    push.entry(&file("large"), &mut &bytes[..]).unwrap();
    push.entry(&file("sub/empty"), &mut std::io::empty()).unwrap();
    let link = Entry::Link { path: b"link".to_vec(), target: b"large".to_vec() };
    push.entry(&link, &mut std::io::empty()).unwrap();
    push.finish().unwrap();
    let said = session
        .sh("cd in; stat -c '%a %s %Y %U' large; readlink link; ls sub; sha256sum <link")
        .succeeded();
    assert!(said.starts_with("640 3000000 1600000000 files\nlarge\nempty\n"), "{said}");

    let mut pull = guest.pull(Some("files"), b"in").unwrap();
    let (mut names, mut pulled) = (BTreeSet::new(), Vec::new());
    while let Some(piece) = pull.next_piece().unwrap() {
        match piece {
            Pulled::Entry(
                Entry::File { path, .. } | Entry::Folder { path, .. } | Entry::Link { path, .. },
            ) => {
                names.insert(String::from_utf8(path).unwrap());
            }
            Pulled::Entry(Entry::End) => unreachable!("it is the end"),
            Pulled::Bytes(bytes) => pulled.extend_from_slice(bytes),
        }
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["", "large", "link", "sub", "sub/empty"]);
    assert!(pulled == bytes);

    let refused = |path: &[u8]| {
        let mut pull = guest.pull(Some("files"), path).unwrap();
        pull.next_piece().map(|_| ()).unwrap_err().code()
    };
    assert_eq!(refused(b"none"), "not-found");
    assert_eq!(refused(b"/etc/shadow"), "denied");
    assert_eq!(refused(b"/dev/zero"), "invalid");
    let mut push = guest.push(Some("files"), b"/etc/new").unwrap();
    let _ = push.entry(&file(""), &mut &b"x"[..]);
    assert_eq!(push.finish().unwrap_err().code(), "denied");
    let mut push = guest.push(Some("files"), b"in").unwrap();
    let _ = push.entry(&file("../out"), &mut &b"x"[..]);
    assert_eq!(push.finish().unwrap_err().code(), "invalid");
}

#[test]
fn tunnels_lead_into_a_session_and_out_of_it() {
    let Some(world) = world() else { return };
    let (guest, session) = (world.machine.guest(), Session::create(world, "net", no_limits()));
    let bytes: Vec<u8> = (0..500_000u32).map(|number| (number % 253) as u8).collect();

    // Into it: a server of the session's, which no other network sees.
    let script = "import socket\n\
                  s = socket.create_server(('127.0.0.1', 8080)); print('ready', flush=True)\n\
                  c, _ = s.accept(); d = b''\n\
                  while True:\n  p = c.recv(65536)\n  if not p: break\n  d += p\n\
                  c.sendall(d[::-1]); c.close()";
    let command =
        Command { session: Some("net".into()), ..Command::new(["python3", "-c", script]) };
    let mut server = world.machine.exec(&command).unwrap();
    while !matches!(server.next_event().unwrap(), ProcessEvent::Stdout(_)) {}
    assert!(guest.connect(None, "127.0.0.1", 8080).is_err());
    let mut tunnel = guest.connect(Some("net"), "127.0.0.1", 8080).unwrap();
    tunnel.write_all(&bytes).unwrap();
    tunnel.finish().unwrap();
    let mut back = Vec::new();
    tunnel.read_to_end(&mut back).unwrap();
    back.reverse();
    assert!(back == bytes);

    // Out of it: the host listens in the session's network.
    let mut listener = guest.listen(Some("net"), "127.0.0.1", 0).unwrap();
    let script = format!(
        "import socket\nc = socket.create_connection(('127.0.0.1', {}))\n\
         c.sendall(b'question'); c.shutdown(1); print(c.recv(100).decode())",
        listener.port()
    );
    thread::scope(|scope| {
        let client = scope.spawn(|| session.sh(&format!("python3 -c \"{script}\"")).succeeded());
        let mut tunnel = guest.accept(listener.next_connection().unwrap()).unwrap();
        let mut question = String::new();
        tunnel.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        tunnel.write_all(b"answer").unwrap();
        tunnel.finish().unwrap();
        assert_eq!(client.join().unwrap(), "answer\n");
    });
}

#[test]
fn a_terminal_is_the_sessions_own() {
    let Some(world) = world() else { return };
    let session = Session::create(world, "term", no_limits());
    let command = Command {
        tty: Some(TtySize { rows: 30, cols: 100 }),
        ..session.command("tty; stty size; stat -c %U $(tty)")
    };
    let ran = exec(&world.machine, &command).unwrap();
    assert_eq!(ran.succeeded(), "/dev/pts/0\r\n30 100\r\nterm\r\n");
}

#[test]
fn many_commands_at_once_lose_and_mix_nothing() {
    let Some(world) = world() else { return };
    at_once(world, 24, 1 << 20);
}

#[test]
#[ignore = "64 MiB through 200 commands take minutes in the lab"]
fn two_hundred_commands_at_once_lose_and_mix_nothing() {
    let Some(world) = world() else { return };
    at_once(world, 200, 64 << 20);
}

/// Sends `total` bytes through `count` commands at once, in both directions.
fn at_once(world: &World, count: usize, total: usize) {
    let session = Session::create(world, "crowd", no_limits());
    let length = total / count;
    thread::scope(|scope| {
        for number in 0..count {
            let (session, command) = (&session, session.command("cat"));
            scope.spawn(move || {
                let bytes: Vec<u8> =
                    (0..length).map(|index| ((index * 31 + number * 7) % 251) as u8).collect();
                let ran = cabana_test_guest::exec_with(session.machine, &command, bytes.clone());
                let ran = ran.unwrap();
                assert!(ran.status == 0 && ran.stdout == bytes, "command {number}");
            });
        }
    });
}

#[test]
fn sessions_that_were_removed_leave_nothing() {
    let Some(world) = world() else { return };
    cycles(world, 30);
}

#[test]
#[ignore = "1,000 sessions take minutes in the lab"]
fn a_thousand_sessions_that_were_removed_leave_nothing() {
    let Some(world) = world() else { return };
    cycles(world, 1000);
}

/// What sessions could leave in the machine: mounts, cgroups, processes, descriptors and threads of the agent,
/// folders on the disk, users.
fn left(world: &World) -> String {
    let script = "wc -l < /proc/mounts; ls /sys/fs/cgroup/sessions | grep -c '^[0-9]' || true
        ls -l /proc/[0-9]*/exe 2>/dev/null | grep -c ' -> '; ls /proc/1/fd | wc -l; ls /proc/1/task | wc -l
        mkdir -p /mnt/disk; mount /dev/vda /mnt/disk; ls -A /mnt/disk/sessions /mnt/disk/trash; umount /mnt/disk
        find /run/cabana; cksum < /etc/passwd; ls -A /sessions 2>/dev/null || true";
    cabana_test_guest::sh(&world.machine, script).succeeded()
}

/// Sessions that are being made or removed at a time.
const AT_ONCE: usize = 8;

/// Makes and removes sessions that make a mess, and looks for what they leave.
fn cycles(world: &World, count: usize) {
    let guest = world.machine.guest();
    let mess = "for f in ~ /tmp /var/tmp /dev/shm; do mkdir -p $f/a/b; echo x > $f/a/b/file; done
        setsid sleep 1000 >/dev/null 2>&1 &";
    let cycle = |worker: usize, number: usize| {
        let limits = SessionLimits {
            memory: Some(32 << 20),
            pids: Some(20),
            disk: Some(4 << 20),
            ..no_limits()
        };
        let name = format!("cycle-{worker}");
        let spec = SessionSpec { name: name.clone(), limits, ..SessionSpec::default() };
        let uid = guest.create_session(&spec).unwrap().uid;
        if number.is_multiple_of(10) {
            let command =
                Command { session: Some(name.clone()), ..Command::new(["sh", "-c", mess]) };
            exec(&world.machine, &command).unwrap().succeeded();
        }
        guest.remove_session(&name).unwrap();
        uid
    };
    // The first makes what all of them need.
    cycle(0, 0);
    let settled = |wanted: Option<&str>| {
        // Files are deleted, and the kernel lets go of namespaces, behind the answer.
        let begun = std::time::Instant::now();
        loop {
            let now = left(world);
            let quiet = wanted.map_or_else(|| left(world) == now, |wanted| wanted == now);
            if quiet || begun.elapsed() > LIMIT / 4 {
                return now;
            }
        }
    };
    let before = settled(None);
    let begun = std::time::Instant::now();
    // Several at a time: most of it is waiting for the guest's kernel.
    let next = AtomicUsize::new(0);
    let work = &|worker| {
        let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        let mine = numbers.take_while(|number| *number < count);
        mine.map(|number| cycle(worker, number)).collect::<BTreeSet<u32>>()
    };
    let users: BTreeSet<u32> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..AT_ONCE).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let each = begun.elapsed() / count as u32;
    println!("{count} sessions, {each:?} each, {} users", users.len());
    assert_eq!(settled(Some(&before)), before);
    assert!(users.len() <= count.min(50), "users are not taken again: {users:?}");
    assert_eq!(guest.sessions().unwrap().iter().filter(|s| s.name.starts_with("cycle")).count(), 0);
}

#[test]
fn tools_and_runtimes_work_in_a_session() {
    let Some(world) = world() else { return };
    let session = Session::create(world, "tools", no_limits());
    session
        .sh("python3 -c 'import subprocess, threading, multiprocessing as m; \
             print(subprocess.check_output([\"echo\", \"sub\"])); t = threading.Thread(target=print); \
             t.start(); t.join(); p = m.Process(target=print); p.start(); p.join(); assert p.exitcode == 0'")
        .succeeded();
    session
        .sh("git init -q repo; cd repo; git config user.email a@b; git config user.name a; echo x >f; \
             git add f; git commit -qm first; git log --oneline | grep -q first; git gc -q; \
             git clone -q . ../copy")
        .succeeded();
    for (tool, script) in [
        (
            "node",
            "node -e 'require(\"fs\").writeFileSync(\"n\", \"x\"); \
                  require(\"child_process\").execSync(\"true\"); new Worker; ' 2>/dev/null || \
                  node -e 'new (require(\"worker_threads\").Worker)(\"0\", {eval: true})'",
        ),
        ("gcc", "echo 'int main(){return 0;}' >m.c; gcc m.c -o m; ./m"),
        ("make", "printf 'a:\\n\\techo made >a\\n' >Makefile; make -s; grep -q made a"),
    ] {
        if session.sh(&format!("command -v {tool} >/dev/null")).status == 0 {
            session.sh(script).succeeded();
        } else {
            println!("not in this image: {tool}");
        }
    }
}
