//! A vCPU: exits as values, one element at a time.

use std::cell::OnceCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use cabana_hv::x86::{BootState, VcpuSetup, VcpuState, X86};
use cabana_hv::{HvError, Vcpu, VcpuKicker, VcpuSeat, VmEntry, VmExit};
use kvm_bindings::{
    CpuId, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IOAPIC_EOI, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    kvm_run__bindgen_ty_1,
};
use kvm_ioctls::VcpuFd;

use crate::ioctl::{RUN, failed, ioctl};
use crate::kick::{KickTarget, KvmKicker};
use crate::run_page::RunPage;
use crate::stats::ExitCounter;
use crate::vm::VmShared;
use crate::{convert, state};

/// A vCPU that is not yet on its thread.
#[derive(Debug)]
pub(crate) struct KvmSeat {
    vm: Arc<VmShared>,
    fd: VcpuFd,
    page: RunPage,
    kicks: Arc<KickTarget>,
}

impl KvmSeat {
    pub(crate) fn new(vm: Arc<VmShared>, index: u32, setup: &VcpuSetup) -> Result<Self, HvError> {
        let mut fd = vm.fd.create_vcpu(u64::from(index)).map_err(failed("KVM_CREATE_VCPU"))?;
        if !setup.cpuid.is_empty() {
            let entries: Vec<_> = setup.cpuid.iter().map(convert::leaf_to_kvm).collect();
            let cpuid = CpuId::from_entries(&entries)
                .map_err(|_| HvError::Invalid(format!("{} CPUID leaves", entries.len())))?;
            fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        }
        state::set_msrs(&fd, &setup.msrs)?;
        let base = NonNull::from(fd.get_kvm_run());
        // SAFETY: `fd` maps `run_size` bytes there and is dropped together with the page, and its
        // own accessors of the area are not used after this.
        let page = unsafe { RunPage::new(base, vm.fd.run_size()) };
        Ok(Self { vm, fd, page, kicks: Arc::default() })
    }
}

impl VcpuSeat<X86> for KvmSeat {
    fn kicker(&self) -> Box<dyn VcpuKicker> {
        Box::new(KvmKicker { target: Arc::clone(&self.kicks) })
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu<X86>>, HvError> {
        let Self { vm, fd, page, kicks } = *self;
        kicks.bind(page.immediate_exit());
        Ok(Box::new(KvmVcpu {
            vm,
            fd,
            page,
            kicks,
            access: None,
            queued: None,
            exits: OnceCell::new(),
            thread: PhantomData,
        }))
    }
}

/// A vCPU on its thread.
#[derive(Debug)]
struct KvmVcpu {
    vm: Arc<VmShared>,
    fd: VcpuFd,
    page: RunPage,
    kicks: Arc<KickTarget>,
    /// The access that the last exit told of.
    access: Option<Access>,
    /// An exit that came while the state was asked for.
    queued: Option<VmExit>,
    exits: OnceCell<Option<ExitCounter>>,
    /// Kicks go to the thread that bound it.
    thread: PhantomData<*const ()>,
}

/// What the kernel reports as one exit and the machine sees element by element.
#[derive(Clone, Copy, Debug)]
struct Access {
    place: Place,
    read: bool,
    /// Bytes of an element.
    size: u8,
    /// Elements, the current one included.
    left: u32,
    /// The current element's data in the run page.
    offset: usize,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Mmio(u64),
    Port(u16),
}

impl Access {
    /// The current element as an exit.
    fn exit(&self, page: &RunPage) -> VmExit {
        let size = self.size;
        match (self.place, self.read) {
            (Place::Mmio(addr), true) => VmExit::MmioRead { addr, size },
            (Place::Port(port), true) => VmExit::PioRead { port, size },
            (Place::Mmio(addr), false) => {
                VmExit::MmioWrite { addr, size, data: page.read(self.offset, size) }
            }
            (Place::Port(port), false) => {
                VmExit::PioWrite { port, size, data: page.read(self.offset, size) as u32 }
            }
        }
    }

