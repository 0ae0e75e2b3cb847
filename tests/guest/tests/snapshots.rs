//! Machines kept in files, and others that go on from them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cabana_sandbox::{
    Machine, MachineConfig, NetworkConfig, RestoreConfig, Scratch, Share, Timeline,
};
use cabana_snapshot::{Snapshot, Touched};
use cabana_test_guest::{Call, Host, host, sh, share};
use rustix::process::Signal;
use tempfile::TempDir;

/// `cabana snapshot save FILE OPTIONS -- sh -ec SCRIPT`.
fn save(host: &Host, file: &Path, options: &[&str], script: &str) -> Call {
    let file = file.to_str().expect("a path in UTF-8");
    host.cabana([&["snapshot", "save", file], options, &["--", "sh", "-ec", script]].concat())
}

/// `cabana run --from FILE OPTIONS -- sh -ec SCRIPT`.
fn from(host: &Host, file: &Path, options: &[&str], script: &str) -> Call {
    let file = file.to_str().expect("a path in UTF-8");
    host.cabana([&["run", "--from", file], options, &["--", "sh", "-ec", script]].concat())
}

/// Starts a machine whose disk is in `folder` and vanishes.
fn start(host: &Host, folder: &Path, config: MachineConfig) -> Machine {
    let (template, folder) = (host.scratch.clone(), folder.to_owned());
    let scratch = Scratch::Temporary { template, folder };
    Machine::start(&MachineConfig { scratch, ..config }).unwrap()
}

/// Another machine, which goes on from a snapshot with a share and, if it had one, a network. Its disk is beside the
/// snapshot.
fn restore(host: &Host, file: PathBuf, share: Share, network: Option<NetworkConfig>) -> Machine {
    let config = RestoreConfig {
        image: Some(host.image.clone()),
        disk_folder: file.parent().expect("a folder").to_owned(),
        snapshot: file,
        shares: vec![share],
        network,
        hostname: "other".to_owned(),
        timeline: Arc::new(Timeline::new()),
        alone: false,
    };
    Machine::restore(&config).unwrap()
}

/// What says of a machine that it is itself.
const IDENTITY: &str = "cat /etc/machine-id; head -c16 /dev/urandom | od -An -tx1; \
    cat /proc/sys/kernel/random/uuid; python3 -c 'import os; print(os.urandom(16).hex())'";

/// A machine with a file on its disk and one in memory.
fn template() -> Option<(&'static Host, &'static Path)> {
    static TEMPLATE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let host = host()?;
    let (_, path) = TEMPLATE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("template");
        let script = "echo disk >/root/kept; echo memory >/dev/shm/kept; sync -f /root; \
                      rm -f /usr/bin/file";
        save(host, &path, &["--cpus", "2"], script).end().succeeded();
        (folder, path)
    });
    Some((host, path))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_machine_goes_on_in_a_fresh_process() {
    let Some((host, template)) = template() else { return };
    let script = "cat /root/kept /dev/shm/kept; test ! -e /usr/bin/file; hostname; nproc; \
                  for cpu in 0 1; do taskset -c $cpu python3 -c 'print(sum(range(1000)))'; done; \
                  date +%s.%N";
    let before = now();
    let text = from(host, template, &[], script).end().succeeded();
    let after = now();
    let (rest, clock) = text.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(rest, "disk\nmemory\ncabana\n2\n499500\n499500");
    let clock: f64 = clock.parse().unwrap();
    // The lab's wall clock goes in whole seconds at its start.
    assert!((before - 2.0..after + 2.0).contains(&clock), "{before} {clock} {after}");
}

#[test]
fn machines_of_one_snapshot_have_nothing_in_common_but_what_it_keeps() {
    let Some((host, template)) = template() else { return };
    let lines: Vec<String> =
        [(); 2].iter().map(|()| from(host, template, &[], IDENTITY).end().succeeded()).collect();
    let all: Vec<&str> = lines.iter().flat_map(|text| text.lines()).collect();
    let different: HashSet<&&str> = all.iter().collect();
    assert_eq!((all.len(), different.len()), (8, 8), "{all:?}");
    assert!(all[0].len() == 32 && all[0].bytes().all(|byte| byte.is_ascii_hexdigit()), "{all:?}");
}

