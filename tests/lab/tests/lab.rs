//! The lab as its users see it: commands with the host's files, on one outer machine for all tests.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cabana_lab::{Command, Error, ExitStatus, Lab, Options, Output, Parts, TtySize};
use tempfile::TempDir;

/// A folder of the host that is writable in the lab.
fn writable() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// The outer machine of all tests, or `None`, said aloud, where the lab's programs are missing.
fn lab() -> Option<&'static Lab> {
    static LAB: OnceLock<Option<Lab>> = OnceLock::new();
    let lab = LAB.get_or_init(|| {
        let parts = match Parts::prepare(&mut |step| eprintln!("lab: {step}")) {
            Err(Error::Missing { what, advice }) => {
                println!("skipped: {what} is missing: {advice}");
                return None;
            }
            parts => parts.unwrap(),
        };
        let options = Options { writable: vec![writable().to_owned()], ..Options::default() };
        let start = Instant::now();
        let lab = Lab::start(&parts, &options).unwrap();
        println!("the lab took {:.2} s to start", start.elapsed().as_secs_f64());
        Some(lab)
    });
    if lab.is_none() {
        println!("skipped: the lab cannot run here");
    }
    lab.as_ref()
}

fn shell(script: &str) -> Command {
    Command::new(["sh", "-c", script]).cwd("/")
}

