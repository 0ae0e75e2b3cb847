//! The ioctls that kvm-ioctls has not, or not for our descriptors.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use cabana_hv::HvError;

/// The kernel reads what the argument points to.
pub(crate) const WRITE: u32 = 1;

/// The kernel writes there.
const READ: u32 = 2;

/// `struct kvm_pre_fault_memory` (include/uapi/linux/kvm.h), which kvm-bindings has for some processors only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PreFaultMemory {
    pub(crate) gpa: u64,
    pub(crate) size: u64,
    pub(crate) flags: u64,
    pub(crate) padding: [u64; 5],
}

/// `KVM_RUN`.
pub(crate) const RUN: u64 = number(0, 0x80, 0);
/// `KVM_IRQFD`.
pub(crate) const IRQFD: u64 = number(WRITE, 0x76, size_of::<kvm_bindings::kvm_irqfd>());
/// `KVM_IOEVENTFD`.
pub(crate) const IOEVENTFD: u64 = number(WRITE, 0x79, size_of::<kvm_bindings::kvm_ioeventfd>());
/// `KVM_PRE_FAULT_MEMORY` (Linux 6.11): the kernel writes back what is left to do.
pub(crate) const PRE_FAULT_MEMORY: u64 = number(WRITE | READ, 0xd5, size_of::<PreFaultMemory>());
/// `KVM_GET_STATS_FD`.
pub(crate) const GET_STATS_FD: u64 = number(0, 0xce, 0);
/// `_IOC(direction, KVMIO, nr, size)` (include/uapi/asm-generic/ioctl.h).
pub(crate) const fn number(direction: u32, nr: u32, size: usize) -> u64 {
    const KVMIO: u32 = 0xae;
    (direction << 30 | (size as u32) << 16 | KVMIO << 8 | nr) as u64
}

/// One ioctl with a pointer (or a number) as its argument; the kernel's answer, or `errno`.
///
/// # Safety
/// `argument` must be what the kernel expects for `request`, valid for all that it reads and writes.
pub(crate) unsafe fn ioctl<T>(fd: RawFd, request: u64, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the argument.
    let result = unsafe { libc::ioctl(fd, request as libc::Ioctl, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// One ioctl that only reads the structure at `argument`.
pub(crate) fn ioctl_with<T: Copy>(
    fd: &impl AsRawFd,
    request: u64,
    call: &'static str,
    argument: &T,
) -> Result<i32, HvError> {
    let mut copy = *argument;
    debug_assert_eq!((request >> 16) & 0x3fff, size_of::<T>() as u64);
    // SAFETY: the kernel reads the size that is part of the request's number, and no more.
    unsafe { ioctl(fd.as_raw_fd(), request, &raw mut copy) }
        .map_err(|source| HvError::Call { call, source })
}

/// Makes kvm-ioctls' error the failure of `call`.
pub(crate) fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> HvError {
    move |error| HvError::Call { call, source: io::Error::from_raw_os_error(error.errno()) }
}
