//! An application, the worker of its machine and the agent in its guest, killed at any moment again and again.
//! Whatever was killed leaves nothing behind, and the next command has a machine.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, process};

use cabana_engine::{
    CommandSpec, Engine, EngineConfig, Exit, Machine, MachineSpec, SessionSpec, ShareSpec,
    WorkerKind,
};
use cabana_test_guest::{Host, LIMIT, host};
use rustix::process::{Pid, Signal, WaitOptions};

/// Says to the process that it is an application, and in which folder.
const APP: &str = "CABANA_TORTURE_APP";
/// How soon all of an application's processes are gone after it.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// Process 1 of a guest ignores signals from within; a debugger can still break it.
const BREAK_THE_AGENT: &str = "
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 2 + [ctypes.c_void_p] * 2
libc.ptrace(16, 1, 0, 0)
time.sleep(0.05)
libc.ptrace(6, 1, 128, 0)
libc.ptrace(17, 1, 0, 0)
time.sleep(1000)
";

fn machine(host: &Host, folder: &Path) -> Machine {
    let worker = WorkerKind::Program(host.binary.clone());
    let scratch = Some(folder.to_owned());
    let engine = Engine::new(EngineConfig { worker, scratch, ..EngineConfig::default() }).unwrap();
    let share = ShareSpec {
        host: folder.join("share"),
        guest: "/share".to_owned(),
        read_only: false,
        journal: None,
    };
    let (disk, memory) = (Some(folder.join("disk")), 192 << 20);
    let shares = vec![share];
    engine.machine(MachineSpec { disk, memory, shares, ..MachineSpec::default() }).unwrap()
}

fn ran(machine: &Machine, command: &CommandSpec) -> Result<(), String> {
    let output = machine.exec(command).and_then(cabana_engine::Process::output);
    match output.map_err(|error| error.code().to_owned())? {
        output if output.exit == Exit::Code(0) => Ok(()),
        output => Err(format!("{:?} {}", output.exit, String::from_utf8_lossy(&output.stderr))),
    }
}

/// What an application does whose process is this test, called again: it works, and says what is done. To be
/// killed.
#[test]
fn the_application() {
    let Some(folder) = env::var_os(APP).map(PathBuf::from) else {
        return println!("skipped: it is for the other tests to call");
    };
    let machine = machine(host().expect("guests run here"), &folder);
    let watched = machine.clone();
    thread::spawn(move || {
        let mut last = None;
        loop {
            let worker = watched.status().worker;
            if worker != last
                && let Some(worker) = worker
            {
                println!("worker {worker}");
            }
            last = worker.or(last);
            thread::sleep(Duration::from_millis(2));
        }
    });
    let broken = machine.clone();
    thread::spawn(move || {
        for _ in io::stdin().lock().lines() {
            let command = CommandSpec::new(["python3", "-c", BREAK_THE_AGENT]);
            let _ = broken.exec(&command).and_then(cabana_engine::Process::output);
        }
        process::exit(0);
    });
    let chat = SessionSpec { name: "chat".to_owned(), ..SessionSpec::default() };
    while machine.create_session(chat.clone()).is_err() {}
    for number in 0.. {
        let generation = machine.status().generation;
        let word = format!("{}-{number}", process::id());
        let script = format!("echo {word} | tee -a /share/log >>/root/log && sync");
        let session = (number % 3 == 0).then(|| "chat".to_owned());
        let in_session = CommandSpec { session, ..CommandSpec::new(["true"]) };
        match ran(&machine, &CommandSpec::new(["sh", "-ec", &script]))
            .and_then(|()| ran(&machine, &in_session))
        {
            Ok(()) => println!("did {generation} {word}"),
            Err(why) => println!("failed {why}"),
        }
    }
}

/// An application that runs, as the one who kills it sees it.
struct App {
    process: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    worker: Option<rustix::fd::OwnedFd>,
    /// The greatest generation that has done something.
    generation: u64,
    /// Commands that it has done.
    did: u64,
}

impl App {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "the_application", "--nocapture"])
            .env(APP, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let said = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let stdin = process.stdin.take().unwrap();
        Self { process, stdin, lines, worker: None, generation: 0, did: 0 }
    }

    /// Takes note of what it says until it is `enough`; false when it says nothing for too long.
    fn hear(
        &mut self,
        done: &mut BTreeSet<String>,
        limit: Duration,
        enough: impl Fn(&Self) -> bool,
    ) -> bool {
        let start = Instant::now();
        while !enough(self) {
            let left = limit.saturating_sub(start.elapsed());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => panic!("the application died by itself"),
            };
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                // libtest's own words stand before the first of ours.
                [.., "worker", number] => {
                    let number = Pid::from_raw(number.parse().unwrap()).unwrap();
                    let open =
                        rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty());
                    self.worker = open.ok();
                }
                ["did", generation, word] => {
                    self.generation = self.generation.max(generation.parse().unwrap());
                    self.did += 1;
                    done.insert(word.to_owned());
                }
                _ => {}
            }
        }
        true
    }

    fn kill(mut self, done: &mut BTreeSet<String>) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        // What it said before counts.
        for line in &self.lines {
            if let Some((_, word)) = line.strip_prefix("did ").and_then(|line| line.split_once(' '))
            {
                done.insert(word.to_owned());
            }
        }
    }
}

