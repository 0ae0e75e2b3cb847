//! Virtual processors: run until the platform would tell, cancelled from any thread.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, TryLockError};

use cabana_hv::x86::CpuidLeaf;
use cabana_os::let_interrupt;
use cabana_shim_x86::{Fault, Memory as _, Page, Place, Refused, kvm_run, translate};
use iced_x86::Mnemonic;
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
    kvm_lapic_state, kvm_segment, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use windows_sys::Win32::Foundation::{E_FAIL, E_INVALIDARG, WHV_E_INVALID_VP_STATE};
use windows_sys::Win32::System::Hypervisor::*;

use crate::memory::Memory;
use crate::partition::Machine;
use crate::registers::{Registers, attributes};
use crate::{Answer, cpuid};

/// `WHV_MEMORY_ACCESS_INFO.GpaUnmapped` and `GvaValid`.
const GPA_UNMAPPED: u32 = 1 << 2;
const GVA_VALID: u32 = 1 << 3;

pub(crate) struct Processor {
    machine: Arc<Machine>,
    /// Held while it runs: everything else about it then is refused.
    vcpu: Mutex<VcpuFd>,
    page: Page,
    pub(crate) cpuid: Vec<CpuidLeaf>,
    cancelled: AtomicBool,
    /// The thread that runs it, or zero.
    thread: AtomicI32,
}

/// What a try to run came to.
enum Try {
    Exit(Box<WHV_RUN_VP_EXIT_CONTEXT>),
    /// Run again.
    Again,
}

impl Processor {
    pub(crate) fn new(machine: Arc<Machine>, index: u32, leaves: Vec<CpuidLeaf>) -> Answer<Self> {
        install_handler();
        let mut vcpu = machine.fd.create_vcpu(index.into()).map_err(|_| E_FAIL)?;
        vcpu.set_cpuid2(&cpuid::for_kvm(&leaves)?).map_err(|_| E_INVALIDARG)?;
        let page = Page::of(&mut vcpu);
        Ok(Self {
            machine,
            vcpu: Mutex::new(vcpu),
            page,
            cpuid: leaves,
            cancelled: AtomicBool::new(false),
            thread: AtomicI32::new(0),
        })
    }