#[test]
fn what_one_machine_writes_no_other_sees() {
    let Some((host, template)) = template() else { return };
    let before = fs::metadata(template).unwrap();
    let script = "cat /root/kept; echo other >/root/kept; dd if=/dev/urandom of=/root/much bs=1M \
                  count=20 2>/dev/null; sync; cat /root/kept; sha256sum </root/much >/root/sum; \
                  echo 3 >/proc/sys/vm/drop_caches; sha256sum </root/much | cmp - /root/sum";
    for _ in 0..2 {
        assert_eq!(from(host, template, &[], script).end().succeeded(), "disk\nother\n");
    }
    let after = fs::metadata(template).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    // A machine out of a snapshot can be kept itself.
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("second");
    let script = "echo second >>/root/kept; echo new >/root/new";
    let file = template.to_str().unwrap();
    save(host, &second, &["--from", file], script).end().succeeded();
    let text = from(host, &second, &[], "cat /root/kept /root/new /dev/shm/kept").end().succeeded();
    assert_eq!(text, "disk\nsecond\nnew\nmemory\n");
}

#[test]
fn many_machines_go_on_at_once() {
    let Some((host, template)) = template() else { return };
    let running: Vec<_> = (0..6)
        .map(|number| {
            let script = format!("echo {number} >/root/own; sync; {IDENTITY}; cat /root/own");
            from(host, template, &[], &script).start()
        })
        .collect();
    let mut seen = HashSet::new();
    for (number, machine) in running.into_iter().enumerate() {
        let text = machine.end().succeeded();
        assert!(text.ends_with(&format!("\n{number}\n")), "{text:?}");
        text.lines()
            .for_each(|line| assert!(seen.insert(line.to_owned()), "{line} is there twice"));
    }
}

#[test]
fn shares_are_those_of_the_machine_that_goes_on() {
    let Some(host) = host() else { return };
    let [first, second, kept] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let path = kept.path().join("snapshot");
    let share = |folder: &TempDir| format!("{}:/src", folder.path().display());
    fs::write(first.path().join("file"), "first").unwrap();
    fs::write(second.path().join("file"), "second").unwrap();
    let script = "cat /src/file; echo seen >/src/before";
    let text = save(host, &path, &["--share", &share(&first)], script).end().succeeded();
    assert_eq!(text, "first");
    assert_eq!(fs::read_to_string(first.path().join("before")).unwrap(), "seen\n");
    // None is there by itself, and another one is another one.
    assert_eq!(from(host, &path, &[], "ls /src").end().succeeded(), "");
    let script = "cat /src/file; echo written >/src/after; mv /src/file /src/moved";
    let text = from(host, &path, &["--share", &share(&second)], script).end().succeeded();
    assert_eq!(text, "second");
    assert_eq!(fs::read_to_string(second.path().join("after")).unwrap(), "written\n");
    assert!(second.path().join("moved").exists() && !first.path().join("after").exists());
}

#[test]
fn what_runs_is_held_and_goes_on() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let script = r#"
setsid python3 -c '
import time, os
ticks = open("/root/ticks", "w", buffering=1)
while True:
    print(time.time(), open("/etc/machine-id").read().strip(), file=ticks)
    time.sleep(0.02)
' </dev/null >/dev/null 2>&1 &
until [ -e /root/ticks ] && [ "$(wc -l </root/ticks)" -ge 3 ]; do sleep 0.1; done"#;
    save(host, &path, &[], script).end().succeeded();
    let script = r#"
before=$(wc -l </root/ticks)
while [ "$(wc -l </root/ticks)" -lt $((before + 3)) ]; do sleep 0.1; done
cat /etc/machine-id /root/ticks"#;
    let started = now();
    let text = from(host, &path, &[], script).end().succeeded();
    let mut lines = text.lines();
    let id = lines.next().unwrap();
    let ticks: Vec<(f64, &str)> = lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(time, id)| (time.parse().unwrap(), id))
        .collect();
    // Nothing ran before the machine had its new identity and its clock.
    let first_own = ticks.iter().position(|(_, own)| *own == id).expect("it goes on");
    assert!(first_own >= 3, "{ticks:?}");
    // One line was perhaps begun before.
    let own = &ticks[first_own + 1..];
    assert!(own.iter().all(|(time, own)| *own == id && *time > started - 2.0), "{ticks:?}");
    assert!(ticks[..first_own].iter().all(|(_, own)| own.is_empty()), "{ticks:?}");
}

