//! Disks of the engine's machines that are full, here or there, and what a removed session gives back.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use cabana_engine::{
    CommandSpec, Engine, EngineConfig, Exit, Machine, MachineEvent, MachineSpec, Output, Session,
    SessionLimits, SessionSpec, WorkerKind,
};
use cabana_store::Store;
use cabana_test_guest::{Host, LIMIT, host};

/// Says to the process that it has a small disk, and where.
const SMALL: &str = "CABANA_TEST_SMALL_DISK";
/// In which the control channel answers whatever the disk is like.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

fn engine(host: &Host, config: EngineConfig) -> Engine {
    Engine::new(EngineConfig { worker: WorkerKind::Program(host.binary.clone()), ..config })
        .unwrap()
}

fn session(machine: &Machine, name: &str) -> Session {
    machine.create_session(SessionSpec { name: name.to_owned(), ..SessionSpec::default() }).unwrap()
}

fn output(machine: &Machine, script: &str) -> Output {
    machine.exec(&CommandSpec::new(["sh", "-c", script])).unwrap().output().unwrap()
}

fn sh(machine: &Machine, script: &str) -> String {
    let output = output(machine, script);
    assert_eq!(output.exit, Exit::Code(0), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// That the machine answers, and in time.
fn answers(machine: &Machine) {
    let asked = Instant::now();
    assert!(!machine.sessions().unwrap().is_empty());
    let took = asked.elapsed();
    assert!(took < ANSWERS_WITHIN, "the control channel took {took:?}");
}

/// That it gives out what it has.
fn reads(machine: &Machine, hog: &Session) {
    assert_eq!(machine.place().read_file("/root/kept", 100).unwrap(), b"kept\n");
    assert_eq!(sh(machine, "cat /root/kept; head -c 5 /etc/passwd"), "kept\nroot:");
    let copied = tempfile::tempdir().unwrap();
    machine.place().copy_out("/root/kept", &copied.path().join("kept")).unwrap();
    let read = CommandSpec::new(["cat", "mine"]);
    assert_eq!(hog.exec(&read).unwrap().output().unwrap().stdout, b"of the session\n");
}

#[test]
fn a_machine_whose_disk_is_full_works_but_for_the_disk() {
    let Some(host) = host() else { return };
    let machine = engine(host, EngineConfig::default()).machine(MachineSpec::default()).unwrap();
    let hog = session(&machine, "hog");
    sh(&machine, "echo kept >/root/kept; sync");
    // All that a session can take, and then what is kept for root: space alone, since to write it takes long.
    let take = "i=16384; while [ $i -gt 0 ]; do
          fallocate -l ${i}M $1/fill$i 2>/dev/null || i=$((i / 2)); [ -e $1/fill$i ] && i=$((i / 2))
        done; cat /dev/zero >$1/rest 2>/dev/null; true";
    hog.exec(&CommandSpec::new(["sh", "-c", "echo of the session >mine"]))
        .unwrap()
        .output()
        .unwrap();
    let by_session = CommandSpec::new(["sh", "-c", take, "sh", "/sessions/hog"]);
    hog.exec(&by_session).unwrap().output().unwrap();
    machine.exec(&CommandSpec::new(["sh", "-c", take, "sh", "/root"])).unwrap().output().unwrap();
    let written = output(&machine, "head -c 1M /dev/zero >/root/more");
    assert!(String::from_utf8_lossy(&written.stderr).contains("No space left"), "{written:?}");
    let left = sh(&machine, "df --output=avail -k / | tail -1");
    assert_eq!(left.trim(), "0", "KiB are left");

    answers(&machine);
    reads(&machine, &hog);
    hog.remove().unwrap();
    assert_eq!(machine.sessions().unwrap(), []);
    // What the session had is there for others.
    let start = Instant::now();
    while output(&machine, "head -c 1M /dev/zero >/root/more").exit != Exit::Code(0) {
        assert!(start.elapsed() < LIMIT, "the session's space is not free");
        thread::sleep(Duration::from_millis(100));
    }
    session(&machine, "next").remove().unwrap();
    machine.shutdown().unwrap();
}

#[test]
fn a_machine_whose_host_has_a_full_disk_answers_and_says_so() {
    let Some(host) = host() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can make a small disk");
    }
    let Some(small) = env::var_os(SMALL).map(PathBuf::from) else {
        let folder = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=24m small \"$0\"; exec \"$@\"";
        let name = "a_machine_whose_host_has_a_full_disk_answers_and_says_so";
        let called = Command::new("unshare")
            .args(["--mount", "sh", "-ec", script])
            .arg(folder.path())
            .arg(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(SMALL, folder.path())
            .output()
            .unwrap();
        assert!(called.status.success(), "{called:?}");
        return;
    };
    let config = EngineConfig { scratch: Some(small), ..EngineConfig::default() };
    let machine = engine(host, config).machine(MachineSpec::default()).unwrap();
    let events = machine.events();
    let hog = session(&machine, "hog");
    hog.exec(&CommandSpec::new(["sh", "-c", "cat /dev/urandom | head -c 60M >rest; sync"]))
        .unwrap()
        .output()
        .unwrap();
    let failed = |event: &MachineEvent| matches!(event, MachineEvent::DiskFailed { message } if message.contains("full"));
    let start = Instant::now();
    while !events.next_within(LIMIT).is_some_and(|event| failed(&event)) {
        assert!(start.elapsed() < LIMIT, "nobody tells of the host's disk");
    }
    // What comes from the image and from memory works on; the guest's file system on the disk may not. The next
    // machine has another disk.
    answers(&machine);
    assert_eq!(sh(&machine, "head -c 5 /etc/passwd; echo x >/run/x; cat /run/x"), "root:x\n");
    machine.stop();
    // The space is free a moment after its worker is gone.
    while let Err(error) = machine.start() {
        assert!(error.to_string().contains("No space left"), "{error}");
        assert!(start.elapsed() < LIMIT, "the disk of the machine before is still there");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(sh(&machine, "echo afresh >/root/file; cat /root/file"), "afresh\n");
    hog.remove().unwrap();
}

/// The space that a file takes, in MiB.
fn mib(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks() / 2048
}

#[test]
fn a_removed_session_gives_its_space_back_to_the_host() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let spec = MachineSpec { disk: Some(disk.clone()), ..MachineSpec::default() };
    let machine = engine(host, EngineConfig::default()).machine(spec).unwrap();
    let limits = SessionLimits { disk: Some(200 << 20), ..SessionLimits::default() };
    let spec = SessionSpec { name: "large".to_owned(), limits, ..SessionSpec::default() };
    let large = machine.create_session(spec).unwrap();
    sh(&machine, "sync");
    let before = mib(&disk);
    let fill = "head -c 60M /dev/urandom >file; head -c 20M /dev/urandom >/tmp/file; sync";
    let filled = large.exec(&CommandSpec::new(["sh", "-ec", fill])).unwrap().output().unwrap();
    assert_eq!(filled.exit, Exit::Code(0), "{filled:?}");
    let full = mib(&disk);
    assert!(full >= before + 80, "{before} MiB, then {full}");
    large.remove().unwrap();
    let start = Instant::now();
    // Its files are deleted behind the removal, and what is free is told to the host with the file system's next
    // commit.
    while mib(&disk) > before + 16 {
        assert!(start.elapsed() < LIMIT, "{before} MiB, then {full}, at last {}", mib(&disk));
        sh(&machine, "sync");
    }
    println!("{before} MiB before, {full} full, {} after {:?}", mib(&disk), start.elapsed());
    machine.shutdown().unwrap();
}

#[test]
fn the_store_can_be_moved_while_a_machine_runs() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    fs::create_dir(&here).unwrap();
    let store = Store::open().unwrap();
    for kind in ["kernel", "agent", "image"] {
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .args([store.path().join(kind), here.join(kind)])
            .status();
        assert!(copied.unwrap().success());
    }
    let at = |home: &Path| {
        let config = EngineConfig { home: Some(home.to_owned()), ..EngineConfig::default() };
        engine(host, config).machine(MachineSpec::default()).unwrap()
    };
    let machine = at(&here);
    sh(&machine, "true");
    fs::rename(&here, &there).unwrap();
    // A program that nobody has read yet.
    assert_eq!(sh(&machine, "python3 -c 'print(6 * 7)'"), "42\n");
    let error = at(&here).start().unwrap_err();
    assert_eq!(error.code(), "store", "{error}");
    assert_eq!(sh(&at(&there), "echo moved"), "moved\n");
    machine.shutdown().unwrap();
}
