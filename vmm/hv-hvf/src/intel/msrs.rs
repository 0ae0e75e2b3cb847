//! Model-specific registers (Intel SDM 4). Some the guest uses by itself, the APIC has its own, and the others that a
//! guest's kernel takes for granted are kept here, without an effect.

use std::collections::BTreeMap;

/// `IA32_TIME_STAMP_COUNTER` and `IA32_EFER`.
pub(crate) const TSC: u32 = 0x10;
pub(crate) const EFER: u32 = 0xc000_0080;

/// What the guest uses without exits: SYSENTER's, SYSCALL's, the bases of FS and GS, GS's other base, and `TSC_AUX`.
pub(crate) const NATIVE: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    FS_BASE,
    GS_BASE,
    0xc000_0102,
    0xc000_0103,
];
/// These are the segments' own.
pub(crate) const FS_BASE: u32 = 0xc000_0100;
pub(crate) const GS_BASE: u32 = 0xc000_0101;

const PAT: u32 = 0x277;
/// Write-back, write-through, uncached minus, uncached, and the same again.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// `IA32_MTRRCAP`: eight variable ranges, fixed ones, write-combining.
const MTRR_CAP: (u32, u64) = (0xfe, 1 << 10 | 1 << 8 | 8);

/// What may only be read: the platform's id, features that are locked, machine checks that there are none of, and what
/// the MTRRs can.
const READ_ONLY: [(u32, u64); 4] = [(0x17, 0), (0x3a, 1), (0x179, 0), MTRR_CAP];

/// The update's revision, the machine check's status, branch records, the MTRRs; and of AMD's processors: system
/// configuration, hardware configuration, the north bridge's, the load-store unit's, and that LFENCE waits.
const HELD: [(u32, u64); 22] = [
    (0x8b, 0),
    (0x17a, 0),
    (0x1d9, 0),
    (0x250, 0),
    (0x258, 0),
    (0x259, 0),
    (0x268, 0),
    (0x269, 0),
    (0x26a, 0),
    (0x26b, 0),
    (0x26c, 0),
    (0x26d, 0),
    (0x26e, 0),
    (0x26f, 0),
    (PAT, PAT_RESET),
    (0x2ff, 0),
    (0xc001_0010, 0),
    (0xc001_0015, 0),
    (0xc001_001f, 0),
    (0xc001_0055, 0),
    (0xc001_1020, 0),
    (0xc001_1029, 2),
];
/// Base and mask of each of the eight variable ranges.
const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;

/// The registers that are kept.
#[derive(Clone, Debug)]
pub(crate) struct Msrs(BTreeMap<u32, u64>);

impl Msrs {
    /// As after reset, but for those that are given.
    pub(crate) fn new(given: &[(u32, u64)]) -> Self {
        let ranges = MTRR_VARIABLE.map(|msr| (msr, 0));
        let all = HELD.into_iter().chain(READ_ONLY).chain(ranges).chain(given.iter().copied());
        Self(all.collect())
    }

    pub(crate) fn read(&self, msr: u32) -> Option<u64> {
        self.0.get(&msr).copied()
    }

    /// `false` if that is a fault.
    pub(crate) fn write(&mut self, msr: u32, value: u64) -> bool {
        let types = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
        let refused = READ_ONLY.iter().any(|(own, _)| *own == msr) || msr == PAT && !types;
        match self.0.get_mut(&msr) {
            Some(held) if !refused => {
                *held = value;
                true
            }
            _ => false,
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.0.iter().map(|(&msr, &value)| (msr, value))
    }

    /// Takes a saved one over, if it is one of these.
    pub(crate) fn restore(&mut self, msr: u32, value: u64) -> bool {
        self.0.get_mut(&msr).map(|held| *held = value).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_kept_and_nothing_else() {
        let mut msrs = Msrs::new(&[(0x2ff, 0x806), (0x1a0, 1)]);
        assert_eq!((msrs.read(0x2ff), msrs.read(0x1a0)), (Some(0x806), Some(1)));
        assert!(msrs.write(0x20f, 7) && msrs.read(0x20f) == Some(7));
        assert!(!msrs.write(0xfe, 0) && !msrs.write(0xdead_beef, 0));
        assert_eq!(msrs.read(0xdead_beef), None);
        assert!(!msrs.write(PAT, 2) && msrs.write(PAT, 0x0606_0606_0606_0606));
    }
}