#[test]
fn a_connection_to_the_old_host_ends_with_a_reset() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = r#"
setsid python3 -c '
import socket
server = socket.create_server(("", 7000))
open("/root/state", "w").write("listening")
connection = server.accept()[0]
open("/root/state", "w").write("connected")
try:
    said = connection.recv(10)
except OSError as error:
    said = error
open("/root/state", "w").write("%r" % said)
' </dev/null >/dev/null 2>&1 &
until grep -qs listening /root/state; do sleep 0.1; done; echo listening
until grep -qs connected /root/state; do sleep 0.1; done"#;
    let publish = format!("127.0.0.1:{port}:7000");
    let mut saving = save(host, &path, &["--publish", &publish], script).start();
    saving.wait_for("listening");
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    saving.end().succeeded();
    drop(connection.read(&mut [0; 10]));
    let script = "until grep -q Reset /root/state; do sleep 0.1; done; cat /root/state";
    let text = from(host, &path, &["--net"], script).end().succeeded();
    assert_eq!(text, "ConnectionResetError(104, 'Connection reset by peer')");
    // The card works on, and has to be there.
    let script =
        "python3 -c 'import socket; print(socket.create_connection((\"10.107.0.1\", 53), 60))'";
    let text = from(host, &path, &["--net"], script).end().succeeded();
    assert!(text.contains("raddr=('10.107.0.1', 53)"), "{text}");
    from(host, &path, &[], "true").end().failed_with(125, &["it had a network card"]);
}

#[test]
fn a_machine_goes_on_after_it_was_kept() {
    let Some(host) = host() else { return };
    let [folder, shared] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let share = share(shared.path(), "/w", false);
    let machine =
        start(host, folder.path(), MachineConfig { shares: vec![share.clone()], ..host.machine() });
    let path = folder.path().join("snapshot");
    for round in ["one", "two"] {
        sh(&machine, &format!("echo {round} >>/w/rounds; echo {round} >>/root/rounds")).succeeded();
        machine.snapshot(&path).unwrap();
    }
    // While a program stands in a share nothing is kept, and everything goes on.
    sh(&machine, "cd /w; setsid sleep 1000 </dev/null >/dev/null 2>&1 &").succeeded();
    let refused = machine.snapshot(&path).unwrap_err().to_string();
    assert!(refused.contains("/w") && refused.contains("a program uses it"), "{refused}");
    sh(&machine, "echo three >>/w/rounds; echo three >>/root/rounds").succeeded();
    assert_eq!(fs::read_to_string(shared.path().join("rounds")).unwrap(), "one\ntwo\nthree\n");
    sh(&machine, "pkill sleep").succeeded();
    // What happens on the host is told of, as before.
    let script = "mkdir /w/watched; cat >/root/watch.py <<'END'
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
libc.inotify_add_watch(fd, b'/w/watched', 0x100)
os.listdir('/w/watched')
open('/w/ready', 'w').close()
print(b'from-host' in os.read(fd, 4096))
END
setsid python3 /root/watch.py >/root/heard </dev/null 2>&1 &
until [ -e /w/ready ]; do sleep 0.05; done";
    sh(&machine, script).succeeded();
    // This very process is the machine, so that another one has to be the host.
    let file = shared.path().join("watched/from-host");
    assert!(std::process::Command::new("touch").arg(file).status().unwrap().success());
    let script =
        "for i in $(seq 300); do [ -s /root/heard ] && break; sleep 0.1; done; cat /root/heard";
    assert_eq!(sh(&machine, script).succeeded(), "True\n");

    let other = restore(host, path, share, None);
    assert!(other.warnings().is_empty(), "{:?}", other.warnings());
    let text = sh(&other, "hostname; cat /root/rounds; tail -1 /w/rounds").succeeded();
    assert_eq!(text, "other\none\ntwo\nthree\n");
    other.shutdown().unwrap();
    machine.shutdown().unwrap();
}

