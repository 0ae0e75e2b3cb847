//! Random changes, moments remembered among them, and every moment brought back exactly.

mod common;

use std::fs;
use std::path::Path;

use cabana_journal::{Request, diff};
use common::{Guest, Op, Random, Snapshot, Yard, assert_same, snapshot};

/// Gives the share something to lose.
fn fill(share: &Path, random: &mut Random) {
    let mut host = Guest::new(share, None);
    for _ in 0..150 {
        let _ = host.act(&Op::random(random));
    }
}

fn play(seed: u64, rounds: usize) {
    println!("seed {seed}");
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
    for seed in 1000..1400 {
        play(seed, 12);
    }
}

#[test]
fn names_of_one_inode_are_told_apart() {
    let yard = Yard::new();
    let share = yard.share();
    fs::write(share.join("c"), "same").unwrap();
    fs::hard_link(share.join("c"), share.join("d")).unwrap();
    let then = snapshot(&share, true);
    {
        let recorder = yard.recorder();
        let mut guest = Guest::new(&share, Some(&recorder));
        guest.act(&Op::Unlink("c".into())).unwrap();
        guest.act(&Op::Rename("d".into(), "c".into())).unwrap();
    }
    yard.back_to(0);
    assert_same("renamed", &snapshot(&share, true), &then);
}

#[test]
fn what_is_written_after_removal_is_no_part_of_what_was_removed() {
    let yard = Yard::new();
    let share = yard.share();
    fs::write(share.join("b"), "before").unwrap();
    fs::hard_link(share.join("b"), share.join("c")).unwrap();
    fs::write(share.join("d"), "other").unwrap();
    let then = snapshot(&share, true);
    {
        let recorder = yard.recorder();
        let mut guest = Guest::new(&share, Some(&recorder));
        guest.act(&Op::Open(0, "b".into())).unwrap();
        guest.act(&Op::Unlink("b".into())).unwrap();
        guest.act(&Op::Rename("d".into(), "c".into())).unwrap();
        guest.act(&Op::Append(0, 10, 1)).unwrap();
        guest.act(&Op::Write(0, 0, 10, 2)).unwrap();
        guest.close_all();
    }
    yard.back_to(0);
    assert_same("removed", &snapshot(&share, true), &then);
}
