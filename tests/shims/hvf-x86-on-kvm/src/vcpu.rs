//! vCPUs: each belongs to its thread, and comes back as the processor itself would let it.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Once};

use cabana_hv_hvf::{HV_BAD_ARGUMENT, HV_BUSY, HV_ERROR, HV_NO_RESOURCES, HV_UNSUPPORTED};
use cabana_os::let_interrupt;
use cabana_shim_x86::{Fault, Page, Place, kvm_run};
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_IO, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_xsave,
};

use crate::fields::{
    CONTROLS, GUEST_LINEAR, GUEST_PHYSICAL, HLT, INTERRUPT_WINDOW, LENGTH, QUALIFICATION, REASON,
    VALID, VECTORING,
};
use crate::host::now;
use crate::interview::Interview;
use crate::machine::{MAX_VCPUS, Machine, lock, machine};
use crate::memory::Memory;
use crate::state::State;
use crate::timer::Timer;
use crate::{Answer, failed};

/// Exit reasons (Intel SDM 3D, appendix C).
const EXTERNAL: u64 = 1;
const TRIPLE_FAULT: u64 = 2;
const WINDOW: u64 = 7;
const CPUID: u64 = 10;
const HALT: u64 = 12;
const PORT: u64 = 30;
const RDMSR: u64 = 31;
const WRMSR: u64 = 32;
const NOT_ENTERED: u64 = 1 << 31 | 0x21;
const EPT_VIOLATION: u64 = 48;
const TIMER: u64 = 52;
/// `KVM_SET_DEVICE_ATTR`, of 24 bytes.
const SET_DEVICE_ATTR: u64 = 1 << 30 | 24 << 16 | 0xae << 8 | 0xe1;
/// `HV_DEADLINE_FOREVER`.
const FOREVER: u64 = u64::MAX;
/// An EPT violation's qualification: by a read, a write, a fetch; readable and executable; linear address known, and what
/// was accessed itself.
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 2;
const READABLE: u64 = 1 << 3 | 1 << 5;
const LINEAR: u64 = 1 << 7;
const ITSELF: u64 = 1 << 8;

thread_local! {
    static OWN: RefCell<Option<Vcpu>> = const { RefCell::new(None) };
}

/// How others reach a vCPU.
#[derive(Debug)]
pub(crate) struct Handle {
    thread: libc::pid_t,
    page: Page,
    running: AtomicBool,
    /// Somebody wants it to come back.
    interrupted: AtomicBool,
}

impl Handle {
    /// The run in progress comes back; if there is none, nothing happens.
    pub(crate) fn force_exit(&self) {
        if self.running.load(Ordering::SeqCst) {
            self.interrupted.store(true, Ordering::SeqCst);
            self.interrupt();
        }
    }

    /// Lets `KVM_RUN` return.
    pub(crate) fn interrupt(&self) {
        self.page.immediate_exit().store(1, Ordering::SeqCst);
        // SAFETY: sends a signal that has a handler; a thread that is gone is only ESRCH.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, signal()) };
    }
}

/// A vCPU of this thread.
pub(crate) struct Vcpu {
    id: u32,
    machine: Arc<Machine>,
    handle: Arc<Handle>,
    pub(crate) state: State,
    page: Page,
    timer: Timer,
    interview: Interview,
}

/// What `use_it` makes of the calling thread's vCPU, if it has this number.
pub(crate) fn with<T>(id: u32, use_it: impl FnOnce(&mut Vcpu) -> Answer<T>) -> Answer<T> {
    OWN.with_borrow_mut(|own| {
        let own = own.as_mut().filter(|own| own.id == id);
        own.ok_or(HV_BAD_ARGUMENT).and_then(use_it)
    })
}

/// Makes a vCPU of the calling thread, which has none.
pub(crate) fn create() -> Answer<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    install_handler();
    OWN.with_borrow_mut(|own| {
        if own.is_some() {
            return Err(HV_BUSY);
        }
        let machine = machine()?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut vcpu = machine.fd.create_vcpu(machine.next()).map_err(failed)?;
        let page = Page::of(&mut vcpu);
        // SAFETY: no arguments, cannot fail.
        let thread = unsafe { libc::gettid() };
        let (running, interrupted) = (AtomicBool::new(false), AtomicBool::new(false));
        let handle = Arc::new(Handle { thread, page, running, interrupted });
        let timer = Timer::new(signal())?;
        let mut handles = lock(&machine.handles);
        if handles.len() == MAX_VCPUS as usize {
            return Err(HV_NO_RESOURCES);
        }
        handles.insert(id, Arc::clone(&handle));
        drop(handles);
        let (state, interview) = (State::new(vcpu), Interview::default());
        *own = Some(Vcpu { id, machine, handle, state, page, timer, interview });
        Ok(id)
    })
}

