//! The process's one VM.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cabana_hv_hvf::{
    HV_BAD_ARGUMENT, HV_BUSY, HV_DENIED, HV_ERROR, HV_NO_DEVICE, HV_NO_RESOURCES, HV_UNSUPPORTED,
};
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VM_SMCCC_CTRL,
    KVM_ARM_VM_SMCCC_FILTER, KVM_CAP_ARM_NISV_TO_USER, kvm_device_attr, kvm_enable_cap,
    kvm_smccc_filter, kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER, kvm_vcpu_init,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::gic::{self, Gic};
use crate::memory::Memory;
use crate::vcpu::Handle;
use crate::{Answer, failed};

/// vCPUs of a VM. KVM takes none after its interrupt controller is made, so all are made at once.
pub(crate) const MAX_VCPUS: u32 = 24;
/// Bits of guest-physical addresses, if nobody asks for others.
pub(crate) const ADDRESS_BITS: u32 = 36;
/// Calls that KVM lets pass: all but those of the architecture itself, which it keeps to itself.
const CALLS: [(u32, u32); 3] = [
    (0, 0x8000_0000),
    (0x8001_0000, 0xc000_0000 - 0x8001_0000),
    (0xc001_0000, (u32::MAX - 0xc001_0000) + 1),
];
/// `KVM_ARM_SET_COUNTER_OFFSET`: two numbers, the second of them zero.
const SET_COUNTER_OFFSET: u64 = 1 << 30 | 16 << 16 | 0xae << 8 | 0xb5;

static VM: Mutex<Option<Arc<Machine>>> = Mutex::new(None);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process's VM.
pub(crate) fn machine() -> Answer<Arc<Machine>> {
    lock(&VM).clone().ok_or(HV_NO_DEVICE)
}

fn kvm() -> Answer<Kvm> {
    Kvm::new().map_err(|error| match error.errno() {
        libc::EACCES | libc::EPERM => HV_DENIED,
        _ => HV_UNSUPPORTED,
    })
}

/// The most bits of guest-physical addresses.
pub(crate) fn max_address_bits() -> Answer<u32> {
    Ok(kvm()?.get_host_ipa_limit().cast_unsigned().max(40))
}

pub(crate) fn create(address_bits: u32) -> Answer<()> {
    let mut vm = lock(&VM);
    if vm.is_some() {
        return Err(HV_BUSY);
    }
    *vm = Some(Arc::new(Machine::new(address_bits)?));
    Ok(())
}

pub(crate) fn destroy() -> Answer<()> {
    let mut vm = lock(&VM);
    let machine = vm.as_ref().ok_or(HV_NO_DEVICE)?;
    if !lock(&machine.handles).is_empty() {
        return Err(HV_BUSY);
    }
    *vm = None;
    Ok(())
}

/// A vCPU's affinity in `MPIDR_EL1`: as KVM numbers its vCPUs, 16 to a cluster.
pub(crate) fn affinity(vcpu: u32) -> u64 {
    u64::from(vcpu % 16) | u64::from(vcpu / 16) << 8
}

