//! What a machine's memory costs its host: what the guest frees is the host's again, what a suspended machine
//! has is on the disk, and what an idle one's process does not need is nobody's.

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

/// What may be mapped of an idle machine's program, in KiB. At the start it is more than twice as much.
const PROGRAM_LEFT: u64 = 2048;

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

/// What `smaps` says of a process under this word, in KiB: of what is mapped of its program, or of all else.
fn mapped(process: u32, program: &Path, of_program: bool, word: &str) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let program = program.to_str().expect("a path of text");
    let (mut kib, mut counts) = (0, false);
    for line in maps.lines() {
        let (first, rest) = line.split_once(' ').expect("words");
        if first == word && counts {
            let number = rest.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
            kib += number.expect("KiB");
        } else if !first.ends_with(':') {
            counts = line.ends_with(program) == of_program;
        }
    }
    kib
}

/// A process's memory in MiB, without what is mapped of its program, which this build makes large: all processes of it
/// share that.
fn memory_without_program(process: u32, program: &Path) -> u64 {
    mapped(process, program, false, "Pss:") / 1024
}

/// Waits until hardly more is mapped of a process's program than is needed for waiting, as it is in the file.
fn wait_spared(process: u32, program: &Path) {
    let end = Instant::now() + PATIENCE;
    loop {
        let of_program = |word| mapped(process, program, true, word);
        let kib = of_program("Rss:").saturating_sub(of_program("Anonymous:"));
        if kib < PROGRAM_LEFT {
            return;
        }
        assert!(Instant::now() < end, "{kib} KiB of the program after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(100));
    }
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

/// Says what there is, takes nearly all of it without filling it, gives it back, and fills a part.
const TAKE_ALL: &str = "
import os
def meminfo(name):
    with open('/proc/meminfo') as lines:
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(name + ':'))
print(meminfo('MemTotal'), meminfo('MemFree'), meminfo('MemAvailable'), flush=True)
input()
os.mkdir('/run/all')
assert os.system('mount -t tmpfs -o size=3900M all /run/all') == 0
with open('/run/all/file', 'wb') as file:
    os.posix_fallocate(file.fileno(), 0, 3720 << 20)
assert meminfo('MemFree') < 300, meminfo('MemFree')
os.unlink('/run/all/file')
assert meminfo('MemFree') > 3600, meminfo('MemFree')
kept = [bytes([at % 251]) * (1 << 20) for at in range(800)]
assert all(piece == bytes([at % 251]) * (1 << 20) for at, piece in enumerate(kept))
print('fine', flush=True)
";

#[test]
fn a_ceiling_costs_nothing_until_it_is_used() {
    let Some(host) = host() else { return };
    let idle = |size: &str| {
        let words = ["run", "--memory", size, "--", "python3", "-c", TAKE_ALL];
        let mut machine = host.cabana(words).open_input().start();
        let seen = machine.wait_for("\n");
        thread::sleep(Duration::from_secs(1));
        (memory(machine.id()), seen, machine)
    };
    let (small, ..) = idle("512M");
    let (large, seen, mut machine) = idle("4G");
    // Its bookkeeping as a whole would be 56 MiB more.
    assert!(large < small + 8, "{large} MiB with a ceiling of 4 GiB, {small} with 512 MiB");
    let seen: Vec<u64> = seen.split_whitespace().map(|size| size.parse().unwrap()).collect();
    assert!(seen.iter().all(|mib| (3700..4096).contains(mib)), "the guest sees {seen:?} MiB");
    machine.type_in("\n");
    machine.wait_for("fine");
    machine.end().succeeded();
}

#[test]
fn an_idle_machine_lets_go_of_its_program_and_goes_on() {
    let Some(host) = host() else { return };
    let script = "echo up; read line; echo $line on";
    let mut machine = host.cabana(["run", "--", "sh", "-c", script]).open_input().start();
    machine.wait_for("up");
    wait_spared(machine.id(), &host.binary);
    machine.type_in("goes\n");
    machine.wait_for("goes on");
    machine.end().succeeded();

    // The same in a process that has confined itself.
    let worker = WorkerKind::Program(host.binary.clone());
    let engine = Engine::new(EngineConfig { worker, ..EngineConfig::default() }).unwrap();
    let machine = engine.machine(MachineSpec::default()).unwrap();
    sh(&machine, "true");
    wait_spared(machine.status().worker.unwrap(), &host.binary);
    assert_eq!(sh(&machine, "echo on"), "on\n");
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
        let suspended = memory_without_program(worker, &host.binary);
        assert!(suspended < 8, "round {round}: {suspended} MiB suspended, {awake} awake");
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
