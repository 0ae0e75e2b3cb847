//! The guest's page tables (Intel SDM 3A, chapter 4), walked where an instruction touches a device.

use crate::memory::Slots;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

/// `CR0.WP` and `CR0.PG`; `CR4.PSE`, `CR4.PAE` and `CR4.LA57`; `EFER.LMA`.
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

/// Bits 12 to 51: an address in an entry of eight bytes.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What decides how linear addresses become guest-physical ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paging {
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    /// Does it run with the rights of programs?
    pub(crate) user: bool,
}

/// How entries are laid out.
struct Layout {
    levels: u32,
    /// Bits of an address that one level takes.
    bits: u32,
    /// Bytes of an entry.
    entry: u64,
    root: u64,
}

impl Paging {
    fn layout(&self) -> Layout {
        if self.efer & EFER_LMA != 0 {
            let levels = if self.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
            Layout { levels, bits: 9, entry: 8, root: self.cr3 & FRAME }
        } else if self.cr4 & CR4_PAE != 0 {
            Layout { levels: 3, bits: 9, entry: 8, root: self.cr3 & 0xffff_ffe0 }
        } else {
            Layout { levels: 2, bits: 10, entry: 4, root: self.cr3 & 0xffff_f000 }
        }
    }

    /// The guest-physical address behind `linear`; `None` where the guest would have a page fault. As the processor
    /// does, it notes in the entries that they were used.
    pub(crate) fn translate(&self, slots: &mut Slots, linear: u64, write: bool) -> Option<u64> {
        if self.cr0 & CR0_PG == 0 {
            return Some(linear & 0xffff_ffff);
        }
        let Layout { levels, bits, entry: size, root } = self.layout();
        let (mut table, mut rights) = (root, WRITABLE | USER);
        for level in (0..levels).rev() {
            let shift = 12 + bits * level;
            // Of PAE's four pointers there are two bits.
            let index = linear >> shift
                & ((1 << if size == 8 && levels == 3 && level == 2 { 2 } else { bits }) - 1);
            let at = table + index * size;
            let entry = read(slots, at, size)?;
            if entry & PRESENT == 0 {
                return None;
            }
            let pointer = levels == 3 && level == 2;
            if !pointer {
                rights &= entry;
            }
            let large = match (level, size) {
                (0, _) => true,
                (1, 4) => entry & LARGE != 0 && self.cr4 & CR4_PSE != 0,
                (1 | 2, _) => !pointer && entry & LARGE != 0,
                _ => false,
            };
            let allowed = (!self.user || rights & USER != 0)
                && (!write || rights & WRITABLE != 0 || !self.user && self.cr0 & CR0_WP == 0);
            if large && !allowed {
                return None;
            }
            let used = entry | ACCESSED | if large && write { DIRTY } else { 0 };
            if used != entry && !pointer {
                note(slots, at, size, used)?;
            }
            let frame = if size == 4 { entry & 0xffff_f000 } else { entry & FRAME };
            if large {
                let within = (1u64 << shift) - 1;
                // Four bytes have more bits of the address of four MiB elsewhere.
                let high = if size == 4 && level == 1 { (entry >> 13 & 0xff) << 32 } else { 0 };
                return Some(frame & !within | high | linear & within);
            }
            table = frame;
        }
        None
    }
}

#[expect(clippy::cast_ptr_alignment, reason = "tables stand at multiples of their entries")]
fn read(slots: &Slots, at: u64, size: u64) -> Option<u64> {
    let place = slots.host(at, size as usize, false)?;
    // SAFETY: within mapped memory, by the line above, and aligned as entries are; the guest may change it meanwhile.
    Some(unsafe {
        if size == 4 {
            place.cast::<u32>().read_volatile().into()
        } else {
            place.cast::<u64>().read_volatile()
        }
    })
}

