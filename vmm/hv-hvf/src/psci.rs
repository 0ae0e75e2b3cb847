//! The power state interface (Arm DEN 0022), which is ours here: the framework hands `HVC` and `SMC` over.

/// Answers.
pub(crate) const SUCCESS: i64 = 0;
pub(crate) const NOT_SUPPORTED: i64 = -1;
pub(crate) const INVALID_PARAMETERS: i64 = -2;
pub(crate) const ALREADY_ON: i64 = -4;
pub(crate) const ON_PENDING: i64 = -5;
/// Of `PSCI_VERSION`: 1.1.
pub(crate) const VERSION: i64 = 0x1_0001;
/// Of `MIGRATE_INFO_TYPE`: there is nothing to migrate.
pub(crate) const NOTHING_TO_MIGRATE: i64 = 2;

/// The functions' numbers: those of calls with 32-bit arguments, and the bit that makes them 64.
const PSCI: u32 = 0x8400_0000;
const WIDE: u32 = 1 << 30;
/// All affinity fields of `MPIDR_EL1`.
const AFFINITY: u64 = 0xff_00ff_ffff;
/// vCPUs of a cluster.
const CLUSTER: u32 = 16;

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Version,
    Suspend,
    Off,
    On {
        target: u64,
        entry: u64,
        context: u64,
    },
    AffinityInfo {
        target: u64,
    },
    MigrateInfoType,
    PowerOff,
    Reset,
    /// Is there a function of this number?
    Features(u32),
    Unknown,
}

impl Call {
    /// By the first registers.
    pub(crate) fn of(x: [u64; 4]) -> Self {
        let function = x[0] as u32;
        let wide = function & WIDE != 0;
        let argument = |at: usize| if wide { x[at] } else { x[at] & 0xffff_ffff };
        match (function & !WIDE).wrapping_sub(PSCI) {
            0 if !wide => Self::Version,
            1 => Self::Suspend,
            2 if !wide => Self::Off,
            3 => Self::On { target: argument(1), entry: argument(2), context: argument(3) },
            4 => Self::AffinityInfo { target: argument(1) },
            6 if !wide => Self::MigrateInfoType,
            8 if !wide => Self::PowerOff,
            9 if !wide => Self::Reset,
            10 if !wide => Self::Features(x[1] as u32),
            _ => Self::Unknown,
        }
    }
}

/// The affinity of a vCPU, as `MPIDR_EL1` has it.
pub(crate) fn affinity(index: u32) -> u64 {
    u64::from(index % CLUSTER) | u64::from(index / CLUSTER) << 8
}

/// The vCPU of an affinity, if there can be one.
pub(crate) fn index(affinity: u64) -> Option<usize> {
    let (within, cluster) = (affinity & 0xff, affinity >> 8 & 0xff);
    let known = affinity & AFFINITY == affinity && affinity >> 16 == 0;
    (known && within < CLUSTER.into()).then_some((within + cluster * u64::from(CLUSTER)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_by_their_numbers() {
        let call = |function: u64| Call::of([function, 0x1_0000_0001, 2, 3]);
        assert_eq!(call(0x8400_0000), Call::Version);
        assert_eq!(call(0x8400_0003), Call::On { target: 1, entry: 2, context: 3 });
        let on = Call::On { target: 0x1_0000_0001, entry: 2, context: 3 };
        assert_eq!(call(0xc400_0003), on);
        assert_eq!(call(0x8400_000a), Call::Features(1));
        for function in [0xc400_0000, 0x8400_1fff, 0xbeef, 0, 0x8000_0000, u64::MAX] {
            assert_eq!(call(function), Call::Unknown, "{function:#x}");
        }
    }

    #[test]
    fn affinities_lead_back_to_their_vcpus() {
        for vcpu in [0, 1, 15, 16, 17, 255, 256, 4095] {
            assert_eq!(index(affinity(vcpu)), Some(vcpu as usize));
        }
        for nobody in [16, 0x1_0000, 1 << 32, 1 << 31, u64::MAX] {
            assert_eq!(index(nobody), None, "{nobody:#x}");
        }
    }
}
