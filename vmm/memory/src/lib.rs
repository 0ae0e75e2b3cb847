//! Guest RAM. The guest changes it at any moment, so nobody ever holds a Rust reference into it:
//! values are copied in and out with volatile accesses (by `vm-memory`), and every address and
//! length is checked against the RAM that exists.

// Mappings are handed to `vm-memory`, which asks for promises about their address and length.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cabana_os::Mapping;
use cabana_os::file::IoPiece;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Address, Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

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

#[derive(Debug)]
struct Inner {
    memory: GuestMemoryMmap<()>,
    /// Keeps the memory that `memory` points to; in the order of its regions.
    mappings: Vec<Mapping>,
}

impl GuestRam {
    /// RAM at each `(guest address, length)`, zeroed, committed by the host as it is touched.
    /// Addresses and lengths are multiples of the page size; the pieces ascend.
    pub fn new(pieces: &[(GuestAddress, usize)]) -> Result<Self, MemoryError> {
        let mut mappings = Vec::with_capacity(pieces.len());
        let mut regions = Vec::with_capacity(pieces.len());
        for &(guest, len) in pieces {
            let mapping =
                Mapping::anonymous(len).map_err(|source| MemoryError::Map { len, source })?;
            if mapping.len() != len {
                return Err(MemoryError::Layout(format!("{len:#x} bytes are not whole pages")));
            }
            // SAFETY: `mapping` is readable and writable over its length and is kept in `Inner`
            // beside the region for as long as that lives.
            let region = unsafe {
                MmapRegion::build_raw(
                    mapping.as_ptr(),
                    len,
                    PROT_READ_WRITE,
                    MAP_PRIVATE_NORESERVE_ANONYMOUS,
                )
            }
            .map_err(|error| MemoryError::Layout(error.to_string()))?;
            regions.push(GuestRegionMmap::new(region, guest).ok_or_else(|| {
                MemoryError::Layout(format!("{:#x} + {len:#x} overflows", guest.raw_value()))
            })?);
            mappings.push(mapping);
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| MemoryError::Layout(error.to_string()))?;
        Ok(Self { inner: Arc::new(Inner { memory, mappings }) })
    }

    /// The pieces, to be mapped into the guest.
    pub fn slots(&self) -> impl Iterator<Item = RamSlot> + '_ {
        self.inner.memory.iter().zip(&self.inner.mappings).map(|(region, mapping)| RamSlot {
            guest: region.start_addr(),
            host: mapping.as_ptr(),
            len: mapping.len(),
        })
    }

    /// Bytes of RAM in all.
    pub fn size(&self) -> u64 {
        self.inner.mappings.iter().map(|mapping| mapping.len() as u64).sum()
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
        for mapping in &self.inner.mappings {
            let _ = mapping.advise_huge(0..mapping.len());
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
        let (region, start) = self.region(at, size_of::<T>())?;
        region.read_obj(start).map_err(|_| out_of_range(at, size_of::<T>()))
    }

    /// Copies a value into guest RAM.
    pub fn write<T: ByteValued>(&self, at: GuestAddress, value: T) -> Result<(), MemoryError> {
        let (region, start) = self.region(at, size_of::<T>())?;
        region.write_obj(value, start).map_err(|_| out_of_range(at, size_of::<T>()))
    }

    /// Reads a little-endian u16 with acquire ordering (a ring's index).
    pub fn load_u16(&self, at: GuestAddress) -> Result<u16, MemoryError> {
        let (region, start) = self.region(at, 2)?;
        let value: u16 = region.load(start, Ordering::Acquire).map_err(|_| out_of_range(at, 2))?;
        Ok(u16::from_le(value))
    }

    /// Writes a little-endian u16 with release ordering (a ring's index).
    pub fn store_u16(&self, at: GuestAddress, value: u16) -> Result<(), MemoryError> {
        let (region, start) = self.region(at, 2)?;
        region.store(value.to_le(), start, Ordering::Release).map_err(|_| out_of_range(at, 2))
    }

    /// Fills `bytes` from guest RAM.
    pub fn read_bytes(&self, at: GuestAddress, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let (region, start) = self.region(at, bytes.len())?;
        region.read_slice(bytes, start).map_err(|_| out_of_range(at, bytes.len()))
    }

    /// Writes `bytes` to guest RAM.
    pub fn write_bytes(&self, at: GuestAddress, bytes: &[u8]) -> Result<(), MemoryError> {
        let (region, start) = self.region(at, bytes.len())?;
        region.write_slice(bytes, start).map_err(|_| out_of_range(at, bytes.len()))
    }

    /// The host memory behind `len` bytes at `at`, for vectored file I/O. It stays valid while
    /// `self` lives; nobody may make a Rust reference of it.
    pub fn piece(&self, at: GuestAddress, len: usize) -> Result<IoPiece, MemoryError> {
        let (mapping, start) = self.locate(at, len)?;
        Ok(IoPiece { addr: mapping.as_ptr().wrapping_add(start), len })
    }

    /// The region that holds all of `at .. at + len`, and the address in it. There are one or two, so
    /// this is quicker than `vm-memory`'s own search, which also joins neighbours; here are none.
    fn region(
        &self,
        at: GuestAddress,
        len: usize,
    ) -> Result<(&GuestRegionMmap<()>, MemoryRegionAddress), MemoryError> {
        self.inner
            .memory
            .iter()
            .find_map(|region| {
                let start = at.checked_offset_from(region.start_addr())?;
                let end = start.checked_add(len as u64)?;
                (end <= region.len()).then_some((region, MemoryRegionAddress(start)))
            })
            .ok_or_else(|| out_of_range(at, len))
    }

    /// The mapping that holds all of `at .. at + len`, and the offset in it.
    fn locate(&self, at: GuestAddress, len: usize) -> Result<(&Mapping, usize), MemoryError> {
        self.inner
            .memory
            .iter()
            .zip(&self.inner.mappings)
            .find_map(|(region, mapping)| {
                let start = usize::try_from(at.checked_offset_from(region.start_addr())?).ok()?;
                (start.checked_add(len)? <= mapping.len()).then_some((mapping, start))
            })
            .ok_or_else(|| out_of_range(at, len))
    }
}

/// `PROT_READ | PROT_WRITE`, as `vm-memory` wants to be told; nothing here depends on the values.
const PROT_READ_WRITE: i32 = 3;
/// `MAP_PRIVATE | MAP_NORESERVE | MAP_ANONYMOUS`, likewise.
const MAP_PRIVATE_NORESERVE_ANONYMOUS: i32 = 0x4022;

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
