//! What a machine's memory costs its host: what the guest frees is the host's again, and what a suspended machine
//! has is on the disk.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cabana_engine::{CommandSpec, Engine, EngineConfig, Exit, Machine, MachineSpec, WorkerKind};
use cabana_test_guest::host;

/// What the guest fills, in MiB.
const FILLED: u64 = 1024;
/// How long the host may have to wait for it. `cargo xtask bench boot` says how long it waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fills memory, says so, waits for a line, frees it, says so, and waits for the input's end.
const PROGRAM: &str = "
import sys
kept = bytearray(b'\\1') * (FILLED << 20)
print('filled', flush=True)
sys.stdin.readline()
del kept
print('freed', flush=True)
sys.stdin.read()
";

/// A process's memory, in MiB.
fn memory(process: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a size");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") / 1024
}

fn sh(machine: &Machine, script: &str) -> String {
    let output = machine.exec(&CommandSpec::new(["sh", "-ec", script])).unwrap().output().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn memory_that_a_guest_frees_is_the_hosts_again() {
    let Some(host) = host() else { return };
    let program = PROGRAM.replace("FILLED", &FILLED.to_string());
    let words = ["run", "--memory", "1536M", "--", "python3", "-c", &program];
    let mut machine = host.cabana(words).open_input().start();
    machine.wait_for("filled");
    let full = memory(machine.id());
    assert!(full > FILLED, "{full} MiB when full");
    machine.type_in("\n");
    machine.wait_for("freed");
    let end = Instant::now() + PATIENCE;
    while memory(machine.id()) > full - FILLED * 95 / 100 {
        let now = memory(machine.id());
        assert!(Instant::now() < end, "{full} MiB when full, {now} MiB after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(100));
    }
    machine.end().succeeded();
}

#[test]
fn a_suspended_machine_has_its_memory_on_the_disk() {
    let Some(host) = host() else { return };
    // Temporary files may be in memory.
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let engine = |scratch: &Path| {
        let worker = WorkerKind::Program(host.binary.clone());
        let scratch = Some(scratch.to_owned());
        Engine::new(EngineConfig { worker, scratch, ..EngineConfig::default() }).unwrap()
    };
    let machine = engine(scratch.path()).machine(MachineSpec::default()).unwrap();
    let digest = "head -c 100000000 /dev/shm/kept | md5sum";
    let made = sh(&machine, &format!("head -c 100000000 /dev/urandom > /dev/shm/kept; {digest}"));
    let worker = machine.status().worker.unwrap();
    for round in 0..3 {
        let awake = memory(worker);
        assert!(awake > 100, "round {round}: {awake} MiB awake");
        assert!(machine.suspend().unwrap());
        let suspended = memory(worker);
        assert!(suspended < 15, "round {round}: {suspended} MiB suspended, {awake} awake");
        assert_eq!(sh(&machine, digest), made, "round {round}");
        let script = "echo more >> /dev/shm/more; cat /dev/shm/more";
        assert_eq!(sh(&machine, script).lines().count(), round + 1);
    }
    machine.shutdown().unwrap();

    // Where there is no room, it keeps its memory and goes on all the same.
    let machine = engine(Path::new("/dev/shm")).machine(MachineSpec::default()).unwrap();
    sh(&machine, "true");
    assert!(machine.suspend().unwrap());
    assert!(memory(machine.status().worker.unwrap()) > 15);
    assert_eq!(sh(&machine, "echo on"), "on\n");
}
