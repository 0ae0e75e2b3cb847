//! The program's two processes, which are looked at by `/proc`.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cabana_pac::link::Ending;
use cabana_pac::{Failure, Interpreter};
use common::{Names, script, start};
use rustix::process::{Pid, Signal, kill_process};

/// The interpreter of the program that a thread of this test has started: the child of its child.
fn interpreting(program: u32) -> Pid {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let children = format!("/proc/{program}/task/{program}/children");
        let child = fs::read_to_string(children).ok().and_then(|text| text.trim().parse().ok());
        if let Some(child) = child.and_then(Pid::from_raw) {
            return child;
        }
        assert!(Instant::now() < deadline, "there is no interpreter");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_interpreter_has_walls_and_is_alone() {
    let mut interpreter = start();
    interpreter.load(&script("return 'DIRECT'"), &Names).unwrap();
    let own = interpreting(interpreter.id()).as_raw_nonzero();
    let read = |file: &str| fs::read_to_string(format!("/proc/{own}/{file}")).unwrap();
    let status = read("status");
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Threads:\t1"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let limits = read("limits");
    let space = limits.lines().find(|line| line.starts_with("Max address space")).unwrap();
    assert!(space.contains("268435456"), "{space}");
    // Nothing of this process's came along.
    assert!(!read("environ").contains("PATH"));
    assert_eq!(fs::read_dir(format!("/proc/{own}/fd")).unwrap().count(), 4);
    let program = interpreter.id();
    drop(interpreter);
    wait_for_the_end_of([program, own.get().cast_unsigned()]);
}

/// Whether a process has not ended; whether somebody has heard of its end is another matter.
fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_for_the_end_of(processes: [u32; 2]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while processes.iter().any(|process| is_running(*process)) {
        assert!(Instant::now() < deadline, "they do not end");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Set in the process that is killed.
const PARENT: &str = "CABANA_TEST_PARENT";

#[test]
fn a_program_ends_with_its_parent_however_that_ends() {
    if std::env::var_os(PARENT).is_some() {
        let mut interpreter = start();
        interpreter.load(&script("return 'DIRECT'"), &Names).unwrap();
        println!("began {} {}", interpreter.id(), interpreting(interpreter.id()));
        thread::sleep(Duration::from_secs(600));
    }
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_program_ends_with_its_parent_however_that_ends", "--nocapture"])
        .env(PARENT, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let began = lines.map_while(Result::ok).find_map(|line| {
        let (_, numbers) = line.split_once("began ")?;
        let (program, own) = numbers.split_once(' ')?;
        Some([program.parse().ok()?, own.trim().parse().ok()?])
    });
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for_the_end_of(began.expect("it began"));
}

#[test]
fn an_interpreter_that_was_killed_is_started_again_and_knows_no_script() {
    let mut interpreter = start();
    let program = interpreter.id();
    interpreter.load(&script("for (;;);"), &Names).unwrap();
    let first = interpreting(program);
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        kill_process(first, Signal::KILL).unwrap();
    });
    let ended = interpreter.find("http://a/", "a", &Names).unwrap_err();
    assert_eq!(ended, Failure::Ended(Ending::Signal(9)));
    killer.join().unwrap();
    let empty = interpreter.find("http://a/", "a", &Names).unwrap_err();
    assert!(matches!(empty, Failure::Script(_)), "{empty}");
    interpreter.load(&script("return 'DIRECT'"), &Names).unwrap();
    assert_eq!(interpreter.find("http://a/", "a", &Names).unwrap(), "DIRECT");
    assert_ne!(interpreting(program), first);
}

#[test]
fn a_program_that_is_gone_is_told_of() {
    let missing = Interpreter::start_at("/no/such/program".into()).unwrap_err().to_string();
    assert!(
        missing.starts_with("cannot start /no/such/program, which the proxies' script needs"),
        "{missing}"
    );
    let mut interpreter = start();
    interpreter.load(&script("return 'DIRECT'"), &Names).unwrap();
    let second = interpreting(interpreter.id());
    for process in [Pid::from_raw(interpreter.id().cast_signed()).unwrap(), second] {
        kill_process(process, Signal::KILL).unwrap();
    }
    assert_eq!(interpreter.find("http://a/", "a", &Names), Err(Failure::Gone));
    assert_eq!(interpreter.load("", &Names), Err(Failure::Gone));
}
