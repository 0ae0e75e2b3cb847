//! The bytes of a record of what machines touch first, pinned, and what happens to one that has others: it is as
//! good as none.
//!
//! `goldens/touched-v1.hex` has them; like the snapshot's it changes with the version alone.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cabana_snapshot::{Draft, Run, Snapshot, Touched};

const GOLDEN: &str = include_str!("goldens/touched-v1.hex");

/// A snapshot, and where its record stands.
fn made(made_at: u64) -> (tempfile::TempDir, Snapshot, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    Draft::new(&path, "a test", Duration::from_secs(made_at)).unwrap().commit().unwrap();
    let record = folder.path().join(".warm.touched");
    (folder, Snapshot::open(&path).unwrap(), record)
}

fn run(first: u64, count: u64, written: bool) -> Run {
    Run { first, count, written }
}

fn touched() -> Touched {
    let mut touched = Touched::new(true);
    touched.add("ram", vec![run(0, 1, false), run(1, 300, true), run(70_000, 2, false)]);
    touched.add("image", vec![run(5, 1, false)]);
    touched
}

#[test]
fn a_record_has_the_bytes_that_it_had() {
    let (_folder, snapshot, record) = made(1_700_000_000);
    touched().write(&snapshot).unwrap();
    let mut text = String::new();
    for byte in fs::read(&record).unwrap() {
        write!(text, "{byte:02x}").unwrap();
    }
    assert_eq!(text, GOLDEN.trim_end(), "raise the version");
}

#[test]
fn what_was_recorded_is_read() {
    let (_folder, snapshot, _) = made(1);
    assert_eq!(Touched::read(&snapshot), None);
    touched().write(&snapshot).unwrap();
    let read = Touched::read(&snapshot).unwrap();
    assert_eq!(read, touched());
    assert_eq!(read.runs("ram", 70_002).len(), 3);
    assert_eq!(read.runs("image", 6), [run(5, 1, false)]);
    // Of an area that is smaller, or not there, nothing is known.
    assert_eq!((read.runs("ram", 70_001), read.runs("disk", 100)), (&[][..], &[][..]));
    Touched::remove(snapshot.path()).unwrap();
    Touched::remove(snapshot.path()).unwrap();
    assert_eq!(Touched::read(&snapshot), None);
}

#[test]
fn a_record_of_another_snapshot_or_with_other_bytes_is_none() {
    let (folder, snapshot, record) = made(1);
    let (_other, other, foreign) = made(2);
    touched().write(&snapshot).unwrap();
    let whole = fs::read(&record).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&record, &changed).unwrap();
        assert_eq!(Touched::read(&snapshot), None, "byte {at}");
        fs::write(&record, &whole[..at]).unwrap();
        assert_eq!(Touched::read(&snapshot), None, "{at} bytes");
    }
    fs::write(&record, [whole.as_slice(), &[0]].concat()).unwrap();
    assert_eq!(Touched::read(&snapshot), None);
    File::create(&record).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(Touched::read(&snapshot), None);
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    assert_eq!(Touched::read(&snapshot), None);
    assert!(touched().write(&snapshot).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something was left");
    fs::write(&foreign, &whole).unwrap();
    assert_eq!(Touched::read(&other), None);
}

#[test]
fn nonsense_is_not_recorded_and_what_was_recorded_stays() {
    let (_folder, snapshot, _) = made(1);
    touched().write(&snapshot).unwrap();
    let nonsense = [
        vec![run(0, 0, true)],
        vec![run(4, 2, true), run(5, 1, true)],
        vec![run(0, 40_000, true)],
        vec![run(u64::MAX, 1, false)],
        vec![run(1, u64::MAX, false)],
    ];
    for runs in nonsense {
        let mut touched = Touched::new(false);
        touched.add("ram", runs);
        touched.write(&snapshot).unwrap();
    }
    assert_eq!(Touched::read(&snapshot), Some(touched()));
    let missing = Path::new("/nowhere/at/all");
    assert!(Touched::remove(missing).is_ok());
}
