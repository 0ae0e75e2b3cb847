//! A guest's memory, as its host sees it.

use cabana_hv::{Arch, MemorySlot, Vm};
use cabana_os::Mapping;

/// One piece of memory, mapped into a VM.
#[derive(Debug)]
pub struct Ram {
    mapping: Mapping,
    start: u64,
}

impl Ram {
    /// Zeroed memory from `start` to `end` of `vm`, which must be dropped before it.
    pub(crate) fn map<A: Arch>(vm: &(impl Vm<A> + ?Sized), start: u64, end: u64) -> Self {
        let mapping = Mapping::anonymous((end - start) as usize).expect("RAM");
        let slot = MemorySlot {
            guest: start,
            host: mapping.as_ptr(),
            len: mapping.len(),
            read_only: false,
            track_dirty: false,
        };
        // SAFETY: the RAM outlives the VM (vCPUs end before their guest, or their case has failed),
        // and nobody makes references to it.
        unsafe { vm.map(&slot) }.expect("RAM is mapped");
        Self { mapping, start }
    }

    /// Where guest-physical `at` is, with `len` bytes behind it.
    fn place(&self, at: u64, len: usize) -> *mut u8 {
        let offset = (at - self.start) as usize;
        assert!(offset + len <= self.mapping.len());
        self.mapping.as_ptr().wrapping_add(offset)
    }

    /// Copies bytes into RAM.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        // SAFETY: the place is within the mapping.
        unsafe { self.place(at, bytes.len()).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Writes a number into RAM.
    pub fn write_u64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// A copy of RAM.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: the place is within the mapping.
        unsafe { self.place(at, len).copy_to_nonoverlapping(bytes.as_mut_ptr(), len) }
        bytes
    }

    /// A number in RAM.
    pub fn read_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at, 8).try_into().expect("eight bytes"))
    }
}
