//! What is refused and why, what the limits do, and what accepting leaves.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cabana_journal::{
    Change, Event, Home, JournalError, Limits, Mark, Outcome, Recorder, Request, What, accept,
    diff, log, rollback,
};
use cabana_os::file::{FileExt, allocated};
use cabana_os::tree::{Access, Entry, Handle};
use common::{Guest, Op, Yard, assert_same, snapshot};

impl Yard {
    /// What a guest does between two others.
    fn guest(&self, ops: &[Op]) {
        self.guest_with(Limits::default(), ops);
    }

    fn guest_with(&self, limits: Limits, ops: &[Op]) {
        let recorder = Recorder::open(&self.home, limits).unwrap();
        let mut guest = Guest::new(&self.share(), Some(&recorder));
        for op in ops {
            guest.act(op).unwrap();
        }
        guest.close_all();
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.share().join(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.share().join(name)).unwrap()
    }

    fn roll_back(&self, request: &Request) -> Outcome {
        rollback(&self.home, request).unwrap()
    }
}

fn overwrite(name: &str) -> [Op; 3] {
    [Op::Open(0, name.into()), Op::Write(0, 0, 5, b'g'), Op::Close(0)]
}

/// The paths that were refused, with why.
fn refused(outcome: &Outcome) -> Vec<(&Path, &str)> {
    let why = |changed: &'_ cabana_journal::Changed| changed.refused.is_some();
    let changed = outcome.changed.iter().filter(|changed| why(changed));
    changed.map(|changed| (changed.path.as_path(), changed.refused.as_deref().unwrap())).collect()
}

#[test]
fn a_file_that_got_another_name_while_it_was_written_to_is_the_guests() {
    let yard = Yard::new();
    yard.write("old", "before");
    let recorder = yard.recorder();
    let mut guest = Guest::new(&yard.share(), Some(&recorder));
    for op in [
        Op::Open(0, "old".into()),
        Op::Write(0, 0, 5, b'g'),
        Op::Link("old".into(), "new".into()),
        Op::Write(0, 3, 900, b'h'),
    ] {
        guest.act(&op).unwrap();
    }
    // Its machine is killed: nobody closes the file.
    drop(guest);
    drop(recorder);
    let outcome = yard.roll_back(&Request::default());
    assert_eq!(refused(&outcome), []);
    assert_eq!(yard.read("old"), "before");
    assert!(!yard.share().join("new").exists());
}

#[test]
fn a_file_that_got_its_first_name_while_it_was_written_to_is_the_guests() {
    let yard = Yard::new();
    let recorder = yard.recorder();
    let folder = Handle::of_directory(&yard.share()).unwrap();
    let file = match folder.create_unnamed(0o600, Access::BOTH) {
        Ok((file, _)) => file,
        Err(error) => return eprintln!("skipped: no files without a name here: {error}"),
    };
    let handle = Handle::of_file(&file).unwrap();
    let mark = Mark::default();
    recorder.before_content(&handle, 0, &mark).unwrap();
    file.write_all_at(b"before it had a name", 0).unwrap();
    let at = Entry { directory: &folder, name: c"named" };
    recorder.change(&Change::Link(at, &handle), || at.link(&handle)).unwrap();
    recorder.before_content(&handle, 30, &mark).unwrap();
    file.write_all_at(b"and when it had one", 30).unwrap();
    recorder.closed(&handle, &mark);
    drop(recorder);
    assert_eq!(refused(&yard.roll_back(&Request::default())), []);
    assert!(!yard.share().join("named").exists());
}

#[test]
fn what_the_host_changed_since_is_refused_and_never_lost() {
    let yard = Yard::new();
    for name in ["edited", "gone", "other"] {
        yard.write(name, "before");
    }
    let ops = [overwrite("edited"), overwrite("gone"), overwrite("other")].concat();
    yard.guest(&[&ops[..], &[Op::Create("made".into())]].concat());
    yard.write("edited", "the host's newer words");
    fs::remove_file(yard.share().join("gone")).unwrap();
    yard.write("made", "the host went on with it");

    let outcome = yard.roll_back(&Request::default());
    let why = refused(&outcome);
    assert_eq!(why.len(), 3, "{why:?}");
    assert!(why[0].1.contains("the host has changed it since") && why[0].1.contains("--force"));
    assert!(why[1].1.contains("the host has removed or moved it since"), "{why:?}");
    assert_eq!(yard.read("edited"), "the host's newer words");
    assert_eq!(yard.read("made"), "the host went on with it");
    assert_eq!(yard.read("other"), "before");
    assert!(!yard.share().join("gone").exists());

    let now = snapshot(&yard.share(), true);
    let outcome = yard.roll_back(&Request { force: true, ..Request::default() });
    assert!(refused(&outcome).is_empty() && outcome.failed.is_empty(), "{outcome:?}");
    assert_eq!((yard.read("edited"), yard.read("gone")), ("before".into(), "before".into()));
    assert!(!yard.share().join("made").exists());
    // Nor is what the host wrote lost by that.
    yard.back_to(outcome.undo.unwrap());
    assert_same("undone", &snapshot(&yard.share(), true), &now);
}

