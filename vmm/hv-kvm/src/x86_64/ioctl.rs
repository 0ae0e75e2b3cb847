//! The ioctls that x86-64 alone has.

use crate::ioctl::{WRITE, number};

/// The kernel writes what the argument points to.
const READ: u32 = 2;

/// `KVM_GET_TSC_KHZ`.
pub(crate) const GET_TSC_KHZ: u64 = number(0, 0xa3, 0);
/// `KVM_GET_XSAVE`: fills 4 KiB.
pub(crate) const GET_XSAVE: u64 = number(READ, 0xa4, XSAVE_LEN);
/// `KVM_SET_XSAVE`: reads as many bytes as `KVM_CAP_XSAVE2` says.
pub(crate) const SET_XSAVE: u64 = number(WRITE, 0xa5, XSAVE_LEN);
/// `KVM_GET_XSAVE2`: fills as many bytes as `KVM_CAP_XSAVE2` says.
pub(crate) const GET_XSAVE2: u64 = number(READ, 0xcf, XSAVE_LEN);

/// `sizeof(struct kvm_xsave)`.
pub(crate) const XSAVE_LEN: usize = 4096;
