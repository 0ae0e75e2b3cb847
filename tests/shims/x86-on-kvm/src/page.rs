//! `KVM_RUN` and the page that it tells by.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{kvm_regs, kvm_run__bindgen_ty_1};
use kvm_ioctls::VcpuFd;

use crate::slots::Refused;
use crate::undo;
use crate::{Memory, Place};
use iced_x86::{Instruction, Mnemonic};

/// `KVM_RUN`.
const RUN: u64 = 0xae80;

/// The page that a vCPU shares with us. It must not outlive its vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Page(NonNull<kvm_bindings::kvm_run>);

// SAFETY: the page is only accessed by who holds the vCPU, but for `immediate_exit`, which is atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

/// A port's access where its instruction begins.
pub struct Port {
    /// The registers there.
    pub before: kvm_regs,
    /// The instruction's bytes, and what they mean.
    pub bytes: Vec<u8>,
    /// The instruction.
    pub instruction: Option<Instruction>,
    /// The port's number.
    pub number: u16,
    /// Bytes of an element.
    pub size: usize,
    /// Is it an output?
    pub is_write: bool,
}

impl Page {
    /// That of `vcpu`.
    pub fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(vcpu.get_kvm_run()))
    }

    /// `immediate_exit`, which any thread may set.
    pub fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped while the vCPU is there, and the field is only accessed atomically.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
    }

    /// Asks for an exit as soon as the guest could take an interrupt.
    pub fn request_window(&self, wanted: bool) {
        // SAFETY: the page is mapped; the vCPU does not run.
        unsafe { (&raw mut (*self.0.as_ptr()).request_interrupt_window).write(wanted.into()) };
    }

    /// Why the vCPU came back.
    pub fn reason(&self) -> u32 {
        // SAFETY: the page is mapped; the vCPU does not run.
        unsafe { (&raw const (*self.0.as_ptr()).exit_reason).read_volatile() }
    }

    /// What belongs to the reason.
    pub fn details(&self) -> kvm_run__bindgen_ty_1 {
        // SAFETY: the page is mapped; the vCPU does not run.
        unsafe { (&raw const (*self.0.as_ptr()).__bindgen_anon_1).read_volatile() }
    }

    /// Lets KVM finish its half of an instruction; the guest runs no other.
    pub fn finish(&self, vcpu: &VcpuFd) -> Result<(), Refused> {
        self.immediate_exit().store(1, Ordering::SeqCst);
        let ran = kvm_run(vcpu);
        // A cancellation that came meanwhile has its own memory.
        self.immediate_exit().store(0, Ordering::SeqCst);
        if ran == Err(libc::EINTR) { Ok(()) } else { Err(Refused) }
    }

    /// A model-specific register's access: finished without an error, and back to where it began.
    pub fn undo_msr(&self, vcpu: &VcpuFd) -> Result<kvm_regs, Refused> {
        let before = vcpu.get_regs().map_err(|_| Refused)?;
        // SAFETY: the page is mapped; the vCPU does not run.
        unsafe { (*self.0.as_ptr()).__bindgen_anon_1.msr.error = 0 };
        self.finish(vcpu)?;
        vcpu.set_regs(&before).map_err(|_| Refused)?;
        Ok(before)
    }

    /// A port's access: finished with an answer that changes nothing, and back to where it began.
    pub fn undo_port<M: Memory>(&self, mut place: Place<'_, M>) -> Result<Port, Refused> {
        // SAFETY: the member that belongs to this reason.
        let io = unsafe { self.details().io };
        let is_write = u32::from(io.direction) != kvm_bindings::KVM_EXIT_IO_IN;
        let size = usize::from(io.size);
        let (mut bytes, mut instruction) = place.instruction();
        let is = |kinds: &[Mnemonic]| instruction.is_some_and(|i| kinds.contains(&i.mnemonic()));
        if is_write && !instruction.is_some_and(|i| undo::is_out(&place, &i, io.port, size)) {
            // Of OUTS an element is sent already; everything else stands at its instruction.
            if let Some(before) = undo::before_outs(&place, size as u64) {
                place.regs = before;
                (bytes, instruction) = place.instruction();
            }
        } else if is(&[Mnemonic::Insb, Mnemonic::Insw, Mnemonic::Insd]) {
            let answer = undo::under_ins(&place, size);
            self.answer(io.data_offset as usize, &answer);
            // Just one element of all that KVM has asked for at once.
            let regs = kvm_regs { rcx: 1, ..place.regs };
            place.vcpu.set_regs(&regs).map_err(|_| Refused)?;
        }
        self.finish(place.vcpu)?;
        let before = place.regs;
        place.vcpu.set_regs(&before).map_err(|_| Refused)?;
        Ok(Port { before, bytes, instruction, number: io.port, size, is_write })
    }

    /// Writes an answer into the page.
    fn answer(&self, offset: usize, bytes: &[u8]) {
        let data = self.0.as_ptr().cast::<u8>().wrapping_add(offset);
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: KVM told this offset, and there is room for as many elements as it told.
            unsafe { data.add(at).write_volatile(byte) };
        }
    }
}

/// Runs the vCPU until KVM has something to tell; its error's number if there is none.
pub fn kvm_run(vcpu: &VcpuFd) -> Result<(), i32> {
    // SAFETY: KVM_RUN has no argument; nobody else uses the page meanwhile, but for `immediate_exit`.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), RUN, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}
