//! Guest RAM. The guest changes it at any moment, so nobody ever holds a Rust reference into it:
//! values are copied in and out with volatile accesses (by `vm-memory`), and every address and
//! length is checked against the RAM that exists.

// Memory that a mapping owns is looked at through `vm-memory`, which asks for a promise that it is there.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cabana_os::Mapping;
use cabana_os::file::IoPiece;
use vm_memory::{Address, Bytes, VolatileSlice};

pub use vm_memory::{ByteValued, GuestAddress, Le16, Le32, Le64};

/// Why guest RAM could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("cannot map {len:#x} bytes of guest RAM: {source}")]
    Map {
        /// Bytes asked for.
        len: usize,
        /// What the host said.
        source: io::Error,
    },
    /// The host does not take memory back.
    #[error("cannot give {len:#x} bytes of guest RAM back to the host: {source}")]
    Discard {
        /// Bytes offered.
        len: usize,
        /// What the host said.
        source: io::Error,
    },
    /// Two pieces of RAM overlap, or one is empty or not page-aligned.
    #[error("the guest's memory map is not valid: {0}")]
    Layout(String),
    /// An access outside RAM.
    #[error("guest address {addr:#x} (+{len:#x}) is not RAM")]
    OutOfRange {
        /// First guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: usize,
    },
}

/// One contiguous piece of guest RAM and where it lies in this process.
#[derive(Clone, Copy, Debug)]
pub struct RamSlot {
    /// First guest-physical address.
    pub guest: GuestAddress,
    /// Its address in this process.
    pub host: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// All RAM of one guest. Cheap to clone; the memory lives as long as any clone.
#[derive(Clone, Debug)]
pub struct GuestRam {
    inner: Arc<Inner>,
}

/// The pieces, ascending.
#[derive(Debug)]
struct Inner {
    regions: Vec<Region>,
}

/// One piece: where it begins for the guest, and its memory.
#[derive(Debug)]
struct Region {
    guest: GuestAddress,
    mapping: Mapping,
}

impl GuestRam {
    /// RAM at each `(guest address, length)`, zeroed, committed by the host as it is touched.
    /// Addresses and lengths are multiples of the page size; the pieces ascend.
    pub fn new(pieces: &[(GuestAddress, usize)]) -> Result<Self, MemoryError> {
        let mut regions = Vec::with_capacity(pieces.len());
        let mut free = GuestAddress(0);
        for &(guest, len) in pieces {
            if guest < free {
                return Err(MemoryError::Layout(format!("two pieces at {:#x}", guest.raw_value())));
            }
            free = guest.checked_add(len as u64).ok_or_else(|| {
                MemoryError::Layout(format!("{:#x} + {len:#x} overflows", guest.raw_value()))
            })?;
            let mapping =
                Mapping::anonymous(len).map_err(|source| MemoryError::Map { len, source })?;
            if mapping.len() != len {
                return Err(MemoryError::Layout(format!("{len:#x} bytes are not whole pages")));
            }
            regions.push(Region { guest, mapping });
        }
        Ok(Self { inner: Arc::new(Inner { regions }) })
    }

    /// The pieces, to be mapped into the guest.
    pub fn slots(&self) -> impl Iterator<Item = RamSlot> + '_ {
        self.inner.regions.iter().map(|Region { guest, mapping }| RamSlot {
            guest: *guest,
            host: mapping.as_ptr(),
            len: mapping.len(),
        })
    }

    /// Bytes of RAM in all.
    pub fn size(&self) -> u64 {
        self.inner.regions.iter().map(|region| region.mapping.len() as u64).sum()
    }

    /// Maps `len` bytes of `file` from `offset` at `guest` in place of RAM, copy on write: the
    /// guest sees the file without anyone having copied it. All three are multiples of the page
    /// size.
    pub fn map_file(
        &self,
        guest: GuestAddress,
        len: usize,
        file: &File,
        offset: u64,
    ) -> Result<(), MemoryError> {
        let (mapping, start) = self.locate(guest, len)?;
        mapping
            .overlay_file(start..start + len, file, offset)
            .map_err(|source| MemoryError::Map { len, source })
    }

    /// Asks the host for 2 MiB pages under all of RAM. A host without them is no error.
    pub fn advise_huge(&self) {
        for Region { mapping, .. } in &self.inner.regions {
            let _ = mapping.advise_huge(0..mapping.len());
        }
    }

