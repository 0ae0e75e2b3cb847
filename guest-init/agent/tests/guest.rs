//! The agent as PID 1 of a real Linux under QEMU's software CPU.
//!
//! QEMU has no vsock without the host kernel's help, so the connections are virtio-serial ports (see
//! `init/transport.rs`) and the root image is a disk. The test runs where it is told a kernel
//! (`CABANA_TEST_KERNEL`, an uncompressed one with Cabana's configuration), a root image
//! (`CABANA_TEST_IMAGE`, EROFS) and a static agent (`CABANA_TEST_AGENT`), and says so elsewhere.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use cabana_agent::initramfs;
use cabana_protocol::{
    Exec, ExecReply, ExecRequest, ExitStatus, GuestMessage, HostMessage, Kind, PROTOCOL_VERSION,
    Ready, RootSetup, Setup, SetupFailed, ShareMount, TtySize, exit_port, read_frame, read_message,
    write_message,
};

/// The longest that a step in the guest may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// virtiofsd of Debian's `qemu-system-common`.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// What the tests need and the machine may lack.
struct Needs {
    kernel: PathBuf,
    image: PathBuf,
    agent: PathBuf,
}

impl Needs {
    fn find() -> Option<Self> {
        let find = |name: &str| {
            let path = env::var_os(name).map(PathBuf::from);
            if path.is_none() {
                println!("skipped: {name} is not set");
            }
            path
        };
        let needs = Self {
            kernel: find("CABANA_TEST_KERNEL")?,
            image: find("CABANA_TEST_IMAGE")?,
            agent: find("CABANA_TEST_AGENT")?,
        };
        if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
            println!("skipped: there is no qemu-system-x86_64");
            return None;
        }
        Some(needs)
    }
}

/// A machine with its host's end of the connections.
struct Guest {
    folder: PathBuf,
    qemu: Child,
    control: UnixStream,
    virtiofsd: Option<Child>,
}

impl Guest {
    /// Boots up to the agent's first message.
    fn boot(needs: &Needs, folder: &Path, shared: Option<&Path>, processors: u32) -> Self {
        let initrd = folder.join("init.cpio");
        fs::write(&initrd, initramfs::pack(&fs::read(&needs.agent).unwrap())).unwrap();
        let scratch = folder.join("scratch");
        if !scratch.exists() {
            File::create(&scratch).unwrap().set_len(256 << 20).unwrap();
            let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&scratch).status();
            assert!(made.unwrap().success());
        }
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let _ = fs::remove_file(path("control"));
        let virtiofsd = shared.map(|shared| {
            let log = File::create(path("virtiofsd.log")).unwrap();
            Command::new(VIRTIOFSD)
                .arg(format!("--socket-path={}", path("fs")))
                .arg(format!("-osource={},sandbox=chroot", shared.display()))
                .stderr(log.try_clone().unwrap())
                .stdout(log)
                .spawn()
                .unwrap()
        });
        // The kernel finds the buses from the last to the first.
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", "microvm,acpi=off,rtc=on,isa-serial=off,memory-backend=ram"])
            .args(["-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-m", "512M"])
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-accel", "tcg", "-cpu", "max", "-smp", &processors.to_string()])
            .arg("-kernel")
            .arg(&needs.kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", "console=hvc0 panic=-1 reboot=t quiet CABANA_CONTROL=/dev/vport0p1 CABANA_EXEC=/dev/vport0p2"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
            .args(["-drive", &format!("if=none,id=image,format=raw,readonly=on,file={}", needs.image.display())])
            .args(["-device", "virtio-blk-device,drive=image,bus=virtio-mmio-bus.2"])
            .args(["-drive", &format!("if=none,id=scratch,format=raw,discard=unmap,file={}", path("scratch"))])
            .args(["-device", "virtio-blk-device,drive=scratch,bus=virtio-mmio-bus.1"])
            .args(["-device", "virtio-serial-device,bus=virtio-mmio-bus.3"])
            .args(["-chardev", &format!("file,id=console,path={}", path("console"))])
            .args(["-device", "virtconsole,nr=0,chardev=console"])
            .args(["-chardev", &format!("socket,id=control,server=on,wait=off,path={}", path("control"))])
            .args(["-device", "virtserialport,nr=1,chardev=control"])
            .args(["-chardev", &format!("socket,id=exec,server=on,wait=off,path={}", path("exec"))])
            .args(["-device", "virtserialport,nr=2,chardev=exec"]);
        if shared.is_some() {
            command.args(["-chardev", &format!("socket,id=fs,path={}", path("fs"))]).args([
                "-device",
                "vhost-user-fs-device,chardev=fs,tag=cabana,bus=virtio-mmio-bus.0",
            ]);
            wait_for(&folder.join("fs"));
        }
        let qemu = command.stdin(Stdio::null()).spawn().unwrap();
        let control = connect(&folder.join("control"));
        let mut guest = Self { folder: folder.to_owned(), qemu, control, virtiofsd };
        match guest.receive() {
            GuestMessage::Hello(hello) => {
                assert_eq!(hello.protocol, PROTOCOL_VERSION);
                assert!(hello.tsc_main > 0 && hello.monotonic_ns > 0);
            }
            other => panic!("{other:?}"),
        }
        guest
    }

