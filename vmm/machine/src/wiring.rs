//! Virtio devices behind their transports: registers on the bus, register pages in guest memory, doorbells.

use std::sync::{Arc, OnceLock};

use cabana_bus::{Bus, BusDevice, Interrupt};
use cabana_hv::{Arch, Doorbell, HvError, MemorySlot, Vm};
use cabana_memory::GuestRam;
use cabana_virtio::{MmioTransport, RegisterPage, VirtioDevice};

use crate::layout::{MAX_VIRTIO_DEVICES, VIRTIO_STRIDE};
use crate::machine::MachineError;

/// A virtio device's registers before everything is in place: whoever comes too early waits. Only
/// accesses that exit get here, and those are none of a running guest's hot path.
struct Wired<D> {
    device: D,
    wired: Arc<OnceLock<()>>,
}

impl<D: BusDevice> BusDevice for Wired<Arc<D>> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.wired.wait();
        self.device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.wired.wait();
        self.device.write(offset, data);
    }
}

/// Puts virtio devices on the bus, in order. `place` says where the registers of each are and how it interrupts.
pub(crate) fn add_virtio(
    mmio: &mut Bus,
    wired: &Arc<OnceLock<()>>,
    ram: &GuestRam,
    devices: Vec<Box<dyn VirtioDevice>>,
    place: impl Fn(usize) -> Result<(u64, Arc<dyn Interrupt>), MachineError>,
) -> Result<Vec<Arc<MmioTransport>>, MachineError> {
    if devices.len() > MAX_VIRTIO_DEVICES {
        return Err(MachineError::TooManyDevices(devices.len(), MAX_VIRTIO_DEVICES));
    }
    let mut transports = Vec::with_capacity(devices.len());
    if devices.is_empty() {
        return Ok(transports);
    }
    let pages = RegisterPage::contiguous(devices.len()).map_err(MachineError::Host)?;
    for (index, (device, page)) in devices.into_iter().zip(pages).enumerate() {
        let (base, interrupt) = place(index)?;
        let transport =
            MmioTransport::new(device, page, ram.clone(), interrupt).map_err(MachineError::Host)?;
        let registers = Wired { device: Arc::clone(&transport), wired: Arc::clone(wired) };
        mmio.insert(base..base + VIRTIO_STRIDE, Arc::new(registers))?;
        transports.push(transport);
    }
    Ok(transports)
}

/// Hangs the doorbells of the devices, whose register blocks begin at `registers`. As with [`map_devices`], a guest
/// that is quicker waits at [`Wired`].
pub(crate) fn hang_doorbells<A: Arch>(
    vm: &(impl Vm<A> + ?Sized),
    registers: u64,
    transports: &[Arc<MmioTransport>],
) -> Result<(), HvError> {
    for (index, transport) in transports.iter().enumerate() {
        let base = registers + index as u64 * VIRTIO_STRIDE;
        for bell in transport.doorbells() {
            let doorbell = Doorbell { guest: base + bell.offset, value: bell.value };
            unsupported_is_fine(vm.doorbell(doorbell, bell.event))?;
        }
    }
    Ok(())
}

/// Maps the devices' memory and register pages. Each of these calls waits until no vCPU uses the table
/// that it changes, so it is done while a booting guest already runs.
///
/// Register pages are mapped read-only, so that only writes exit; where the hypervisor cannot do
/// that, the bus answers the reads.
pub(crate) fn map_devices<A: Arch>(
    vm: &(impl Vm<A> + ?Sized),
    registers: u64,
    transports: &[Arc<MmioTransport>],
    device_memory: &[MemorySlot],
) -> Result<(), HvError> {
    for slot in device_memory {
        // SAFETY: the machine keeps the memory's owners until the VM and its vCPUs are gone, and
        // the owners promise that nobody has references into it.
        unsafe { vm.map(slot)? };
    }
    let Some(first) = transports.first() else { return Ok(()) };
    let slot = MemorySlot {
        guest: registers,
        host: first.register_page().host(),
        len: transports.len() * VIRTIO_STRIDE as usize,
        read_only: true,
        track_dirty: false,
    };
    // SAFETY: the pages follow one another and live as long as the transports, which the machine
    // keeps until the VM is gone; they are only ever accessed as atomics.
    unsupported_is_fine(unsafe { vm.map(&slot) })
}

fn unsupported_is_fine(result: Result<(), HvError>) -> Result<(), HvError> {
    match result {
        Err(HvError::Unsupported(_)) => Ok(()),
        result => result,
    }
}
