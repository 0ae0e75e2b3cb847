//! How many exits a vCPU had, from KVM's binary statistics (api.rst, `KVM_GET_STATS_FD`).

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use kvm_ioctls::VcpuFd;

use crate::ioctl::{GET_STATS_FD, ioctl};

/// Where the number stands that counts a vCPU's exits.
#[derive(Debug)]
pub(crate) struct ExitCounter {
    file: File,
    offset: u64,
}

impl ExitCounter {
    /// `None` before Linux 5.14, or where the kernel does not count.
    pub(crate) fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: KVM_GET_STATS_FD has no argument.
        let fd = unsafe { ioctl(vcpu.as_raw_fd(), GET_STATS_FD, ptr::null_mut::<()>()) }.ok()?;
        // SAFETY: the kernel made the descriptor for us alone.
        let file = unsafe { File::from_raw_fd(fd) };
        let offset = find(&file, "exits")?;
        Some(Self { file, offset })
    }

    /// The number right now.
    pub(crate) fn read(&self) -> Option<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset).ok()?;
        Some(u64::from_ne_bytes(value))
    }
}

/// The offset in the file of the statistic `name`.
fn find(file: &File, name: &str) -> Option<u64> {
    // struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
    let mut header = [0; 24];
    file.read_exact_at(&mut header, 0).ok()?;
    let field = |at: usize| u32_at(&header, 4 * at);
    let (name_size, count) = (field(1)? as usize, field(2)? as usize);
    let (descriptors, data) = (u64::from(field(4)?), u64::from(field(5)?));
    // struct kvm_stats_desc: flags, exponent and size, offset, bucket_size, name.
    let stride = 16 + name_size;
    let mut table = vec![0; stride.checked_mul(count)?];
    file.read_exact_at(&mut table, descriptors).ok()?;
    table.chunks_exact(stride).find_map(|descriptor| {
        let (fields, padded) = descriptor.split_at(16);
        let end = padded.iter().position(|&byte| byte == 0).unwrap_or(name_size);
        let offset = u64::from(u32_at(fields, 8)?);
        (padded.get(..end)? == name.as_bytes()).then_some(data + offset)
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