pub(crate) fn destroy(id: u32) -> Answer<()> {
    with(id, |_| Ok(()))?;
    OWN.set(None);
    Ok(())
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        lock(&self.machine.handles).remove(&self.id);
    }
}

impl Vcpu {
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Runs until there is an exit, or until this time.
    pub(crate) fn run(&mut self, deadline: u64) -> Answer<()> {
        if self.state.kept(CONTROLS) & HLT == 0 {
            // KVM without an interrupt controller cannot let it wait.
            return Err(HV_ERROR);
        }
        if let Some(length) = self.interview.go_on(&mut self.state)? {
            self.state.not_entered();
            self.exit(CPUID, 0, length);
            return Ok(());
        }
        if deadline != FOREVER && now() >= deadline {
            self.state.not_entered();
            self.exit(TIMER, 0, 0);
            return Ok(());
        }
        if !self.state.enter()? {
            self.state.left()?;
            self.exit(NOT_ENTERED, 0, 0);
            return Ok(());
        }
        self.page.request_window(self.state.kept(CONTROLS) & INTERRUPT_WINDOW != 0);
        self.handle.interrupted.store(false, Ordering::SeqCst);
        self.handle.running.store(true, Ordering::SeqCst);
        if deadline != FOREVER {
            self.timer.start(deadline);
        }
        let answer = self.try_until(deadline);
        if deadline != FOREVER {
            self.timer.stop();
        }
        self.handle.running.store(false, Ordering::SeqCst);
        answer
    }

    fn try_until(&mut self, deadline: u64) -> Answer<()> {
        loop {
            self.machine.enter();
            let ran = kvm_run(&self.state.vcpu);
            let told = match ran {
                Ok(()) => self.told(),
                Err(libc::EFAULT) => self.out_of_memory().map(|()| true),
                Err(libc::EINTR) => {
                    self.page.immediate_exit().store(0, Ordering::SeqCst);
                    self.stopped(deadline)
                }
                Err(libc::EAGAIN) => Ok(false),
                Err(_) => Err(HV_ERROR),
            };
            self.machine.leave();
            if told? {
                return Ok(());
            }
        }
    }

    /// Somebody or the timer wants the vCPU, or the memory changes.
    fn stopped(&mut self, deadline: u64) -> Answer<bool> {
        let reason = if self.handle.interrupted.swap(false, Ordering::SeqCst) {
            EXTERNAL
        } else if deadline != FOREVER && now() >= deadline {
            TIMER
        } else {
            return Ok(false);
        };
        self.state.left()?;
        self.exit(reason, 0, 0);
        Ok(true)
    }

    fn exit(&mut self, reason: u64, qualification: u64, length: u64) {
        self.state.keep(REASON, reason);
        self.state.keep(QUALIFICATION, qualification);
        self.state.keep(LENGTH, length);
    }

    /// KVM's exit in the processor's words.
    fn told(&mut self) -> Answer<bool> {
        match self.page.reason() {
            KVM_EXIT_IO => self.port()?,
            reason @ (KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR) => {
                self.page.undo_msr(&self.state.vcpu).map_err(failed)?;
                self.state.left()?;
                self.exit(if reason == KVM_EXIT_X86_RDMSR { RDMSR } else { WRMSR }, 0, 2);
            }
            KVM_EXIT_HLT => {
                self.state.left()?;
                let regs = self.state.regs()?;
                regs.rip = regs.rip.wrapping_sub(1);
                self.exit(HALT, 0, 1);
            }
            KVM_EXIT_IRQ_WINDOW_OPEN => {
                self.state.left()?;
                self.exit(WINDOW, 0, 0);
            }
            // CR8 is KVM's own here.
            KVM_EXIT_SET_TPR => return Ok(false),
            KVM_EXIT_SHUTDOWN | KVM_EXIT_SYSTEM_EVENT => {
                self.state.left()?;
                self.exit(TRIPLE_FAULT, 0, 0);
            }
            KVM_EXIT_FAIL_ENTRY => {
                self.state.left()?;
                self.exit(NOT_ENTERED, 0, 0);
            }
            // An instruction that KVM's emulator does not know.
            _ => return Err(HV_ERROR),
        }
        Ok(true)
    }

