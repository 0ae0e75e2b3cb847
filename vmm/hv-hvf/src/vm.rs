//! A VM: memory, vCPUs, the framework's interrupt controller.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cabana_hv::arm64::{Arm64, Gic, VcpuSetup};
use cabana_hv::{Arm64Vm, Doorbell, HvError, MemorySlot, Seats, VcpuSeat, Vm};
use cabana_os::Event;

use crate::functions::{Functions, Object, check};
use crate::memory::{Calls, Slots};
use crate::post::Post;
use crate::vcpu::HvfSeat;

/// Guest-physical addresses have this many bits, if the host can have as many.
const ADDRESS_BITS: u32 = 40;
/// The first shared peripheral interrupt.
const FIRST_SPI: u32 = 32;
/// Before the framework's state of an interrupt controller: how many vCPUs it has, and its length.
const STATE_HEAD: usize = 16;

/// The one VM of this process.
#[derive(Debug)]
pub(crate) struct HvfVm {
    shared: Arc<VmShared>,
    seats: Seats<HvfSeat>,
}

/// What a VM and its vCPUs hold together. The framework's VM goes with the last of them.
#[derive(Debug)]
pub(crate) struct VmShared {
    pub(crate) functions: Arc<Functions>,
    pub(crate) address_bits: u32,
    posts: OnceLock<Vec<Arc<Post>>>,
    slots: Mutex<Slots>,
    /// What the virtual counters are behind the host's.
    offset: AtomicU64,
    max_vcpus: u32,
}

impl VmShared {
    /// Makes the process's VM.
    fn new(functions: Arc<Functions>) -> Result<Self, HvError> {
        let (mut most, mut max_vcpus) = (0, 0);
        // SAFETY: both are written.
        unsafe {
            check(
                "hv_vm_config_get_max_ipa_size",
                (functions.hv_vm_config_get_max_ipa_size)(&raw mut most),
            )?;
            check(
                "hv_vm_get_max_vcpu_count",
                (functions.hv_vm_get_max_vcpu_count)(&raw mut max_vcpus),
            )?;
        }
        let address_bits = most.min(ADDRESS_BITS);
        // SAFETY: no arguments.
        let made = unsafe { (functions.hv_vm_config_create)() };
        let config = Object::new(&functions, "hv_vm_config_create", made)?;
        // SAFETY: the configuration is the framework's own.
        unsafe {
            check(
                "hv_vm_config_set_ipa_size",
                (functions.hv_vm_config_set_ipa_size)(config.as_ptr(), address_bits),
            )?;
            check("hv_vm_create", (functions.hv_vm_create)(config.as_ptr()))?;
        }
        drop(config);
        // SAFETY: no arguments.
        let now = unsafe { (functions.mach_absolute_time)() };
        let calls = Calls {
            map: functions.hv_vm_map,
            unmap: functions.hv_vm_unmap,
            protect: functions.hv_vm_protect,
            granule: 16 << 10,
        };
        Ok(Self {
            functions,
            address_bits,
            posts: OnceLock::new(),
            slots: Mutex::new(Slots::new(calls)),
            offset: AtomicU64::new(now),
            max_vcpus,
        })
    }

    /// Puts the interrupt controller in its place, before there are vCPUs.
    fn create_gic(&self, gic: Gic) -> Result<(), HvError> {
        let functions = &self.functions;
        // SAFETY: no arguments.
        let made = unsafe { (functions.hv_gic_config_create)() };
        let config = Object::new(functions, "hv_gic_config_create", made)?;
        let (mut first, mut count) = (0, 0);
        // SAFETY: the configuration is the framework's own, and both numbers are written.
        unsafe {
            check(
                "hv_gic_config_set_distributor_base",
                (functions.hv_gic_config_set_distributor_base)(config.as_ptr(), gic.distributor),
            )?;
            check(
                "hv_gic_config_set_redistributor_base",
                (functions.hv_gic_config_set_redistributor_base)(
                    config.as_ptr(),
                    gic.redistributors,
                ),
            )?;
            check("hv_gic_create", (functions.hv_gic_create)(config.as_ptr()))?;
            check(
                "hv_gic_get_spi_interrupt_range",
                (functions.hv_gic_get_spi_interrupt_range)(&raw mut first, &raw mut count),
            )?;
        }
        if first > FIRST_SPI || FIRST_SPI + gic.lines > first + count {
            return Err(HvError::Unsupported("interrupt controller with as many lines"));
        }
        Ok(())
    }