#[test]
fn a_folder_with_something_of_the_hosts_in_it_stays() {
    let yard = Yard::new();
    yard.guest(&[Op::Mkdir("d".into()), Op::Create("d/guest".into())]);
    yard.write("d/host", "mine");
    let outcome = yard.roll_back(&Request { force: true, ..Request::default() });
    assert_eq!(refused(&outcome), [(Path::new("d"), "it holds host, which stays")]);
    assert_eq!(yard.read("d/host"), "mine");
    assert!(!yard.share().join("d/guest").exists());
}

#[test]
fn single_paths_come_back_with_what_they_need() {
    let yard = Yard::new();
    fs::create_dir_all(yard.share().join("d/sub")).unwrap();
    for name in ["a", "b", "d/sub/f"] {
        yard.write(name, "before");
    }
    let ops = [
        Op::Rename("a".into(), "c".into()),
        Op::Unlink("b".into()),
        Op::Unlink("d/sub/f".into()),
        Op::Rmdir("d/sub".into()),
        Op::Create("new".into()),
    ];
    yard.guest(&ops);
    let only = |paths: &[&str]| Request {
        paths: paths.iter().map(PathBuf::from).collect(),
        ..Request::default()
    };
    let found = diff(&yard.home, &only(&["a"])).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].what, What::Moved { now: "c".into() });
    yard.roll_back(&only(&["d/sub/f", "b"]));
    assert_eq!((yard.read("b"), yard.read("d/sub/f")), ("before".into(), "before".into()));
    assert!(yard.share().join("new").exists() && yard.share().join("c").exists());
    yard.roll_back(&only(&["a"]));
    assert_eq!(yard.read("a"), "before");
    assert!(!yard.share().join("c").exists());
}