    /// The processor, unless it runs.
    fn vcpu(&self) -> Answer<MutexGuard<'_, VcpuFd>> {
        match self.vcpu.try_lock() {
            Ok(vcpu) => Ok(vcpu),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(WHV_E_INVALID_VP_STATE),
        }
    }

    /// Lets the run in progress, or else the next one, return.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    /// Gets the processor out of the guest for a moment.
    pub(crate) fn interrupt(&self) {
        self.page.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: sends a signal that has a handler; a thread that is gone is only ESRCH.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }

    pub(crate) fn get(&self, names: &[WHV_REGISTER_NAME]) -> Answer<Vec<u128>> {
        let vcpu = self.vcpu()?;
        let mut registers = Registers::new(&vcpu);
        names.iter().map(|&name| registers.get(name)).collect()
    }

    pub(crate) fn set(&self, names: &[WHV_REGISTER_NAME], values: &[u128]) -> Answer<()> {
        let vcpu = self.vcpu()?;
        let mut registers = Registers::new(&vcpu);
        for (&name, &value) in names.iter().zip(values) {
            registers.set(name, value)?;
        }
        registers.write()
    }

    pub(crate) fn xsave(&self) -> Answer<[u32; 1024]> {
        self.vcpu()?.get_xsave().map(|area| area.region).map_err(|_| E_FAIL)
    }

    pub(crate) fn set_xsave(&self, bytes: &[u8]) -> Answer<()> {
        let mut area = kvm_xsave::default();
        if bytes.len() != size_of_val(&area.region) {
            return Err(E_INVALIDARG);
        }
        for (word, bytes) in area.region.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().map_err(|_| E_INVALIDARG)?);
        }
        // SAFETY: no feature of this processor has more state than the structure holds.
        unsafe { self.vcpu()?.set_xsave(&area) }.map_err(|_| E_INVALIDARG)
    }

    pub(crate) fn apic(&self) -> Answer<Vec<u8>> {
        let registers = self.vcpu()?.get_lapic().map_err(|_| E_FAIL)?.regs;
        Ok(registers.iter().map(|&byte| byte as u8).collect())
    }

    pub(crate) fn set_apic(&self, page: &[u8]) -> Answer<()> {
        let mut state = kvm_lapic_state::default();
        for (to, &from) in state.regs.iter_mut().zip(page) {
            *to = from as i8;
        }
        self.vcpu()?.set_lapic(&state).map_err(|_| E_INVALIDARG)
    }

    pub(crate) fn translate(
        &self,
        gva: u64,
        flags: WHV_TRANSLATE_GVA_FLAGS,
    ) -> Answer<(WHV_TRANSLATE_GVA_RESULT_CODE, u64)> {
        let vcpu = self.vcpu()?;
        let Some(gpa) = translate(&vcpu, gva) else {
            return Ok((WHvTranslateGvaResultPageNotPresent, 0));
        };
        let write = flags & WHvTranslateGvaFlagValidateWrite != 0;
        let code = match self.machine.memory().allows(gpa, write) {
            None => WHvTranslateGvaResultGpaUnmapped,
            Some(false) => WHvTranslateGvaResultGpaNoWriteAccess,
            Some(true) => WHvTranslateGvaResultSuccess,
        };
        Ok((code, gpa))
    }

    pub(crate) fn run(&self) -> Answer<WHV_RUN_VP_EXIT_CONTEXT> {
        let vcpu = self.vcpu()?;
        // SAFETY: no arguments, cannot fail.
        self.thread.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        let answer = loop {
            if self.cancelled.swap(false, Ordering::SeqCst) {
                break context(&vcpu, WHvRunVpExitReasonCanceled, 0);
            }
            match self.enter(&vcpu) {
                Ok(Try::Again) => {}
                Ok(Try::Exit(context)) => break Ok(*context),
                Err(error) => break Err(error),
            }
        };
        self.thread.store(0, Ordering::SeqCst);
        answer
    }

    /// One `KVM_RUN`, and what the platform makes of its exit.
    fn enter(&self, vcpu: &VcpuFd) -> Answer<Try> {
        self.machine.enter();
        let ran = kvm_run(vcpu);
        let told = match ran {
            Ok(()) => self.told(vcpu),
            Err(libc::EINTR) => {
                self.page.immediate_exit().store(0, Ordering::SeqCst);
                Ok(Try::Again)
            }
            // It was started by another.
            Err(libc::EAGAIN) => Ok(Try::Again),
            Err(libc::EFAULT) => self.out_of_memory(vcpu),
            Err(_) => Err(E_FAIL),
        };
        self.machine.leave();
        told
    }

    /// The guest touched what is not mapped, or wrote what is read-only; it stands at the instruction.
    fn out_of_memory(&self, vcpu: &VcpuFd) -> Answer<Try> {
        let memory = self.machine.memory();
        let place = place(vcpu, &memory)?;
        let (bytes, instruction) = place.instruction();
        let fault = instruction.as_ref().and_then(|instruction| place.fault(instruction));
        if let (Some(instruction), Some(fault)) = (&instruction, fault)
            && fault.write
            && let Some(value) = place.stored(instruction)
            && self.machine.rings(fault.gpa, 4, value)
        {
            let mut regs = place.regs;
            regs.rip = instruction.next_ip();
            vcpu.set_regs(&regs).map_err(|_| E_FAIL)?;
            return Ok(Try::Again);
        }
        let mut access = WHV_MEMORY_ACCESS_CONTEXT::default();
        let info = if let Some(Fault { gva, gpa, write, unmapped }) = fault {
            (access.Gva, access.Gpa) = (gva, gpa);
            let kind = if write { WHvMemoryAccessWrite } else { WHvMemoryAccessRead };
            kind as u32 | GVA_VALID | if unmapped { GPA_UNMAPPED } else { 0 }
        } else {
            // The instruction itself cannot be fetched, or an exception's frame or a page table lies there.
            let linear = place.code(place.regs.rip);
            (access.Gva, access.Gpa) = (linear, place.translate(linear).unwrap_or(0));
            WHvMemoryAccessExecute as u32 | GVA_VALID | GPA_UNMAPPED
        };
        access.AccessInfo.AsUINT32 = info;
        access.InstructionByteCount = bytes.len() as u8;
        access.InstructionBytes[..bytes.len()].copy_from_slice(&bytes);
        let mut context = context(vcpu, WHvRunVpExitReasonMemoryAccess, 0)?;
        context.Anonymous.MemoryAccess = access;
        Ok(Try::Exit(Box::new(context)))
    }

    /// KVM's exit in the platform's words.
    fn told(&self, vcpu: &VcpuFd) -> Answer<Try> {
        let reason = self.page.reason();
        let context = match reason {
            KVM_EXIT_IO => self.port(vcpu)?,
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => {
                self.msr(vcpu, reason == KVM_EXIT_X86_WRMSR)?
            }
            KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: the member that belongs to this reason.
                let vector = unsafe { self.page.details().eoi }.vector;
                let mut context = context(vcpu, WHvRunVpExitReasonX64ApicEoi, 0)?;
                context.Anonymous.ApicEoi.InterruptVector = vector.into();
                context
            }
            KVM_EXIT_SHUTDOWN | KVM_EXIT_SYSTEM_EVENT => {
                context(vcpu, WHvRunVpExitReasonUnrecoverableException, 0)?
            }
            KVM_EXIT_FAIL_ENTRY => context(vcpu, WHvRunVpExitReasonInvalidVpRegisterValue, 0)?,
            // An instruction that KVM's emulator does not know, or what has no place in the platform.
            reason => {
                let mut context = context(vcpu, WHvRunVpExitReasonUnsupportedFeature, 0)?;
                // SAFETY: the member that belongs to this reason.
                let suberror = unsafe { self.page.details().internal }.suberror;
                let parameter = if reason == KVM_EXIT_INTERNAL_ERROR { suberror } else { reason };
                let feature = WHV_X64_UNSUPPORTED_FEATURE_CONTEXT {
                    FeatureCode: WHvUnsupportedFeatureIntercept,
                    FeatureParameter: parameter.into(),
                    ..WHV_X64_UNSUPPORTED_FEATURE_CONTEXT::default()
                };
                context.Anonymous.UnsupportedFeature = feature;
                context
            }
        };
        Ok(Try::Exit(Box::new(context)))
    }

    /// A port: finished with an answer that changes nothing, and back to where it began.
    fn port(&self, vcpu: &VcpuFd) -> Answer<WHV_RUN_VP_EXIT_CONTEXT> {
        let memory = self.machine.memory();
        let place = place(vcpu, &memory)?;
        let sregs = place.sregs;
        let done = self.page.undo_port(place).map_err(failed)?;
        let (before, bytes, instruction) = (done.before, done.bytes, done.instruction);
        let (is_write, size) = (done.is_write, done.size);
        let string =
            instruction.is_some_and(|i| !matches!(i.mnemonic(), Mnemonic::In | Mnemonic::Out));
        let repeated = instruction.is_some_and(|i| i.has_rep_prefix());
        let flags = u32::from(is_write)
            | (size as u32) << 1
            | u32::from(string) << 4
            | u32::from(repeated) << 5;
        let mut access = WHV_X64_IO_PORT_ACCESS_CONTEXT::default();
        access.AccessInfo.AsUINT32 = flags;
        access.PortNumber = done.number;
        (access.Rax, access.Rcx, access.Rsi, access.Rdi) =
            (before.rax, before.rcx, before.rsi, before.rdi);
        (access.Ds, access.Es) = (segment(&sregs.ds), segment(&sregs.es));
        access.InstructionByteCount = bytes.len() as u8;
        access.InstructionBytes[..bytes.len()].copy_from_slice(&bytes);
        let len = instruction.map_or(0, |instruction| instruction.len() as u8);
        let mut context = context(vcpu, WHvRunVpExitReasonX64IoPortAccess, len)?;
        context.Anonymous.IoPortAccess = access;
        Ok(context)
    }

    /// A model-specific register that KVM does not have.
    fn msr(&self, vcpu: &VcpuFd, is_write: bool) -> Answer<WHV_RUN_VP_EXIT_CONTEXT> {
        // SAFETY: the member that belongs to this reason.
        let msr = unsafe { self.page.details().msr };
        let before = self.page.undo_msr(vcpu).map_err(failed)?;
        let mut access = WHV_X64_MSR_ACCESS_CONTEXT {
            MsrNumber: msr.index,
            Rax: before.rax,
            Rdx: before.rdx,
            ..WHV_X64_MSR_ACCESS_CONTEXT::default()
        };
        access.AccessInfo.AsUINT32 = is_write.into();
        // RDMSR and WRMSR have two bytes.
        let mut context = context(vcpu, WHvRunVpExitReasonX64MsrAccess, 2)?;
        context.Anonymous.MsrAccess = access;
        Ok(context)
    }
}

