//! Debian's own kernel for arm64 as a guest: to its console and its processors, with a virtio device, and to its end.

#![cfg(target_arch = "aarch64")]

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use cabana_agent::initramfs;
use cabana_boot::{Initrd, Kernel};
use cabana_hv::arm64::Arm64;
use cabana_lab::Architecture;
use cabana_machine::{Machine, Outcome, Setup, Timeline, arm64};
use cabana_os::EventLoop;
use cabana_rng::Rng;
use cabana_test_hv::{Backend, Needs, case};

const LINUX: Needs = Needs::Processor("Linux would take minutes");
/// No guest here takes longer, and none says nothing for so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// The modules that the guest's init loads, of those beside the kernel.
const MODULES: [&str; 2] = ["virtio_mmio.ko", "virtio-rng.ko"];

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

/// A machine with Debian's kernel, our init, and a source of random bytes.
fn boot(
    backend: &Backend,
    cpus: u32,
    words: &str,
    console: &Console,
) -> (Machine<Arm64>, EventLoop) {
    let kernel = cabana_lab::debian_kernel(Architecture::Arm64, &mut |step| println!("{step}"))
        .expect("the lab's kernel");
    let folder = kernel.parent().expect("a folder");
    let init = fs::read(env!("CARGO_BIN_EXE_cabana-test-init")).expect("the init");
    let modules =
        MODULES.map(|name| (format!("/{name}"), fs::read(folder.join(name)).expect("a module")));
    let files: Vec<_> =
        modules.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let mut archive = tempfile::NamedTempFile::new().expect("a file");
    archive.write_all(&initramfs::pack_with(&init, &files)).expect("the initramfs is written");

    let vm = backend.hypervisor().create_arm64_vm(arm64::GIC).expect("a VM");
    let events = EventLoop::spawn("devices").expect("an event loop");
    let setup = Setup {
        cpus,
        memory: 256 << 20,
        kernel: Kernel::open(&kernel).expect("a kernel"),
        initrd: Some(Initrd::open(archive.path()).expect("an initramfs")),
        command_line: format!("console=ttyAMA0 loglevel=4 panic=-1 {words}"),
        devices: vec![Box::new(Rng::new(events.handle()))],
        device_memory: Vec::new(),
        serial: Some(Box::new(console.clone())),
        timeline: Arc::new(Timeline::new()),
    };
    (Machine::start_arm64(vm, setup).expect("the machine starts"), events)
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