fn text(output: &Output) -> &str {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn exit_status_and_both_outputs_come_back() {
    let Some(lab) = lab() else { return };
    let output = lab.output(shell("echo out; echo err >&2; exit 7")).unwrap();
    assert_eq!(output.status, ExitStatus::Code(7));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    let output = lab.output(shell("kill -TERM $$")).unwrap();
    assert_eq!(output.status, ExitStatus::Signal(15));
}

#[test]
fn a_missing_command_is_an_error_that_names_it() {
    let Some(lab) = lab() else { return };
    let error = lab.output(Command::new(["no-such-command"]).cwd("/")).unwrap_err();
    assert!(matches!(&error, Error::NotStarted(failed) if failed.kind.shell_code() == 127));
    assert!(error.to_string().contains("no-such-command"), "{error}");
}

#[test]
fn folder_and_environment_are_the_callers() {
    let Some(lab) = lab() else { return };
    let command = Command::new(["sh", "-c", "pwd; echo $LAB_TEST $LAB_NEW"]).cwd("/usr/share");
    let output = lab.output(command.env("LAB_TEST", "a b").env("LAB_NEW", "c")).unwrap();
    assert_eq!(text(&output), "/usr/share\na b c\n");
    let command = Command::new(["printenv", "PATH"]).cwd("/");
    let output = lab.output(command).unwrap();
    assert_eq!(text(&output).trim_end(), std::env::var("PATH").unwrap());
}

#[test]
fn input_arrives_and_ends() {
    let Some(lab) = lab() else { return };
    let input = vec![b'x'; 3_000_001];
    let command = Command::new(["wc", "-c"]).cwd("/").input_bytes(&input).unwrap();
    assert_eq!(text(&lab.output(command).unwrap()).trim(), "3000001");
    // A command that does not read its input ends all the same.
    let command = Command::new(["true"]).cwd("/").input_bytes(&input).unwrap();
    assert_eq!(lab.run(command).unwrap(), ExitStatus::Code(0));
    // Without input there is none.
    assert_eq!(text(&lab.output(Command::new(["cat"]).cwd("/")).unwrap()), "");
}

#[test]
fn large_output_arrives_whole_and_in_order() {
    let Some(lab) = lab() else { return };
    let output = lab.output(shell("seq 1 400000")).unwrap();
    let mut expected = String::new();
    for number in 1..=400_000 {
        expected.push_str(&number.to_string());
        expected.push('\n');
    }
    assert!(text(&output) == expected, "{} of {} bytes", output.stdout.len(), expected.len());
}

#[test]
fn a_writable_folder_is_shared_and_nothing_else() {
    let Some(lab) = lab() else { return };
    let folder = writable();
    fs::write(folder.join("from-host"), "host").unwrap();
    let script = "cat from-host && echo lab >from-lab && mkdir d && mv from-lab d/ && echo $PWD";
    let output = lab.output(shell(script).cwd(folder)).unwrap();
    assert_eq!(text(&output), format!("host{}\n", folder.display()));
    assert_eq!(fs::read_to_string(folder.join("d/from-lab")).unwrap(), "lab\n");
    // The host's later changes are seen.
    fs::write(folder.join("from-host"), "changed by the host").unwrap();
    let output = lab.output(shell("cat from-host").cwd(folder)).unwrap();
    assert_eq!(text(&output), "changed by the host");

    // Elsewhere a command may write, and the host never knows.
    let place = Path::new("/usr/share/cabana-lab-test");
    let output = lab.output(shell(&format!("echo x >{0} && cat {0}", place.display()))).unwrap();
    assert_eq!(text(&output), "x\n");
    assert!(!place.exists());
}

#[test]
fn the_host_files_are_there() {
    let Some(lab) = lab() else { return };
    let hash = |output: std::process::Output| output.stdout;
    let here = std::process::Command::new("sha256sum").arg("/usr/bin/git").output().unwrap();
    let there = lab.output(Command::new(["sha256sum", "/usr/bin/git"]).cwd("/")).unwrap();
    assert_eq!(hash(here), there.stdout);
}

/// A firmware of four instructions runs under KVM: `mov al, 21; out 0xf4, al` makes QEMU exit with
/// 2 × 21 + 1.
#[test]
fn kvm_runs_a_guest() {
    let Some(lab) = lab() else { return };
    let output = lab.output(shell("cat /sys/module/kvm_amd/parameters/npt; test -c /dev/kvm"));
    let output = output.unwrap();
    assert_eq!((text(&output), output.status), ("Y\n", ExitStatus::Code(0)));

    let mut rom = vec![0xf4; 64 * 1024];
    rom[64 * 1024 - 16..][..4].copy_from_slice(&[0xb0, 21, 0xe6, 0xf4]);
    let file = writable().join("payload.rom");
    fs::write(&file, rom).unwrap();
    let command = Command::new(["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "16"])
        .cwd("/")
        .stdout(std::io::stdout())
        .stderr(std::io::stderr());
    let command = command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    let command = command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"]);
    assert_eq!(lab.run(command.args([file])).unwrap(), ExitStatus::Code(43));
}

#[test]
fn the_machine_has_what_linux_machines_have() {
    let Some(lab) = lab() else { return };
    let script = "stat -f -c %T /sys/fs/cgroup /dev/pts /dev/shm /tmp /run /proc /sys && \
                  cat /sys/class/net/lo/operstate && \
                  cat /sys/devices/system/clocksource/clocksource0/current_clocksource && \
                  unshare --user --map-root-user id -u";
    let output = lab.output(shell(script)).unwrap();
    let expected = "cgroup2fs\ndevpts\ntmpfs\ntmpfs\ntmpfs\nproc\nsysfs\nunknown\ntsc\n0\n";
    assert_eq!(text(&output), expected);
}

#[test]
fn two_commands_run_at_once() {
    let Some(lab) = lab() else { return };
    // Each waits for the other.
    let meet = |mine: &str, theirs: &str| {
        shell(&format!("touch /run/{mine}; until test -e /run/{theirs}; do sleep 0.05; done"))
    };
    let first = lab.spawn(meet("a", "b")).unwrap();
    let second = lab.spawn(meet("b", "a")).unwrap();
    assert_eq!(first.wait().unwrap(), ExitStatus::Code(0));
    assert_eq!(second.wait().unwrap(), ExitStatus::Code(0));
}

/// A writer that tells a channel of everything that is written.
struct Tell(mpsc::Sender<Vec<u8>>);

impl std::io::Write for Tell {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_interrupt_reaches_the_command_and_output_is_not_held_back() {
    let Some(lab) = lab() else { return };
    let (tell, told) = mpsc::channel();
    let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done";
    let running = lab.spawn(shell(script).stdout(Tell(tell))).unwrap();
    let control = running.control();
    let patience = Duration::from_secs(60);
    assert_eq!(told.recv_timeout(patience).unwrap(), b"ready\n");
    control.signal(2);
    assert_eq!(told.recv_timeout(patience).unwrap(), b"caught\n");
    assert_eq!(running.wait().unwrap(), ExitStatus::Code(5));
    // A late signal harms nobody.
    control.signal(9);
    assert_eq!(text(&lab.output(shell("echo next")).unwrap()), "next\n");
}

#[test]
fn a_closed_output_ends_the_command() {
    let Some(lab) = lab() else { return };
    let (tell, told) = mpsc::channel();
    drop(told);
    let status = lab.run(Command::new(["yes"]).cwd("/").stdout(Tell(tell))).unwrap();
    assert_eq!(status, ExitStatus::Signal(13));
}

#[test]
fn a_terminal_has_its_size() {
    let Some(lab) = lab() else { return };
    let size = TtySize { rows: 33, cols: 101 };
    let command = shell("test -t 0 && test -t 1 && stty size && echo $TERM");
    let output = lab.output(command.terminal(size).env("TERM", "vt100")).unwrap();
    assert_eq!(text(&output), "33 101\r\nvt100\r\n");
}

#[test]
fn an_autopsy_says_where_the_kernel_was() {
    let Some(_) = lab() else { return };
    let parts = Parts::prepare(&mut |step| println!("lab: {step}")).unwrap();
    // One of its own, of which it is the end.
    let lab = Lab::start(&parts, &Options::default()).unwrap();
    let autopsy = lab.autopsy();
    assert!(autopsy.matches("RIP=").count() >= 3, "{autopsy}");
    assert!(autopsy.contains("Kernel panic - not syncing: NMI"), "{autopsy}");
    assert!(autopsy.contains("Call Trace:"), "{autopsy}");
    assert!(autopsy.contains("IRR"), "its interrupt controller's state: {autopsy}");
}

#[test]
fn the_bell_rings_while_nothing_happens() {
    let Some(lab) = lab() else { return };
    let script = "mount -t debugfs none /mnt && cd /mnt/virtio-ports && heard() { \
        sed -n 's/^bytes_received: //p' *p9; }; heard && sleep 2 && heard; cd / && umount /mnt";
    let heard = lab.output(shell(script)).unwrap();
    let heard: Vec<u32> = text(&heard).lines().map(|line| line.parse().unwrap()).collect();
    assert!(heard[1] > heard[0], "{heard:?}");
}
