//! The memory area that a vCPU shares with the kernel (`struct kvm_run`, api.rst section 5).
//!
//! The kernel writes to it during `KVM_RUN` and other threads set its `immediate_exit`, so it is
//! accessed through pointers and never by reference.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{kvm_run, kvm_run__bindgen_ty_1};

/// The area of one vCPU.
#[derive(Debug)]
pub(crate) struct RunPage {
    base: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: the area belongs to the process, not to a thread; whoever owns the `RunPage` is the only
// one to use it, except for `immediate_exit`, which is atomic.
unsafe impl Send for RunPage {}

impl RunPage {
    /// # Safety
    /// `base` must be the run area of a vCPU, `len` bytes long, mapped for as long as this lives.
    pub(crate) unsafe fn new(base: NonNull<kvm_run>, len: usize) -> Self {
        Self { base, len }
    }

    /// Why `KVM_RUN` returned.
    pub(crate) fn exit_reason(&self) -> u32 {
        // SAFETY: in the area; the vCPU does not run.
        unsafe { (&raw const (*self.base.as_ptr()).exit_reason).read_volatile() }
    }

    /// The reason's particulars.
    pub(crate) fn details(&self) -> kvm_run__bindgen_ty_1 {
        // SAFETY: in the area; the vCPU does not run.
        unsafe { (&raw const (*self.base.as_ptr()).__bindgen_anon_1).read_volatile() }
    }

    /// Where the data of an MMIO exit stand in the area.
    pub(crate) fn mmio_data_offset() -> usize {
        use kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6 as mmio;
        std::mem::offset_of!(kvm_run, __bindgen_anon_1) + std::mem::offset_of!(mmio, data)
    }

    /// `size` (at most 8) little-endian bytes at `offset`; nothing outside the area is read.
    pub(crate) fn read(&self, offset: usize, size: u8) -> u64 {
        let mut bytes = [0u8; 8];
        for (at, byte) in bytes.iter_mut().enumerate().take(usize::from(size)) {
            if let Some(place) = self.place(offset + at) {
                // SAFETY: `place` is in the area; the vCPU does not run.
                *byte = unsafe { place.read_volatile() };
            }
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes the low `size` bytes of `value` at `offset`, nothing outside the area.
    pub(crate) fn write(&mut self, offset: usize, size: u8, value: u64) {
        for (at, byte) in value.to_le_bytes().into_iter().enumerate().take(usize::from(size)) {
            if let Some(place) = self.place(offset + at) {
                // SAFETY: `place` is in the area; the vCPU does not run.
                unsafe { place.write_volatile(byte) };
            }
        }
    }

    /// The flag that makes `KVM_RUN` return at once.
    pub(crate) fn immediate_exit(&self) -> ImmediateExit {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the field is in the area.
        ImmediateExit { flag: unsafe { self.base.cast::<u8>().add(offset) } }
    }

    fn place(&self, offset: usize) -> Option<*mut u8> {
        (offset < self.len).then(|| self.base.as_ptr().cast::<u8>().wrapping_add(offset))
    }
}

/// One vCPU's `immediate_exit`; used only while that vCPU is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImmediateExit {
    flag: NonNull<u8>,
}

// SAFETY: the flag is only accessed atomically.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    /// Somebody kicked.
    const KICKED: u8 = 1;
    /// The vCPU itself wants the next `KVM_RUN` to finish the last exit and nothing else.
    const FINISH: u8 = 2;

    /// The run in progress, or else the next one, returns.
    pub(crate) fn kick(self) {
        self.atomic().fetch_or(Self::KICKED, Ordering::SeqCst);
    }

    /// Was there a kick? There is none any more.
    pub(crate) fn take_kick(self) -> bool {
        self.atomic().fetch_and(!Self::KICKED, Ordering::SeqCst) & Self::KICKED != 0
    }

    /// While `on`, `KVM_RUN` runs no guest instruction; kicks are kept.
    pub(crate) fn finish_only(self, on: bool) {
        if on {
            self.atomic().fetch_or(Self::FINISH, Ordering::SeqCst);
        } else {
            self.atomic().fetch_and(!Self::FINISH, Ordering::SeqCst);
        }
    }

    fn atomic<'a>(self) -> &'a AtomicU8 {
        // SAFETY: the flag is mapped while the vCPU lives (see `KickTarget`), and everybody in this
        // process accesses it atomically.
        unsafe { AtomicU8::from_ptr(self.flag.as_ptr()) }
    }
}
