//! A machine that goes on where another was frozen.
//!
//! The order: RAM first, since vCPUs are given state that lies in it; the vCPUs' registers, each on its own
//! thread; devices; then the clock, when every time-stamp counter stands; then the vCPUs run. All memory is
//! mapped before they do: a guest that goes on has its root image in use.

use std::sync::Arc;

use cabana_bus::StateError;
use cabana_hv::X86Vm;
use cabana_hv::x86::{VcpuSetup, X86, cpuid};
use cabana_memory::GuestRam;
use cabana_virtio::VirtioDevice;

use crate::board::Board;
use crate::control::{Control, Outcome};
use crate::layout::{self, Pins};
use crate::machine::{Parts, Slots, X86Parts, map_ram};
use crate::vcpu::Begin;
use crate::{DeviceMemory, Machine, MachineError, MachineState, Timeline};

/// By how much time-stamp counters may differ in pace, in millionths: what KVM itself does not correct.
const TSC_TOLERANCE: u64 = 250;

/// What a machine is restored from.
pub struct Restore {
    /// All but RAM.
    pub state: MachineState,
    /// RAM with its content, in the pieces of [`layout::ram_pieces`].
    pub ram: GuestRam,
    /// Virtio devices of the kinds that there were, in the same order.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Memory that devices bring along.
    pub device_memory: Vec<DeviceMemory>,
    /// Where moments of the start are noted.
    pub timeline: Arc<Timeline>,
}

impl Machine<X86> {
    /// Lets a frozen machine go on. It has neither COM1 nor ACPI.
    pub fn restore(vm: Box<dyn X86Vm>, restore: Restore) -> Result<Self, MachineError> {
        let vm: Arc<dyn X86Vm> = Arc::from(vm);
        let Restore { state, ram, devices, device_memory, timeline } = restore;
        check(vm.as_ref(), &state, &ram)?;
        let cpuids: Vec<_> = state.vcpus.iter().map(|vcpu| vcpu.cpuid.clone()).collect();
        let setup = |cpuid: &Vec<_>| VcpuSetup { cpuid: cpuid.clone(), msrs: Vec::new() };
        vm.set_vcpus(cpuids.iter().map(setup).collect())?;
        map_ram(vm.as_ref(), &ram)?;
        timeline.mark("memory mapped");

        let control = Arc::new(Control::paused());
        let mut board = Board::new(&vm, &control, Pins::new(false, devices.len()))?;
        let count = state.devices.len();
        if devices.len() != count {
            let why = format!("it had {count} devices, and this one has {}", devices.len());
            return Err(MachineError::Restore(why));
        }
        board.add_virtio(&ram, devices)?;
        if !cpuid::is_kvm(&vm.supported_cpuid()?) {
            board.add_clocks()?;
        }
        let wired = Arc::clone(&board.wired);
        let (control, tsc_khz) = (Arc::clone(&control), state.tsc_khz);
        let Board { mmio, pio, transports, ioapic, .. } = board;
        let kept = X86Parts { ioapic: Arc::clone(&ioapic), tsc_khz, cpuids };
        let serial = None;
        let parts = Parts { vm, control, timeline, ram, mmio, pio, transports, serial, kept };
        let mut machine = Self::assemble(parts, &device_memory);
        for vcpu in state.vcpus {
            machine.add_vcpu(Begin::Restored(Box::new(vcpu.state)))?;
        }
        // Beside the vCPUs' threads.
        machine.map_devices(&Slots::of(&device_memory))?;
        let refused = |what: String| {
            move |error: StateError| MachineError::Restore(format!("{what}: {error}"))
        };
        state.ioapic.into_part(&*ioapic).map_err(refused("the I/O APIC".to_owned()))?;
        for (index, (transport, saved)) in
            machine.transports().iter().zip(&state.devices).enumerate()
        {
            transport.restore(saved).map_err(refused(format!("device {index}")))?;
        }
        machine.wait_parked();
        if let Some(Outcome::Failed(why)) = machine.ended() {
            return Err(MachineError::Restore(why));
        }
        for transport in machine.transports() {
            transport.resume();
        }
        machine.vm().set_clock(state.clock)?;
        // All memory is in place. A write that comes before its doorbell hangs goes over the bus, which
        // does the same: to wait for all of them would hold up the guest's first word.
        let _ = wired.set(());
        machine.start_wiring(None, wired)?;
        machine.resume();
        Ok(machine)
    }
}

/// Is it a machine that this host can go on with?
fn check(vm: &dyn X86Vm, state: &MachineState, ram: &GuestRam) -> Result<(), MachineError> {
    let most = vm.max_vcpus();
    let count = state.vcpus.len() as u32;
    if count == 0 || count > most {
        return Err(MachineError::Cpus(count, most));
    }
    if ram.size() != state.memory
        || !ram.slots().map(|slot| (slot.guest, slot.len)).eq(layout::ram_pieces(state.memory))
    {
        return Err(MachineError::MemorySize(state.memory));
    }
    let (was, here) = (state.tsc_khz, vm.tsc_khz()?);
    if u64::from(was.abs_diff(here)) * 1_000_000 > u64::from(was) * TSC_TOLERANCE {
        let why = format!("its time-stamp counters ran at {was} kHz, and here it is {here}");
        return Err(MachineError::Restore(why));
    }
    let options = cpuid::Options { index: 0, count, tsc_khz: was, apic_khz: vm.apic_khz() };
    let here = cpuid::for_guest(&vm.supported_cpuid()?, options);
    let was = state.vcpus.first().map(|vcpu| vcpu.cpuid.as_slice()).unwrap_or_default();
    cpuid::check_compatible(was, &here).map_err(|why| MachineError::Restore(why.to_string()))
}
