//! The bytes of a whole snapshot, pinned, and what happens to one that has others.
//!
//! `goldens/v<FORMAT_VERSION>.hex` lists the pages that are not zero. A format that no longer writes them
//! cannot be read by who reads them: raise `FORMAT_VERSION`, run `CABANA_NEW_GOLDENS=1 cargo test -p
//! cabana-snapshot --test goldens`, and commit the new file. The variable makes a missing file; it never
//! changes one that exists.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, io};

use cabana_os::file::{FileExt, allocated};
use cabana_snapshot::{Draft, FORMAT_VERSION, Snapshot, SnapshotError, write_nonzero};

const PAGE: u64 = 4096;
const RAM: u64 = 1 << 20;

fn write(path: &Path) -> Result<(), SnapshotError> {
    let mut draft = Draft::new(path, "a test", Duration::from_nanos(1_700_000_000_123_456_789))?;
    draft.part("state", 3, vec![1, 2, 3]);
    draft.content("ram", RAM, |file, at| {
        write_nonzero(file, at, RAM, |offset, bytes| {
            let pages = (offset / PAGE..).zip(bytes.chunks_mut(PAGE as usize));
            for (number, page) in pages {
                page.fill(if number % 100 < 2 { number as u8 + 1 } else { 0 });
            }
            Ok(())
        })
    })?;
    draft.content("disk", 16 << 30, |file, at| file.write_all_at(b"disk", at + (8 << 30)))?;
    draft.commit()
}

fn made() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    write(&path).unwrap();
    (folder, path)
}

#[test]
fn a_snapshot_has_the_bytes_that_it_had() {
    let (_folder, path) = made();
    let file = File::open(&path).unwrap();
    let mut text = String::new();
    cabana_os::file::for_each_data(&file, 0..file.metadata().unwrap().len(), |data| {
        for page in data.start / PAGE..data.end.div_ceil(PAGE) {
            let mut bytes = vec![0; PAGE as usize];
            let len = file.read_at(&mut bytes, page * PAGE)?;
            let used = bytes[..len].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            // A page of one byte is that.
            let same = bytes.iter().all(|byte| *byte == bytes[0]);
            let shown = if same { &bytes[..1] } else { &bytes[..used] };
            if used > 0 {
                write!(text, "{page:x}:").unwrap();
                for byte in shown {
                    write!(text, "{byte:02x}").unwrap();
                }
                text.push('\n');
            }
        }
        Ok(())
    })
    .unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let golden = folder.join(format!("v{FORMAT_VERSION}.hex"));
    if env::var_os("CABANA_NEW_GOLDENS").is_some() && !golden.exists() {
        fs::write(&golden, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&golden).unwrap(), "raise FORMAT_VERSION");
}

#[test]
fn what_was_written_is_read() {
    let (_folder, path) = made();
    let snapshot = Snapshot::open(&path).unwrap();
    assert_eq!(snapshot.part("state", 3).unwrap(), [1, 2, 3]);
    assert_eq!((snapshot.made_by(), snapshot.made_at()), ("a test", 1_700_000_000));
    let ram = snapshot.content("ram").unwrap();
    let far = [0, 100, 200].map(|page| (page * PAGE, 2 * PAGE));
    assert_eq!((ram.len, ram.extents.as_slice()), (RAM, far.as_slice()));
    let mut page = [0; PAGE as usize];
    snapshot.file().read_exact_at(&mut page, ram.start + 101 * PAGE).unwrap();
    assert_eq!(page, [102; PAGE as usize]);
    assert_eq!(snapshot.content("disk").unwrap().extents, [(8 << 30, PAGE)]);
    assert!(snapshot.content("other").is_none());
    snapshot.verify().unwrap();
    assert!(allocated(&File::open(&path).unwrap()).unwrap() < 64 * PAGE, "zero pages are stored");
}

#[test]
fn other_versions_are_refused_by_name() {
    let (_folder, path) = made();
    let snapshot = Snapshot::open(&path).unwrap();
    for (name, known, found) in [("state", 4, 3), ("other", 1, 0)] {
        let error = snapshot.part(name, known).unwrap_err();
        let SnapshotError::Version { what, found: was, .. } = &error else { panic!("{error}") };
        assert_eq!((what.as_str(), *was), (name, found));
        assert!(error.to_string().contains("made by a test"), "{error}");
    }
    write_at(&path, &[FORMAT_VERSION as u8 + 1], 8);
    let error = Snapshot::open(&path).unwrap_err();
    assert!(matches!(error, SnapshotError::Version { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn what_is_no_whole_snapshot_is_refused() {
    let (folder, path) = made();
    let whole = path.metadata().unwrap().len();
    let open = |path: &Path| Snapshot::open(path).unwrap_err();
    assert!(matches!(open(folder.path()), SnapshotError::Foreign(_)));
    assert!(matches!(open(&folder.path().join("none")), SnapshotError::Io { .. }));
    let foreign = folder.path().join("foreign");
    for content in [&b""[..], b"short", &[b'x'; 10_000]] {
        fs::write(&foreign, content).unwrap();
        assert!(matches!(open(&foreign), SnapshotError::Foreign(_)));
    }
    for len in [whole - 1, 2 << 20, 4096, whole + 1] {
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        let error = open(&path);
        assert!(matches!(error, SnapshotError::Truncated { .. }), "{len}: {error}");
        write(&path).unwrap();
    }
    File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
    assert!(matches!(open(&path), SnapshotError::Corrupted { .. }));
}

#[test]
fn a_changed_byte_is_found_wherever_it_is() {
    let (_folder, path) = made();
    let snapshot = Snapshot::open(&path).unwrap();
    let (ram, disk) = (snapshot.content("ram").unwrap(), snapshot.content("disk").unwrap());
    let len = path.metadata().unwrap().len();
    let places = [
        17,
        40,
        len - 1,
        len - 60,
        ram.start + 5,
        ram.start + RAM - 1,
        disk.start,
        disk.start + (8 << 30),
    ];
    for at in places {
        write(&path).unwrap();
        let file = File::open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        write_at(&path, &[byte[0] ^ 4], at);
        let error = Snapshot::open(&path).unwrap_err();
        assert!(matches!(error, SnapshotError::Corrupted { .. }), "at {at:#x}: {error}");
    }
}

#[test]
fn a_copy_is_as_good_with_its_holes_filled() {
    let (folder, path) = made();
    let copy = folder.path().join("copy");
    let (from, to) = (File::open(&path).unwrap(), File::create(&copy).unwrap());
    cabana_os::file::copy_sparse(&from, &to).unwrap();
    to.write_all_at(&[0; 8192], (2 << 20) + 4 * PAGE).unwrap();
    Snapshot::open(&copy).unwrap();
    to.write_all_at(&[1], (2 << 20) + 4 * PAGE).unwrap();
    assert!(Snapshot::open(&copy).is_err());
}

#[test]
fn a_snapshot_that_fails_leaves_the_old_one() {
    let (folder, path) = made();
    let mut draft = Draft::new(&path, "another", Duration::from_secs(1)).unwrap();
    let failed = draft.content("ram", RAM, |_, _| Err(io::ErrorKind::StorageFull.into()));
    assert!(failed.unwrap_err().to_string().starts_with("cannot write the snapshot"));
    drop(draft);
    assert_eq!(Snapshot::open(&path).unwrap().made_by(), "a test");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn write_at(path: &Path, bytes: &[u8], at: u64) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}