    fn port(&mut self) -> Answer<()> {
        let machine = Arc::clone(&self.machine);
        let memory = machine.memory();
        let done = self.page.undo_port(self.place(&memory)?).map_err(failed)?;
        self.state.left()?;
        let (string, repeated, immediate) = done.instruction.map_or((false, false, false), |i| {
            let immediate = i.try_immediate(0).is_ok() || i.try_immediate(1).is_ok();
            (i.is_string_instruction(), i.has_rep_prefix(), immediate)
        });
        let qualification = (done.size as u64 - 1)
            | u64::from(!done.is_write) << 3
            | u64::from(string) << 4
            | u64::from(repeated) << 5
            | u64::from(immediate) << 6
            | u64::from(done.number) << 16;
        let length = done.instruction.map_or(0, |instruction| instruction.len() as u64);
        self.exit(PORT, qualification, length);
        Ok(())
    }

    /// The guest touched what is not mapped, or wrote what is read-only; it stands at the instruction.
    fn out_of_memory(&mut self) -> Answer<()> {
        self.state.left()?;
        let machine = Arc::clone(&self.machine);
        let memory = machine.memory();
        let place = self.place(&memory)?;
        let (bytes, instruction) = place.instruction();
        let fault = instruction.as_ref().and_then(|instruction| place.fault(instruction));
        let code = place.code(place.regs.rip);
        let (linear, guest, qualification) = if self.state.kept(VECTORING) & VALID != 0 {
            // An event's frame.
            let top = place.regs.rsp.wrapping_sub(8);
            (top, place.translate(top).unwrap_or(!0xfff), WRITE | LINEAR | ITSELF)
        } else if let Some(Fault { gva, gpa, write, unmapped }) = fault {
            let rights = if unmapped { 0 } else { READABLE };
            (gva, gpa, if write { WRITE } else { READ } | rights | LINEAR | ITSELF)
        } else if let Some(guest) = place.translate(code).filter(|_| bytes.is_empty()) {
            (code, guest, FETCH | LINEAR | ITSELF)
        } else {
            // A page table.
            (code, place.sregs.cr3 & 0x000f_ffff_ffff_f000, READ | LINEAR)
        };
        self.state.keep(GUEST_LINEAR, linear);
        self.state.keep(GUEST_PHYSICAL, guest);
        self.exit(EPT_VIOLATION, qualification, 0);
        Ok(())
    }

    fn place<'a>(&'a self, memory: &'a Memory) -> Answer<Place<'a, Memory>> {
        let vcpu = &self.state.vcpu;
        let regs = vcpu.get_regs().map_err(failed)?;
        let sregs = vcpu.get_sregs().map_err(failed)?;
        Ok(Place { vcpu, memory, regs, sregs })
    }

    /// Vector registers, in the layout of XSAVE.
    pub(crate) fn vectors(&self) -> Answer<[u32; 1024]> {
        self.state.vcpu.get_xsave().map(|area| area.region).map_err(failed)
    }

    pub(crate) fn set_vectors(&self, bytes: &[u8]) -> Answer<()> {
        let mut area = kvm_xsave::default();
        for (word, bytes) in area.region.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().map_err(failed)?);
        }
        // SAFETY: no feature of this processor has more state than the structure holds.
        unsafe { self.state.vcpu.set_xsave(&area) }.map_err(|_| HV_BAD_ARGUMENT)
    }

    /// What the guest's time-stamp counter is more than the host's.
    pub(crate) fn set_tsc_offset(&self, offset: i64) -> Answer<()> {
        let request = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: &raw const offset as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads the request and the offset.
        let result = unsafe {
            libc::ioctl(
                self.state.vcpu.as_raw_fd(),
                SET_DEVICE_ATTR as libc::Ioctl,
                &raw const request,
            )
        };
        if result == 0 { Ok(()) } else { Err(HV_UNSUPPORTED) }
    }
}

/// The signal that interrupts `KVM_RUN`; another one than `hv-kvm`'s and the other shims'.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

/// Once in a process.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| let_interrupt(signal()));
}
