//! Folders of the host in the guest: what each side does, the other sees, and nothing beyond them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cabana_sandbox::{Machine, MachineConfig, Scratch, Share};
use cabana_test_guest::{host, sh};
use tempfile::TempDir;

/// A machine with a folder at `/w` and another, read-only, at `/r`.
struct Shared {
    machine: Machine,
    writable: TempDir,
    read_only: TempDir,
}

/// The machine of most cases here. It ends with this process; its two folders stay among the temporary
/// files, since nothing runs after the last case.
fn shared() -> Option<&'static Shared> {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    let host = host()?;
    Some(SHARED.get_or_init(|| {
        let [writable, read_only] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let share = |folder: &TempDir, guest: &str, read_only| Share {
            host: folder.path().to_owned(),
            guest: guest.to_owned(),
            read_only,
        };
        let machine = Machine::start(&MachineConfig {
            kernel: host.kernel.clone(),
            agent: host.agent.clone(),
            image: host.image.clone(),
            scratch: Scratch::Memory,
            shares: vec![share(&writable, "/w", false), share(&read_only, "/r", true)],
            ..MachineConfig::default()
        });
        Shared { machine: machine.expect("a machine"), writable, read_only }
    }))
}

impl Shared {
    /// A folder of the case's own on the host; the guest has it as `/w/NAME`.
    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.writable.path().join(name);
        fs::create_dir(&folder).expect("a new folder");
        folder
    }
}

#[test]
fn each_side_sees_what_the_other_writes() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("both");
    fs::write(folder.join("from-host"), "hello guest").unwrap();
    let script = "cd /w/both; cat from-host; printf 'hello host' >from-guest; mkdir -p a/b; \
                  echo deep >a/b/c; printf ' again' >>from-host";
    assert_eq!(sh(&shared.machine, script).succeeded(), "hello guest");
    assert_eq!(fs::read_to_string(folder.join("from-guest")).unwrap(), "hello host");
    assert_eq!(fs::read_to_string(folder.join("from-host")).unwrap(), "hello guest again");
    assert_eq!(fs::read_to_string(folder.join("a/b/c")).unwrap(), "deep\n");
    // What the guest has read before is not what it goes on reading.
    fs::write(folder.join("from-host"), "other words").unwrap();
    fs::remove_file(folder.join("from-guest")).unwrap();
    let script = "cd /w/both; cat from-host; test ! -e from-guest";
    assert_eq!(sh(&shared.machine, script).succeeded(), "other words");
}

#[test]
fn names_come_change_and_go() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("names");
    let script = "cd /w/names; echo 1 >one; ln one hard; ln -s one soft; mkdir dir; mv one dir/two; \
                  cat hard; stat -c '%h' hard; readlink soft; test ! -e soft; mv dir renamed; \
                  echo x >gone; rm gone; mkdir empty; rmdir empty; echo over >over; mv over hard; \
                  cat hard renamed/two; rmdir renamed 2>/dev/null && exit 1; ls";
    let text = sh(&shared.machine, script).succeeded();
    assert_eq!(text, "1\n2\none\nover\n1\nhard\nrenamed\nsoft\n");
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["hard", "renamed", "soft"]);
    assert_eq!(fs::read_link(folder.join("soft")).unwrap(), Path::new("one"));
    assert_eq!(fs::read_to_string(folder.join("renamed/two")).unwrap(), "1\n");
}

