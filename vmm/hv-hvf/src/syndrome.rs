//! What the processor says of an exception (Arm DDI 0487, `ESR_EL2`).

/// Exception classes.
pub(crate) const WAIT: u64 = 0x01;
pub(crate) const HVC: u64 = 0x16;
pub(crate) const SMC: u64 = 0x17;
pub(crate) const SYSTEM_REGISTER: u64 = 0x18;
pub(crate) const INSTRUCTION_ABORT: u64 = 0x20;
pub(crate) const DATA_ABORT: u64 = 0x24;

/// An exception's class.
pub(crate) fn class(syndrome: u64) -> u64 {
    syndrome >> 26 & 0x3f
}

/// Of [`WAIT`]: waits for an interrupt, not for an event.
pub(crate) fn waits_for_interrupt(syndrome: u64) -> bool {
    // WFE and WFET are odd.
    syndrome & 1 == 0
}

/// Of [`DATA_ABORT`]: the memory is there, but not for this.
pub(crate) fn is_permission(syndrome: u64) -> bool {
    syndrome & 0x3c == 0x0c
}

/// A data abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// A load or store of one register.
    Access(Access),
    /// A cache is cleaned where there is none.
    Maintenance,
    /// The processor itself, which looks for page tables.
    Walk,
    /// An instruction that the processor does not describe.
    Undescribed,
}

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) write: bool,
    /// Bytes: 1, 2, 4 or 8.
    pub(crate) size: u8,
    /// X0 to X30; 31 is none.
    pub(crate) register: u8,
    /// What is loaded is signed.
    signed: bool,
    /// And fills 64 bits.
    wide: bool,
}

impl Abort {
    /// Of the syndrome of a [`DATA_ABORT`].
    pub(crate) fn of(syndrome: u64) -> Self {
        let bit = |at: u32| syndrome >> at & 1 != 0;
        if bit(8) {
            return Self::Maintenance;
        }
        if bit(7) {
            return Self::Walk;
        }
        if !bit(24) {
            return Self::Undescribed;
        }
        Self::Access(Access {
            write: bit(6),
            size: 1 << (syndrome >> 22 & 3),
            register: (syndrome >> 16 & 31) as u8,
            signed: bit(21),
            wide: bit(15),
        })
    }
}

impl Access {
    /// The low bytes of `value` that the access has.
    pub(crate) fn cut(self, value: u64) -> u64 {
        value & u64::MAX >> (64 - 8 * u32::from(self.size))
    }

    /// What is in the register after a load of `data`.
    pub(crate) fn loaded(self, data: u64) -> u64 {
        let unused = 64 - 8 * u32::from(self.size);
        if !self.signed {
            return self.cut(data);
        }
        let value = (((data << unused) as i64) >> unused) as u64;
        if self.wide { value } else { value & 0xffff_ffff }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ISV`, and a translation fault at level 3.
    const VALID: u64 = DATA_ABORT << 26 | 1 << 25 | 1 << 24 | 0x07;

    fn access(bits: u64) -> Access {
        match Abort::of(VALID | bits) {
            Abort::Access(access) => access,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn stores_and_loads_of_every_width_are_understood() {
        for (sas, size) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
            let store = access(sas << 22 | 7 << 16 | 1 << 6);
            assert_eq!((store.write, store.size, store.register), (true, size, 7));
            let load = access(sas << 22 | 31 << 16);
            assert_eq!((load.write, load.size, load.register), (false, size, 31));
        }
        assert_eq!(access(3 << 22).cut(u64::MAX), u64::MAX);
        assert_eq!(access(1 << 22).cut(0x12_3456), 0x3456);
    }

    #[test]
    fn loads_extend_as_the_instruction_says() {
        let (signed, wide) = (1 << 21, 1 << 15);
        assert_eq!(access(0).loaded(0xff81), 0x81);
        assert_eq!(access(signed).loaded(0x81), 0xffff_ff81);
        assert_eq!(access(signed | wide).loaded(0x81), 0xffff_ffff_ffff_ff81);
        assert_eq!(access(1 << 22 | signed | wide).loaded(0x7fff), 0x7fff);
        assert_eq!(access(2 << 22 | signed | wide).loaded(0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(access(3 << 22 | wide).loaded(u64::MAX), u64::MAX);
    }

    #[test]
    fn what_is_no_access_is_told_apart() {
        assert_eq!(Abort::of(VALID & !(1 << 24)), Abort::Undescribed);
        assert_eq!(Abort::of(VALID | 1 << 8), Abort::Maintenance);
        assert_eq!(Abort::of(VALID & !(1 << 24) | 1 << 7), Abort::Walk);
        assert!(!is_permission(VALID));
        assert!(is_permission(VALID & !0x3f | 0x0f));
        assert_eq!(class(VALID), DATA_ABORT);
        assert!(waits_for_interrupt(WAIT << 26) && !waits_for_interrupt(WAIT << 26 | 1));
    }
}
