//! vCPUs: each belongs to its thread, and comes back as the processor itself would let it.

use std::cell::RefCell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Once};

use cabana_hv_hvf::{Exit, HV_BAD_ARGUMENT, HV_BUSY, HV_ERROR, HV_NO_RESOURCES};
use cabana_os::let_interrupt;
use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_EXIT_HYPERCALL, KVM_EXIT_MMIO, KVM_HYPERCALL_EXIT_SMC, kvm_run,
};
use kvm_ioctls::VcpuFd;

use crate::machine::{MAX_VCPUS, Machine, affinity, lock, machine};
use crate::{Answer, registers};

/// `hv_exit_reason_t`.
const CANCELED: u32 = 0;
const EXCEPTION: u32 = 1;
const UNKNOWN: u32 = 3;
/// `KVM_RUN`.
const RUN: u64 = 0xae80;
/// `MPIDR_EL1`, which says which of KVM's vCPUs this is.
const MPIDR_EL1: u16 = 0xc005;
/// `ESR_EL2` (Arm DDI 0487): classes of exceptions; an instruction of 32 bits; an access that is described.
const HVC: u64 = 0x16 << 26;
const SMC: u64 = 0x17 << 26;
const DATA_ABORT: u64 = 0x24 << 26;
const LONG: u64 = 1 << 25;
const DESCRIBED: u64 = 1 << 24;

thread_local! {
    static OWN: RefCell<Option<Vcpu>> = const { RefCell::new(None) };
}

/// How others reach a vCPU.
#[derive(Debug, Default)]
pub(crate) struct Handle {
    thread: libc::pid_t,
    /// Somebody wants it to come back.
    cancelled: AtomicBool,
    /// `kvm_run.immediate_exit`, once there is one.
    flag: AtomicPtr<u8>,
}

impl Handle {
    /// The run in progress, or else the next one, is cancelled.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    /// Lets `KVM_RUN` return.
    pub(crate) fn interrupt(&self) {
        self.set_flag(1);
        // SAFETY: sends a signal that has a handler; a thread that is gone is only ESRCH.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, signal()) };
    }

    fn set_flag(&self, value: u8) {
        let flag = self.flag.load(Ordering::SeqCst);
        if !flag.is_null() {
            // SAFETY: KVM's vCPUs keep their areas for as long as their VM, which whoever has the handle holds;
            // the flag is only accessed atomically.
            unsafe { AtomicU8::from_ptr(flag) }.store(value, Ordering::SeqCst);
        }
    }
}

/// A vCPU of this thread.
pub(crate) struct Vcpu {
    id: u64,
    machine: Arc<Machine>,
    handle: Arc<Handle>,
    exit: Box<Exit>,
    /// KVM's, as soon as it is known which.
    own: Option<Own>,
}

struct Own {
    index: u32,
    fd: VcpuFd,
    page: NonNull<kvm_run>,
}

/// What `use_it` makes of the calling thread's vCPU, if it has this number.
pub(crate) fn with<T>(id: u64, use_it: impl FnOnce(&mut Vcpu) -> Answer<T>) -> Answer<T> {
    OWN.with_borrow_mut(|own| {
        let own = own.as_mut().filter(|own| own.id == id);
        own.ok_or(HV_BAD_ARGUMENT).and_then(use_it)
    })
}

/// Makes a vCPU of the calling thread, which has none.
pub(crate) fn create() -> Answer<(u64, *const Exit)> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    install_handler();
    OWN.with_borrow_mut(|own| {
        if own.is_some() {
            return Err(HV_BUSY);
        }
        let machine = machine()?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: no arguments, cannot fail.
        let thread = unsafe { libc::gettid() };
        let handle = Arc::new(Handle { thread, ..Handle::default() });
        let mut handles = lock(&machine.handles);
        if handles.len() == MAX_VCPUS as usize {
            return Err(HV_NO_RESOURCES);
        }
        handles.insert(id, Arc::clone(&handle));
        drop(handles);
        let vcpu = own.insert(Vcpu { id, machine, handle, exit: Box::default(), own: None });
        Ok((id, &raw const *vcpu.exit))
    })
}

pub(crate) fn destroy(id: u64) -> Answer<()> {
    with(id, |_| Ok(()))?;
    OWN.set(None);
    Ok(())
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        lock(&self.machine.handles).remove(&self.id);
        if let Some(Own { index, fd, .. }) = self.own.take() {
            self.machine.give(index, fd);
        }
    }
}