    /// The posts of all vCPUs.
    pub(crate) fn posts(&self) -> &[Arc<Post>] {
        self.posts.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's counter.
    pub(crate) fn now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { (self.functions.mach_absolute_time)() }
    }

    /// What the virtual counter is behind the host's.
    pub(crate) fn offset(&self) -> u64 {
        self.offset.load(Ordering::SeqCst)
    }

    pub(crate) fn set_offset(&self, offset: u64) {
        self.offset.store(offset, Ordering::SeqCst);
    }
}

impl Drop for VmShared {
    fn drop(&mut self) {
        // SAFETY: all vCPUs are gone, since each holds this. There is nobody to tell of a failure.
        unsafe { (self.functions.hv_vm_destroy)() };
    }
}

impl HvfVm {
    pub(crate) fn new(functions: Arc<Functions>, gic: Gic) -> Result<Self, HvError> {
        let shared = VmShared::new(functions)?;
        shared.create_gic(gic)?;
        Ok(Self { shared: Arc::new(shared), seats: Seats::default() })
    }

    fn vcpus(&self) -> usize {
        self.shared.posts().len()
    }
}

impl Vm<Arm64> for HvfVm {
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
        let posts: Vec<_> = vcpus.iter().map(|setup| Arc::new(Post::new(setup.off))).collect();
        let seats = (0..).zip(&posts);
        let seats = seats
            .map(|(index, post)| HvfSeat::new(Arc::clone(&self.shared), index, Arc::clone(post)));
        self.seats.set(seats.collect());
        let set = self.shared.posts.set(posts);
        set.map_err(|_| HvError::Invalid("the vCPUs are set already".into()))
    }

    fn vcpu_seat(&self, index: u32) -> Result<Box<dyn VcpuSeat<Arm64>>, HvError> {
        Ok(Box::new(self.seats.take(index)?))
    }

    fn max_vcpus(&self) -> u32 {
        self.shared.max_vcpus
    }
}

impl Arm64Vm for HvfVm {
    fn irq_line(&self, line: u32, level: bool) -> Result<(), HvError> {
        let interrupt = FIRST_SPI.saturating_add(line);
        // SAFETY: plain values.
        let code = unsafe { (self.shared.functions.hv_gic_set_spi)(interrupt, level) };
        check("hv_gic_set_spi", code)?;
        if level {
            // Whichever it goes to.
            self.shared.posts().iter().for_each(|post| post.wake());
        }
        Ok(())
    }

    fn irq_event(&self, _line: u32, _event: &Event) -> Result<(), HvError> {
        Err(HvError::Unsupported("interrupts by events"))
    }

    fn gic_state(&self) -> Result<Vec<u8>, HvError> {
        let functions = &self.shared.functions;
        // SAFETY: no arguments.
        let made = unsafe { (functions.hv_gic_state_create)() };
        let saved = Object::new(functions, "hv_gic_state_create", made)?;
        let mut len = 0;
        // SAFETY: the object is the framework's own, and the length is written.
        let code = unsafe { (functions.hv_gic_state_get_size)(saved.as_ptr(), &raw mut len) };
        check("hv_gic_state_get_size", code)?;
        let mut state = Vec::with_capacity(STATE_HEAD + len);
        state.extend((self.vcpus() as u64).to_le_bytes());
        state.extend((len as u64).to_le_bytes());
        state.resize(STATE_HEAD + len, 0);
        let data = state[STATE_HEAD..].as_mut_ptr().cast::<c_void>();
        // SAFETY: there is as much room as the framework has asked for.
        let code = unsafe { (functions.hv_gic_state_get_data)(saved.as_ptr(), data) };
        check("hv_gic_state_get_data", code)?;
        Ok(state)
    }

    fn set_gic_state(&self, state: &[u8]) -> Result<(), HvError> {
        let another =
            || HvError::Invalid("the saved state is of another interrupt controller".into());
        let (head, data) = state.split_at_checked(STATE_HEAD).ok_or_else(another)?;
        let expected = [self.vcpus() as u64, data.len() as u64].map(u64::to_le_bytes);
        if head != expected.as_flattened() || data.is_empty() {
            return Err(another());
        }
        let set = self.shared.functions.hv_gic_set_state;
        // SAFETY: the buffer has the length that is said.
        check("hv_gic_set_state", unsafe { set(data.as_ptr().cast(), data.len()) })
    }
}