    fn receive(&mut self) -> GuestMessage {
        read_message(&mut self.control)
            .unwrap_or_else(|error| panic!("{error}: {}", self.console()))
    }

    fn send(&mut self, message: &HostMessage) {
        write_message(&mut self.control, message).unwrap();
    }

    fn set_up(&mut self, setup: Setup) -> Result<Ready, SetupFailed> {
        self.send(&HostMessage::Setup(setup));
        match self.receive() {
            GuestMessage::Ready(ready) => Ok(ready),
            GuestMessage::SetupFailed(failed) => Err(failed),
            other => panic!("{other:?}"),
        }
    }

    /// Runs a shell script.
    fn run(&self, script: &str) -> (ExitStatus, String) {
        self.exec(Exec::new(["sh", "-c", script]))
    }

    /// Runs a command; its output and errors together.
    fn exec(&self, exec: Exec) -> (ExitStatus, String) {
        let mut stream = connect(&self.folder.join("exec"));
        write_message(&mut stream, &ExecRequest::Exec(exec)).unwrap();
        let (mut output, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let frame = read_frame(&mut stream, &mut buffer).unwrap().unwrap();
            match frame.kind {
                Kind::Stdout | Kind::Stderr => output.extend_from_slice(frame.payload),
                _ => match frame.message().unwrap() {
                    ExecReply::Started { .. } => {}
                    ExecReply::Exited(status) => {
                        return (status, String::from_utf8_lossy(&output).into_owned());
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
    }

    fn shut_down(mut self) -> Duration {
        let start = Instant::now();
        self.send(&HostMessage::Shutdown);
        assert_eq!(self.receive(), GuestMessage::Stopped);
        let took = start.elapsed();
        assert_eq!(self.exit_status(), exit_port::POWER_OFF, "{}", self.console());
        took
    }

    /// The byte that the guest wrote to its exit port.
    fn exit_status(&mut self) -> u8 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                let status = status.code().unwrap();
                assert!(status & 1 == 1, "QEMU ended with {status}: {}", self.console());
                return (status >> 1) as u8;
            }
            assert!(Instant::now() < end, "the machine does not end: {}", self.console());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.join("console")).unwrap_or_default()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for child in [Some(&mut self.qemu), self.virtiofsd.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wait_for(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not appear", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

fn connect(path: &Path) -> UnixStream {
    let end = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < end, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn setup() -> Setup {
    let mut entropy = [0; 32];
    File::open("/dev/urandom").unwrap().read_exact(&mut entropy).unwrap();
    Setup {
        // 2030-01-01
        realtime_ns: 1_893_456_000_000_000_000,
        hostname: "test-guest".into(),
        entropy,
        root: RootSetup { image: "/dev/vda".into(), dax: false, scratch: Some("/dev/vdb".into()) },
        shares: Vec::new(),
        network: None,
    }
}

fn ok(output: &str) -> (ExitStatus, String) {
    (ExitStatus::Code(0), output.into())
}

#[test]
fn a_machine_lives_and_its_files_persist() {
    let Some(needs) = Needs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::boot(&needs, folder.path(), None, 2);
    guest.send(&HostMessage::Ping(7));
    assert_eq!(guest.receive(), GuestMessage::Pong(7));
    let ready = guest.set_up(setup()).unwrap();
    assert_eq!(ready.warnings, Vec::<String>::new());
    assert!(ready.tsc > 0 && ready.monotonic_ns > 0);
    guest.send(&HostMessage::Ping(300));
    assert_eq!(guest.receive(), GuestMessage::Pong(300));

    assert_eq!(guest.run("hostname; date -u +%Y; id -u; umask"), ok("test-guest\n2030\n0\n0022\n"));
    let (_, mounts) = guest.run("cat /proc/mounts");
    for mount in [
        "overlay / overlay rw,noatime,lowerdir=/image,upperdir=/scratch/upper",
        "dev /dev devtmpfs",
        "proc /proc proc",
        "sysfs /sys sysfs",
        "cgroup2 /sys/fs/cgroup cgroup2",
        "devpts /dev/pts devpts",
        "tmpfs /dev/shm tmpfs",
        "run /run tmpfs",
    ] {
        assert!(mounts.contains(mount), "{mount} is not in {mounts}");
    }
    assert_eq!(
        guest.run("cat /sys/class/net/lo/operstate; echo x | cat /dev/stdin").1,
        "unknown\nx\n"
    );
    assert_eq!(guest.run("cat /proc/1/oom_score_adj /proc/self/oom_score_adj"), ok("-1000\n0\n"));
    assert_eq!(guest.run("ls -A /proc/self/fd | tr '\\n' ' '"), ok("0 1 2 3 "));
    let tty = Some(TtySize { rows: 24, cols: 80 });
    let terminal = guest.exec(Exec { tty, ..Exec::new(["sh", "-c", "tty; stty size"]) });
    assert_eq!(terminal, ok("/dev/pts/0\r\n24 80\r\n"));
    assert_eq!(guest.run("exit 3").0, ExitStatus::Code(3));
    assert_eq!(guest.run("kill -9 $$").0, ExitStatus::Signal(9));

    // Orphans: a hundred that PID 1 has to reap, while commands keep their own statuses.
    let orphans = "for i in $(seq 100); do (sh -c 'exit 1' & ) ; done; sleep 0.5; exit 9";
    assert_eq!(guest.run(orphans).0, ExitStatus::Code(9));
    let zombies = "sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    assert_eq!(guest.run(zombies), ok("0\n"));

    assert_eq!(
        guest.run("mkdir -p /srv/kept && echo here >/srv/kept/file && mv /usr/share /usr/moved"),
        ok("")
    );
    let took = guest.shut_down();
    println!("an orderly shutdown took {took:?}");
    let check =
        Command::new("e2fsck").arg("-fn").arg(folder.path().join("scratch")).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let about =
        Command::new("dumpe2fs").arg("-h").arg(folder.path().join("scratch")).output().unwrap();
    let about = String::from_utf8_lossy(&about.stdout).into_owned();
    assert!(
        about.contains("state:         clean\n") && !about.contains("needs_recovery"),
        "{about}"
    );

    let mut guest = Guest::boot(&needs, folder.path(), None, 1);
    guest.set_up(setup()).unwrap();
    assert_eq!(
        guest.run("cat /srv/kept/file; ls -d /usr/share /usr/moved 2>/dev/null").1,
        "here\n/usr/moved\n"
    );
    // Processes that do not want to end, and a host that goes without a word.
    assert_eq!(guest.run("trap '' TERM; setsid sleep 1000 >/dev/null 2>&1 & echo on").1, "on\n");
    assert_eq!(guest.run("echo late >/srv/kept/late").0, ExitStatus::Code(0));
    guest.control.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(guest.exit_status(), exit_port::POWER_OFF);
}

#[test]
fn without_a_disk_the_root_is_writable_all_the_same() {
    let Some(needs) = Needs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::boot(&needs, folder.path(), None, 1);
    let mut setup = setup();
    setup.root.scratch = None;
    guest.set_up(setup).unwrap();
    assert_eq!(guest.run("echo x >/etc/new && cat /etc/new"), ok("x\n"));
    guest.shut_down();
}

#[test]
fn shares_are_mounted_where_they_belong() {
    let Some(needs) = Needs::find() else { return };
    if !Path::new(VIRTIOFSD).exists() {
        return println!("skipped: there is no {VIRTIOFSD}");
    }
    let folder = tempfile::tempdir().unwrap();
    let shared = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(shared.path().join(name)).unwrap();
        fs::write(shared.path().join(name).join("file"), name).unwrap();
    }
    fs::write(shared.path().join("file"), "").unwrap();
    let share = |name: &str, guest_path: &str, read_only| ShareMount {
        name: name.into(),
        guest_path: guest_path.into(),
        read_only,
    };
    let mut guest = Guest::boot(&needs, folder.path(), Some(shared.path()), 1);
    let shares = vec![share("one", "/mnt/new/one", false), share("two", "/srv", true)];
    let ready = guest.set_up(Setup { shares, ..setup() }).unwrap();
    assert_eq!(ready.warnings, Vec::<String>::new());
    assert_eq!(guest.run("cat /mnt/new/one/file /srv/file"), ok("onetwo"));
    assert_eq!(guest.run("echo guest >/mnt/new/one/made"), ok(""));
    let (status, error) = guest.run("echo guest >/srv/made");
    assert!(status != ExitStatus::Code(0) && error.contains("Read-only"), "{error}");
    guest.shut_down();
    assert_eq!(fs::read_to_string(shared.path().join("one/made")).unwrap(), "guest\n");

    for (share, what, why) in [
        (
            share("one", "/etc/passwd", false),
            "mounting share `one` on /etc/passwd",
            "is a file in the guest",
        ),
        (
            share("none", "/none", false),
            "mounting share `none` on /none",
            "serves no share of this name",
        ),
        (share("file", "/new", false), "mounting share `file` on /new", "is a file on the host"),
        (share("../one", "/one", false), "mounting share `../one` on /one", "not that of a folder"),
        (share("one", "relative", false), "mounting share `one` on relative", "begin with /"),
    ] {
        let mut guest = Guest::boot(&needs, folder.path(), Some(shared.path()), 1);
        let failed = guest.set_up(Setup { shares: vec![share], ..setup() }).unwrap_err();
        assert!(failed.what == what && failed.why.contains(why), "{failed:?}");
        assert_eq!(guest.exit_status(), exit_port::SETUP_FAILED);
    }
}

#[test]
fn a_setup_that_cannot_be_says_why() {
    let Some(needs) = Needs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = |image: &str, dax, scratch: &str| RootSetup {
        image: image.into(),
        dax,
        scratch: Some(scratch.into()),
    };
    for (root, what, why) in [
        (
            root("/dev/pmem0", true, "/dev/vdb"),
            "mounting /dev/pmem0 (erofs)",
            "the machine has no such device",
        ),
        (
            root("/dev/vdb", false, "/dev/vdb"),
            "mounting /dev/vdb (erofs)",
            "does not hold a sound erofs",
        ),
        (
            root("/dev/vda", false, "/dev/vdz"),
            "mounting /dev/vdz (ext4)",
            "the machine has no such device",
        ),
        (root("/dev/vda", false, "/dev/vda"), "mounting /dev/vda (ext4)", ""),
    ] {
        let mut guest = Guest::boot(&needs, folder.path(), None, 1);
        let failed = guest.set_up(Setup { root, ..setup() }).unwrap_err();
        assert!(failed.what == what && failed.why.contains(why), "{failed:?}");
        assert_eq!(guest.exit_status(), exit_port::SETUP_FAILED);
    }

    let mut guest = Guest::boot(&needs, folder.path(), None, 1);
    let shares = vec![ShareMount { name: "a".into(), guest_path: "/a".into(), read_only: false }];
    let failed = guest.set_up(Setup { shares, ..setup() }).unwrap_err();
    assert!(failed.why.contains("no device with tag `cabana`"), "{failed:?}");
}

#[test]
fn a_host_that_breaks_the_protocol_ends_the_machine() {
    let Some(needs) = Needs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::boot(&needs, folder.path(), None, 1);
    std::io::Write::write_all(&mut guest.control, &[0xff; 64]).unwrap();
    assert_eq!(guest.exit_status(), exit_port::AGENT_FAILED);
    assert!(guest.console().contains("cabana-agent: the control connection: a frame of"));
}
