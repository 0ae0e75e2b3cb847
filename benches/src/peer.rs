//! QEMU's microvm, the machine that Cabana is measured beside.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guests::EXIT_PORT;

/// The exit status of QEMU when the guest writes 0 to its debug exit device: `(0 << 1) | 1`.
pub const QEMU_EXIT: i32 = 1;

/// QEMU and the size of its guests.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Guest RAM in MiB.
    pub memory_mib: u64,
}

impl Qemu {
    /// A microvm with nothing in it but a debug exit device at the exit port.
    pub fn microvm(&self, kernel: &Path, initrd: &Path, command_line: &str) -> Command {
        let mut command = self.empty(kernel);
        command
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", command_line])
            .args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1")]);
        command
    }

    /// A microvm whose root is an image on its first disk, and whose init is a shell with these words; the guest ends
    /// by its end, which to the kernel is a reason to start anew. What the kernel does not know goes to init; `--` would
    /// take the devices that QEMU names behind it, and a word with a dot in it would be a module's parameter.
    pub fn of_image(&self, kernel: &Path, image: &Path, init: &str) -> Command {
        let mut command = self.empty(kernel);
        command
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=none,id=root,readonly=on", image.display()))
            .args(["-device", "virtio-blk-device,drive=root"])
            .arg("-append")
            .arg(format!(
                "quiet panic=-1 reboot=t tsc=reliable no_timer_check percpu_alloc=page ro \
                 root=/dev/vda rootfstype=erofs init=/bin/sh -c \"{init}\""
            ));
        command
    }

    /// A microvm with a kernel.
    fn empty(&self, kernel: &Path) -> Command {
        let mut command = Command::new(&self.program);
        // `acpi=off`: the processor table of old, as the guest kernel has no ACPI. No legacy device
        // is left, and the firmware enters the kernel by PVH without option ROMs.
        let machine = "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,x-option-roms=off";
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", machine, "-accel", "kvm", "-smp", "1", "-m", &self.memory_mib.to_string()])
            // XSAVE does not survive the lab's nested virtualization, and Cabana takes it away too.
            .args(["-cpu", "host,-xsave"])
            .arg("-kernel")
            .arg(kernel);
        command
    }
}
