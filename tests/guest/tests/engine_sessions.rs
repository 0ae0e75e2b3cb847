//! Sessions in the engine's API, with their files, ports, shares and events, over the worker's link.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use cabana_engine::{
    CommandSpec, Copied, Engine, EngineConfig, Error, Events, Exit, Machine, MachineEvent,
    MachineSpec, Session, SessionLimits, SessionSpec, ShareSpec, WorkerKind,
};
use cabana_test_guest::{Host, LIMIT, host};

fn machine(host: &Host, spec: MachineSpec) -> Machine {
    let worker = WorkerKind::Program(host.binary.clone());
    let engine = Engine::new(EngineConfig { worker, ..EngineConfig::default() }).unwrap();
    engine.machine(spec).unwrap()
}

fn named(name: &str) -> SessionSpec {
    SessionSpec { name: name.to_owned(), ..SessionSpec::default() }
}

fn sh(session: &Session, script: &str) -> String {
    let command = CommandSpec::new(["sh", "-ec", script]);
    let output = session.exec(&command).unwrap().output().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn wait_for(events: &Events, wanted: impl Fn(&MachineEvent) -> bool) {
    let mut told = Vec::new();
    while let Some(event) = events.next_within(LIMIT) {
        if wanted(&event) {
            return;
        }
        told.push(event);
    }
    panic!("only {told:?}");
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

#[test]
fn a_session_lives_as_long_as_it_is_wanted() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let share = |name: &str, guest: &str, read_only| {
        let host = folder.path().join(name);
        fs::create_dir_all(&host).unwrap();
        fs::write(host.join("name"), name).unwrap();
        ShareSpec { host, guest: guest.to_owned(), read_only, journal: None }
    };
    let machine = machine(
        host,
        MachineSpec {
            cpus: 2,
            share_roots: vec![folder.path().to_owned()],
            shares: vec![share("fixed", "/fixed", true)],
            ..MachineSpec::default()
        },
    );
    let events = machine.events();
    assert_eq!(machine.sessions().unwrap(), []);
    assert_eq!(machine.session("one").unwrap_err().code(), "not-found");

    // Making one starts the machine; each sees the shares that it was given.
    let limits =
        SessionLimits { memory: Some(48 << 20), pids: Some(60), ..SessionLimits::default() };
    let (mine, fixed) = (share("mine", "/mnt/mine", false), share("fixed", "/mnt/fixed", true));
    let one = machine
        .create_session(SessionSpec { limits, shares: vec![mine, fixed], ..named("one") })
        .unwrap();
    let two = machine.create_session(named("two")).unwrap();
    assert_eq!(sh(&one, "id -un; cat /mnt/*/name; echo x >/mnt/mine/from-one"), "one\nfixedmine");
    assert_eq!(sh(&two, "ls -A /mnt; ls /sessions"), "two\n");
    assert_eq!(fs::read_to_string(folder.path().join("mine/from-one")).unwrap(), "x\n");
    let refused = |spec| machine.create_session(spec).unwrap_err().code();
    assert_eq!(refused(named("one")), "exists");
    assert_eq!(refused(named("a/b")), "invalid");
    let outside = ShareSpec {
        host: "/usr".into(),
        guest: "/mnt/x".to_owned(),
        read_only: true,
        journal: None,
    };
    assert_eq!(
        refused(SessionSpec { shares: vec![outside], ..named("three") }),
        "outside-share-roots"
    );
    // What is shared read-only is not to be written by way of a session.
    let more = share("fixed", "/mnt/x", false);
    let other = self::machine(
        host,
        MachineSpec { shares: vec![share("fixed", "/fixed", true)], ..MachineSpec::default() },
    );
    let spec = SessionSpec { shares: vec![more], ..named("one") };
    assert_eq!(other.create_session(spec).unwrap_err().code(), "outside-share-roots");
    drop(other);

    // What happens in it is told of by its name.
    let command = CommandSpec::new(["python3", "-c", "x = bytearray(200 << 20)"]);
    assert_eq!(one.exec(&command).unwrap().output().unwrap().exit, Exit::Signal(9));
    wait_for(&events, |event| {
        matches!(event, MachineEvent::OutOfMemory { session, command, .. }
            if session.as_deref() == Some("one") && command == "python3")
    });
    let status = one.status().unwrap();
    assert_eq!((status.limits, status.shares.len()), (limits, 2));
    assert!(status.uid.is_some() && status.memory > 0, "{status:?}");
    let wider = SessionLimits { memory: Some(400 << 20), ..limits };
    assert_eq!(one.limit(wider).unwrap().limits, wider);
    sh(&one, "python3 -c 'x = bytearray(100 << 20)'");

    // A suspended machine wakes for it; one that died has it again, with its limits and shares.
    sh(&one, "echo before > file");
    assert!(machine.suspend().unwrap());
    assert_eq!(machine.sessions().unwrap().len(), 2);
    two.remove().unwrap();
    // Folders that were shown since are there again as well, in the machine and in its sessions.
    machine.place().add_share(&share("mine", "/mine", true)).unwrap();
    one.place().add_share(&share("mine", "/mnt/late", false)).unwrap();
    assert_eq!(machine.status().shares.len(), 2);
    let worker = rustix::process::Pid::from_raw(machine.status().worker.unwrap() as i32).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    wait_for(&events, |event| matches!(event, MachineEvent::Died { .. }));
    assert_eq!(one.status().unwrap().uid, None);
    assert_eq!(sh(&one, "id -un; cat /mnt/mine/from-one; ls -A"), "one\nx\n");
    assert_eq!(one.status().unwrap().limits, wider);
    assert_eq!(sh(&one, "cat /mnt/late/from-one"), "x\n");
    let output = machine.exec(&CommandSpec::new(["cat", "/mine/from-one"])).unwrap().output();
    assert_eq!(output.unwrap().stdout, b"x\n");
    one.place().remove_share("/mnt/late").unwrap();
    machine.place().remove_share("/mine").unwrap();
    assert_eq!(
        (machine.place().shares().unwrap().len(), one.place().shares().unwrap().len()),
        (1, 2)
    );
    assert_eq!(machine.place().remove_share("/fixed").unwrap_err().code(), "invalid");
    assert_eq!(machine.sessions().unwrap().len(), 1);

    one.remove().unwrap();
    assert_eq!(one.remove().unwrap_err().code(), "not-found");
    assert_eq!(machine.sessions().unwrap(), []);
    machine.shutdown().unwrap();
}

#[test]
fn files_go_in_and_come_out_and_reach_nothing_else() {
    let Some(host) = host() else { return };
    let machine = machine(host, MachineSpec::default());
    let session = machine.create_session(named("files")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    fs::create_dir_all(at("in/empty")).unwrap();
    fs::write(at("in/large"), &bytes).unwrap();
    fs::write(at("in/x"), "").unwrap();
    std::os::unix::fs::symlink("large", at("in/link")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    fs::set_permissions(at("in/x"), mode).unwrap();

    let place = session.place();
    let copied = place.copy_in(&at("in"), "tree").unwrap();
    assert_eq!(copied, Copied { entries: 5, bytes: 3_000_000 });
    // No set-ID bit comes along.
    assert_eq!(
        sh(&session, "cd tree; stat -c '%a %s %U' x large; readlink link; ls"),
        "755 0 files\n644 3000000 files\nlarge\nempty\nlarge\nlink\nx\n"
    );
    let copied = place.copy_out("tree", &at("out")).unwrap();
    assert_eq!(copied, Copied { entries: 5, bytes: 3_000_000 });
    assert!(fs::read(at("out/large")).unwrap() == bytes);
    assert_eq!(fs::read_link(at("out/link")).unwrap(), Path::new("large"));
    // Into a folder, and over what is there.
    place.copy_out("tree/large", &at("out/empty")).unwrap();
    place.copy_out("tree/x", &at("out/large")).unwrap();
    assert_eq!(fs::read(at("out/large")).unwrap(), b"");
    assert!(fs::read(at("out/empty/large")).unwrap() == bytes);
    place.copy_in(&at("in/large"), "into/").unwrap();
    assert_eq!(sh(&session, "stat -c %s into/large"), "3000000\n");

    // The guest cannot lead a copy out of where it goes: not by a link of its own that was copied before,
    // nor by one that stands there.
    let outside = at("outside");
    fs::create_dir(&outside).unwrap();
    sh(&session, &format!("mkdir evil; ln -s {} evil/way", outside.display()));
    place.copy_out("evil", &at("evil")).unwrap();
    sh(&session, "rm evil/way; mkdir evil/way; echo x >evil/way/file");
    let error = place.copy_out("evil", folder.path()).unwrap_err();
    assert_eq!(error.code(), "write", "{error}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

    place.write_file("made/by/name", b"text", 0o600).unwrap();
    assert_eq!(sh(&session, "cat made/by/name; stat -c %a made/by/name"), "text600\n");
    assert_eq!(place.read_file("made/by/name", 4).unwrap(), b"text");
    let code = |error: Error| error.code();
    assert_eq!(code(place.read_file("made/by/name", 3).unwrap_err()), "invalid");
    assert_eq!(code(place.read_file("none", 3).unwrap_err()), "not-found");
    assert_eq!(code(place.read_file("/etc/shadow", 3).unwrap_err()), "denied");
    assert_eq!(code(place.write_file("/etc/x", b"", 0o600).unwrap_err()), "denied");
    assert_eq!(code(place.copy_in(&at("none"), "x").unwrap_err()), "open");
    assert_eq!(code(place.copy_out("tree", Path::new("/no/such/x")).unwrap_err()), "open");
    // The machine's root has the machine's rights.
    machine.place().write_file("/etc/x", b"root", 0o600).unwrap();
    assert_eq!(machine.place().read_file("/etc/x", 10).unwrap(), b"root");
}

#[test]
fn ports_lead_both_ways_and_lose_nothing() {
    let Some(host) = host() else { return };
    let machine = machine(host, MachineSpec::default());
    let session = machine.create_session(named("ports")).unwrap();
    let bytes: Vec<u8> = (0..4_000_000u32).map(|number| (number % 253) as u8).collect();
    let server = "import socket, threading\n\
                  s = socket.create_server(('127.0.0.1', 8080)); print('up', flush=True)\n\
                  def serve(c):\n  d = b''\n  while True:\n    p = c.recv(65536)\n    if not p: break\n    d += p\n\
                  \x20 c.sendall(d[::-1]); c.close()\n\
                  while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()";
    let mut serving = session.exec(&CommandSpec::new(["python3", "-c", server])).unwrap();
    while !matches!(serving.next_event().unwrap(), Some(cabana_engine::ProcessEvent::Stdout(_))) {}

    let forward = session.place().forward(local(0), local(8080)).unwrap();
    let address = forward.listens();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let stream = TcpStream::connect(address).unwrap();
                let (mut to, mut back) = (stream.try_clone().unwrap(), Vec::new());
                to.write_all(&bytes).unwrap();
                to.shutdown(Shutdown::Write).unwrap();
                (&stream).read_to_end(&mut back).unwrap();
                back.reverse();
                assert!(back == bytes, "{} bytes", back.len());
            });
        }
    });
    // Another port has nobody behind it, and the machine's own network is another.
    let nobody = machine.place().forward(local(0), local(8080)).unwrap();
    let mut said = Vec::new();
    let read = TcpStream::connect(nobody.listens()).unwrap().read_to_end(&mut said);
    assert!(read.is_err() || said.is_empty());
    assert_eq!(session.place().forward(address, local(1)).unwrap_err().code(), "listen");
    // With it end its connections.
    let open = TcpStream::connect(address).unwrap();
    (&open).write_all(b"x").unwrap();
    drop(forward);
    assert!(matches!((&open).read(&mut [0; 8]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).is_err());

    // From the session to a server of the host's.
    let listener = TcpListener::bind(local(0)).unwrap();
    let back = session.place().forward_back(local(0), listener.local_addr().unwrap()).unwrap();
    let script = format!(
        "python3 -c \"import socket; c = socket.create_connection(('127.0.0.1', {})); c.sendall(b'question'); \
         c.shutdown(1); print(c.recv(100).decode())\"",
        back.listens().port()
    );
    thread::scope(|scope| {
        let client = scope.spawn(|| sh(&session, &script));
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        stream.write_all(b"answer").unwrap();
        drop(stream);
        assert_eq!(client.join().unwrap(), "answer\n");
    });
    drop(back);
    let again = session.exec(&CommandSpec::new(["sh", "-c", &script])).unwrap().output().unwrap();
    assert_ne!(again.exit, Exit::Code(0));
    machine.shutdown().unwrap();
}
