//! Nothing outlives the application: a worker ends with its engine's process, however that ends, and its
//! own end is an event. The machines run a kernel of a few instructions, so any /dev/kvm will do.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cabana_engine::{Bare, BareSpec, Engine, EngineConfig, Error, WorkerKind};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

const WORKER: &str = env!("CARGO_BIN_EXE_cabana-worker");
/// Makes this test program an application.
const APP: &str = "CABANA_TEST_APP";
/// How long anything may outlive the application.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// Longer than anything takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// An ELF kernel, entered in 64-bit mode, that writes `R` to COM1 and runs on for ever.
fn kernel(folder: &Path) -> PathBuf {
    const ADDRESS: u64 = 0x10_0000;
    #[rustfmt::skip]
    let code = [
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'R',             // mov al, 'R'
        0xee,                   // out dx, al
        0xf3, 0x90,             // pause
        0xeb, 0xfc,             // jmp back to pause
    ];
    let header = 64 + 56;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01");
    elf.resize(16, 0);
    elf.extend(2u16.to_le_bytes()); // ET_EXEC
    elf.extend(62u16.to_le_bytes()); // EM_X86_64
    elf.extend(1u32.to_le_bytes());
    for word in [ADDRESS + header, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(7u32.to_le_bytes()); // readable, writable, executable
    let length = header + code.len() as u64;
    for word in [0, ADDRESS, ADDRESS, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    let path = folder.join("kernel");
    fs::write(&path, elf).unwrap();
    path
}

/// A machine of this process, whose vCPU runs.
fn boot(worker: WorkerKind, kernel: &Path) -> Result<Bare, Error> {
    let engine = Engine::new(EngineConfig { worker, ..EngineConfig::default() })?;
    let (mut serial, writer) = std::io::pipe().expect("a pipe");
    let machine = engine.boot(BareSpec {
        kernel: kernel.to_owned(),
        initrd: None,
        command_line: String::new(),
        cpus: 1,
        memory: 16 << 20,
        serial: Some(File::from(OwnedFd::from(writer))),
    })?;
    let mut byte = [0];
    match serial.read(&mut byte) {
        Ok(1) => Ok(machine),
        // It has ended, and says why.
        _ => Err(machine.wait().expect_err("it ran for ever")),
    }
}

fn has_kvm() -> bool {
    let Err(why) = File::options().read(true).write(true).open("/dev/kvm") else {
        return true;
    };
    println!("skipped: /dev/kvm: {why}");
    false
}

/// What an application does whose process is this test, called again: boots a machine, names its worker,
/// and waits to be killed.
#[test]
fn the_application() {
    let Some(kernel) = std::env::var_os(APP) else {
        return println!("skipped: it is for the other tests to call");
    };
    let machine = boot(WorkerKind::Program(WORKER.into()), Path::new(&kernel)).expect("a machine");
    println!("worker {}", machine.worker().expect("a process"));
    let end = machine.wait();
    println!("ended {}", end.expect_err("it runs for ever").code());
    // To be killed.
    thread::sleep(LIMIT);
}

struct App {
    process: Child,
    lines: BufReader<std::process::ChildStdout>,
    worker: Pid,
}

impl App {
    fn start(kernel: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_application", "--nocapture"])
            .env(APP, kernel)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        let number = word_after(&mut lines, "worker ").parse().unwrap();
        Self { process, lines, worker: Pid::from_raw(number).unwrap() }
    }
}

/// The rest of the first line that holds these words.
fn word_after(lines: &mut impl BufRead, words: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(
            lines.read_line(&mut line).unwrap(),
            0,
            "no more lines, and none says {words:?}"
        );
        if let Some((_, rest)) = line.split_once(words) {
            return rest.trim().to_owned();
        }
    }
}

/// Waits for the end of a worker, which is this process's child once its application is gone.
fn wait_gone(worker: Pid) -> Duration {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        match waitpid(Some(worker), WaitOptions::NOHANG) {
            Ok(Some(_)) => return start.elapsed(),
            // Not ours yet, or reaped by its application.
            Err(_) if !Path::new(&format!("/proc/{}", worker.as_raw_nonzero())).exists() => {
                return start.elapsed();
            }
            _ => thread::sleep(Duration::from_millis(2)),
        }
    }
    panic!("the worker {worker:?} outlived its application");
}