    /// The element after the current one.
    fn next(mut self) -> Option<Self> {
        self.left = self.left.checked_sub(1).filter(|&left| left > 0)?;
        self.offset += usize::from(self.size);
        if let Place::Mmio(addr) = &mut self.place {
            *addr = addr.wrapping_add(u64::from(self.size));
        }
        Some(self)
    }
}

impl KvmVcpu {
    /// Begins with the first element of an access.
    fn begin(&mut self, access: Access) -> VmExit {
        self.access = Some(access);
        access.exit(&self.page)
    }

    /// Takes `entry` as the answer to the last exit; the next element of the same access, if any.
    fn answer(&mut self, entry: VmEntry) -> Result<Option<VmExit>, HvError> {
        match (self.access, entry) {
            (None, VmEntry::Resume) => return Ok(None),
            (Some(access), VmEntry::Data(data)) if access.read => {
                self.page.write(access.offset, access.size, data);
            }
            (Some(access), VmEntry::Resume) if !access.read => {}
            (Some(_), VmEntry::Resume) => {
                return Err(HvError::Invalid("a read was not answered with data".into()));
            }
            (_, VmEntry::Data(_)) => {
                return Err(HvError::Invalid("data for an exit that was no read".into()));
            }
        }
        self.access = self.access.and_then(Access::next);
        Ok(self.access.map(|access| access.exit(&self.page)))
    }

    /// `KVM_RUN` until there is an exit for the machine.
    fn enter(&mut self) -> Result<VmExit, HvError> {
        loop {
            // SAFETY: KVM_RUN has no argument; the run page is not accessed meanwhile, except for
            // `immediate_exit`.
            let result = unsafe { ioctl(self.fd.as_raw_fd(), RUN, ptr::null_mut::<()>()) };
            match result {
                Ok(_) => return self.decode(),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) if self.page.immediate_exit().take_kick() => {
                        return Ok(VmExit::Kicked);
                    }
                    // Somebody else's signal; or an application processor was woken (EAGAIN).
                    Some(libc::EINTR | libc::EAGAIN) => {}
                    Some(libc::EFAULT | libc::EHWPOISON) => return Err(self.bad_memory(&error)),
                    _ => return Err(HvError::Call { call: "KVM_RUN", source: error }),
                },
            }
        }
    }

    fn decode(&mut self) -> Result<VmExit, HvError> {
        let details = self.page.details();
        match self.page.exit_reason() {
            KVM_EXIT_IO => {
                // SAFETY: the member that belongs to this reason.
                let io = unsafe { details.io };
                Ok(self.begin(Access {
                    place: Place::Port(io.port),
                    read: u32::from(io.direction) == KVM_EXIT_IO_IN,
                    size: io.size,
                    left: io.count,
                    offset: io.data_offset as usize,
                }))
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the member that belongs to this reason.
                let mmio = unsafe { details.mmio };
                // What crosses a page comes in two parts, of odd lengths maybe: byte by byte then.
                let (size, left) = match mmio.len {
                    len @ (1 | 2 | 4 | 8) => (len as u8, 1),
                    len => (1, len),
                };
                Ok(self.begin(Access {
                    place: Place::Mmio(mmio.phys_addr),
                    read: mmio.is_write == 0,
                    size,
                    left,
                    offset: RunPage::mmio_data_offset(),
                }))
            }
            KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: the member that belongs to this reason.
                Ok(VmExit::EndOfInterrupt { vector: unsafe { details.eoi }.vector })
            }
            KVM_EXIT_HLT => Ok(VmExit::Halt),
            KVM_EXIT_SHUTDOWN | KVM_EXIT_SYSTEM_EVENT => Ok(VmExit::Shutdown),
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the member that belongs to this reason.
                let reason = unsafe { details.fail_entry }.hardware_entry_failure_reason;
                Err(self.stuck(&format!(
                    "the processor refused the guest's state (hardware reason {reason:#x})"
                )))
            }
            KVM_EXIT_INTERNAL_ERROR => Err(self.stuck(&internal_error(&details))),
            reason => Err(self.stuck(&format!("unexpected exit reason {reason}"))),
        }
    }

    /// The guest cannot go on; where it stands is the best hint there is.
    fn stuck(&self, what: &str) -> HvError {
        match self.fd.get_regs() {
            Ok(regs) => HvError::Guest(format!("{what}, at RIP {:#x}", regs.rip)),
            Err(_) => HvError::Guest(what.to_owned()),
        }
    }

    /// KVM could not reach the host memory behind the guest's.
    fn bad_memory(&self, error: &io::Error) -> HvError {
        let place = if self.page.exit_reason() == kvm_bindings::KVM_EXIT_MEMORY_FAULT {
            // SAFETY: the member that belongs to this reason.
            format!(" at guest address {:#x}", unsafe { self.page.details().memory_fault }.gpa)
        } else {
            String::new()
        };
        self.stuck(&format!(
            "the host's memory behind the guest's is out of reach{place} ({error})"
        ))
    }

    /// Lets the kernel finish the instruction of the last exit, so that its registers are whole.
    /// A read without its answer has changed nothing yet.
    fn finish(&mut self) -> Result<(), HvError> {
        match self.access {
            None => return Ok(()),
            Some(access) if access.read => return Ok(()),
            Some(access) if access.left > 1 => {}
            Some(_) => {
                let flag = self.page.immediate_exit();
                flag.finish_only(true);
                // SAFETY: as in `enter`; no guest instruction runs.
                let result = unsafe { ioctl(self.fd.as_raw_fd(), RUN, ptr::null_mut::<()>()) };
                flag.finish_only(false);
                self.access = None;
                match result {
                    Err(error) if error.raw_os_error() == Some(libc::EINTR) => return Ok(()),
                    Err(source) => return Err(HvError::Call { call: "KVM_RUN", source }),
                    // The same instruction accesses something else.
                    Ok(_) => self.queued = Some(self.decode()?),
                }
            }
        }
        Err(HvError::Invalid("the vCPU is in the middle of an instruction: run it on".into()))
    }
}

