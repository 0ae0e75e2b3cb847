//! KVM's slots, so that what is not mapped is handed over before anything is done.
//!
//! KVM carries an access to memory without a slot out by itself and tells afterwards. So there is no memory without a
//! slot: between the mapped ranges lie *holes*, slots whose host memory nobody may touch, and `KVM_RUN` fails at the
//! instruction with `EFAULT`. Read-only memory is a slot whose host memory this process may only read: writes fail the
//! same way.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::ptr;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Guest-physical addresses end here: 512 GiB.
pub const END: u64 = 1 << 39;

/// KVM, or the host's kernel, refused.
#[derive(Clone, Copy, Debug)]
pub struct Refused;

/// A slot as KVM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Bytes.
    pub len: u64,
    /// Its address in this process.
    pub host: u64,
    /// KVM's flags.
    pub flags: u32,
}

/// Addresses of this process that belong to us, given back on drop.
#[derive(Debug)]
pub struct Reserved {
    /// The first of them.
    pub at: usize,
    len: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and its slot is gone.
        unsafe { libc::munmap(self.at as *mut _, self.len) };
    }
}

/// All slots of a VM.
#[derive(Debug)]
pub struct Slots {
    /// By their address, with KVM's number.
    own: BTreeMap<u64, (u32, Slot)>,
    free: Vec<u32>,
    next: u32,
    /// What stands behind holes: as much as there is guest-physical memory, and never touched.
    nothing: Reserved,
}

impl Slots {
    /// None yet: not even holes.
    pub fn new() -> Result<Self, Refused> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let nothing = map(0, END as usize, libc::PROT_NONE, flags, -1)?;
        Ok(Self { own: BTreeMap::new(), free: Vec::new(), next: 0, nothing })
    }

    /// KVM's number of the slot at `guest`.
    pub fn number(&self, guest: u64) -> Option<u32> {
        self.own.get(&guest).map(|(number, _)| *number)
    }

    /// Makes KVM's slots these, with holes between them, but for the ranges `left` (address and length), which are to
    /// have no slot at all. No vCPU runs.
    pub fn update(
        &mut self,
        vm: &VmFd,
        mut wanted: BTreeMap<u64, Slot>,
        left: &[(u64, u64)],
    ) -> Result<(), Refused> {
        let mut taken: Vec<_> = wanted.iter().map(|(&at, slot)| (at, slot.len)).collect();
        taken.extend(left);
        taken.sort_unstable();
        let mut at = 0;
        for (start, len) in taken.into_iter().chain([(END, 0)]) {
            if at < start {
                let host = self.nothing.at as u64 + at;
                wanted.insert(at, Slot { len: start - at, host, flags: 0 });
            }
            at = start + len;
        }
        let gone: Vec<u64> = (self.own.iter())
            .filter(|(at, (_, slot))| wanted.get(at) != Some(slot))
            .map(|(&at, _)| at)
            .collect();
        for at in gone {
            if let Some((number, _)) = self.own.remove(&at) {
                set(vm, number, at, Slot { len: 0, host: 0, flags: 0 })?;
                self.free.push(number);
            }
        }
        for (at, slot) in wanted {
            if self.own.contains_key(&at) {
                continue;
            }
            let number = self.free.pop().unwrap_or_else(|| {
                self.next += 1;
                self.next - 1
            });
            set(vm, number, at, slot)?;
            self.own.insert(at, (number, slot));
        }
        Ok(())
    }
}

fn set(vm: &VmFd, number: u32, guest: u64, slot: Slot) -> Result<(), Refused> {
    let region = kvm_userspace_memory_region {
        slot: number,
        flags: slot.flags,
        guest_phys_addr: guest,
        memory_size: slot.len,
        userspace_addr: slot.host,
    };
    // SAFETY: the memory is the caller's, who keeps it while it is mapped, or our own.
    unsafe { vm.set_user_memory_region(region) }.map_err(|_| Refused)
}

fn map(at: usize, len: usize, prot: i32, flags: i32, fd: i32) -> Result<Reserved, Refused> {
    // SAFETY: at an address of the kernel's choice, or over memory that the caller gave for it.
    let at = unsafe { libc::mmap(at as *mut _, len, prot, flags, fd, 0) };
    if at == libc::MAP_FAILED { Err(Refused) } else { Ok(Reserved { at: at as usize, len }) }
}

/// A view of the caller's memory that may only be read; `None` if the memory itself is of that kind.
pub fn read_only(host: usize, len: usize) -> Result<Option<Reserved>, Refused> {
    if writable(host)? { share(host, len).map(Some) } else { Ok(None) }
}

/// May this process write there?
fn writable(host: usize) -> Result<bool, Refused> {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|_| Refused)?;
    let found = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        (number(from)?..number(to)?).contains(&host).then(|| rest.as_bytes().get(1) == Some(&b'w'))
    });
    found.ok_or(Refused)
}

/// Puts shared memory with the same content in the place of the caller's, and returns a second view of it that
/// may only be read.
fn share(host: usize, len: usize) -> Result<Reserved, Refused> {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"read-only".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Refused);
    }
    // SAFETY: the kernel made the descriptor for us alone.
    let file = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    let (fd, flags) = (file.as_raw_fd(), libc::MAP_SHARED);
    // SAFETY: the caller gave `len` bytes of memory; the descriptor is a file's. Nobody holds references.
    let copied = unsafe { libc::write(fd, ptr::with_exposed_provenance(host), len) };
    if usize::try_from(copied) != Ok(len) {
        return Err(Refused);
    }
    let view = map(0, len, libc::PROT_READ, flags, fd)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // It stays with its owner.
    std::mem::forget(map(host, len, prot, flags | libc::MAP_FIXED, fd)?);
    Ok(view)
}
