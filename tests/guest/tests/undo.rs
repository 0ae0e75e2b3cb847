//! A shared folder with a journal: what a real guest did to it is undone from the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cabana_test_guest::{Call, Host, host};
use tempfile::TempDir;

/// A folder and a place for its journal.
struct Yard {
    host: &'static Host,
    dir: TempDir,
}

impl Yard {
    fn new() -> Option<Self> {
        let host = host()?;
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("work")).unwrap();
        Some(Self { host, dir })
    }

    fn cabana(&self, arguments: &[&str]) -> Call {
        self.host.cabana(arguments).env("CABANA_STATE", self.dir.path().join("state"))
    }

    /// A call of `cabana` with a runtime folder of its own, where machines that are up are found.
    fn with_machines(&self, arguments: &[&str]) -> Call {
        self.cabana(arguments).env("XDG_RUNTIME_DIR", self.dir.path())
    }

    fn work(&self) -> String {
        self.dir.path().join("work").display().to_string()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_a_guest_destroyed_comes_back() {
    let Some(yard) = Yard::new() else { return };
    let work = yard.dir.path().join("work");
    fs::create_dir_all(work.join("src/deep")).unwrap();
    fs::write(work.join("notes"), "days of work").unwrap();
    fs::write(work.join("src/deep/code"), "fn main() {}").unwrap();
    fs::set_permissions(work.join("notes"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(work.join("notes"), work.join("same")).unwrap();
    let share = format!("{}:/w:journal", yard.work());
    let script = "cd /w; echo oops >notes; rm -r src; mv same other; chmod 600 other; mkdir new; \
                  echo x >new/x; rm notes";
    yard.cabana(&["run", "--share", &share, "--", "sh", "-ec", script]).end().succeeded();
    assert_eq!(names(&work), ["new", "other"]);

    let listed = yard.cabana(&["share", "ls"]).end().succeeded();
    assert!(listed.contains(&yard.work()), "{listed}");
    let log = yard.cabana(&["share", "log", &yard.work()]).end().succeeded();
    assert!(log.contains("remove src/deep/code") && log.contains("rename same to other"), "{log}");
    let json = yard.cabana(&["share", "diff", &yard.work(), "--json"]).end().succeeded();
    let differences: serde_json::Value = serde_json::from_str(&json).unwrap();
    let of = |path: &str| {
        let all = differences.as_array().unwrap();
        all.iter().find(|one| one["path"] == path).map(|one| one["what"].clone())
    };
    assert_eq!(of("notes"), Some("deleted".into()), "{json}");
    assert_eq!(of("same"), Some("moved".into()));
    assert_eq!(of("new/x"), Some("added".into()));

    let said = yard.cabana(&["share", "rollback", &yard.work(), "src"]).end().succeeded();
    assert!(said.contains("3 paths brought back, 0 not"), "{said}");
    assert_eq!(fs::read(work.join("src/deep/code")).unwrap(), b"fn main() {}");
    assert!(!work.join("notes").exists());
    yard.cabana(&["share", "rollback", &yard.work()]).end().succeeded();
    assert_eq!(names(&work), ["notes", "same", "src"]);
    for name in ["notes", "same"] {
        assert_eq!(fs::read(work.join(name)).unwrap(), b"days of work");
        assert_eq!(fs::metadata(work.join(name)).unwrap().permissions().mode() & 0o777, 0o640);
    }

    yard.cabana(&["share", "accept", &yard.work()]).end().succeeded();
    let said = yard.cabana(&["share", "diff", &yard.work()]).end().succeeded();
    assert!(said.contains("is as it was"), "{said}");
}

#[test]
fn machines_that_are_up_have_journals_too() {
    let Some(yard) = Yard::new() else { return };
    let path = |name: &str| yard.dir.path().join(name);
    for name in ["work", "docs"] {
        fs::create_dir_all(path(name)).unwrap();
        fs::write(path(name).join("notes"), format!("of {name}")).unwrap();
    }
    let shown = |name: &str, at: &str| format!("{}:{at}:journal", path(name).display());
    let up = |more: &[&str]| {
        let (work, root) = (shown("work", "/w"), yard.dir.path().display().to_string());
        let words = [&["m", "--share", &work, "--share-root", &root], more].concat();
        let state = path("state");
        let variables = [("CABANA_STATE", &*state), ("XDG_RUNTIME_DIR", yard.dir.path())];
        yard.host.up(&words, variables);
    };
    let exec = |session: &[&str], script: &str| {
        let words = [&["exec"], session, &["m", "--", "sh", "-ec", script]].concat();
        yard.with_machines(&words).end()
    };
    let docs = shown("docs", "/mnt/docs");

    // Without `--journals` those of the start alone are in the worker's reach.
    up(&[]);
    let refused = yard.with_machines(&["share", "add", "m", &docs]).end();
    refused.failed_with(125, &["docs", "journals"]);
    exec(&[], "rm /w/notes; echo new >/w/more").succeeded();
    let busy = yard.cabana(&["share", "rollback", path("work").to_str().unwrap()]).end();
    busy.failed_with(125, &["in use"]);
    yard.with_machines(&["down", "m"]).end().succeeded();

    // A session's folder, and the same one in a second session.
    up(&["--journals"]);
    for session in ["chat-1", "chat-2"] {
        let add = ["session", "add", "m", session, "--share", &docs];
        yard.with_machines(&add).end().succeeded();
    }
    exec(&["--session", "chat-1"], "cd /mnt/docs; echo oops >notes; mkdir new").succeeded();
    exec(&["--session", "chat-2"], "cd /mnt/docs; rm notes; mv /mnt/docs/new /mnt/docs/old")
        .succeeded();
    let all = format!("{}:/all", yard.dir.path().display());
    let refused = yard.with_machines(&["share", "add", "m", &all]).end();
    refused.failed_with(125, &["cannot keep a journal", "set CABANA_STATE"]);
    let list = yard.with_machines(&["share", "ls", "m", "--session", "chat-1", "--json"]);
    assert!(list.end().succeeded().contains("\"journal\""));
    yard.with_machines(&["down", "m"]).end().succeeded();

    for name in ["work", "docs"] {
        let folder = path(name).display().to_string();
        yard.cabana(&["share", "rollback", &folder]).end().succeeded();
        assert_eq!(names(&path(name)), ["notes"]);
        assert_eq!(fs::read_to_string(path(name).join("notes")).unwrap(), format!("of {name}"));
    }
}

#[test]
fn a_killed_machine_leaves_a_journal_that_works() {
    let Some(yard) = Yard::new() else { return };
    let work = yard.dir.path().join("work");
    for number in 0..20 {
        fs::write(work.join(format!("file{number}")), format!("content {number}")).unwrap();
    }
    let share = format!("{}:/w:journal", yard.work());
    let script = "cd /w; echo begun; i=0; while true; do for f in file*; do echo $i >$f; mv $f x$f; \
                  mv x$f $f; rm $f; echo $i >$f; done; i=$((i+1)); done";
    let mut running = yard.cabana(&["run", "--share", &share, "--", "sh", "-ec", script]).start();
    running.wait_for("begun");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let busy = yard.cabana(&["share", "rollback", &yard.work()]).end();
    busy.failed_with(125, &["in use"]);
    running.signal(rustix::process::Signal::KILL);
    assert_eq!(running.end().status(), 1009);
    yard.cabana(&["share", "rollback", &yard.work()]).end().succeeded();
    for number in 0..20 {
        let content = fs::read_to_string(work.join(format!("file{number}"))).unwrap();
        assert_eq!(content, format!("content {number}"));
    }
    assert_eq!(names(&work).len(), 20);
}

#[test]
fn a_journal_is_refused_where_the_guest_would_reach_it() {
    let Some(yard) = Yard::new() else { return };
    let all = format!("{}:/all", yard.dir.path().display());
    let share = format!("{}:/w:journal", yard.work());
    let call = yard.cabana(&["run", "--share", &all, "--share", &share, "--", "true"]);
    call.end().failed_with(125, &["cannot keep a journal", "set CABANA_STATE"]);
    let none = yard.cabana(&["share", "diff", "/nowhere"]);
    none.end().failed_with(125, &["/nowhere", "no journal", "cabana share list"]);
}
