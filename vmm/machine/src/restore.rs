//! A machine that goes on where another was frozen.
//!
//! The order: RAM first, since vCPUs are given state that lies in it; the vCPUs' registers, each on its own
//! thread; devices; then the clock, when every time-stamp counter stands; then the vCPUs run. All memory is
//! mapped before they do: a guest that goes on has its root image in use.

use std::sync::{Arc, OnceLock};

use cabana_bus::StateError;
use cabana_hv::X86Vm;
use cabana_hv::x86::{VcpuSetup, X86, cpuid};
use cabana_memory::GuestRam;
use cabana_virtio::{TransportState, VirtioDevice};

use crate::board::Board;
use crate::control::{Control, Outcome};
use crate::layout::Pins;
use crate::machine::{Parts, Slots, X86Parts, map_ram};
use crate::prefetch::Prefetch;
use crate::vcpu::Begin;
use crate::{DeviceMemory, Machine, MachineError, MachineState, Platform, Timeline, Touched};

/// By how much time-stamp counters may differ in pace, in millionths: what KVM itself does not correct.
const TSC_TOLERANCE: u64 = 250;

/// What a machine is restored from.
pub struct Restore<P: Platform = X86> {
    /// All but RAM.
    pub state: P::AtRest,
    /// RAM with its content, in the pieces of [`Platform::ram_pieces`].
    pub ram: GuestRam,
    /// Virtio devices of the kinds that there were, in the same order.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Memory that devices bring along.
    pub device_memory: Vec<DeviceMemory>,
    /// What it is known to touch first.
    pub touched: Touched,
    /// Where moments of the start are noted.
    pub timeline: Arc<Timeline>,
}

impl Machine<X86> {
    /// Lets a frozen machine go on. It has neither COM1 nor ACPI.
    pub fn restore(vm: Box<dyn X86Vm>, restore: Restore) -> Result<Self, MachineError> {
        let vm: Arc<dyn X86Vm> = Arc::from(vm);
        let Restore { state, ram, devices, device_memory, touched, timeline } = restore;
        check(vm.as_ref(), &state, &ram)?;
        let cpuids: Vec<_> = state.vcpus.iter().map(|vcpu| vcpu.cpuid.clone()).collect();
        let setup = |cpuid: &Vec<_>| VcpuSetup { cpuid: cpuid.clone(), msrs: Vec::new() };
        vm.set_vcpus(cpuids.iter().map(setup).collect())?;
        map_ram(vm.as_ref(), &ram)?;
        timeline.mark("memory mapped");

        let control = Arc::new(Control::paused());
        let mut board = Board::new(&vm, &control, Pins::new(false, devices.len()))?;
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
        machine.add_restored(state.vcpus.into_iter().map(|vcpu| vcpu.state), touched)?;
        // Beside the vCPUs' threads.
        machine.map_devices(&Slots::of(&device_memory))?;
        state.ioapic.into_part(&*ioapic).map_err(refused("the I/O APIC"))?;
        machine.restore_devices(&state.devices)?;
        for transport in machine.transports() {
            transport.resume();
        }
        machine.vm().set_clock(state.clock)?;
        machine.go_on(wired)
    }
}

impl<P: Platform> Machine<P> {
    /// Makes the vCPUs with their states, and starts their threads. The first one brings in what is touched first.
    pub(crate) fn add_restored(
        &mut self,
        states: impl Iterator<Item = P::State>,
        touched: Touched,
    ) -> Result<(), MachineError> {
        let ram = self.ram().clone();
        let mut prefetch = Some(Prefetch { touched, ram, advise: |ram| P::advise_pages(ram, 0) });
        for state in states {
            self.add_vcpu(Begin::Restored(Box::new(state), prefetch.take()))?;
        }
        Ok(())
    }

    /// Gives the virtio devices their states; returns when the vCPUs have theirs, too.
    pub(crate) fn restore_devices(&self, states: &[TransportState]) -> Result<(), MachineError> {
        let (had, has) = (states.len(), self.transports().len());
        if had != has {
            let why = format!("it had {had} devices, and this one has {has}");
            return Err(MachineError::Restore(why));
        }
        for (index, (transport, saved)) in self.transports().iter().zip(states).enumerate() {
            transport.restore(saved).map_err(refused(&format!("device {index}")))?;
        }
        self.wait_parked();
        match self.ended() {
            Some(Outcome::Failed(why)) => Err(MachineError::Restore(why)),
            _ => Ok(()),
        }
    }

    /// Lets the vCPUs run.
    pub(crate) fn go_on(mut self, wired: Arc<OnceLock<()>>) -> Result<Self, MachineError> {
        // All memory is in place. A write that comes before its doorbell hangs goes over the bus, which
        // does the same: to wait for all of them would hold up the guest's first word.
        let _ = wired.set(());
        self.start_wiring(None, wired)?;
        self.resume();
        Ok(self)
    }
}

fn refused(what: &str) -> impl FnOnce(StateError) -> MachineError {
    move |error| MachineError::Restore(format!("{what}: {error}"))
}

/// Is it a number of vCPUs, and RAM, that a machine can have, where it may have at most so many vCPUs?
pub(crate) fn check_size<P: Platform>(
    memory: u64,
    ram: &GuestRam,
    vcpus: usize,
    most: u32,
) -> Result<(), MachineError> {
    let count = vcpus as u32;
    if count == 0 || count > most {
        return Err(MachineError::Cpus(count, most));
    }
    let pieces = ram.slots().map(|slot| (slot.guest, slot.len));
    if ram.size() != memory || !pieces.eq(P::ram_pieces(memory)) {
        return Err(MachineError::MemorySize(memory));
    }
    Ok(())
}

/// Is it a machine that this host can go on with?
fn check(vm: &dyn X86Vm, state: &MachineState, ram: &GuestRam) -> Result<(), MachineError> {
    check_size::<X86>(state.memory, ram, state.vcpus.len(), vm.max_vcpus())?;
    let count = state.vcpus.len() as u32;
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