impl Vcpu {
    /// KVM's vCPU: the one of the affinity that was set, or any.
    fn own(&mut self) -> Answer<&mut Own> {
        if self.own.is_none() {
            self.become_kvms(None)?;
        }
        self.own.as_mut().ok_or(HV_ERROR)
    }

    fn become_kvms(&mut self, index: Option<u32>) -> Answer<()> {
        let (index, mut fd) = self.machine.take(index)?;
        let page = NonNull::from(fd.get_kvm_run());
        // SAFETY: a field of the area.
        let flag = unsafe { &raw mut (*page.as_ptr()).immediate_exit };
        self.handle.flag.store(flag, Ordering::SeqCst);
        self.own = Some(Own { index, fd, page });
        Ok(())
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn fd(&mut self) -> Answer<&VcpuFd> {
        Ok(&self.own()?.fd)
    }

    /// Its number in the interrupt controller.
    pub(crate) fn index(&mut self) -> Answer<u32> {
        Ok(self.own()?.index)
    }

    pub(crate) fn get_system(&mut self, name: u16) -> Answer<u64> {
        if name == MPIDR_EL1 {
            let index = self.index()?;
            return Ok(1 << 31 | affinity(index));
        }
        registers::get_system(self.fd()?, name)
    }

    pub(crate) fn set_system(&mut self, name: u16, value: u64) -> Answer<()> {
        if name != MPIDR_EL1 {
            return registers::set_system(self.fd()?, name, value);
        }
        // Affinities are those that KVM's vCPUs have: 16 to a cluster.
        let (within, cluster) = (value as u32 & 0xff, value as u32 >> 8 & 0xff);
        let index = within + cluster * 16;
        if within >= 16 || value & 0xff_00ff_0000 != 0 || index >= MAX_VCPUS {
            return Err(HV_BAD_ARGUMENT);
        }
        match &self.own {
            None => self.become_kvms(Some(index)),
            Some(own) if own.index == index => Ok(()),
            Some(_) => Err(HV_BAD_ARGUMENT),
        }
    }

    /// Runs until the processor would come back.
    pub(crate) fn run(&mut self) -> Answer<()> {
        self.own()?;
        let (machine, handle) = (Arc::clone(&self.machine), Arc::clone(&self.handle));
        loop {
            machine.enter();
            // One that comes after this is seen by KVM_RUN.
            let exit = if handle.cancelled.swap(false, Ordering::SeqCst) {
                handle.set_flag(0);
                Ok(Some(Exit { reason: CANCELED, ..Exit::default() }))
            } else {
                self.run_once()
            };
            machine.leave();
            if let Some(exit) = exit? {
                *self.exit = exit;
                return Ok(());
            }
        }
    }

    /// One `KVM_RUN`; nothing if it was only interrupted.
    fn run_once(&mut self) -> Answer<Option<Exit>> {
        let (machine, handle) = (Arc::clone(&self.machine), Arc::clone(&self.handle));
        let own = self.own()?;
        match own.kvm_run() {
            Ok(()) => own.exit(&machine, &handle).map(Some),
            Err(libc::EINTR | libc::EAGAIN) => {
                // A cancellation has its own memory.
                handle.set_flag(0);
                Ok(None)
            }
            Err(_) => Ok(Some(Exit { reason: UNKNOWN, ..Exit::default() })),
        }
    }
}

impl Own {
    fn kvm_run(&self) -> Result<(), i32> {
        use std::os::fd::AsRawFd;
        // SAFETY: KVM_RUN has no argument; the area is not accessed meanwhile, but for its flag.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), RUN as libc::Ioctl, ptr::null_mut::<()>()) };
        if result < 0 {
            let error = std::io::Error::last_os_error().raw_os_error();
            return Err(error.unwrap_or(libc::EIO));
        }
        Ok(())
    }

