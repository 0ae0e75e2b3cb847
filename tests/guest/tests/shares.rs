//! Folders of the host in the guest: what each side does, the other sees, and nothing beyond them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cabana_sandbox::{
    Command as GuestCommand, Machine, MachineConfig, ProcessEvent, SessionSpec, ShareMount,
};
use cabana_test_guest::{host, sh, share};
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
        let machine = Machine::start(&MachineConfig {
            shares: vec![share(writable.path(), "/w", false), share(read_only.path(), "/r", true)],
            ..host.machine()
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
fn a_sessions_user_has_a_share_as_its_own() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("session");
    fs::write(folder.join("host"), "from the host").unwrap();
    fs::set_permissions(folder.join("host"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(folder.join("program"), fs::Permissions::from_mode(0o700)).unwrap();
    let guest = shared.machine.guest();
    let mount = |guest_path: &str, name: &str, read_only| ShareMount {
        name: name.into(),
        guest_path: guest_path.into(),
        read_only,
    };
    let shares = vec![mount("/w", "share0", false), mount("/r", "share0", true)];
    let spec = SessionSpec { name: "owner".into(), shares, ..SessionSpec::default() };
    guest.create_session(&spec).unwrap();
    let script = "cd /w/session; cat host; ./program; umask 022; echo x > file; mkdir -p dir/sub; \
                  ln -s file link; ln file hard; mkfifo fifo; echo y > dir/sub/file; chmod 750 file; \
                  chmod u+s,g+s file; touch -d @1234567890 dir/sub/file; mv dir/sub moved; \
                  echo more >> host; chown $(id -u):$(id -g) file; \
                  python3 -c 'import os; f = os.open(\".\", os.O_TMPFILE | os.O_RDWR); os.write(f, b\"x\"); \
                  os.setxattr(\"file\", \"user.x\", b\"y\"); os.truncate(\"moved/file\", 1)'; \
                  for name in . host program file dir link hard fifo moved moved/file; do \
                  stat -c %u:%g $name; done | sort -u | sed s/$(id -u):$(id -g)/mine/; \
                  (chown 0:0 file || chmod 4755 /r/session/file || echo x > /r/session/host) 2>/dev/null \
                  || echo refused; stat -c %a file; rm -r dir hard";
    let command =
        GuestCommand { session: Some("owner".into()), ..GuestCommand::new(["sh", "-ec", script]) };
    let text = cabana_test_guest::exec(&shared.machine, &command).unwrap().succeeded();
    assert_eq!(text, "from the hostran\nmine\nrefused\n750\n");
    guest.remove_session("owner").unwrap();

    let own = fs::metadata(shared.writable.path()).unwrap();
    for (name, mode) in [
        ("host", 0o100_600),
        ("program", 0o100_700),
        ("file", 0o100_750),
        ("fifo", 0o010_644),
        ("moved", 0o040_755),
        ("moved/file", 0o100_644),
    ] {
        let metadata = fs::symlink_metadata(folder.join(name)).unwrap();
        assert_eq!(format!("{:o}", metadata.mode()), format!("{mode:o}"), "{name}");
        assert_eq!((metadata.uid(), metadata.gid()), (own.uid(), own.gid()), "{name}");
    }
    assert_eq!(fs::read_to_string(folder.join("host")).unwrap(), "from the hostmore\n");
    assert_eq!(fs::read_link(folder.join("link")).unwrap(), Path::new("file"));
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

/// Tells what happens in /w/FOLDER as `inotify(7)` has it, one `NAME EVENTS` a line, until `end` comes.
const INOTIFY: &str = r"
import ctypes, os, struct, sys
KINDS = ((0x2, 'modify'), (0x4, 'attrib'), (0x8, 'close_write'), (0x40, 'moved_from'),
         (0x80, 'moved_to'), (0x100, 'create'), (0x200, 'delete'))
libc = ctypes.CDLL(None, use_errno=True)
watch = libc.inotify_init1(0)
for path in sys.argv[1:]:
    if libc.inotify_add_watch(watch, path.encode(), 0x3ce) < 0:
        raise OSError(ctypes.get_errno(), path)
print('ready', flush=True)
name = ''
while name != 'end':
    events = os.read(watch, 65536)
    while events and name != 'end':
        number, mask, cookie, length = struct.unpack('iIII', events[:16])
        name = events[16:16 + length].rstrip(b'\0').decode()
        events = events[16 + length:]
        print(f'{number}:{name}', *[kind for bit, kind in KINDS if mask & bit], flush=True)
";

/// Starts a command, waits until it says `ready`, does something, and returns what it says from then on.
fn meanwhile(machine: &Machine, words: &[&str], work: impl FnOnce()) -> String {
    let mut process = machine.exec(&GuestCommand::new(words.iter().copied())).unwrap();
    let (mut text, mut work) = (String::new(), Some(work));
    loop {
        match process.next_event().unwrap() {
            ProcessEvent::Stdout(bytes) => text += &String::from_utf8_lossy(bytes),
            ProcessEvent::Stderr(bytes) => panic!("{}", String::from_utf8_lossy(bytes)),
            ProcessEvent::Exited(status) => {
                assert_eq!(status.shell_code(), 0, "{text}");
                return text;
            }
            ProcessEvent::Started(_) | ProcessEvent::Detached => {}
        }
        if text.starts_with("ready\n")
            && let Some(work) = work.take()
        {
            text.clear();
            work();
        }
    }
}

/// A program of the host, which is not the machine's own process, changes a folder.
fn on_the_host(folder: &Path, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(folder).status();
    assert!(status.expect("a shell").success(), "{script}");
}

#[test]
fn watchers_in_the_guest_hear_of_the_host() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("watched");
    for name in ["edited", "saved", "gone"] {
        fs::write(folder.join(name), "before").unwrap();
    }
    fs::create_dir(folder.join("old")).unwrap();
    // The guest knows them all, and has their content cached.
    sh(&shared.machine, "cd /w/watched; ls -l; cat edited saved gone").succeeded();
    let words = ["python3", "-c", INOTIFY, "/w/watched", "/w/watched/saved"];
    let heard = meanwhile(&shared.machine, &words, || {
        let script = "echo after >> edited; echo anew > .saved; mv .saved saved; rm gone; rmdir old; \
                      mkdir new; chmod 700 edited; ln -s edited link; sleep 0.1; echo x > end";
        on_the_host(&folder, script);
    });
    let has = |line: &str| heard.lines().any(|heard| heard == line);
    for line in [
        "1:edited modify",
        "1:edited close_write",
        "1:saved delete",
        "1:saved create",
        "2: attrib",
        "1:gone delete",
        "1:old delete",
        "1:new create",
        "1:edited attrib",
        "1:link create",
        "1:end create",
    ] {
        assert!(has(line), "no `{line}` in:\n{heard}");
    }
    // Nothing has happened on the host for it, and the guest sees what is there.
    assert_eq!(fs::read_to_string(folder.join("edited")).unwrap(), "beforeafter\n");
    let script = "cd /w/watched; cat edited saved; ls; readlink link";
    let seen = sh(&shared.machine, script).succeeded();
    assert_eq!(seen, "beforeafter\nanew\nedited\nend\nlink\nnew\nsaved\nedited\n");
    // What the guest does itself, it hears once.
    let words = ["python3", "-c", INOTIFY, "/w/watched"];
    let heard = meanwhile(&shared.machine, &words, || {
        sh(&shared.machine, "cd /w/watched; echo x > own; rm own; sleep 0.3").succeeded();
        on_the_host(&folder, "echo x > end2; mv end2 end");
    });
    let own = heard.lines().filter(|line| line.starts_with("1:own")).collect::<Vec<_>>();
    let once = ["1:own create", "1:own modify", "1:own close_write", "1:own delete"];
    assert_eq!(own, once, "{heard}");
}

#[test]
fn what_is_mapped_and_cached_follows_the_host() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("followed");
    fs::write(folder.join("file"), "a".repeat(8192)).unwrap();
    let script = "
import mmap, os, sys, time
file = os.open('/w/followed/file', os.O_RDONLY)
data = mmap.mmap(file, 8192, prot=mmap.PROT_READ)
assert data[4096:4100] == b'aaaa'
print('ready', flush=True)
for turn in range(3000):
    if data[4096:4100] == b'bbbb' and os.pread(file, 4, 0) == b'bbbb' \\
            and os.stat('/w/followed/file').st_size == 8192:
        print('seen', flush=True)
        sys.exit()
    time.sleep(0.01)
print('stale', data[:4], os.pread(file, 4, 0))
";
    let seen = meanwhile(&shared.machine, &["python3", "-c", script], || {
        on_the_host(
            &folder,
            "head -c 8192 /dev/zero | tr '\\0' b | dd of=file conv=notrunc 2>/dev/null",
        );
    });
    assert_eq!(seen, "seen\n");
}

#[test]
fn a_development_server_reloads() {
    let Some(shared) = shared() else { return };
    let folder = shared.folder("reload");
    fs::write(folder.join("app.js"), "1").unwrap();
    // As file watchers of Node.js do: an event leads to a look at the times, and those decide.
    let script = "
const fs = require('fs'), path = '/w/reload/app.js';
let before = fs.statSync(path), content = fs.readFileSync(path, 'utf8');
fs.watch('/w/reload', (kind, name) => {
    if (name !== 'app.js' || !fs.existsSync(path)) return;
    const now = fs.statSync(path);
    if (now.mtimeMs === before.mtimeMs && now.ino === before.ino) return;
    before = now;
    const text = fs.readFileSync(path, 'utf8');
    if (text === content || text === '') return;
    content = text;
    console.log(`reloaded ${text}`);
    if (text === '3') process.exit();
});
console.log('ready');
";
    let started = std::time::Instant::now();
    let mut took = Vec::new();
    let heard = meanwhile(&shared.machine, &["node", "-e", script], || {
        took.push(started.elapsed());
        on_the_host(&folder, "printf 2 > app.js");
        std::thread::sleep(std::time::Duration::from_secs(2));
        on_the_host(&folder, "printf 3 > .app.js.swp; mv .app.js.swp app.js");
    });
    assert!(heard.contains("reloaded 3\n"), "{heard}");
    println!("ready after {took:?}, all after {:?}", started.elapsed());
}