/// Works on four processors, the disk, a share and the network until it is told to stop, and then says what is wrong
/// with its own results: a chain of hashes for each processor, files with their hashes as names, connections.
const LOAD: &str = r"
import hashlib, os, socket, sys, threading, time
# Processors that never rest have so many timer interrupts that a software processor does nothing else.
stop = lambda: os.path.exists('/dev/shm/stop')
sha = lambda data: hashlib.sha256(data).digest()
counts, wrong = {}, []
def beat(name): counts[name] = counts.get(name, 0) + 1
def processor(cpu):
    if os.fork(): return
    os.sched_setaffinity(0, [cpu])
    state, links = b'%d' % cpu, 0
    while not stop():
        for _ in range(200): state = sha(state)
        links += 200
        if os.sched_getaffinity(0) != {cpu}: break
        with open(f'/dev/shm/cpu{cpu}.new', 'w') as file: file.write(f'{links} {state.hex()}')
        os.rename(f'/dev/shm/cpu{cpu}.new', f'/dev/shm/cpu{cpu}')
        time.sleep(0.1)
    os._exit(0)
def disk():
    while not stop():
        data = os.urandom(200_000)
        path = '/root/load/' + sha(data).hex()
        with open(path, 'wb') as file: file.write(data); file.flush(); os.fsync(file.fileno())
        beat('disk')
        time.sleep(0.1)
        for name in os.listdir('/root/load')[8:]: check(name); os.unlink('/root/load/' + name)