#[expect(clippy::cast_ptr_alignment, reason = "tables stand at multiples of their entries")]
fn note(slots: &mut Slots, at: u64, size: u64, entry: u64) -> Option<()> {
    // An entry in memory that cannot be changed stays as it is.
    let Some(place) = slots.host(at, size as usize, true) else { return Some(()) };
    slots.written(at).ok()?;
    // SAFETY: as above.
    unsafe {
        if size == 4 {
            place.cast::<u32>().write_volatile(entry as u32);
        } else {
            place.cast::<u64>().write_volatile(entry);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use cabana_hv::MemorySlot;
    use cabana_os::Mapping;

    use super::*;
    use crate::memory::Calls;

    const RW: u64 = PRESENT | WRITABLE;
    const LEN: usize = 0x10000;

    /// Memory with these words at these addresses.
    fn memory(words: &[(usize, u64)]) -> (Mapping, Slots) {
        unsafe extern "C" fn map(_: *mut std::ffi::c_void, _: u64, _: usize, _: u64) -> i32 {
            0
        }
        unsafe extern "C" fn unmap(_: u64, _: usize) -> i32 {
            0
        }
        unsafe extern "C" fn protect(_: u64, _: usize, _: u64) -> i32 {
            0
        }
        let memory = Mapping::anonymous(LEN).unwrap();
        let mut slots = Slots::new(Calls { map, unmap, protect, granule: 4096 });
        let host = memory.as_ptr();
        let slot = MemorySlot { guest: 0, host, len: LEN, read_only: false, track_dirty: false };
        // SAFETY: the memory goes after the slots, and has no references.
        unsafe { slots.map(&slot) }.unwrap();
        for (at, word) in words {
            // SAFETY: within the mapping.
            unsafe { host.add(*at).cast::<[u8; 8]>().write(word.to_le_bytes()) };
        }
        (memory, slots)
    }

    fn entry(slots: &Slots, at: u64) -> u64 {
        read(slots, at, 8).unwrap()
    }

    const LONG: Paging =
        Paging { cr0: CR0_PG | CR0_WP, cr3: 0x1000, cr4: CR4_PAE, efer: EFER_LMA, user: false };

    #[test]
    fn four_levels_with_large_pages_and_rights() {
        let (_memory, mut slots) = memory(&[
            (0x1000, 0x2000 | RW | USER),
            (0x2000, 0x3000 | RW | USER),
            (0x2008, 1 << 30 | RW | LARGE),
            (0x3000, 0x4000 | RW | USER),
            (0x3008, 0x20_0000 | PRESENT | LARGE),
            (0x4008, 0x9000 | RW | USER),
            (0x4010, 0xffff_f000 | PRESENT | USER | 1 << 63),
        ]);
        let slots = &mut slots;
        assert_eq!(LONG.translate(slots, 0x1234, false), Some(0x9234));
        assert_eq!(entry(slots, 0x4008) & (ACCESSED | DIRTY), ACCESSED);
        LONG.translate(slots, 0x1234, true).unwrap();
        assert_eq!(entry(slots, 0x4008) & DIRTY, DIRTY);
        assert_eq!(entry(slots, 0x3000) & (ACCESSED | DIRTY), ACCESSED);
        assert_eq!(LONG.translate(slots, 0x2fff, false), Some(0xffff_ffff));
        assert_eq!(LONG.translate(slots, 0x2fff, true), None, "not writable");
        let all = Paging { cr0: CR0_PG, ..LONG };
        assert_eq!(all.translate(slots, 0x2fff, true), Some(0xffff_ffff), "not protected");
        assert_eq!(LONG.translate(slots, 0x20_1234, false), Some(0x20_1234));
        assert_eq!(LONG.translate(slots, 0x4000_5678, true), Some(0x4000_5678));
        assert_eq!(LONG.translate(slots, 0x3000, false), None, "not present");
        assert_eq!(LONG.translate(slots, 1 << 39, false), None);
        let user = Paging { user: true, ..LONG };
        assert_eq!(user.translate(slots, 0x1234, true), Some(0x9234));
        assert_eq!(user.translate(slots, 0x4000_5678, false), None, "the kernel's");
        // Tables that lie where no memory is.
        let lost = Paging { cr3: 0xd000_0000, ..LONG };
        assert_eq!(lost.translate(slots, 0, false), None);
    }

    #[test]
    fn older_modes() {
        // Two levels: a page, and four MiB above 4 GiB.
        let four = u64::from(0x40_0000 | 1u32 << 13 | RW as u32 | LARGE as u32);
        let (_memory, mut slots) = memory(&[
            (0x1000, 0x3000 | RW | four << 32),
            (0x3008, 0x9000 | RW),
            // Three levels.
            (0x5000, 0x6000 | PRESENT),
            (0x6000, 0x7000 | RW),
            (0x6008, 0x20_0000 | RW | LARGE),
            (0x7008, 0xa000 | RW),
        ]);
        let slots = &mut slots;
        let two = Paging { cr4: CR4_PSE, efer: 0, ..LONG };
        assert_eq!(two.translate(slots, 0x2234, false), Some(0x9234));
        assert_eq!(two.translate(slots, 0x40_1234, false), Some(0x1_0040_1234));
        let three = Paging { cr3: 0x5000, efer: 0, ..LONG };
        assert_eq!(three.translate(slots, 0x1234, true), Some(0xa234));
        assert_eq!(three.translate(slots, 0x20_0042, true), Some(0x20_0042));
        assert_eq!(three.translate(slots, 0x4000_0000, true), None);
        let off = Paging { cr0: 0, ..LONG };
        assert_eq!(off.translate(slots, 0x1_0000_1234, true), Some(0x1234));
    }
}
