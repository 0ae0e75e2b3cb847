//! arm64: where the kernel, its initramfs and the device tree go, and how the first vCPU starts.

mod fdt;

use cabana_memory::{GuestAddress, GuestRam};

use crate::{BootError, Format, Initrd, Kernel, check_command_line};

pub use fdt::{Board, Device, Gic};

/// What Linux takes of a command line (`COMMAND_LINE_SIZE`), its NUL included.
const COMMAND_LINE_MAX: usize = 2048;
/// The device tree takes at most this much, and does not cross a boundary of this.
const FDT_MAX: u64 = 2 << 20;
/// The kernel finds an initramfs in the 32 GiB from the gibibyte on in which it starts itself.
const INITRD_WINDOW: u64 = 32 << 30;
const PAGE: u64 = 4096;

/// Processors in a cluster: software-generated interrupts name 16 of one at once.
const CLUSTER: u32 = 16;

/// The affinity of the `index`-th vCPU (`MPIDR_EL1`, Arm DDI 0487 D19.2.101) without its fixed bits:
/// as KVM numbers them, in clusters of 16.
pub fn affinity(index: u32) -> u64 {
    u64::from(index % CLUSTER) | u64::from(index / CLUSTER) << 8
}

/// What is to be booted.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its initramfs.
    pub initrd: Option<&'a Initrd>,
    /// Its command line.
    pub command_line: &'a str,
    /// Number of vCPUs.
    pub cpus: u32,
    /// What stands beside RAM.
    pub board: &'a Board,
    /// Random bytes for the kernel's pool of randomness and for where it places itself.
    pub seed: [u8; 64],
}

/// How the first vCPU starts: at EL1, MMU and caches off, interrupts masked, X0 at the device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// PC.
    pub entry: u64,
    /// X0.
    pub fdt: u64,
}

/// Puts everything into `ram`: the kernel at its start, the initramfs and then the device tree at its end.
pub fn load(boot: &Boot<'_>, ram: &GuestRam) -> Result<Start, BootError> {
    let Kernel { path, file, format } = boot.kernel;
    let Format::Arm64(image) = format else {
        let (path, architecture) = (path.clone(), "x86-64".to_owned());
        return Err(BootError::ForeignArchitecture { path, architecture, machine: "arm64" });
    };
    check_command_line(boot.command_line, COMMAND_LINE_MAX - 1)?;
    let slot = ram.slots().next();
    let (start, len) = slot.map_or((0, 0), |slot| (slot.guest.0, slot.len as u64));
    let top = start + len;
    let entry = image.entry(start);
    let too_little = |needed_to: u64| BootError::TooLittleMemory {
        what: path.display().to_string(),
        needed: needed_to.saturating_sub(start),
        available: len,
    };
    // The tree's length is known when it is written, and its last two megabytes are kept for it.
    let fdt = top.saturating_sub(FDT_MAX) & !(FDT_MAX - 1);
    if image.end(start) > fdt {
        return Err(too_little(image.end(start).saturating_add(FDT_MAX)));
    }
    image.load(path, file, ram, entry)?;
    let initrd_top = fdt.min(start + INITRD_WINDOW);
    let bottom = image.end(start).next_multiple_of(PAGE);
    let initrd = boot.initrd.map(|initrd| initrd.place(ram, bottom, initrd_top)).transpose()?;
    let tree = fdt::build(boot, (start, len), initrd)?;
    if tree.len() as u64 > FDT_MAX {
        return Err(too_little(top.saturating_add(tree.len() as u64)));
    }
    ram.write_bytes(GuestAddress(fdt), &tree)?;
    Ok(Start { entry, fdt })
}

#[cfg(test)]
mod tests;