def check(name):
    fd = os.open('/root/load/' + name, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if sha(os.read(fd, 1 << 20)).hex() != name: wrong.append('disk')
    os.close(fd)
def share():
    while not stop():
        try:
            with open('/w/new', 'wb') as file: file.write(b'x' * 5000)
            os.rename('/w/new', '/w/whole')
            if os.stat('/w/whole').st_size != 5000: wrong.append('share')
            beat('share')
        except OSError: beat('without a share')
        # Nothing is kept of a machine while it has a file open in a share.
        time.sleep(0.1)
def network():
    while not stop():
        try: socket.create_connection(('10.107.0.1', 53), 20).close(); beat('network')
        except OSError: beat('broken connections')
        time.sleep(0.1)
os.makedirs('/root/load', exist_ok=True)
for cpu in range(4): processor(cpu)
threads = [threading.Thread(target=work) for work in (disk, share, network)]
for thread in threads: thread.start()
while not stop():
    open('/dev/shm/counts.new', 'w').write(repr(counts)); os.rename('/dev/shm/counts.new', '/dev/shm/counts')
    time.sleep(0.05)
for thread in threads: thread.join()
for name in os.listdir('/root/load'): check(name)
for cpu in range(4):
    links, said = open(f'/dev/shm/cpu{cpu}').read().split()
    state = b'%d' % cpu
    for _ in range(int(links)): state = sha(state)
    if state.hex() != said: wrong.append(f'processor {cpu}')
print(sorted(set(wrong)), file=open('/dev/shm/result.new', 'w'), flush=True)
os.rename('/dev/shm/result.new', '/dev/shm/result')
";

/// Waits until everything of [`LOAD`] has gone on since.
const PROGRESS: &str = r"
import ast, os, time
def now():
    counts = ast.literal_eval(open('/dev/shm/counts').read())
    cpus = [int(open(f'/dev/shm/cpu{cpu}').read().split()[0]) for cpu in range(4)]
    return cpus + [counts.get(name, 0) for name in ('disk', 'share', 'network')]
while True:
    try: before = now(); break
    except OSError: time.sleep(0.1)
while any(new <= old for old, new in zip(before, now())): time.sleep(0.1)
";

#[test]
fn a_machine_is_kept_and_goes_on_under_load() {
    let Some(host) = host() else { return };
    let [folder, shared] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let share = share(shared.path(), "/w", false);
    let network = Some(NetworkConfig::default());
    let machine = start(
        host,
        folder.path(),
        MachineConfig {
            cpus: 4,
            shares: vec![share.clone()],
            network: network.clone(),
            ..host.machine()
        },
    );
    let progress = |machine: &Machine| {
        sh(machine, &format!("python3 - <<'END'{PROGRESS}END")).succeeded();
    };
    let start = format!(
        "cat >/dev/shm/load.py <<'END'{LOAD}END
setsid python3 /dev/shm/load.py </dev/null >/dev/shm/log 2>&1 &"
    );
    sh(&machine, &start).succeeded();
    let path = folder.path().join("snapshot");
    for _ in 0..2 {
        progress(&machine);
        // It may just have a file of the share's open.
        let kept = (0..50).any(|_| {
            let kept = machine.snapshot(&path);
            if let Err(error) = &kept {
                println!("{error}");
                assert!(error.to_string().contains("a program uses it"), "{error}");
            }
            kept.is_ok()
        });
        assert!(kept, "in none of fifty moments");
    }
    let result = |machine: &Machine| {
        progress(machine);
        let script = "touch /dev/shm/stop; until [ -e /dev/shm/result ]; do sleep 0.1; done; \
                      cat /dev/shm/log /dev/shm/result; cat /dev/shm/counts >&2";
        let ended = sh(machine, script);
        println!("{}", String::from_utf8_lossy(&ended.stderr));
        ended.succeeded()
    };
    assert_eq!(result(&machine), "[]\n");
    machine.shutdown().unwrap();
    let other = restore(host, path, share, network);
    assert_eq!(result(&other), "[]\n");
    other.shutdown().unwrap();
}

#[test]
fn what_is_no_sound_snapshot_is_refused_in_a_sentence() {
    let Some((host, template)) = template() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let refused = |words: &[&str]| from(host, &path, &[], "true").end().failed_with(125, words);
    refused(&["snapshot", "No such file"]);
    fs::write(&path, "a text").unwrap();
    refused(&["is not a snapshot"]);
    let copy = || {
        let old = File::open(template).unwrap();
        let _ = fs::remove_file(&path);
        let new = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        cabana_os::file::copy_sparse(&old, &new).unwrap();
        new
    };
    let whole = copy();
    // As good as the first: its content is compared.
    from(host, &path, &[], "cat /root/kept").end().succeeded();
    let len = whole.metadata().unwrap().len();
    whole.set_len(len / 2).unwrap();
    refused(&["was not copied to the end"]);
    for (at, words) in [(len - 100, "its index"), (4 << 20, "ram"), (60, "its beginning")] {
        let file = copy();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
        refused(&["is damaged", words]);
    }
    copy().write_all_at(&[99], 8).unwrap();
    refused(&["has version 99, this program reads 1"]);
    // Options that a snapshot has answered, and an image that is another.
    let file = template.to_str().unwrap();
    let both = host.cabana(["run", "--from", file, "--cpus", "2", "--", "true"]).end();
    assert_eq!(both.status(), 125);
    let image = folder.path().join("image");
    fs::copy(&host.image, &image).unwrap();
    File::options().write(true).open(&image).unwrap().write_all_at(b"x", 2000).unwrap();
    let config = RestoreConfig {
        snapshot: template.to_owned(),
        image: Some(image),
        disk_folder: folder.path().to_owned(),
        shares: Vec::new(),
        network: None,
        hostname: "other".to_owned(),
        timeline: std::sync::Arc::new(Timeline::new()),
        alone: false,
    };
    let error = Machine::restore(&config).unwrap_err();
    assert!(error.to_string().contains("is not the root image that it had"), "{error}");
    assert_eq!(error.code(), "snapshot");
}

#[test]
fn a_kill_while_a_snapshot_is_written_leaves_the_old_one() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    save(host, &path, &[], "echo old >/root/which").end().succeeded();
    let script = "echo new >/root/which; head -c 150M /dev/urandom >/dev/shm/much; echo written";
    let mut killed_in_time = 0;
    for delay in [0, 100, 300, 600] {
        let mut saving = save(host, &path, &[], script).start();
        saving.wait_for("written");
        thread::sleep(Duration::from_millis(delay));
        saving.signal(Signal::KILL);
        let status = saving.end().status();
        let which = from(host, &path, &[], "cat /root/which").end().succeeded();
        assert!(which == "old\n" || (which == "new\n" && status == 0), "{which} after {delay} ms");
        killed_in_time += usize::from(which == "old\n");
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name != ".snapshot.touched").collect();
        assert_eq!(left.len(), 1, "{left:?}");
        if which == "new\n" {
            break;
        }
    }
    assert!(killed_in_time > 0, "each was done before it was killed");
}