#[test]
fn originals_are_never_given_up_and_what_the_guest_made_goes_first() {
    let yard = Yard::new();
    fs::write(yard.share().join("original"), vec![7; 100_000]).unwrap();
    let limits = Limits { bytes: 300_000, ..Limits::default() };
    let recorder = Recorder::open(&yard.home, limits).unwrap();
    let mut guest = Guest::new(&yard.share(), Some(&recorder));
    guest.act(&Op::Unlink("original".into())).unwrap();
    // More comes and goes than there is room for.
    for _ in 0..10 {
        let big = [Op::Create("junk".into()), Op::Open(0, "junk".into()), Op::Append(0, 90_000, 1)];
        for op in big.iter().chain(&[Op::Close(0), Op::Unlink("junk".into())]) {
            guest.act(op).unwrap();
        }
    }
    drop(guest);
    drop(recorder);
    let dropped = |event: &Event| matches!(event, Event::Dropped { .. });
    assert!(log(&yard.home).unwrap().iter().any(|record| dropped(&record.event)));
    let kept: u64 = fs::read_dir(yard.home.folder.join("kept"))
        .unwrap()
        .map(|entry| allocated(&File::open(entry.unwrap().path()).unwrap()).unwrap())
        .sum();
    assert!(kept <= 300_000, "{kept}");
    yard.back_to(0);
    assert_eq!(fs::read(yard.share().join("original")).unwrap(), vec![7; 100_000]);
    assert_eq!(fs::read_dir(yard.share()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_kept_is_not_destroyed() {
    let yard = Yard::new();
    fs::write(yard.share().join("big"), vec![7; 1_000_000]).unwrap();
    let limits = Limits { bytes: 100_000, ..Limits::default() };
    let recorder = Recorder::open(&yard.home, limits).unwrap();
    let mut guest = Guest::new(&yard.share(), Some(&recorder));
    let full = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    };
    full(guest.act(&Op::Unlink("big".into())));
    guest.act(&Op::Create("small".into())).unwrap();
    full(guest.act(&Op::Rename("small".into(), "big".into())));
    guest.act(&Op::Open(0, "big".into())).unwrap();
    full(guest.act(&Op::Write(0, 10, 10, 1)));
    full(guest.act(&Op::Truncate(0, 10)));
    // Growing destroys nothing.
    guest.act(&Op::Append(0, 10, 1)).unwrap();
    drop(guest);
    drop(recorder);
    yard.back_to(0);
    assert_eq!(fs::read(yard.share().join("big")).unwrap(), vec![7; 1_000_000]);
}

#[test]
fn what_is_accepted_cannot_be_brought_back_and_takes_no_room() {
    let yard = Yard::new();
    yard.write("one", "before");
    yard.write("two", "before");
    yard.guest(&overwrite("one"));
    let middle = yard.last();
    yard.guest(&overwrite("two"));
    assert!(accept(&yard.home, Some(middle)).unwrap() > 0);
    let early = rollback(&yard.home, &Request { to: 1, ..Request::default() });
    assert!(matches!(early, Err(JournalError::TooEarly { .. })), "{early:?}");
    yard.back_to(0);
    assert_eq!((yard.read("one"), yard.read("two")), ("ggggge".into(), "before".into()));
    let last = yard.last();
    accept(&yard.home, None).unwrap();
    assert_eq!(fs::read_dir(yard.home.folder.join("kept")).unwrap().count(), 0);
    assert!(diff(&yard.home, &Request::default()).unwrap().is_empty());
    assert!(yard.last() > last, "numbers are not used twice");

    // What is too old is accepted when a machine begins.
    yard.guest(&overwrite("two"));
    yard.guest_with(Limits { age: Duration::ZERO, ..Limits::default() }, &[]);
    assert!(diff(&yard.home, &Request::default()).unwrap().is_empty());
}

#[test]
fn a_journal_on_another_file_system_copies() {
    let Ok(state) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: there is no second file system at /dev/shm");
        return;
    };
    let inside = tempfile::tempdir().unwrap();
    let device = |path: &Path| Handle::of_directory(path).unwrap().stat().unwrap().device;
    if device(state.path()) == device(inside.path()) {
        println!("skipped: /dev/shm is no other file system than the temporary folder's");
        return;
    }
    let yard = Yard::new();
    let share = yard.share();
    fs::create_dir(share.join("d")).unwrap();
    yard.write("d/f", "before");
    yard.write("g", "before");
    let then = snapshot(&share, true);
    // With the journal in the other file system, what is kept stands beside the share.
    let home = Home::make(state.path(), &share).unwrap();
    let beside = share.with_file_name(format!(".cabana-journal-{}", home.id));
    assert!(beside.is_dir());
    // Where that cannot be, it is copied.
    fs::write(
        home.folder.join("where"),
        [
            share.as_os_str().as_encoded_bytes(),
            b"\0",
            home.folder.as_os_str().as_encoded_bytes(),
            b"/kept",
        ]
        .concat(),
    )
    .unwrap();
    fs::create_dir(home.folder.join("kept")).unwrap();
    let home = Home::find(state.path(), &share).unwrap();
    {
        let recorder = Recorder::open(&home, Limits::default()).unwrap();
        let mut guest = Guest::new(&share, Some(&recorder));
        for op in [Op::Unlink("d/f".into()), Op::Rmdir("d".into()), Op::Create("new".into())] {
            guest.act(&op).unwrap();
        }
        for op in overwrite("g").iter().chain(&[Op::Rename("new".into(), "g".into())]) {
            guest.act(op).unwrap();
        }
        guest.close_all();
    }
    let outcome = rollback(&home, &Request::default()).unwrap();
    assert!(outcome.failed.is_empty() && refused(&outcome).is_empty(), "{outcome:?}");
    assert_same("copied", &snapshot(&share, true), &then);
}

#[test]
fn a_machine_that_runs_keeps_others_out() {
    let yard = Yard::new();
    let recorder = yard.recorder();
    assert!(matches!(rollback(&yard.home, &Request::default()), Err(JournalError::InUse(_))));
    assert!(matches!(accept(&yard.home, None), Err(JournalError::InUse(_))));
    assert!(diff(&yard.home, &Request::default()).unwrap().is_empty());
    drop(recorder);
    rollback(&yard.home, &Request::default()).unwrap();
}