    /// What the processor would have said.
    fn exit(&mut self, machine: &Machine, handle: &Handle) -> Answer<Exit> {
        // SAFETY: in the area; the vCPU does not run.
        let run = unsafe { self.page.as_ptr().read_volatile() };
        // SAFETY: the members that belong to the reasons.
        unsafe {
            match run.exit_reason {
                KVM_EXIT_MMIO => {
                    let mmio = run.__bindgen_anon_1.mmio;
                    let at = mmio.phys_addr;
                    let syndrome = if mmio.is_write == 0 {
                        self.load(handle, mmio.len)?
                    } else {
                        self.store(handle, mmio.len, u64::from_le_bytes(mmio.data))?
                    };
                    Ok(abort(machine, DESCRIBED | syndrome, at))
                }
                KVM_EXIT_ARM_NISV => {
                    let nisv = run.__bindgen_anon_1.arm_nisv;
                    Ok(abort(machine, nisv.esr_iss & !(DESCRIBED | 0x3f), nisv.fault_ipa))
                }
                KVM_EXIT_HYPERCALL => {
                    let flags = run.__bindgen_anon_1.hypercall.__bindgen_anon_1.flags;
                    let class = if flags & u64::from(KVM_HYPERCALL_EXIT_SMC) == 0 {
                        HVC
                    } else {
                        // KVM is past it, and the processor would not be.
                        let at = registers::program_counter(&self.fd)?;
                        registers::set_program_counter(&self.fd, at.wrapping_sub(4))?;
                        SMC
                    };
                    Ok(exception(class, 0))
                }
                _ => Ok(Exit { reason: UNKNOWN, ..Exit::default() }),
            }
        }
    }

    /// A store, of which KVM tells the data: any register with the same bytes serves as its source.
    fn store(&mut self, handle: &Handle, len: u32, data: u64) -> Answer<u64> {
        let (size, cut) = width(len)?;
        // 31 is the register that is always zero.
        let mut source = if data & cut == 0 { Some(31) } else { None };
        for register in 0..31 {
            if source.is_some() {
                break;
            }
            let same = registers::get(&self.fd, register)? & cut == data & cut;
            source = same.then_some(register);
        }
        self.finish(handle)?;
        Ok(size << 22 | u64::from(source.ok_or(HV_ERROR)?) << 16 | 1 << 6)
    }

    /// A load, of which KVM does not tell the register: it is let have data that no register has, looked for, and
    /// made as it was.
    fn load(&mut self, handle: &Handle, len: u32) -> Answer<u64> {
        let (size, cut) = width(len)?;
        let mut before = [0; 31];
        for (register, value) in (0..).zip(&mut before) {
            *value = registers::get(&self.fd, register)?;
        }
        let sign = cut ^ cut >> 1;
        let forms = |data: u64| [data, (data | !cut) & 0xffff_ffff, data | !cut];
        let mut marks = (1u64..).map(|number| sign | number & (cut >> 1));
        let mark = marks.find(|&mark| forms(mark).iter().all(|form| !before.contains(form)));
        let mark = mark.ok_or(HV_ERROR)?;
        // SAFETY: in the area; the vCPU does not run.
        unsafe {
            (&raw mut (*self.page.as_ptr()).__bindgen_anon_1.mmio.data).write(mark.to_le_bytes());
        };
        self.finish(handle)?;
        for (register, &value) in (0..).zip(&before) {
            let after = registers::get(&self.fd, register)?;
            if after != value {
                registers::set(&self.fd, register, value)?;
                let [_, narrow, wide] = forms(mark);
                let (signed, wide) = (len < 8 && after != mark, len == 8 || after == wide);
                debug_assert!(after == mark || after == narrow || wide);
                return Ok(size << 22
                    | u64::from(signed) << 21
                    | u64::from(register) << 16
                    | u64::from(wide) << 15);
            }
        }
        Ok(size << 22 | 31 << 16)
    }

    /// Lets KVM finish the instruction, and goes back to it.
    fn finish(&mut self, handle: &Handle) -> Answer<()> {
        let at = registers::program_counter(&self.fd)?;
        handle.set_flag(1);
        let ran = self.kvm_run();
        handle.set_flag(0);
        if ran != Err(libc::EINTR) {
            return Err(HV_ERROR);
        }
        registers::set_program_counter(&self.fd, at)
    }
}

/// `SAS` of so many bytes, and their mask.
fn width(len: u32) -> Answer<(u64, u64)> {
    if !matches!(len, 1 | 2 | 4 | 8) {
        return Err(HV_ERROR);
    }
    Ok((len.trailing_zeros().into(), u64::MAX >> (64 - 8 * len)))
}

/// A data abort: because there is no memory, or not for this.
fn abort(machine: &Machine, syndrome: u64, at: u64) -> Exit {
    let fault = if machine.is_mapped(at) { 0x0f } else { 0x07 };
    exception(DATA_ABORT | syndrome | fault, at)
}

fn exception(syndrome: u64, physical_address: u64) -> Exit {
    Exit { reason: EXCEPTION, syndrome: LONG | syndrome, virtual_address: 0, physical_address }
}

/// The signal that interrupts `KVM_RUN`; not that of `hv-kvm`.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Once in a process.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| let_interrupt(signal()));
}
