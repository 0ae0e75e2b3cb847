//! A vCPU: exits as values, one element at a time.

use std::cell::OnceCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use cabana_hv::{HvError, Vcpu, VcpuKicker, VcpuSeat, VmEntry, VmExit};
use kvm_bindings::{KVM_EXIT_FAIL_ENTRY, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO};
use kvm_ioctls::VcpuFd;

use crate::arch::{self, BootState, Guest, VcpuState, state};
use crate::ioctl::{PRE_FAULT_MEMORY, PreFaultMemory, RUN, ioctl};
use crate::kick::{KickTarget, KvmKicker};
use crate::run_page::RunPage;
use crate::stats::ExitCounter;
use crate::vm::VmShared;

/// What a guest did that no driver does.
const UNDECODED: &str = "device memory was accessed by an instruction that cannot be emulated";

/// A vCPU that is not yet on its thread.
#[derive(Debug)]
pub(crate) struct KvmSeat {
    vm: Arc<VmShared>,
    fd: VcpuFd,
    page: RunPage,
    kicks: Arc<KickTarget>,
}

impl KvmSeat {
    /// Of a vCPU that the kernel has made.
    pub(crate) fn new(vm: Arc<VmShared>, mut fd: VcpuFd) -> Self {
        let base = NonNull::from(fd.get_kvm_run());
        // SAFETY: `fd` maps `run_size` bytes there and is dropped together with the page, and its
        // own accessors of the area are not used after this.
        let page = unsafe { RunPage::new(base, vm.fd.run_size()) };
        Self { vm, fd, page, kicks: Arc::default() }
    }
}

impl VcpuSeat<Guest> for KvmSeat {
    fn kicker(&self) -> Box<dyn VcpuKicker> {
        Box::new(KvmKicker { target: Arc::clone(&self.kicks) })
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu<Guest>>, HvError> {
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
                    // arm64: the processor did not say what the instruction was to do.
                    Some(libc::ENOSYS) => return Err(self.stuck(UNDECODED)),
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
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the member that belongs to this reason.
                let reason = unsafe { details.fail_entry }.hardware_entry_failure_reason;
                Err(self.stuck(&format!(
                    "the processor refused the guest's state (hardware reason {reason:#x})"
                )))
            }
            reason => arch::exit(reason, &details).map_err(|what| self.stuck(&what)),
        }
    }

    /// The guest cannot go on; where it stands is the best hint there is.
    fn stuck(&self, what: &str) -> HvError {
        match state::instruction(&self.fd) {
            Ok(at) => HvError::Guest(format!("{what}, at {} {at:#x}", arch::INSTRUCTION_POINTER)),
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

impl Vcpu<Guest> for KvmVcpu {
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
        state::set_boot(&self.fd, boot)
    }

    fn prefault(&mut self, guest: u64, len: u64) -> Result<(), HvError> {
        let mut range = PreFaultMemory { gpa: guest, size: len, ..PreFaultMemory::default() };
        while range.size > 0 {
            // SAFETY: the structure that belongs to this request.
            let result = unsafe { ioctl(self.fd.as_raw_fd(), PRE_FAULT_MEMORY, &raw mut range) };
            match result.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) | Err((Some(libc::EINTR | libc::EAGAIN), _)) => {}
                Err((Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP), _)) => {
                    return Err(HvError::Unsupported("guest memory that is entered beforehand"));
                }
                Err((_, source)) => {
                    return Err(HvError::Call { call: "KVM_PRE_FAULT_MEMORY", source });
                }
            }
        }
        Ok(())
    }

    fn exits(&self) -> Option<u64> {
        self.exits.get_or_init(|| ExitCounter::open(&self.fd)).as_ref()?.read()
    }

    fn counter(&mut self) -> Result<u64, HvError> {
        state::counter(&self.fd)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicks.unbind();
    }
}
