//! Accesses to system registers that the framework does not carry out itself.

use cabana_hv::arm64::SystemRegister;

/// What is done about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// Reads as zero, into this register of X0 to X30; 31 is none.
    Zero(u8),
    /// A write that changes nothing.
    Nothing,
    /// The guest's processor has no such register.
    Undefined,
}

/// Registers that a guest's kernel touches without asking whether they are there: of debugging (`OSLAR`, `OSLSR`,
/// `OSDLR`, `MDCCINT`), of limited ordering (`LORC`), of counters (`PMUSERENR`, `AMUSERENR`), and one without an
/// architecture (`ACTLR`).
const WITHOUT_EFFECT: [SystemRegister; 8] = [
    SystemRegister::new(2, 0, 1, 0, 4),
    SystemRegister::new(2, 0, 1, 1, 4),
    SystemRegister::new(2, 0, 1, 3, 4),
    SystemRegister::new(2, 0, 0, 2, 0),
    SystemRegister::new(3, 0, 10, 4, 3),
    SystemRegister::new(3, 3, 9, 14, 0),
    SystemRegister::new(3, 3, 13, 2, 3),
    SystemRegister::new(3, 0, 1, 0, 1),
];

/// Registers that say what the processor has, and zero of what was not thought of when it was made (Arm DDI 0487
/// D23.3.1): from `S3_0_C0_C1_0` to `S3_0_C0_C7_7`.
const IDENTITIES: std::ops::RangeInclusive<SystemRegister> =
    SystemRegister::new(3, 0, 0, 1, 0)..=SystemRegister::new(3, 0, 0, 7, 7);

impl Trap {
    /// By the syndrome.
    pub(crate) fn of(syndrome: u64) -> Self {
        let field = |at: u32, mask: u64| (syndrome >> at & mask) as u16;
        let name = SystemRegister::new(
            field(20, 3),
            field(14, 7),
            field(10, 15),
            field(1, 15),
            field(17, 7),
        );
        let read = syndrome & 1 != 0;
        let register = (syndrome >> 5 & 31) as u8;
        if read && (IDENTITIES.contains(&name) || WITHOUT_EFFECT.contains(&name)) {
            return Self::Zero(register);
        }
        if WITHOUT_EFFECT.contains(&name) { Self::Nothing } else { Self::Undefined }
    }
}

/// Where an exception from `pstate` leads from the vectors' base (Arm DDI 0487 D1.3.1): by the level and the stack
/// pointer that it comes from.
pub(crate) fn vector(pstate: u64) -> u64 {
    match pstate & 0xf {
        0b0100 => 0x000,
        0b0101 => 0x200,
        _ if pstate & 1 << 4 != 0 => 0x600,
        _ => 0x400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syndrome(name: [u64; 5], register: u64, read: bool) -> u64 {
        let [op0, op1, crn, crm, op2] = name;
        op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | register << 5 | crm << 1 | u64::from(read)
    }

    #[test]
    fn what_kernels_touch_blindly_has_no_effect_and_all_else_is_undefined() {
        assert_eq!(Trap::of(syndrome([2, 0, 1, 0, 4], 31, false)), Trap::Nothing);
        assert_eq!(Trap::of(syndrome([3, 0, 1, 0, 1], 9, true)), Trap::Zero(9));
        // ID_AA64ISAR2_EL1, which is read alone.
        assert_eq!(Trap::of(syndrome([3, 0, 0, 6, 2], 9, true)), Trap::Zero(9));
        assert_eq!(Trap::of(syndrome([3, 0, 0, 6, 2], 9, false)), Trap::Undefined);
        // MIDR_EL1 is none of them, nor is PMCR_EL0.
        assert_eq!(Trap::of(syndrome([3, 0, 0, 0, 0], 9, true)), Trap::Undefined);
        assert_eq!(Trap::of(syndrome([3, 3, 9, 12, 0], 9, true)), Trap::Undefined);
    }

    #[test]
    fn exceptions_lead_where_they_come_from() {
        assert_eq!([0x3c5, 0x4, 0x0, 0x10].map(vector), [0x200, 0, 0x400, 0x600]);
    }
}
