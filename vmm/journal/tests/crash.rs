//! A guest's server is killed at random moments, and so are rollbacks. Neither the folder nor the
//! journal loses anything: the folder is what a second folder without a journal is after as many
//! operations, and comes back exactly to what it was before, and from there to what it was when the
//! server was killed.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cabana_journal::{Event, Home, Limits, Recorder, Request, log, rollback};
use cabana_os::file::FileExt;
use common::{Guest, Op, Random, assert_same, snapshot};

/// What the child is to do, and on what: set for the child alone.
const TASK: &str = "CABANA_CRASH_TASK";
const YARD: &str = "CABANA_CRASH_YARD";
const SEED: &str = "CABANA_CRASH_SEED";

/// More than the child does before it is killed.
const OPS: u64 = 100_000;

struct Yard(PathBuf);

impl Yard {
    fn share(&self) -> PathBuf {
        self.0.join("share")
    }

    fn home(&self) -> Home {
        Home::make(&self.0.join("journals"), &self.share()).unwrap()
    }

    fn progress(&self) -> PathBuf {
        self.0.join("progress")
    }
}

#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else {
        println!("skipped: it is the other tests' child process");
        return;
    };
    let yard = Yard(std::env::var(YARD).unwrap().into());
    match task.as_str() {
        "serve" => serve(&yard, std::env::var(SEED).unwrap().parse().unwrap()),
        "rollback" => {
            File::create(yard.progress()).unwrap();
            rollback(&yard.home(), &Request::default()).unwrap();
        }
        task => panic!("{task}?"),
    }
}

/// Works until it is killed, and says in a file how far it has come.
fn serve(yard: &Yard, seed: u64) {
    let recorder = Recorder::open(&yard.home(), Limits::default()).unwrap();
    let mut guest = Guest::new(&yard.share(), Some(&recorder));
    let mut random = Random::new(seed);
    let progress = File::create(yard.progress()).unwrap();
    for done in 1..=OPS {
        let op = Op::random(&mut random);
        let _ = guest.act(&op);
        progress.write_all_at(&done.to_le_bytes(), 0).unwrap();
    }
    panic!("it was not killed");
}

fn start(yard: &Yard, task: &str, seed: u64) -> Child {
    let _ = fs::remove_file(yard.progress());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).stdout(Stdio::null());
    command.env(TASK, task).env(YARD, &yard.0).env(SEED, seed.to_string());
    let mut child = command.spawn().unwrap();
    while !yard.progress().exists() {
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
        std::thread::sleep(Duration::from_micros(200));
    }
    child
}

/// Lets it work for a moment, and kills it. True if it had ended by itself.
fn kill(mut child: Child, after: Duration) -> bool {
    std::thread::sleep(after);
    let ended = child.try_wait().unwrap().is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    ended
}

fn fill(folder: &Path, random: &mut Random) {
    fs::create_dir(folder).unwrap();
    let mut host = Guest::new(folder, None);
    for _ in 0..200 {
        let _ = host.act(&Op::random(random));
    }
}

fn round(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (yard, shadow) = (Yard(dir.path().to_owned()), dir.path().join("shadow"));
    fill(&yard.share(), &mut Random::new(seed));
    fill(&shadow, &mut Random::new(seed));
    let before = snapshot(&yard.share(), true);
    let mut random = Random::new(seed ^ 0x5eed);
    let seed = random.next();
    let what = format!("seed {seed}");

    let server = start(&yard, "serve", seed);
    kill(server, Duration::from_micros(random.below(40_000)));
    let killed = snapshot(&yard.share(), true);

    // The folder is where it was after the last operation that was reported, or after the next.
    let mut bytes = [0; 8];
    let _ = File::open(yard.progress()).unwrap().read_at(&mut bytes, 0).unwrap();
    let (mut same, mut ops) = (Guest::new(&shadow, None), Random::new(seed));
    for _ in 0..u64::from_le_bytes(bytes) {
        let _ = same.act(&Op::random(&mut ops));
    }
    let is = snapshot(&yard.share(), false);
    if is != snapshot(&shadow, false) {
        // A write that is killed may end between two pages.
        for part in same.at_pages(&Op::random(&mut ops)) {
            let _ = same.act(&part);
            if is == snapshot(&shadow, false) {
                break;
            }
        }
        assert_same(
            &format!("{what}, the folder when it was killed"),
            &is,
            &snapshot(&shadow, false),
        );
    }

    // Back to the beginning, with a rollback or two that are killed too.
    for _ in 0..random.below(3) {
        let child = start(&yard, "rollback", 0);
        kill(child, Duration::from_micros(random.below(20_000)));
    }
    let outcome = rollback(&yard.home(), &Request::default()).unwrap();
    let refused: Vec<_> =
        outcome.changed.iter().filter(|changed| changed.refused.is_some()).collect();
    assert!(refused.is_empty() && outcome.failed.is_empty(), "{what}: {refused:?} {outcome:?}");
    assert_same(&format!("{what}, brought back"), &snapshot(&yard.share(), true), &before);

    // And to what it was when the server was killed.
    let begun = |event: &Event| matches!(event, Event::RollbackBegun { .. });
    let records = log(&yard.home()).unwrap();
    let first = records.iter().find(|record| begun(&record.event)).map(|record| record.seq);
    if let Some(to) = first {
        let outcome = rollback(&yard.home(), &Request { to, ..Request::default() }).unwrap();
        assert!(outcome.failed.is_empty(), "{what}: {outcome:?}");
    }
    assert_same(&format!("{what}, undone"), &snapshot(&yard.share(), true), &killed);
}

#[test]
fn a_killed_server_loses_nothing() {
    for seed in 0..40 {
        round(seed);
    }
}

#[test]
#[ignore = "takes minutes: runs with --long"]
fn a_server_that_is_killed_500_times_loses_nothing() {
    for seed in 1000..1500 {
        round(seed);
    }
}
