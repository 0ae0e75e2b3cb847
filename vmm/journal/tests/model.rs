//! Random changes, moments remembered among them, and every moment brought back exactly.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use cabana_journal::{Home, Limits, Outcome, Recorder, Request, diff, log, rollback};
use common::{Guest, Op, Random, Snapshot, assert_same, snapshot};
use tempfile::TempDir;

/// A share with a journal.
struct Yard {
    dir: TempDir,
    home: Home,
}

impl Yard {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        let home = Home::make(&dir.path().join("journals"), &dir.path().join("share")).unwrap();
        Self { dir, home }
    }

    fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    fn recorder(&self) -> Recorder {
        Recorder::open(&self.home, Limits::default()).unwrap()
    }

    fn last(&self) -> u64 {
        log(&self.home).unwrap().last().map_or(0, |record| record.seq)
    }

    fn back_to(&self, to: u64) -> Outcome {
        let outcome = rollback(&self.home, &Request { to, ..Request::default() }).unwrap();
        if std::env::var_os("SHOW").is_some()
            && (!outcome.failed.is_empty()
                || outcome.changed.iter().any(|changed| changed.refused.is_some()))
        {
            println!("to {to}: {outcome:?}");
            for record in log(&self.home).unwrap() {
                println!("{} {:?}", record.seq, record.event);
            }
        }
        let refused: Vec<_> =
            outcome.changed.iter().filter(|changed| changed.refused.is_some()).collect();
        assert!(
            refused.is_empty() && outcome.failed.is_empty(),
            "{refused:?} {:?}",
            outcome.failed
        );
        outcome
    }
}

/// Gives the share something to lose.
fn fill(share: &Path, random: &mut Random) {
    let mut host = Guest::new(share, None);
    for _ in 0..150 {
        let _ = host.act(&Op::random(random));
    }
}

fn play(seed: u64, rounds: usize) {
    let mut random = Random::new(seed);
    let yard = Yard::new();
    fill(&yard.share(), &mut random);
    let mut moments: Vec<(u64, Snapshot)> = vec![(0, snapshot(&yard.share(), true))];
    for _ in 0..rounds {
        {
            let recorder = yard.recorder();
            let mut guest = Guest::new(&yard.share(), Some(&recorder));
            for _ in 0..=random.below(120) {
                let op = Op::random(&mut random);
                let _ = guest.act(&op);
            }
            guest.close_all();
        }
        moments.push((yard.last(), snapshot(&yard.share(), true)));
        if random.below(3) == 0 {
            let (to, then) = &moments[random.below(moments.len() as u64) as usize];
            let now = snapshot(&yard.share(), true);
            let outcome = yard.back_to(*to);
            assert_same(
                &format!("seed {seed}, back to {to}"),
                &snapshot(&yard.share(), true),
                then,
            );
            assert!(
                diff(&yard.home, &Request { to: *to, ..Request::default() }).unwrap().is_empty()
            );
            if random.below(2) == 0
                && let Some(undo) = outcome.undo
            {
                yard.back_to(undo);
                if std::env::var_os("SHOW").is_some() && snapshot(&yard.share(), true) != now {
                    for record in log(&yard.home).unwrap() {
                        println!("{} {:?}", record.seq, record.event);
                    }
                }
                let is = snapshot(&yard.share(), true);
                assert_same(&format!("seed {seed}, undone to {undo}"), &is, &now);
            }
            moments.push((yard.last(), snapshot(&yard.share(), true)));
        }
    }
    for (to, then) in moments.iter().rev() {
        yard.back_to(*to);
        assert_same(&format!("seed {seed}, to {to}"), &snapshot(&yard.share(), true), then);
    }
}

#[test]
fn every_moment_comes_back_exactly() {
    for seed in 0..25 {
        play(seed, 6);
    }
}

#[test]
#[ignore = "takes minutes: runs with --long"]
fn every_moment_of_long_histories_comes_back_exactly() {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1000);
    for seed in first..first + 400 {
        println!("seed {seed}");
        play(seed, 12);
    }
}