#[test]
fn what_machines_touch_is_recorded_once_and_a_record_of_nonsense_does_no_harm() {
    let Some((host, template)) = template() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    cabana_os::file::copy_sparse(&File::open(template).unwrap(), &File::create(&path).unwrap())
        .unwrap();
    let record = folder.path().join(".snapshot.touched");
    let run = || {
        let text = from(host, &path, &[], "cat /root/kept /dev/shm/kept").end().succeeded();
        assert_eq!(text, "disk\nmemory\n");
        fs::read(&record).unwrap()
    };
    let (roughly, exactly) = (run(), run());
    assert_ne!(roughly, exactly);
    let recorded = Touched::read(&Snapshot::open(&path).unwrap()).unwrap();
    let written = recorded.runs("ram", u64::MAX).iter().filter(|run| run.written);
    let longest = written.map(|run| run.count).max().unwrap();
    assert!(longest < 512, "the host's large pages count as written: {longest} pages together");
    // Those that follow use it, and leave it as it is.
    let used = fs::metadata(&record).unwrap().modified().unwrap();
    assert_eq!(run(), exactly);
    assert_eq!(fs::metadata(&record).unwrap().modified().unwrap(), used);
    for bytes in [&b""[..], b"cabantch", &exactly[..exactly.len() - 1], &[0xff; 10_000]] {
        fs::write(&record, bytes).unwrap();
        assert_ne!(run(), bytes, "it was not made anew");
    }
    // Somewhere a record cannot be.
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    from(host, &path, &[], "true").end().succeeded();
    assert!(record.is_dir());
}

#[test]
fn a_command_that_fails_keeps_nothing() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    save(host, &path, &[], "exit 3").end().failed_with(3, &["ended with 3", "was not kept"]);
    assert!(!path.exists());
}

#[test]
fn snapshots_in_the_store_are_listed_and_removed() {
    let Some((host, template)) = template() else { return };
    let store = tempfile::tempdir().unwrap();
    let cabana = |words: &[&str]| host.cabana(words).env("CABANA_HOME", store.path());
    assert_eq!(cabana(&["snapshot", "ls"]).end().succeeded(), "");
    fs::create_dir(store.path().join("snapshots")).unwrap();
    let place = store.path().join("snapshots/warm");
    cabana_os::file::copy_sparse(&File::open(template).unwrap(), &File::create(&place).unwrap())
        .unwrap();
    File::create(store.path().join("snapshots/odd")).unwrap().write_all(b"odd").unwrap();
    let text = cabana(&["snapshot", "ls"]).end().succeeded();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("odd ") && lines[0].contains("is not a snapshot"), "{text}");
    assert!(lines[1].starts_with("warm ") && lines[1].contains("MiB"), "{text}");
    let json = cabana(&["snapshot", "ls", "--json"]).end().succeeded();
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list[1]["name"], "warm");
    let text = cabana(&["run", "--from", "warm", "--", "cat", "/root/kept"]).end().succeeded();
    assert_eq!(text, "disk\n");
    cabana(&["snapshot", "rm", "warm"]).end().succeeded();
    cabana(&["run", "--from", "warm", "--", "true"]).end().failed_with(125, &["warm", "No such"]);
    cabana(&["snapshot", "rm", ".."]).end().failed_with(125, &["cannot be the name"]);
}

#[test]
#[ignore = "takes minutes"]
fn a_snapshot_serves_two_hundred_machines() {
    let Some((host, template)) = template() else { return };
    let mut seen = HashSet::new();
    for _ in 0..200 {
        let script = "cat /root/kept; cat /etc/machine-id";
        let text = from(host, template, &[], script).end().succeeded();
        assert!(text.starts_with("disk\n") && seen.insert(text));
    }
}
