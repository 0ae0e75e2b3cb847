//! Linux for arm64 as a guest. Cabana's kernel, agent and image: to commands with a shared folder. Debian's own kernel:
//! to its console and its processors, with a virtio device, and to its end; and with the agent, too.

#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use cabana_agent::initramfs;
use cabana_boot::{Initrd, Kernel};
use cabana_fs::{FileServer, FsDevice};
use cabana_hv::arm64::Arm64;
use cabana_lab::Architecture;
use cabana_machine::{DeviceMemory, Machine, Outcome, Setup, Timeline, arm64};
use cabana_os::EventLoop;
use cabana_pmem::{Image, Pmem};
use cabana_protocol::{
    CONTROL_PORT, EXEC_PORT, Exec, ExecReply, ExecRequest, ExitStatus, GuestMessage, HostMessage,
    Kind, RootSetup, ShareMount, read_frame, read_message, write_message,
};
use cabana_rng::Rng;
use cabana_store::{Kind as Artifact, Store};
use cabana_test_hv::{Backend, Needs, case, lacks};
use cabana_virtio::VirtioDevice;
use cabana_vsock::{VsockConfig, VsockDevice, VsockHost};

const LINUX: Needs = Needs::Processor("Linux would take minutes");
/// No guest here takes longer, and none says nothing for so long.
const PATIENCE: Duration = Duration::from_secs(300);
const MEMORY: u64 = 512 << 20;
/// The init, and a command.
const PROGRAM: &str = env!("CARGO_BIN_EXE_cabana-test-init");
/// Modules of Debian's kernel in the order in which the guest loads them; each needs only those before it.
const MODULES: [&str; 13] = [
    "libcrc32c.ko",
    "erofs.ko",
    "overlay.ko",
    "libnvdimm.ko",
    "nd_btt.ko",
    "nd_pmem.ko",
    "nd_virtio.ko",
    "virtio_pmem.ko",
    "vsock.ko",
    "vmw_vsock_virtio_transport_common.ko",
    "vmw_vsock_virtio_transport.ko",
    "virtio-rng.ko",
    "virtio_mmio.ko",
];

/// What a guest says on its serial port.
#[derive(Clone, Default)]
struct Console(Arc<(Mutex<String>, Condvar)>);