/// A VM.
pub(crate) struct Machine {
    pub(crate) fd: VmFd,
    memory: Mutex<Memory>,
    gic: OnceLock<Gic>,
    /// KVM's vCPUs that no vCPU of the framework's is, by their numbers.
    spares: Mutex<Vec<Option<VcpuFd>>>,
    init: kvm_vcpu_init,
    /// The framework's vCPUs.
    pub(crate) handles: Mutex<BTreeMap<u64, Arc<Handle>>>,
    /// A vCPU has run.
    ran: AtomicBool,
    offset: Mutex<Option<u64>>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

/// vCPUs run, or memory changes.
#[derive(Default)]
struct Gate {
    running: u32,
    closed: bool,
}

impl Machine {
    fn new(address_bits: u32) -> Answer<Self> {
        let kvm = kvm()?;
        let fd = kvm.create_vm_with_ipa_size(address_bits).map_err(failed)?;
        let enable = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        fd.enable_cap(&enable).map_err(failed)?;
        for (base, nr_functions) in CALLS {
            let action = kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as u8;
            let filter = kvm_smccc_filter { base, nr_functions, action, pad: [0; 15] };
            let request = kvm_device_attr {
                group: KVM_ARM_VM_SMCCC_CTRL,
                attr: KVM_ARM_VM_SMCCC_FILTER.into(),
                addr: &raw const filter as u64,
                flags: 0,
            };
            fd.set_device_attr(&request).map_err(failed)?;
        }
        let mut init = kvm_vcpu_init::default();
        fd.get_preferred_target(&mut init).map_err(failed)?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        let mut spares = Vec::new();
        for index in 0..MAX_VCPUS {
            let vcpu = fd.create_vcpu(index.into()).map_err(failed)?;
            vcpu.vcpu_init(&init).map_err(failed)?;
            spares.push(Some(vcpu));
        }
        Ok(Self {
            fd,
            memory: Mutex::new(Memory::new(address_bits)),
            gic: OnceLock::new(),
            spares: Mutex::new(spares),
            init,
            handles: Mutex::default(),
            ran: AtomicBool::new(false),
            offset: Mutex::default(),
            gate: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// After the VM, before the first vCPU.
    pub(crate) fn create_gic(&self, distributor: u64, redistributors: u64) -> Answer<()> {
        if !lock(&self.handles).is_empty() || self.gic.get().is_some() {
            return Err(HV_ERROR);
        }
        let gic = Gic::new(&self.fd, distributor, redistributors)?;
        self.gic.set(gic).map_err(|_| HV_ERROR)
    }

    pub(crate) fn gic(&self) -> Answer<&Gic> {
        self.gic.get().ok_or(HV_NO_DEVICE)
    }

    pub(crate) fn set_spi(&self, interrupt: u32, level: bool) -> Answer<()> {
        self.gic()?;
        if !(gic::FIRST..gic::FIRST + gic::COUNT).contains(&interrupt) {
            return Err(HV_BAD_ARGUMENT);
        }
        let number = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | interrupt;
        self.fd.set_irq_line(number, level).map_err(failed)
    }

    /// The whole controller's state, while the machine stands still.
    pub(crate) fn gic_state(&self) -> Answer<Vec<u8>> {
        if lock(&self.gate).running > 0 {
            return Err(HV_BUSY);
        }
        self.gic()?.state()
    }

    /// After the vCPUs are made, before one runs.
    pub(crate) fn set_gic_state(&self, state: &[u8]) -> Answer<()> {
        if self.ran.load(Ordering::SeqCst) || lock(&self.handles).is_empty() {
            return Err(HV_ERROR);
        }
        self.gic()?.set_state(state)
    }

    /// Takes KVM's vCPU of this number, or the first that is free.
    pub(crate) fn take(&self, index: Option<u32>) -> Answer<(u32, VcpuFd)> {
        let mut spares = lock(&self.spares);
        let index = match index {
            Some(index) => index,
            None => spares.iter().position(Option::is_some).ok_or(HV_NO_RESOURCES)? as u32,
        };
        let spare = spares.get_mut(index as usize).and_then(Option::take);
        Ok((index, spare.ok_or(HV_BAD_ARGUMENT)?))
    }

    /// Gives it back, as it was at first.
    pub(crate) fn give(&self, index: u32, vcpu: VcpuFd) {
        if vcpu.vcpu_init(&self.init).is_ok() {
            lock(&self.spares)[index as usize] = Some(vcpu);
        }
    }

    /// What the virtual counter is behind the host's: KVM has one for the whole VM, and sets it between runs.
    pub(crate) fn set_offset(&self, offset: u64) -> Answer<()> {
        let mut held = lock(&self.offset);
        if *held == Some(offset) {
            return Ok(());
        }
        let request = [offset, 0];
        // SAFETY: the kernel reads the two numbers.
        let result = unsafe {
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(&self.fd),
                SET_COUNTER_OFFSET as libc::Ioctl,
                request.as_ptr(),
            )
        };
        if result < 0 {
            return Err(HV_BUSY);
        }
        *held = Some(offset);
        Ok(())
    }

    /// Waits while memory changes; then a vCPU may run until [`Machine::leave`].
    pub(crate) fn enter(&self) {
        self.ran.store(true, Ordering::SeqCst);
        let mut gate = lock(&self.gate);
        while gate.closed {
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.running += 1;
    }

    pub(crate) fn leave(&self) {
        lock(&self.gate).running -= 1;
        self.changed.notify_all();
    }

    /// Changes memory while no vCPU runs.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut Memory, &VmFd) -> Answer<()>,
    ) -> Answer<()> {
        let mut memory = lock(&self.memory);
        let mut gate = lock(&self.gate);
        gate.closed = true;
        while gate.running > 0 {
            for handle in lock(&self.handles).values() {
                handle.interrupt();
            }
            let waited = self.changed.wait_timeout(gate, Duration::from_millis(10));
            gate = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(gate);
        let answer = change(&mut memory, &self.fd);
        lock(&self.gate).closed = false;
        self.changed.notify_all();
        answer
    }

    pub(crate) fn is_mapped(&self, at: u64) -> bool {
        lock(&self.memory).is_mapped(at)
    }
}