fn cycles(count: u64) {
    if !has_kvm() {
        return;
    }
    rustix::thread::set_name(c"torture").unwrap();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path());
    let mut slowest = Duration::ZERO;
    for cycle in 0..count {
        let mut app = App::start(&kernel);
        // A different moment each time: from the vCPU's first instructions on.
        thread::sleep(Duration::from_micros(cycle * 7919 % 20_000));
        if cycle % 3 == 2 {
            // The worker first: its application hears of it by name.
            kill_process(app.worker, Signal::KILL).unwrap();
            assert_eq!(word_after(&mut app.lines, "ended "), "worker-died");
        }
        app.process.kill().unwrap();
        app.process.wait().unwrap();
        let took = wait_gone(app.worker);
        assert!(took < GONE_WITHIN, "cycle {cycle}: the worker was gone after {took:?}");
        slowest = slowest.max(took);
    }
    println!("{count} cycles, the slowest worker gone after {slowest:?}");
}

#[test]
fn a_killed_application_leaves_no_worker() {
    cycles(30);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_killed_applications_leave_no_worker() {
    cycles(1000);
}

#[test]
fn a_worker_is_confined() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path());
    let machine = boot(WorkerKind::Program(WORKER.into()), &kernel).unwrap();
    let worker = machine.worker().unwrap();
    for thread in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
    assert_eq!(fs::read_link(format!("/proc/{worker}/cwd")).unwrap(), Path::new("/"));
    assert_eq!(fs::read(format!("/proc/{worker}/environ")).unwrap(), b"");
    machine.stop();
    assert_eq!(machine.wait().unwrap_err().code(), "stopped");
}

/// What a worker adds to a start: from the call to the first instruction of the guest.
#[test]
#[ignore = "measures"]
fn what_a_worker_costs() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path());
    for (name, worker) in
        [("in process", WorkerKind::InProcess), ("in a worker", WorkerKind::Program(WORKER.into()))]
    {
        let mut times: Vec<_> = (0..51)
            .map(|_| {
                let start = Instant::now();
                let machine = boot(worker.clone(), &kernel).unwrap();
                let took = start.elapsed();
                machine.stop();
                took
            })
            .collect();
        times.sort();
        println!("{name}: minimum {:?}, median {:?}", times[0], times[times.len() / 2]);
    }
}

#[test]
fn a_dropped_machine_is_gone() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path());
    let machine = boot(WorkerKind::Program(WORKER.into()), &kernel).unwrap();
    let process = PathBuf::from(format!("/proc/{}", machine.worker().unwrap()));
    assert!(process.exists());
    drop(machine);
    assert!(!process.exists());
    // And so it is without a process.
    let machine = boot(WorkerKind::InProcess, &kernel).unwrap();
    assert_eq!(machine.worker(), None);
    machine.stop();
    assert_eq!(machine.wait().unwrap_err().code(), "stopped");
}

#[test]
fn errors_name_what_the_engine_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no kernel");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    let error = boot(WorkerKind::Program(WORKER.into()), &path).unwrap_err();
    assert_eq!(error.code(), "boot");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    let error = boot(WorkerKind::Program(folder.path().join("none")), &path).unwrap_err();
    assert_eq!(error.code(), "open");
    let error = boot(WorkerKind::Program("/bin/true".into()), &path).unwrap_err();
    assert_eq!(error.code(), "worker-died");
    assert!(error.to_string().contains("status 0"), "{error}");
}

#[test]
fn nobody_calls_a_worker_by_hand() {
    let called = Command::new(WORKER).stdin(Stdio::null()).output().unwrap();
    assert_eq!(called.status.code(), Some(125));
    let words = String::from_utf8(called.stderr).unwrap();
    assert!(words.contains("only the engine calls it"), "{words}");
}