    /// Asks the host for small pages under `len` bytes at `at`. A host that has no choice is no error.
    pub fn advise_small(&self, at: GuestAddress, len: usize) -> Result<(), MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        let _ = mapping.advise_small(start..start + len);
        Ok(())
    }

    /// Gives this process `len` bytes at `at` as its own now, in place of page by page when they are written to.
    /// A host that cannot is no error.
    pub fn populate(&self, at: GuestAddress, len: usize) -> Result<(), MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        let _ = mapping.populate(start..start + len);
        Ok(())
    }

    /// Begins to read what files that are mapped have of `len` bytes at `at`.
    pub fn will_need(&self, at: GuestAddress, len: usize) -> Result<(), MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        let _ = mapping.will_need(start..start + len);
        Ok(())
    }

    /// Puts what files have in `len` bytes at `at`, multiples of 2 MiB, into pages of that size. False where the host
    /// cannot.
    pub fn enlarge(&self, at: GuestAddress, len: usize) -> bool {
        let located = self.locate(at, len);
        located.is_ok_and(|(mapping, start)| mapping.enlarge(start..start + len).is_ok())
    }

    /// Lets pages of files that are mapped in `len` bytes at `at` come in without their neighbours, so that the host
    /// can tell which were touched.
    pub fn bring_in_singly(&self, at: GuestAddress, len: usize) -> Result<(), MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        let _ = mapping.bring_in_singly(start..start + len);
        Ok(())
    }

    /// Ends what [`GuestRam::bring_in_singly`] began.
    pub fn bring_in_together(&self) {
        for Region { mapping, .. } in &self.inner.regions {
            let _ = mapping.bring_in_together(0..mapping.len());
        }
    }

    /// Gives the whole pages in `len` bytes at `at` back to the host: they hold zeroes again, or the file that is
    /// mapped there, and cost nothing until they are touched.
    pub fn discard(&self, at: GuestAddress, len: usize) -> Result<(), MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        mapping.discard(start..start + len).map_err(|source| MemoryError::Discard { len, source })
    }

    /// Copies a value out of guest RAM.
    pub fn read<T: ByteValued>(&self, at: GuestAddress) -> Result<T, MemoryError> {
        let memory = self.slice(at, size_of::<T>())?;
        memory.read_obj(0).map_err(|_| out_of_range(at, size_of::<T>()))
    }

    /// Copies a value into guest RAM.
    pub fn write<T: ByteValued>(&self, at: GuestAddress, value: T) -> Result<(), MemoryError> {
        let memory = self.slice(at, size_of::<T>())?;
        memory.write_obj(value, 0).map_err(|_| out_of_range(at, size_of::<T>()))
    }

    /// Reads a little-endian u16 with acquire ordering (a ring's index).
    pub fn load_u16(&self, at: GuestAddress) -> Result<u16, MemoryError> {
        let memory = self.slice(at, 2)?;
        let value: u16 = memory.load(0, Ordering::Acquire).map_err(|_| out_of_range(at, 2))?;
        Ok(u16::from_le(value))
    }

    /// Writes a little-endian u16 with release ordering (a ring's index).
    pub fn store_u16(&self, at: GuestAddress, value: u16) -> Result<(), MemoryError> {
        let memory = self.slice(at, 2)?;
        memory.store(value.to_le(), 0, Ordering::Release).map_err(|_| out_of_range(at, 2))
    }

    /// Fills `bytes` from guest RAM.
    pub fn read_bytes(&self, at: GuestAddress, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let memory = self.slice(at, bytes.len())?;
        memory.read_slice(bytes, 0).map_err(|_| out_of_range(at, bytes.len()))
    }

    /// Writes `bytes` to guest RAM.
    pub fn write_bytes(&self, at: GuestAddress, bytes: &[u8]) -> Result<(), MemoryError> {
        let memory = self.slice(at, bytes.len())?;
        memory.write_slice(bytes, 0).map_err(|_| out_of_range(at, bytes.len()))
    }

    /// The host memory behind `len` bytes at `at`, for vectored file I/O. It stays valid while
    /// `self` lives; nobody may make a Rust reference of it.
    pub fn piece(&self, at: GuestAddress, len: usize) -> Result<IoPiece, MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        Ok(IoPiece { addr: mapping.as_ptr().wrapping_add(start), len })
    }

    /// All of `at .. at + len`, for volatile accesses.
    fn slice(&self, at: GuestAddress, len: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        // SAFETY: the bytes lie within the mapping (`locate` has checked it), which is readable and writable and
        // lives as long as `self`; nobody has Rust references to them.
        Ok(unsafe { VolatileSlice::new(mapping.as_ptr().wrapping_add(start), len) })
    }

    /// The mapping that holds all of `at .. at + len`, and the offset in it. There are one or two.
    fn locate(&self, at: GuestAddress, len: usize) -> Result<(&Mapping, usize), MemoryError> {
        self.inner
            .regions
            .iter()
            .find_map(|Region { guest, mapping }| {
                let start = usize::try_from(at.checked_offset_from(*guest)?).ok()?;
                (start.checked_add(len)? <= mapping.len()).then_some((mapping, start))
            })
            .ok_or_else(|| out_of_range(at, len))
    }
}

fn out_of_range(at: GuestAddress, len: usize) -> MemoryError {
    MemoryError::OutOfRange { addr: at.raw_value(), len }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn ram() -> GuestRam {
        GuestRam::new(&[(GuestAddress(0), 0x4000), (GuestAddress(0x1_0000), 0x2000)]).unwrap()
    }

    #[test]
    fn values_come_back_and_bounds_hold() {
        let ram = ram();
        assert_eq!(ram.size(), 0x6000);
        ram.write(GuestAddress(0x1_0ffe), 0xabcd_u16).unwrap();
        assert_eq!(ram.load_u16(GuestAddress(0x1_0ffe)).unwrap(), 0xabcd);
        assert!(ram.read::<u64>(GuestAddress(0x3ffc)).is_err());
        assert!(ram.write_bytes(GuestAddress(u64::MAX), &[0, 0]).is_err());
        assert!(ram.piece(GuestAddress(0x3fff), 2).is_err());
        assert!(ram.piece(GuestAddress(0x1_0000), usize::MAX).is_err());
    }

    #[test]
    fn a_file_stands_in_for_ram() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 0x2000]).unwrap();
        let ram = ram();
        ram.map_file(GuestAddress(0x1000), 0x1000, &file, 0x1000).unwrap();
        assert_eq!(ram.read::<u8>(GuestAddress(0x1fff)).unwrap(), 5);
        assert_eq!(ram.read::<u8>(GuestAddress(0x2000)).unwrap(), 0);
        assert!(ram.map_file(GuestAddress(0x3000), 0x2000, &file, 0).is_err());
    }

    #[test]
    fn overlapping_pieces_are_refused() {
        let pieces = [(GuestAddress(0), 0x2000), (GuestAddress(0x1000), 0x1000)];
        assert!(matches!(GuestRam::new(&pieces), Err(MemoryError::Layout(_))));
    }
}