/// Waits until none of the processes is left that the application had, which are this one's now.
fn reap_all() -> Duration {
    let start = Instant::now();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Err(rustix::io::Errno::CHILD) => return start.elapsed(),
            Ok(Some(_)) => {}
            _ if start.elapsed() > LIMIT => panic!("a worker outlives its application"),
            _ => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// What the host has of anonymous memory, which guests are made of, in KiB, and of Unix sockets.
fn used() -> (u64, usize) {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let field = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let sockets = fs::read_to_string("/proc/net/unix").unwrap().lines().count();
    (field("AnonPages:"), sockets)
}

/// Numbers without a pattern, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn entries(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    entries.map(|name| name.into_string().unwrap()).collect()
}

fn has_our_cgroups() -> bool {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", "*cabana*"]).output();
    found.is_ok_and(|found| !found.stdout.is_empty())
}

fn cycles(count: u64) {
    let Some(host) = host() else { return };
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("share")).unwrap();
    let span = (host.boot_time() * 3 / 2).as_micros() as u64;
    let mut seed = [0; 4];
    File::open("/dev/urandom").unwrap().read_exact(&mut seed).unwrap();
    let seed = env::var("CABANA_TORTURE_SEED")
        .map_or(u32::from_ne_bytes(seed), |seed| seed.parse().expect("a seed is a number"));
    println!("CABANA_TORTURE_SEED={seed}");
    let mut dice = Dice(seed.into());
    let (start, before) = (Instant::now(), used());
    let mut done = BTreeSet::new();
    let (mut app, mut slowest, mut kills) = (None::<App>, Duration::ZERO, [0; 3]);
    for cycle in 0..count {
        let mut now = app.take().unwrap_or_else(|| App::start(folder.path()));
        let moment = Duration::from_micros(dice.below(span));
        now.hear(&mut done, moment, |_| false);
        let kind = dice.below(3) as usize;
        kills[kind] += 1;
        match kind {
            0 => {
                assert!(now.hear(&mut done, LIMIT, |app| app.worker.is_some()), "no worker");
                let worker = now.worker.take().unwrap();
                // It may have ended by an earlier blow.
                let _ = rustix::process::pidfd_send_signal(worker, Signal::KILL);
                app = Some(now);
            }
            1 => {
                now.stdin.write_all(b"agent\n").unwrap();
                app = Some(now);
            }
            _ => {
                now.kill(&mut done);
                let took = reap_all();
                assert!(
                    took < GONE_WITHIN,
                    "cycle {cycle}: its processes were gone after {took:?}"
                );
                slowest = slowest.max(took);
                let left = entries(folder.path());
                assert!(left.iter().all(|name| name == "disk" || name == "share"), "{left:?}");
            }
        }
        // Half of the blows hit what an earlier one has left; after the others the next command works.
        if let Some(hit) = &mut app
            && dice.below(2) == 0
        {
            // A blow at what was dead already changes nothing.
            let (generation, did) = (hit.generation, hit.did + 40);
            let works = |app: &App| app.generation > generation || app.did >= did;
            assert!(hit.hear(&mut done, LIMIT, works), "cycle {cycle}: nothing works after it");
        }
        if cycle % 5 == 4 {
            // Not to libtest, which would keep it to the end.
            let text = format!("torture: {} of {count} cycles, {:?}\n", cycle + 1, start.elapsed());
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }
    if let Some(app) = app {
        app.kill(&mut done);
    }
    slowest = slowest.max(reap_all());

    // Whatever was said to be done is there, on the disk and in the folder.
    let machine = machine(host, folder.path());
    let output = machine.exec(&CommandSpec::new(["cat", "/root/log"])).unwrap().output().unwrap();
    let on_disk = String::from_utf8_lossy(&output.stdout).into_owned();
    let in_folder = fs::read_to_string(folder.path().join("share/log")).unwrap_or_default();
    for log in [&on_disk, &in_folder] {
        let lines: BTreeSet<_> = log.lines().collect();
        let lost: Vec<_> = done.iter().filter(|word| !lines.contains(word.as_str())).collect();
        assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), done.len());
    }
    machine.shutdown().unwrap();
    drop(machine);
    reap_all();
    assert_eq!(entries(folder.path()), ["disk", "share"].map(str::to_owned).into());
    assert_eq!(entries(&folder.path().join("share")), ["log".to_owned()].into());
    assert!(!has_our_cgroups());
    let after = used();
    // Others on this host have memory and sockets too; one guest for each kill would be thirty times as much.
    assert!(after.0 < before.0 + (count << 10).max(64 << 10), "memory: {before:?}, {after:?}");
    assert!(after.1 < before.1 + 8 + count as usize / 4, "sockets: {before:?}, {after:?}");
    let [workers, agents, apps] = kills;
    println!(
        "{count} cycles ({workers} workers, {agents} agents, {apps} applications killed), {} commands done, \
         processes gone after {slowest:?} at most, memory {} KiB before and {} after",
        done.len(),
        before.0,
        after.0
    );
}

#[test]
fn whatever_is_killed_leaves_nothing_behind() {
    cycles(15);
}

#[test]
#[ignore = "1,000 cycles take an hour in the lab"]
fn whatever_is_killed_a_thousand_times_leaves_nothing_behind() {
    cycles(1000);
}