/// What KVM says of itself when it gives up.
fn internal_error(details: &kvm_run__bindgen_ty_1) -> String {
    // SAFETY: the members that belong to this reason, plain numbers.
    let (internal, failure) = unsafe { (details.internal, details.emulation_failure) };
    let meaning = match internal.suberror {
        1 => "an instruction that KVM cannot emulate",
        2 => "two exceptions at once",
        3 => "an exit while an event was delivered",
        4 => "an exit that KVM does not know",
        _ => "an unknown cause",
    };
    // SAFETY: plain numbers, meaningful if the flags say so.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let has_bytes = internal.suberror == 1 && failure.ndata >= 3 && failure.flags & 1 != 0;
    let instruction = if has_bytes {
        let len = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
        format!(", instruction bytes {:02x?}", &bytes.insn_bytes[..len])
    } else {
        String::new()
    };
    let data: Vec<String> = (internal.data.iter())
        .take(internal.ndata as usize)
        .map(|word| format!("{word:#x}"))
        .collect();
    format!(
        "internal error {}: {meaning}{instruction}, data [{}]",
        internal.suberror,
        data.join(", ")
    )
}

impl Vcpu<X86> for KvmVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, HvError> {
        if let Some(exit) = self.queued.take() {
            return Ok(exit);
        }
        match self.answer(entry)? {
            Some(exit) => Ok(exit),
            None => self.enter(),
        }
    }

    fn state(&mut self) -> Result<VcpuState, HvError> {
        self.finish()?;
        state::get(&self.vm, &self.fd)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), HvError> {
        self.finish()?;
        state::set(&self.vm, &self.fd, state)
    }

    fn set_boot_state(&mut self, boot: &BootState) -> Result<(), HvError> {
        let reset = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let mut sregs = convert::system_to_kvm(&boot.system);
        (sregs.apic_base, sregs.cr8) = (reset.apic_base, reset.cr8);
        self.fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        self.fd.set_regs(&convert::regs_to_kvm(&boot.regs)).map_err(failed("KVM_SET_REGS"))
    }

    fn exits(&self) -> Option<u64> {
        self.exits.get_or_init(|| ExitCounter::open(&self.fd)).as_ref()?.read()
    }

    fn counter(&mut self) -> Result<u64, HvError> {
        state::get_msr(&self.fd, state::TSC)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicks.unbind();
    }
}