impl Console {
    /// Waits until the guest has said `words`.
    fn wait_for(&self, words: &str) -> String {
        let (said, more) = &*self.0;
        let deadline = Instant::now() + PATIENCE;
        let mut text = said.lock().unwrap();
        while !text.contains(words) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the guest never said {words:?}, but: {text}");
            text = more.wait_timeout(text, left).unwrap().0;
        }
        text.clone()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (said, more) = &*self.0;
        said.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        more.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a machine boots.
struct Linux {
    kernel: Kernel,
    initrd: Initrd,
}

/// Debian's kernel, with modules and the tests' own init.
fn debian() -> Linux {
    let kernel = cabana_lab::debian_kernel(Architecture::Arm64, &mut |step| println!("{step}"))
        .expect("the lab's kernel");
    let folder = kernel.parent().expect("a folder");
    let init = fs::read(PROGRAM).expect("the init");
    let modules = MODULES.iter().enumerate().map(|(number, name)| {
        (format!("/sys/{number:02}.ko"), fs::read(folder.join(name)).expect("a module"))
    });
    let modules: Vec<_> = modules.collect();
    let files: Vec<_> =
        modules.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let mut archive = tempfile::NamedTempFile::new().expect("a file");
    archive.write_all(&initramfs::pack_with(&init, &files)).expect("the initramfs is written");
    Linux {
        kernel: Kernel::open(&kernel).expect("a kernel"),
        initrd: Initrd::open(archive.path()).expect("an initramfs"),
    }
}

/// A file of Cabana's own artifacts for this processor, if they are there.
fn artifact(kind: Artifact, name: &str, file: &str) -> Option<PathBuf> {
    let store = Store::open().expect("a store");
    store.find(kind, name).ok()?.file(file).ok()
}

/// A root image for this processor, the smallest that there is.
fn image() -> Option<PathBuf> {
    ["tiny", "default"].iter().find_map(|name| artifact(Artifact::Image, name, "root.erofs"))
}

/// Cabana's kernel and agent, and the smallest root image.
fn own() -> Option<(Linux, PathBuf)> {
    let kernel = artifact(Artifact::Kernel, "default", "Image")?;
    let agent = artifact(Artifact::Agent, "default", "agent.cpio")?;
    let image = image()?;
    let linux = Linux {
        kernel: Kernel::open(&kernel).expect("a kernel"),
        initrd: Initrd::open(&agent).expect("an initramfs"),
    };
    Some((linux, image))
}

/// What a machine with this Linux is made of, with these devices.
fn setup(
    linux: Linux,
    cpus: u32,
    words: &str,
    console: &Console,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Setup {
    Setup {
        cpus,
        memory: MEMORY,
        kernel: linux.kernel,
        initrd: Some(linux.initrd),
        command_line: format!("console=ttyAMA0 loglevel=4 panic=-1 {words}"),
        devices,
        device_memory: Vec::new(),
        serial: Some(Box::new(console.clone())),
        timeline: Arc::new(Timeline::new()),
    }
}

/// A machine of Debian's kernel whose init talks, with a source of random bytes.
fn boot(
    backend: &Backend,
    cpus: u32,
    words: &str,
    console: &Console,
) -> (Machine<Arm64>, EventLoop) {
    let events = EventLoop::spawn("devices").expect("an event loop");
    let devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(Rng::new(events.handle()))];
    let machine = start(backend, setup(debian(), cpus, words, console, devices));
    (machine, events)
}

fn start(backend: &Backend, setup: Setup) -> Machine<Arm64> {
    let vm = backend.hypervisor().create_arm64_vm(arm64::GIC).expect("a VM");
    Machine::start_arm64(vm, setup).expect("the machine starts")
}

/// The end of a machine, which comes soon.
fn end(machine: &Machine<Arm64>, console: &Console) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match machine.ended() {
            Some(outcome) => return outcome,
            None => assert!(Instant::now() < deadline, "{}", console.0.0.lock().unwrap()),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

case!(linux_boots_on_two_processors_hears_and_powers_off, LINUX, |backend| {
    let console = Console::default();
    let (machine, _events) = boot(backend, 2, "", &console);
    let text = console.wait_for("init: what?");
    println!("{text}");
    assert!(text.contains("init: 2 processors"), "{text}");
    assert!(text.contains("init: random bytes true"), "{text}");
    machine.pause();
    machine.resume();
    machine.serial().expect("a serial port").type_in(b"hello\n");
    console.wait_for("init: heard HELLO");
    assert_eq!(end(&machine, &console), Outcome::Exit(0));
});

case!(linux_resets, LINUX, |backend| {
    let console = Console::default();
    let (machine, _events) = boot(backend, 1, "cabana.reset", &console);
    console.wait_for("init: what?");
    machine.serial().expect("a serial port").type_in(b"\n");
    assert_eq!(end(&machine, &console), Outcome::Reset);
});

case!(a_machine_that_is_stopped_is_gone_at_once, LINUX, |backend| {
    let console = Console::default();
    let (machine, _events) = boot(backend, 2, "", &console);
    console.wait_for("init: what?");
    machine.stop();
    assert_eq!(machine.wait(), Outcome::Stopped);
});

case!(our_kernel_runs_commands_on_two_processors_with_a_share, LINUX, |backend| {
    let Some((linux, image)) = own() else {
        return lacks("kernel, agent and image for arm64 (`cargo xtask setup --arch aarch64`)");
    };
    agent_runs_commands(backend, linux, &image, |host| {
        let script = "echo $(nproc) processors, $(uname -rm); cat /mnt/share/answer";
        let (status, output) = run(host, &Exec::new(["/bin/sh", "-c", script]));
        println!("{output}");
        assert_eq!(status, ExitStatus::Code(0), "{output}");
        assert!(output.starts_with("2 processors, 6.12.") && output.contains("-cabana aarch64\n"));
        assert!(output.ends_with("WHO IS THERE?"), "{output}");
    });
});

case!(debians_kernel_runs_a_command_on_two_processors_with_a_share, LINUX, |backend| {
    // An image of another processor would do, since none of its programs is run.
    let home = Store::home().expect("a store").path().join("image/default/root.erofs");
    let image = image().unwrap_or(home);
    if !image.exists() {
        return lacks("root image in the store (`cargo xtask setup`)");
    }
    agent_runs_commands(backend, debian(), &image, |_| {});
});

/// Boots to the agent, runs a command from a shared folder and then whatever `more` wants, and shuts down in order.
fn agent_runs_commands(
    backend: &Backend,
    linux: Linux,
    image: &Path,
    more: impl FnOnce(&VsockHost),
) {
    let console = Console::default();
    let events = EventLoop::spawn("devices").expect("an event loop");
    let image = Image::open(image).expect("an image");
    let at = arm64::device_memory(MEMORY);
    let (vsock, host) = VsockDevice::new(VsockConfig::default(), events.handle());
    let shares = Arc::new(FileServer::new());
    let devices: Vec<Box<dyn VirtioDevice>> = vec![
        Box::new(Pmem::new(Arc::clone(&image), at, events.handle())),
        Box::new(vsock),
        Box::new(FsDevice::new(Arc::clone(&shares), vec![events.handle()])),
        Box::new(Rng::new(events.handle())),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(PROGRAM, folder.path().join("look")).expect("the program is copied");
    fs::write(folder.path().join("question"), "who is there?").expect("the question is written");
    let share = cabana_fs::Share {
        name: "share0".to_owned(),
        path: folder.path().to_owned(),
        read_only: false,
    };
    shares.attach(&share).expect("the folder is shared");
    let memory = DeviceMemory {
        guest: at,
        host: image.host(),
        len: image.len(),
        read_only: true,
        owner: image,
    };
    let listener = host.listen(CONTROL_PORT).expect("a port");
    let setup =
        Setup { device_memory: vec![memory], ..setup(linux, 2, "cabana.agent", &console, devices) };
    let machine = start(backend, setup);

    let deadline = Some(Instant::now() + PATIENCE);
    let mut control = listener.accept_until(deadline).unwrap_or_else(|error| {
        panic!("no agent came: {error:?}; {}", console.0.0.lock().unwrap())
    });
    let hello = read_message(&mut control).expect("a greeting");
    assert!(matches!(hello, GuestMessage::Hello(_)), "{hello:?}");
    write_message(&mut control, &HostMessage::Setup(introduction())).expect("the agent listens");
    let ready = read_message(&mut control).expect("an answer");
    let GuestMessage::Ready(ready) = ready else { panic!("{ready:?}") };
    println!("warnings: {:?}", ready.warnings);

    let (status, output) = run(&host, &Exec::new(["/mnt/share/look"]));
    assert_eq!((status, output.as_str()), (ExitStatus::Code(7), "2 processors\n"));
    let answer = fs::read_to_string(folder.path().join("answer")).expect("an answer");
    assert_eq!(answer, "WHO IS THERE?");
    more(&host);
    write_message(&mut control, &HostMessage::Shutdown).expect("the agent listens");
    let last: GuestMessage = read_message(&mut control).expect("a last word");
    assert_eq!(last, GuestMessage::Stopped);
    drop(control);
    assert_eq!(end(&machine, &console), Outcome::Exit(0));
}

/// What the agent is told: the root image, and one share.
fn introduction() -> cabana_protocol::Setup {
    cabana_protocol::Setup {
        realtime_ns: cabana_os::process::realtime().as_nanos() as u64,
        hostname: "arm".to_owned(),
        entropy: [7; 32],
        root: RootSetup { image: "/dev/pmem0".to_owned(), dax: true, scratch: None },
        shares: vec![ShareMount {
            name: "share0".to_owned(),
            guest_path: "/mnt/share".to_owned(),
            read_only: false,
        }],
        network: None,
    }
}

/// Runs a command to its end; returns its standard output.
fn run(host: &VsockHost, command: &Exec) -> (ExitStatus, String) {
    let mut stream = host.connect(EXEC_PORT).expect("a connection");
    write_message(&mut stream, &ExecRequest::Exec(command.clone())).expect("a request");
    let (mut buffer, mut output) = (Vec::new(), Vec::new());
    loop {
        let frame = read_frame(&mut stream, &mut buffer).expect("a frame").expect("a frame");
        match frame.kind {
            Kind::Stdout => output.extend_from_slice(frame.payload),
            Kind::Stderr => println!("{}", String::from_utf8_lossy(frame.payload)),
            _ => match frame.message().expect("a reply") {
                ExecReply::Exited(status) => {
                    return (status, String::from_utf8_lossy(&output).into_owned());
                }
                ExecReply::Failed(failed) => panic!("{failed:?}"),
                _ => {}
            },
        }
    }
}
