//! The flattened device tree (Devicetree Specification 0.4, and the kernel's
//! `Documentation/devicetree/bindings`).

use vm_fdt::{FdtWriter, FdtWriterResult};

use super::{Boot, affinity};
use crate::BootError;
use crate::initrd::Placed;

/// Phandles: numbers by which nodes name others.
const GIC_HANDLE: u32 = 1;
const CLOCK_HANDLE: u32 = 2;

/// Kinds of interrupts in a GIC's specifiers (`interrupt-controller/arm,gic-v3.yaml`).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
/// Triggers in the same.
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
const LEVEL_LOW: u32 = 8;

/// The armv8 timer's private interrupts: secure, not secure, virtual, hypervisor.
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// What the PL011 divides for its baud rate, which nobody looks at.
const UART_CLOCK_HZ: u32 = 24_000_000;

/// A device's registers and interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Its shared peripheral interrupt, from 0.
    pub spi: u32,
}

/// Registers of an interrupt controller, Arm's GIC of version 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor: address and length.
    pub distributor: (u64, u64),
    /// The redistributors of all vCPUs, one behind the other: address and length.
    pub redistributors: (u64, u64),
}

/// What stands beside RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    /// The interrupt controller.
    pub gic: Gic,
    /// A PL011, the kernel's console.
    pub serial: Option<Device>,
    /// Virtio devices, in the order in which the guest finds them.
    pub virtio: Vec<Device>,
}

/// Writes the tree. `ram` is address and length.
pub(super) fn build(
    boot: &Boot<'_>,
    ram: (u64, u64),
    initrd: Option<Placed>,
) -> Result<Vec<u8>, BootError> {
    write(boot, ram, initrd).map_err(|error| BootError::DeviceTree(error.to_string()))
}

fn write(boot: &Boot<'_>, ram: (u64, u64), initrd: Option<Placed>) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_HANDLE)?;
    chosen(&mut fdt, boot, initrd)?;
    let memory = fdt.begin_node(&format!("memory@{:x}", ram.0))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[ram.0, ram.1])?;
    fdt.end_node(memory)?;
    processors(&mut fdt, boot.cpus)?;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    interrupt_controller(&mut fdt, boot.board.gic)?;
    timer(&mut fdt)?;
    if let Some(serial) = boot.board.serial {
        uart(&mut fdt, serial)?;
    }
    for device in &boot.board.virtio {
        let node = fdt.begin_node(&format!("virtio_mmio@{:x}", device.start))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[device.start, device.len])?;
        fdt.property_array_u32("interrupts", &[SHARED, device.spi, EDGE_RISING])?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

/// `/chosen` (`Documentation/devicetree/usage-model.rst`, `schemas/chosen.yaml`).
fn chosen(fdt: &mut FdtWriter, boot: &Boot<'_>, initrd: Option<Placed>) -> FdtWriterResult<()> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", boot.command_line)?;
    let (kaslr, rng) = boot.seed.split_at(8);
    fdt.property("kaslr-seed", kaslr)?;
    fdt.property("rng-seed", rng)?;
    if let Some(Placed { start, len }) = initrd.filter(|placed| placed.len > 0) {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", start + len)?;
    }
    if let Some(serial) = boot.board.serial {
        fdt.property_string("stdout-path", &format!("/pl011@{:x}", serial.start))?;
    }
    fdt.end_node(chosen)
}

fn processors(fdt: &mut FdtWriter, count: u32) -> FdtWriterResult<()> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for index in 0..count {
        let affinity = affinity(index);
        let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", affinity)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn interrupt_controller(fdt: &mut FdtWriter, gic: Gic) -> FdtWriterResult<()> {
    let Gic { distributor, redistributors } = gic;
    let node = fdt.begin_node(&format!("intc@{:x}", distributor.0))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_array_u64(
        "reg",
        &[distributor.0, distributor.1, redistributors.0, redistributors.1],
    )?;
    fdt.property_phandle(GIC_HANDLE)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    let interrupts = TIMERS.map(|number| [PRIVATE, number, LEVEL_LOW]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.end_node(node)
}

fn uart(fdt: &mut FdtWriter, serial: Device) -> FdtWriterResult<()> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", UART_CLOCK_HZ)?;
    fdt.property_phandle(CLOCK_HANDLE)?;
    fdt.end_node(clock)?;
    let node = fdt.begin_node(&format!("pl011@{:x}", serial.start))?;
    fdt.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &[serial.start, serial.len])?;
    fdt.property_array_u32("interrupts", &[SHARED, serial.spi, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[CLOCK_HANDLE, CLOCK_HANDLE])?;
    fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    fdt.end_node(node)
}
