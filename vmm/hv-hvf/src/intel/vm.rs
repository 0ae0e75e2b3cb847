//! A VM: memory, interrupts, vCPUs.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cabana_hv::x86::{CpuidLeaf, Msi, MsiRoute, VcpuSetup, X86};
use cabana_hv::{Doorbell, HvError, MemorySlot, Seats, VcpuSeat, Vm, X86Vm};
use cabana_lapic::{Delivery, Message, TIMER_KHZ};
use cabana_os::Event;

use super::clock::Clock;
use super::control::Controls;
use super::cpuid;
use super::functions::Framework;
use super::post::Post;
use super::vcpu::HvfSeat;
use crate::functions::check;
use crate::memory::{Calls, Slots};

/// `HV_CAP_VCPUMAX`.
const VCPU_MAX: u64 = 0;
/// The framework's pages.
const PAGE: u64 = 4 << 10;

/// The one VM of this process.
#[derive(Debug)]
pub(crate) struct HvfVm {
    shared: Arc<VmShared>,
    seats: Seats<HvfSeat>,
}

/// What a VM and its vCPUs hold together. The framework's VM goes with the last of them.
#[derive(Debug)]
pub(crate) struct VmShared {
    pub(crate) framework: Arc<Framework>,
    pub(crate) controls: Controls,
    pub(crate) clock: Clock,
    posts: OnceLock<Vec<Arc<Post>>>,
    slots: Mutex<Slots>,
    max_vcpus: u32,
}

impl VmShared {
    /// Makes the process's VM.
    fn new(framework: Arc<Framework>) -> Result<Self, HvError> {
        let functions = &framework.functions;
        let clock = Clock::new(Arc::clone(&framework))?;
        // SAFETY: there are no flags.
        check("hv_vm_create", unsafe { (functions.hv_vm_create)(0) })?;
        let rest = || {
            let mut max_vcpus = 0;
            // SAFETY: the value is written.
            let code = unsafe { (functions.hv_capability)(VCPU_MAX, &raw mut max_vcpus) };
            check("hv_capability", code)?;
            Ok((Controls::new(functions)?, u32::try_from(max_vcpus).unwrap_or(u32::MAX)))
        };
        let (controls, max_vcpus) = rest().inspect_err(|_| {
            // SAFETY: it is ours, and has nothing yet.
            unsafe { (functions.hv_vm_destroy)() };
        })?;
        let calls = Calls {
            map: functions.hv_vm_map,
            unmap: functions.hv_vm_unmap,
            protect: functions.hv_vm_protect,
            granule: PAGE,
        };
        let slots = Mutex::new(Slots::new(calls));
        Ok(Self { framework, controls, clock, posts: OnceLock::new(), slots, max_vcpus })
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers a message of a device's, or of the APIC with id `from`.
    pub(crate) fn send(&self, message: Message, from: Option<u32>) {
        let posts = self.posts.get().map_or(&[][..], Vec::as_slice);
        let targets = posts.iter().filter(|post| post.told().apic.is_for(message.to, from));
        if message.delivery == Delivery::Lowest {
            if let Some(post) = targets.min_by_key(|post| post.told().apic.arbitration()) {
                post.deliver(message);
            }
            return;
        }
        targets.for_each(|post| post.deliver(message));
    }
}

impl Drop for VmShared {
    fn drop(&mut self) {
        // SAFETY: all vCPUs are gone, since each holds this. There is nobody to tell of a failure.
        unsafe { (self.framework.functions.hv_vm_destroy)() };
    }
}

impl HvfVm {
    pub(crate) fn new(framework: Arc<Framework>) -> Result<Self, HvError> {
        let shared = Arc::new(VmShared::new(framework)?);
        Ok(Self { shared, seats: Seats::default() })
    }
}

impl Vm<X86> for HvfVm {
    unsafe fn map(&self, slot: &MemorySlot) -> Result<(), HvError> {
        // SAFETY: the caller keeps the contract's word.
        unsafe { self.shared.slots().map(slot) }
    }

    fn unmap(&self, guest: u64) -> Result<(), HvError> {
        self.shared.slots().unmap(guest)
    }

    fn dirty_pages(&self, guest: u64) -> Result<Vec<u64>, HvError> {
        self.shared.slots().take_dirty(guest)
    }

    fn doorbell(&self, _doorbell: Doorbell, _event: &Event) -> Result<(), HvError> {
        Err(HvError::Unsupported("doorbells"))
    }

    fn set_vcpus(&self, vcpus: Vec<VcpuSetup>) -> Result<(), HvError> {
        let shared = &self.shared;
        // The time-stamp counters of all begin with zero, now.
        let offset = 0u64.wrapping_sub(shared.clock.tsc()).cast_signed();
        let post = |index| Arc::new(Post::new(Arc::clone(&shared.framework), index, offset));
        let posts: Vec<_> = (0..vcpus.len() as u32).map(post).collect();
        let seats = (0..).zip(vcpus).zip(&posts).map(|((index, setup), post)| HvfSeat {
            vm: Arc::clone(shared),
            index,
            post: Arc::clone(post),
            setup,
        });
        self.seats.set(seats.collect());
        let set = shared.posts.set(posts);
        set.map_err(|_| HvError::Invalid("the vCPUs are set already".into()))
    }

    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat<X86>>, HvError> {
        Ok(Box::new(self.seats.take(index)?))
    }

    fn max_vcpus(&self) -> u32 {
        self.shared.max_vcpus
    }
}

impl X86Vm for HvfVm {
    fn signal_msi(&self, msi: Msi) -> Result<(), HvError> {
        if let Some(message) = Message::from_msi(msi.address, msi.data) {
            self.shared.send(message, None);
        }
        Ok(())
    }

    fn set_msi_routes(&self, _routes: &[MsiRoute]) -> Result<(), HvError> {
        // Each message says by itself whether its end is to be told.
        Ok(())
    }

    fn irq_event(&self, _gsi: u32, _event: &Event) -> Result<(), HvError> {
        Err(HvError::Unsupported("interrupts by events"))
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidLeaf>, HvError> {
        Ok(cpuid::supported(&self.shared.framework.host))
    }

    fn tsc_khz(&self) -> Result<u32, HvError> {
        Ok(self.shared.clock.tsc_khz())
    }

    fn apic_khz(&self) -> u32 {
        TIMER_KHZ
    }

    fn clock(&self) -> Result<u64, HvError> {
        Ok(0)
    }

    fn set_clock(&self, _nanoseconds: u64) -> Result<(), HvError> {
        Ok(())
    }
}