fn failed(_: Refused) -> windows_sys::core::HRESULT {
    E_FAIL
}

fn place<'a>(vcpu: &'a VcpuFd, memory: &'a Memory) -> Answer<Place<'a, Memory>> {
    let regs = vcpu.get_regs().map_err(|_| E_FAIL)?;
    let sregs = vcpu.get_sregs().map_err(|_| E_FAIL)?;
    Ok(Place { vcpu, memory, regs, sregs })
}

/// The part that all exits have.
fn context(
    vcpu: &VcpuFd,
    reason: WHV_RUN_VP_EXIT_REASON,
    len: u8,
) -> Answer<WHV_RUN_VP_EXIT_CONTEXT> {
    let regs = vcpu.get_regs().map_err(|_| E_FAIL)?;
    let sregs = vcpu.get_sregs().map_err(|_| E_FAIL)?;
    let events = vcpu.get_vcpu_events().map_err(|_| E_FAIL)?;
    // SAFETY: all-zero is a valid context.
    let mut context: WHV_RUN_VP_EXIT_CONTEXT = unsafe { std::mem::zeroed() };
    context.ExitReason = reason;
    let state = u16::from(sregs.ss.dpl & 3)
        | (sregs.cr0 << 2) as u16 & 1 << 2
        | (sregs.cr0 >> 15) as u16 & 1 << 3
        | (sregs.efer >> 6) as u16 & 1 << 4
        | u16::from(events.interrupt.shadow != 0) << 12;
    context.VpContext.ExecutionState.AsUINT16 = state;
    context.VpContext._bitfield = len & 0xf | (sregs.cr8 as u8 & 0xf) << 4;
    context.VpContext.Cs = segment(&sregs.cs);
    (context.VpContext.Rip, context.VpContext.Rflags) = (regs.rip, regs.rflags);
    Ok(context)
}

fn segment(from: &kvm_segment) -> WHV_X64_SEGMENT_REGISTER {
    WHV_X64_SEGMENT_REGISTER {
        Base: from.base,
        Limit: from.limit,
        Selector: from.selector,
        Anonymous: WHV_X64_SEGMENT_REGISTER_0 { Attributes: attributes(from) },
    }
}

/// The signal that interrupts `KVM_RUN`; another one than `hv-kvm`'s.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Once in a process.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| let_interrupt(signal()));
}