#[test]
fn a_file_that_is_unlinked_while_open_lives_on() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("open");
    let script = "cd /w/open; exec 3<>file; echo before >&3; rm file; echo after >&3; \
                  cat /proc/self/fd/3 || true; test ! -e file; \
                  python3 -c 'import os; print(os.pread(3, 99, 0).decode(), end=\"\")'";
    let text = sh(&shared.machine, script).succeeded();
    assert!(text.ends_with("before\nafter\n"), "{text}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn modes_times_and_sizes() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("modes");
    fs::write(folder.join("host"), "12345").unwrap();
    fs::set_permissions(folder.join("host"), fs::Permissions::from_mode(0o640)).unwrap();
    let script = "cd /w/modes; stat -c '%a %s %F' host; umask 022; echo x >f; chmod 751 f; \
                  touch -d '2001-02-03 04:05:06 UTC' f; truncate -s 1000000 f; touch -d @1234567890 f; \
                  umask 077; mkdir d; stat -c %a d";
    assert_eq!(sh(&shared.machine, script).succeeded(), "640 5 regular file\n700\n");
    let metadata = fs::metadata(folder.join("f")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o751);
    assert_eq!((metadata.len(), metadata.mtime()), (1_000_000, 1_234_567_890));
    assert_eq!(fs::metadata(folder.join("d")).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let Some(shared) = shared() else { return };
    let folder = shared.read_only.path();
    fs::write(folder.join("file"), "as it was").unwrap();
    let mode = fs::metadata(folder.join("file")).unwrap().mode();
    let script = "cd /r; cat file; for change in 'echo x >new' 'echo x >>file' 'rm file' 'mkdir dir' \
                  'mv file other' 'ln file other' 'ln -s file other' 'chmod 777 file' \
                  'truncate -s 0 file' 'touch file' 'mount -o remount,rw /r && echo x >new'; do \
                  if (eval \"$change\") 2>/tmp/why; then echo \"done: $change\"; exit 1; fi; \
                  grep -q 'Read-only\\|cannot remount\\|permission' /tmp/why || { cat /tmp/why; exit 1; }; done";
    assert_eq!(sh(&shared.machine, script).succeeded(), "as it was");
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "as it was");
    assert_eq!(fs::metadata(folder.join("file")).unwrap().mode(), mode);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
}

#[test]
fn links_of_the_host_lead_nowhere_else() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("links");
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    // A marker that the host has and the guest has not.
    symlink("/", folder.join("root")).unwrap();
    symlink(outside.path(), folder.join("absolute")).unwrap();
    let up = format!("../../../../../../../..{}", outside.path().display());
    symlink(up, folder.join("relative")).unwrap();
    symlink("../../..", folder.join("above")).unwrap();
    let secret = outside.path().join("secret");
    let script = format!(
        "cd /w/links; cat root/etc/hostname >/dev/null 2>&1; \
         test \"$(stat -c %d-%i root/)\" = \"$(stat -c %d-%i /)\"; \
         test \"$(stat -Lc %d-%i above)\" = \"$(stat -c %d-%i /)\"; \
         for path in absolute/secret relative/secret root{0} /proc/self/root{0}; do \
         if cat $path; then exit 1; fi; done 2>/dev/null; \
         if echo x >absolute/planted; then exit 1; fi 2>/dev/null; echo safe",
        secret.display()
    );
    // Under `set -e` the first line may fail.
    let script = script.replace("2>&1; test", "2>&1 || true; test");
    assert_eq!(sh(&shared.machine, &script).succeeded(), "safe\n");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn git_works_on_a_share() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("git");
    let script = "cd /w/git; git init -q -b main .; git config user.name T; git config user.email t@t; \
                  for i in $(seq 30); do echo $i >file$i; done; git add .; git commit -q -m first; \
                  echo more >>file1; git commit -q -a -m second; git checkout -q -b side HEAD~1; \
                  rm file2; git commit -q -a -m third; git merge -q -m merged main; git gc -q; \
                  git fsck --no-progress; git status --porcelain; git log --oneline | wc -l";
    let text = sh(&shared.machine, script).succeeded();
    assert_eq!(text.trim(), "4");
    let log = Command::new("git")
        .args(["-c", "safe.directory=*", "log", "-1", "--format=%s"])
        .current_dir(&folder)
        .output();
    match log {
        Ok(log) => assert_eq!(String::from_utf8_lossy(&log.stdout), "merged\n", "{log:?}"),
        Err(error) => println!("the host has no git to look with: {error}"),
    }
}

#[test]
fn what_is_the_users_is_roots_in_the_guest_and_stays_so() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("owners");
    fs::write(folder.join("file"), "").unwrap();
    // So that git trusts the repository, and programs that look for their own files find them.
    let script = "cd /w/owners; stat -c %u:%g . file; touch new; chown 0:0 new; chown 1000 new 2>&1 \
                  || true; stat -c %u new";
    let text = sh(&shared.machine, script).succeeded();
    assert!(text.starts_with("0:0\n0:0\n") && text.ends_with("\n0\n"), "{text}");
    assert!(text.contains("Operation not permitted"), "{text}");
    let (before, after) =
        (fs::metadata(&folder).unwrap(), fs::metadata(folder.join("new")).unwrap());
    assert_eq!(after.uid(), before.uid());
}

#[test]
fn a_database_works_on_a_share() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("database");
    let script = "
