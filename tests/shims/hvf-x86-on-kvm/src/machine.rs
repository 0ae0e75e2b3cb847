//! The process's one VM.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabana_hv_hvf::{HV_BUSY, HV_DENIED, HV_NO_DEVICE, HV_UNSUPPORTED};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::memory::Memory;
use crate::vcpu::Handle;
use crate::{Answer, failed};

/// vCPUs of a VM.
pub(crate) const MAX_VCPUS: u32 = 64;
/// Where registers may be native: first, and how many.
const NATIVE: [(u32, u32); 2] = [(0x170, 8), (0xc000_0080, 0x88)];

static VM: Mutex<Option<Arc<Machine>>> = Mutex::new(None);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process's VM.
pub(crate) fn machine() -> Answer<Arc<Machine>> {
    lock(&VM).clone().ok_or(HV_NO_DEVICE)
}

pub(crate) fn create() -> Answer<()> {
    let mut vm = lock(&VM);
    if vm.is_some() {
        return Err(HV_BUSY);
    }
    *vm = Some(Arc::new(Machine::new()?));
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

/// A VM.
pub(crate) struct Machine {
    pub(crate) fd: VmFd,
    memory: Mutex<Memory>,
    /// The framework's vCPUs.
    pub(crate) handles: Mutex<BTreeMap<u32, Arc<Handle>>>,
    /// How many vCPUs of KVM's there were.
    made: AtomicU64,
    native: Mutex<BTreeSet<u32>>,
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
    fn new() -> Answer<Self> {
        let kvm = Kvm::new().map_err(|error| match error.errno() {
            libc::EACCES | libc::EPERM => HV_DENIED,
            _ => HV_UNSUPPORTED,
        })?;
        let fd = kvm.create_vm().map_err(failed)?;
        // All accesses of guests to model-specific registers come out, also those that KVM has.
        let mut request =
            kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..kvm_enable_cap::default() };
        request.args[0] = u64::from(
            KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN,
        );
        fd.enable_cap(&request).map_err(failed)?;
        let machine = Self {
            memory: Mutex::new(Memory::new(&fd)?),
            fd,
            handles: Mutex::default(),
            made: AtomicU64::new(0),
            native: Mutex::default(),
            gate: Mutex::default(),
            changed: Condvar::new(),
        };
        machine.filter(&BTreeSet::new())?;
        Ok(machine)
    }

    /// The number of KVM's next vCPU.
    pub(crate) fn next(&self) -> u64 {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Lets guests use a register without exits: KVM has one list for the whole VM.
    pub(crate) fn set_native(&self, msr: u32, enable: bool) -> Answer<()> {
        let mut native = lock(&self.native);
        let changed = if enable { native.insert(msr) } else { native.remove(&msr) };
        if changed { self.filter(&native) } else { Ok(()) }
    }

    fn filter(&self, native: &BTreeSet<u32>) -> Answer<()> {
        let bitmaps = NATIVE.map(|(base, count)| {
            let mut bitmap = vec![0u8; count.div_ceil(8) as usize];
            for msr in native.range(base..base + count) {
                bitmap[(msr - base) as usize / 8] |= 1 << ((msr - base) % 8);
            }
            bitmap
        });
        let range = |at: usize| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: NATIVE[at].0,
            msr_count: NATIVE[at].1,
            bitmap: &bitmaps[at],
        };
        let ranges = [range(0), range(1)];
        self.fd.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(failed)
    }

    /// Waits while memory changes; then a vCPU may run until [`Machine::leave`].
    pub(crate) fn enter(&self) {
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

    /// Changes memory while no vCPU runs: in between there are no slots.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut Memory, &VmFd) -> Answer<()>,
    ) -> Answer<()> {
        let mut gate = lock(&self.gate);
        while gate.closed {
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.closed = true;
        while gate.running > 0 {
            for handle in lock(&self.handles).values() {
                handle.interrupt();
            }
            let waited = self.changed.wait_timeout(gate, Duration::from_millis(10));
            gate = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(gate);
        let answer = change(&mut self.memory(), &self.fd);
        lock(&self.gate).closed = false;
        self.changed.notify_all();
        answer
    }
}
