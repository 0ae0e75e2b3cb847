//! Machines that end in ways that nobody wanted.

use std::fs;

use cabana_test_guest::{Call, Host, host};
use rustix::process::Signal;

fn run(host: &Host, options: &[&str], script: &str) -> Call {
    host.cabana([&["run"], options, &["--", "sh", "-c", script]].concat())
}

#[test]
fn a_kernel_without_an_init_panics() {
    let Some(host) = host() else { return };
    let call = run(host, &["--cmdline", "rdinit=/no/such/init"], "true");
    call.end().failed_with(125, &["the guest's kernel gave up", "Kernel panic"]);
}

#[test]
fn an_agent_that_dies_takes_the_machine_along() {
    let Some(host) = host() else { return };
    // PID 1 ignores signals from within; a debugger can still break it.
    let script = "
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 2 + [ctypes.c_void_p] * 2
ATTACH, POKEUSER, DETACH, RIP = 16, 6, 17, 16 * 8
assert libc.ptrace(ATTACH, 1, 0, 0) == 0, os.strerror(ctypes.get_errno())
time.sleep(0.2)
assert libc.ptrace(POKEUSER, 1, RIP, 0) == 0, os.strerror(ctypes.get_errno())
libc.ptrace(DETACH, 1, 0, 0)
time.sleep(1000)
";
    let ended = host.cabana(["run", "--", "python3", "-c", script]).end();
    ended.failed_with(125, &["the guest's kernel gave up", "Attempted to kill init"]);
}

#[test]
fn a_guest_that_resets_itself() {
    let Some(host) = host() else { return };
    let script = "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x1234567)'; sleep 1000";
    run(host, &[], script).end().failed_with(125, &["reboot from within"]);
}

#[test]
fn a_guest_that_writes_to_the_exit_port() {
    let Some(host) = host() else { return };
    // The command's own status cannot be forged: the machine's end is a failure.
    let script = "
import ctypes, mmap
libc = ctypes.CDLL(None)
assert libc.ioperm(0xf4, 1, 1) == 0
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes([0xba, 0xf4, 0, 0, 0, 0x31, 0xc0, 0xee, 0xc3]))
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
";
    let ended = host.cabana(["run", "--", "python3", "-c", script]).end();
    ended.failed_with(125, &["ended the machine with status 0"]);
}

#[test]
fn a_guest_that_uses_up_its_memory() {
    let Some(host) = host() else { return };
    // The kernel ends the command and not the machine.
    let script = "python3 -c 'x = [b\"x\" * (8 << 20) for _ in range(64)]'; echo \"status $?\"";
    let ended = run(host, &["--memory", "256M"], script).end();
    assert_eq!((ended.status(), ended.text().as_str()), (0, "status 137\n"), "{ended:?}");
}

/// `cabana` with a host disk of 24 MiB at `$TMPDIR`, in a mount namespace of its own.
fn on_a_small_disk(call: Call) -> Call {
    let script = "mount -t tmpfs -o size=24m small \"$TMPDIR\"; exec \"$@\"";
    call.through(["unshare", "--mount", "sh", "-ec", script, "sh"])
}

#[test]
fn a_full_host_disk_is_said() {
    let Some(host) = host() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can make a small disk");
    }
    let fill = "head -c 100M /dev/urandom >/root/large; sync; echo on";
    let ended = on_a_small_disk(run(host, &[], fill)).end();
    let sentence = ended.stderr.lines().last().unwrap_or_default();
    assert!(sentence.contains("the host's disk is full"), "{ended:?}");
    assert_eq!(ended.status(), 125, "{ended:?}");
}

#[test]
fn a_host_disk_that_is_full_from_the_start() {
    let Some(host) = host() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can make a small disk");
    }
    let script = "mount -t tmpfs -o size=8k small \"$TMPDIR\"; exec \"$@\"";
    let call = run(host, &[], "true").through(["unshare", "--mount", "sh", "-ec", script, "sh"]);
    call.end().failed_with(125, &["No space left on device"]);
}

#[test]
fn killed_at_any_moment_nothing_is_left() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("work.disk");
    let share = format!("{}:/share", folder.path().display());
    let options = ["--disk", disk.to_str().unwrap(), "--share", &share];
    let span = host.boot_time() * 3 / 2;
    for tenth in 0..10 {
        let call = run(host, &options, "while :; do echo x >>/root/file; sync; done");
        let running = call.open_input().start();
        std::thread::sleep(span * tenth / 10);
        running.signal(Signal::KILL);
        // Its end checks that no process and no temporary file is left.
        assert_eq!(running.end().status(), 1000 + 9);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert!(names.iter().all(|entry| entry.file_name() == "work.disk"), "{names:?}");
    }
    // Neither the disk's lock nor /dev/kvm is held by anybody, and the disk is whole.
    run(host, &options, "touch /root/file; sync").end().succeeded();
}

#[test]
fn two_machines_at_once() {
    let Some(host) = host() else { return };
    let calls = ["first", "second"].map(|name| {
        let mut running =
            run(host, &[], &format!("echo {name}; read line; echo $line")).open_input().start();
        running.wait_for(name);
        running
    });
    for mut running in calls {
        running.type_in("go on\n");
        assert!(running.end().succeeded().ends_with("go on\n"));
    }
}