import sqlite3
for mode in ('delete', 'wal'):
    db = sqlite3.connect(f'/w/database/{mode}.db')
    print(db.execute(f'pragma journal_mode={mode}').fetchone()[0])
    db.execute('create table t (n integer primary key, s text)')
    with db:
        db.executemany('insert into t values (?, ?)', ((n, 'x' * n) for n in range(300)))
    other = sqlite3.connect(f'/w/database/{mode}.db')
    print(other.execute('select count(*), sum(length(s)) from t').fetchone())
    print(other.execute('pragma integrity_check').fetchone()[0])
    other.close(); db.close()
";
    let ran = cabana_test_guest::run(&shared.machine, ["python3", "-c", script]);
    assert_eq!(ran.succeeded(), "delete\n(300, 44850)\nok\nwal\n(300, 44850)\nok\n");
    let header = fs::read(folder.join("delete.db")).unwrap();
    assert!(header.starts_with(b"SQLite format 3\0"));
}

#[test]
fn mapped_files_are_read_and_written() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("mapped");
    let bytes: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    fs::write(folder.join("file"), &bytes).unwrap();
    let script = "
import mmap
with open('/w/mapped/file', 'r+b') as file:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
        print(len(m), all(m[i] == i % 251 for i in range(0, 300000, 997)))
    with mmap.mmap(file.fileno(), 0) as m:
        m[100000:100005] = b'guest'
        m.flush()
";
    let ran = cabana_test_guest::run(&shared.machine, ["python3", "-c", script]);
    assert_eq!(ran.succeeded(), "300000 True\n");
    let now = fs::read(folder.join("file")).unwrap();
    assert_eq!(&now[100_000..100_005], b"guest");
    assert_eq!((&now[..100_000], &now[100_005..]), (&bytes[..100_000], &bytes[100_005..]));
}

#[test]
fn locks_hold_between_processes() {
    let Some(shared) = shared() else { return };
    shared.folder("locks");
    let script = "cd /w/locks; exec 9>lock; flock -n 9; flock -n lock true && exit 1; \
                  flock -u 9; flock -n lock echo free";
    assert_eq!(sh(&shared.machine, script).succeeded(), "free\n");
}

#[test]
fn a_folder_of_two_thousand_files() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("many");
    for number in 0..2000 {
        fs::write(folder.join(format!("file-with-a-name-{number:04}")), []).unwrap();
    }
    let script = "cd /w/many; ls | wc -l; ls | sort | uniq | wc -l; find . -type f | wc -l; \
                  ls -l | grep -c '^-rw'; rm -r /w/many/*; ls -A | wc -l";
    assert_eq!(sh(&shared.machine, script).succeeded(), "2000\n2000\n2000\n2000\n0\n");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn eight_mib_pass_each_way() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("large");
    let bytes: Vec<u8> =
        (0..8 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    fs::write(folder.join("from-host"), &bytes).unwrap();
    sh(&shared.machine, "cd /w/large; cp from-host from-guest; cmp from-host from-guest")
        .succeeded();
    assert!(fs::read(folder.join("from-guest")).unwrap() == bytes, "it is another file");
}

#[test]
fn a_relative_share_and_a_read_only_one_on_the_command_line() {
    let Some(host) = host() else { return };
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    fs::create_dir(one.path().join("sub")).unwrap();
    fs::write(two.path().join("file"), "two").unwrap();
    let read_only = format!("{}:ro", two.path().display());
    let script = format!(
        "ls -A /src; cat {0}/file; (echo x >{0}/file) 2>/dev/null || echo refused; \
         echo hello >/src/from-guest",
        two.path().display()
    );
    let words =
        ["run", "--share", "./sub/..:/src", "--share", &read_only, "--", "sh", "-c", &script];
    let text = host.cabana(words).folder(one.path()).end().succeeded();
    assert_eq!(text, "sub\ntworefused\n");
    assert_eq!(fs::read_to_string(one.path().join("from-guest")).unwrap(), "hello\n");
    assert_eq!(fs::read_to_string(two.path().join("file")).unwrap(), "two");
}

#[test]
fn this_projects_own_repository() {
    let Some(host) = host() else { return };
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let head = Command::new("git")
        .args(["-c", "safe.directory=*", "rev-parse", "HEAD"])
        .current_dir(&project)
        .output();
    let head = match head {
        Ok(head) if head.status.success() => head.stdout,
        other => return println!("skipped: this is no git repository: {other:?}"),
    };
    let script = "ls /src/Cargo.toml && git -C /src log -1 --format=%H";
    let words = ["run", "--share", ".:/src:ro", "--", "sh", "-c", script];
    let text = host.cabana(words).folder(&project).end().succeeded();
    assert_eq!(text, format!("/src/Cargo.toml\n{}", String::from_utf8_lossy(&head)));
}
