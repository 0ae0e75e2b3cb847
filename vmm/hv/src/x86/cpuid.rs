//! The processor that a guest sees: one socket, N cores of one thread each, nothing to calibrate
//! (Intel SDM 2A, CPUID; AMD APM 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst).

use super::CpuidLeaf;

/// What [`for_guest`] has to know beside the host's leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which vCPU: its APIC id.
    pub index: u32,
    /// How many vCPUs the guest has, at least 1.
    pub count: u32,
    /// Ticks per second of the guest's time-stamp counter, in kHz; 0 where nobody knows.
    pub tsc_khz: u32,
    /// Ticks per second of the local APIC's timer before its divider, in kHz.
    pub apic_khz: u32,
}

/// `GenuineIntel` in EBX, EDX, ECX of leaf 0.
const VENDOR_INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
/// `KVMKVMKVM` in EBX, ECX, EDX of leaf [`PV_SIGNATURE`].
const SIGNATURE_KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];

const PV_SIGNATURE: u32 = 0x4000_0000;
const PV_FEATURES: u32 = 0x4000_0001;
const PV_TIMING: u32 = 0x4000_0010;
/// Leaves of hypervisors end here.
const PV_LAST: u32 = 0x4000_ffff;
/// `CabanaCabana` in EBX, ECX, EDX of leaf [`PV_SIGNATURE`], where the hypervisor is not KVM.
const SIGNATURE_OWN: [u32; 3] = [0x6162_6143, 0x4361_6e61, 0x616e_6162];

/// Leaf 1 ECX: VMX, x2APIC, TSC-deadline timer, running under a hypervisor.
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX says how many logical processors there are.
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX: the APIC timer never stops.
const ARAT: u32 = 1 << 2;
/// Leaf `0x8000_0001` ECX: several cores; SVM; topology leaves.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
/// Leaf `0x4000_0001` EAX, three bits of one feature: the host tells the guest that it is fetching
/// a page. A notification in flight is lost when a snapshot is restored elsewhere, and memory that
/// was never touched, the usual case here, is not fetched from anywhere.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// The leaves of vCPU `options.index`, made of what the host supports.
///
/// Linux then calibrates nothing: with kvmclock it takes the TSC's frequency from the hypervisor's
/// page (`kvm_get_tsc_khz`) and presets `loops_per_jiffy` with it; on an Intel processor without
/// kvmclock it takes it from leaf 0x15 (`native_calibrate_tsc`), exactly known both times, so that
/// it is not refined later either. The TSC-deadline bit makes `calibrate_APIC_clock` return at once,
/// and with the ARAT bit `apic_needs_pit` asks for no PIT. Other systems read leaf `0x4000_0010`.
///
/// Nested virtualization is hidden: it is attack surface that no sandbox needs.
pub fn for_guest(supported: &[CpuidLeaf], options: Options) -> Vec<CpuidLeaf> {
    let mut leaves: Vec<CpuidLeaf> =
        supported.iter().copied().filter(|leaf| !matches!(leaf.function, 0xb | 0x1f)).collect();
    let intel = is_intel(supported);
    features(&mut leaves);
    topology(&mut leaves, options, intel);
    frequencies(&mut leaves, options, intel);
    if is_kvm(&leaves) {
        paravirtual(&mut leaves, options);
    } else {
        timing_alone(&mut leaves, options);
    }
    leaves
}

/// Does a guest with [`for_guest`]'s leaves of `supported` learn the frequency of its time-stamp counter from
/// them? If not, its command line has to say it.
pub fn tells_tsc(supported: &[CpuidLeaf]) -> bool {
    is_kvm(supported) || is_intel(supported)
}

/// Takes XSAVE and all that needs it (AVX, AMX, protection keys) out of `leaves`.
pub fn hide_xsave(leaves: &mut Vec<CpuidLeaf>) {
    // Leaf 1 ECX: FMA, XSAVE, OSXSAVE, AVX, F16C.
    const LEAF_1_ECX: u32 = 1 << 12 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;
    // Leaf 7 EBX: AVX2, MPX, AVX-512 (F, DQ, IFMA, PF, ER, CD, BW, VL).
    const LEAF_7_EBX: u32 =
        1 << 5 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 0b111 << 26 | 1 << 30 | 1 << 31;
    // Leaf 7 ECX: AVX-512 VBMI, PKU, OSPKE, VBMI2, CET shadow stacks, VAES, VPCLMULQDQ, VNNI,
    // BITALG, VPOPCNTDQ.
    const LEAF_7_ECX: u32 = 1 << 1 | 0b11 << 3 | 0b11 << 6 | 0b1111 << 9 | 1 << 14;
    // Leaf 7 EDX: AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT, CET branch tracking, AMX, AVX-512 FP16.
    const LEAF_7_EDX: u32 = 0b11 << 2 | 1 << 8 | 1 << 20 | 0b1111 << 22;
    // Leaf 0x8000_0001 ECX: XOP, LWP, FMA4.
    const EXTENDED_ECX: u32 = 1 << 11 | 1 << 15 | 1 << 16;
    // 0xd lists the state components, 0x1d and 0x1e describe AMX, 0x24 AVX10.
    leaves.retain(|leaf| {
        !matches!(
            (leaf.function, leaf.index),
            (0xd | 0x1d | 0x1e | 0x24 | 0x8000_001c, _) | (7, Some(1..))
        )
    });
    for leaf in leaves {
        match leaf.function {
            1 => leaf.ecx &= !LEAF_1_ECX,
            7 => {
                leaf.eax = 0;
                leaf.ebx &= !LEAF_7_EBX;
                leaf.ecx &= !LEAF_7_ECX;
                leaf.edx &= !LEAF_7_EDX;
            }
            0x8000_0001 => leaf.ecx &= !EXTENDED_ECX,
            _ => {}
        }
    }
}

/// Why a guest that has seen one processor cannot go on with another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another maker, family, model or stepping.
    #[error("it was another processor ({was}; here {here})")]
    Processor {
        /// What the guest has seen.
        was: String,
        /// What there is.
        here: String,
    },
    /// Features that are not there.
    #[error(
        "this host lacks features of its processor (CPUID {function:#x}.{index}: {missing:#x})"
    )]
    Features {
        /// The leaf.
        function: u32,
        /// Its index.
        index: u32,
        /// The bits that are missing in the first register that lacks any.
        missing: u32,
    },
    /// Another layout of what XSAVE saves.
    #[error("this host saves its vector registers otherwise")]
    Xsave,
}

/// Leaves of nothing but feature bits, and of which registers (EAX, EBX, ECX, EDX). Left out are bits
/// that the guest sets itself (OSXSAVE, OSPKE) and leaf 6, which is made up.
const FEATURES: [(u32, u32, [u32; 4]); 9] = [
    (1, 0, [0, 0, !(1 << 27), !0]),
    (7, 0, [0, !0, !(1 << 4), !0]),
    (7, 1, [!0, !0, !0, !0]),
    (7, 2, [0, 0, 0, !0]),
    (0xd, 1, [!0, 0, 0, 0]),
    (PV_FEATURES, 0, [!0, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, !0, !0]),
    (0x8000_0008, 0, [0, !0, 0, 0]),
    (0x8000_0021, 0, [!0, 0, 0, 0]),
];

/// Can a guest that has seen `was` (leaves of [`for_guest`]) go on where `here` is what a guest of the
/// same shape would see? A processor that can more will do.
pub fn check_compatible(was: &[CpuidLeaf], here: &[CpuidLeaf]) -> Result<(), Mismatch> {
    let (old, new) = (processor(was), processor(here));
    if old != new {
        return Err(Mismatch::Processor { was: old, here: new });
    }
    for (function, index, masks) in FEATURES {
        let registers = |leaves| {
            let leaf = find_index(leaves, function, index).copied().unwrap_or_default();
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        };
        for ((was, here), mask) in registers(was).into_iter().zip(registers(here)).zip(masks) {
            let missing = was & !here & mask;
            if missing != 0 {
                return Err(Mismatch::Features { function, index, missing });
            }
        }
    }
    // Which components there are, and where they stand.
    for index in 0..63 {
        let layout = |leaves| {
            let leaf = find_index(leaves, 0xd, index).copied().unwrap_or_default();
            match index {
                0 => (leaf.eax, leaf.edx, 0),
                1 => (0, 0, 0),
                _ => (leaf.eax, leaf.ebx, leaf.ecx),
            }
        };
        if layout(was) != layout(here) {
            return Err(Mismatch::Xsave);
        }
    }
    Ok(())
}

/// Maker, family, model and stepping, for people.
fn processor(leaves: &[CpuidLeaf]) -> String {
    let maker = find(leaves, 0).copied().unwrap_or_default();
    let bytes: Vec<u8> =
        [maker.ebx, maker.edx, maker.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    let printable = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' };
    let maker: String = bytes.iter().map(printable).collect();
    format!("{maker} {:#x}", find(leaves, 1).map_or(0, |leaf| leaf.eax))
}

fn find_index(leaves: &[CpuidLeaf], function: u32, index: u32) -> Option<&CpuidLeaf> {
    leaves.iter().find(|leaf| leaf.function == function && leaf.index.unwrap_or(0) == index)
}

/// Is it an Intel processor?
pub fn is_intel(leaves: &[CpuidLeaf]) -> bool {
    find(leaves, 0).is_some_and(|leaf| [leaf.ebx, leaf.edx, leaf.ecx] == VENDOR_INTEL)
}

/// Do these leaves tell of KVM, with its paravirtual clock?
pub fn is_kvm(leaves: &[CpuidLeaf]) -> bool {
    find(leaves, PV_SIGNATURE).is_some_and(|leaf| [leaf.ebx, leaf.ecx, leaf.edx] == SIGNATURE_KVM)
}

fn features(leaves: &mut Vec<CpuidLeaf>) {
    for leaf in leaves.iter_mut() {
        match leaf.function {
            1 => leaf.ecx = leaf.ecx & !VMX | X2APIC | TSC_DEADLINE | HYPERVISOR,
            0x8000_0001 => leaf.ecx &= !SVM,
            _ => {}
        }
    }
    // 0x8000_000a describes SVM.
    leaves.retain(|leaf| leaf.function != 0x8000_000a);
    raise_max_basic(leaves, 0xb);
    at(leaves, 6).eax |= ARAT;
}

/// The legacy fields and the topology leaves agree: APIC id = core number, one socket.
fn topology(leaves: &mut Vec<CpuidLeaf>, options: Options, intel: bool) {
    let (index, count) = (options.index, options.count.max(1));
    let id_bits = count.next_power_of_two().trailing_zeros();
    let ids = 1 << id_bits;
    for leaf in leaves.iter_mut() {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0xffff | (ids & 0xff) << 16 | index << 24;
                leaf.edx = if count > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
            }
            // Caches: who shares this one (all cores the third level), cores of the socket.
            4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let level = leaf.eax >> 5 & 7;
                let sharing = if level >= 3 { ids - 1 } else { 0 };
                let cores = if leaf.function == 4 { (ids - 1).min(0x3f) } else { 0 };
                leaf.eax = leaf.eax & 0x3fff | (sharing & 0xfff) << 14 | cores << 26;
            }
            0x8000_0001 if !intel => {
                leaf.ecx = if count > 1 { leaf.ecx | CMP_LEGACY } else { leaf.ecx & !CMP_LEGACY };
            }
            0x8000_0008 if !intel => {
                leaf.ecx = leaf.ecx & !0xf0ff | (count - 1) & 0xff | id_bits << 12;
            }
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (index, index & 0xff, 0),
            _ => {}
        }
    }
    let max = find(leaves, 0).map_or(0, |leaf| leaf.eax);
    for function in [0xb, 0x1f].into_iter().filter(|&function| function <= max) {
        // Threads of a core, then cores of the socket, then the end of the list.
        for (level, shift, processors, kind) in [(0, 0, 1, 1), (1, id_bits, count, 2), (2, 0, 0, 0)]
        {
            leaves.push(CpuidLeaf {
                function,
                index: Some(level),
                eax: shift,
                ebx: processors,
                ecx: level | kind << 8,
                edx: index,
            });
        }
    }
}

/// Leaves 0x15 and 0x16, which only Intel defines. The crystal is the APIC timer's clock, since
/// Linux takes it for that; the ratio is the closest one whose product Linux can compute in 32 bits.
fn frequencies(leaves: &mut Vec<CpuidLeaf>, options: Options, intel: bool) {
    let Options { tsc_khz, apic_khz, .. } = options;
    leaves.retain(|leaf| !matches!(leaf.function, 0x15 | 0x16));
    let Some(crystal_hz) = apic_khz.checked_mul(1000) else { return };
    if !intel || tsc_khz == 0 || apic_khz == 0 {
        return;
    }
    let (numerator, denominator) = closest_ratio(tsc_khz, apic_khz, u32::MAX / apic_khz);
    raise_max_basic(leaves, 0x16);
    leaves.push(CpuidLeaf {
        function: 0x15,
        index: None,
        eax: denominator,
        ebx: numerator,
        ecx: crystal_hz,
        edx: 0,
    });
    let mhz = (tsc_khz / 1000) & 0xffff;
    let bus_mhz = (apic_khz / 1000) & 0xffff;
    leaves.push(CpuidLeaf {
        function: 0x16,
        index: None,
        eax: mhz,
        ebx: mhz,
        ecx: bus_mhz,
        edx: 0,
    });
}

fn paravirtual(leaves: &mut Vec<CpuidLeaf>, options: Options) {
    at(leaves, PV_FEATURES).eax &= !ASYNC_PAGE_FAULTS;
    at(leaves, PV_SIGNATURE).eax = if options.tsc_khz == 0 {
        PV_FEATURES
    } else {
        let timing = at(leaves, PV_TIMING);
        (timing.eax, timing.ebx) = (options.tsc_khz, options.apic_khz);
        PV_TIMING
    };
}

/// In place of another hypervisor's interface, which nobody serves here: a name that no system knows, and the
/// frequencies.
fn timing_alone(leaves: &mut Vec<CpuidLeaf>, options: Options) {
    leaves.retain(|leaf| !(PV_SIGNATURE..=PV_LAST).contains(&leaf.function));
    let [ebx, ecx, edx] = SIGNATURE_OWN;
    leaves.push(CpuidLeaf { function: PV_SIGNATURE, index: None, eax: PV_TIMING, ebx, ecx, edx });
    let timing = at(leaves, PV_TIMING);
    (timing.eax, timing.ebx) = (options.tsc_khz, options.apic_khz);
}

/// Makes the list of basic leaves at least this long; those between read as zero.
fn raise_max_basic(leaves: &mut Vec<CpuidLeaf>, function: u32) {
    let first = at(leaves, 0);
    first.eax = first.eax.max(function);
}

fn find(leaves: &[CpuidLeaf], function: u32) -> Option<&CpuidLeaf> {
    leaves.iter().find(|leaf| leaf.function == function)
}

/// The first leaf of `function`, made if it is not there.
fn at(leaves: &mut Vec<CpuidLeaf>, function: u32) -> &mut CpuidLeaf {
    let position = leaves.iter().position(|leaf| leaf.function == function).unwrap_or_else(|| {
        leaves.push(CpuidLeaf { function, ..CpuidLeaf::default() });
        leaves.len() - 1
    });
    &mut leaves[position]
}

/// The fraction closest to `value / unit` among the convergents of its continued fraction whose
/// numerator is at most `limit`. Neither number may be 0.
fn closest_ratio(value: u32, unit: u32, limit: u32) -> (u32, u32) {
    let (mut rest, mut divisor) = (u64::from(value), u64::from(unit));
    let (mut before, mut found) = ((0u64, 1u64), (1u64, 0u64));
    while divisor != 0 {
        let quotient = rest / divisor;
        let next = (quotient * found.0 + before.0, quotient * found.1 + before.1);
        if next.0 > u64::from(limit) {
            break;
        }
        (before, found) = (found, next);
        (rest, divisor) = (divisor, rest % divisor);
    }
    // A value above the limit's whole range has no convergent: say the limit.
    if found.1 == 0 { (limit, 1) } else { (found.0 as u32, found.1 as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidLeaf {
        CpuidLeaf { function, index: None, eax, ebx, ecx, edx }
    }

    fn host(vendor: &[u8; 12]) -> Vec<CpuidLeaf> {
        let register = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let (ebx, edx, ecx) = (register(0), register(4), register(8));
        vec![
            leaf(0, 0xd, ebx, ecx, edx),
            leaf(1, 0x806f8, 0x7fff_0800, VMX | 1 << 26, HTT),
            CpuidLeaf { index: Some(0), ..leaf(4, 0xfc00_4121, 0, 0, 0) },
            CpuidLeaf { index: Some(3), ..leaf(4, 0xfc00_4163, 0, 0, 0) },
            CpuidLeaf { index: Some(0), ..leaf(7, 2, u32::MAX, u32::MAX, u32::MAX) },
            CpuidLeaf { index: Some(1), ..leaf(7, u32::MAX, 0, 0, 0) },
            CpuidLeaf { index: Some(0), ..leaf(0xb, 5, 5, 5, 5) },
            CpuidLeaf { index: Some(0), ..leaf(0xd, 0xe7, 0, 0, 0) },
            leaf(PV_SIGNATURE, PV_FEATURES, SIGNATURE_KVM[0], SIGNATURE_KVM[1], SIGNATURE_KVM[2]),
            leaf(PV_FEATURES, 0x0100_7efb, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, SVM | 1, 0),
            leaf(0x8000_0008, 0x3030, 0, 0x7007, 0),
            leaf(0x8000_000a, 1, 8, 0, 0),
            leaf(0x8000_001e, 9, 9, 9, 0),
        ]
    }

    const INTEL: &[u8; 12] = b"GenuineIntel";
    const AMD: &[u8; 12] = b"AuthenticAMD";
    const FOUR: Options = Options { index: 2, count: 4, tsc_khz: 2_600_000, apic_khz: 1_000_000 };

    fn get(leaves: &[CpuidLeaf], function: u32, index: Option<u32>) -> CpuidLeaf {
        let mut found =
            leaves.iter().filter(|leaf| (leaf.function, leaf.index) == (function, index));
        let leaf = *found.next().expect("the leaf is there");
        assert!(found.next().is_none(), "leaf {function:#x} {index:?} is there twice");
        leaf
    }

    #[test]
    fn every_view_of_the_topology_agrees() {
        let leaves = for_guest(&host(INTEL), FOUR);
        let one = get(&leaves, 1, None);
        assert_eq!(one.ebx, 2 << 24 | 4 << 16 | 0x0800);
        assert_ne!(one.edx & HTT, 0);
        let (smt, core) = (get(&leaves, 0xb, Some(0)), get(&leaves, 0xb, Some(1)));
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (0, 1, 0x100, 2));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, 2));
        assert_eq!(get(&leaves, 0xb, Some(2)).ebx, 0);
        assert_eq!(get(&leaves, 4, Some(0)).eax, 0x121 | 3 << 26);
        assert_eq!(get(&leaves, 4, Some(3)).eax, 0x163 | 3 << 14 | 3 << 26);

        let leaves = for_guest(&host(AMD), Options { count: 3, ..FOUR });
        assert_eq!(get(&leaves, 0x8000_0001, None).ecx, CMP_LEGACY | 1);
        assert_eq!(get(&leaves, 0x8000_0008, None).ecx, 2 | 2 << 12);
        assert_eq!(get(&leaves, 0x8000_001e, None).eax, 2);
        assert_eq!(get(&leaves, 0xb, Some(1)).ebx, 3);

        let alone = for_guest(&host(AMD), Options { index: 0, count: 1, ..FOUR });
        assert_eq!(get(&alone, 1, None).ebx, 1 << 16 | 0x0800);
        assert_eq!(get(&alone, 1, None).edx & HTT, 0);
        assert_eq!(get(&alone, 0x8000_0001, None).ecx, 1);
        assert_eq!(get(&alone, 0xb, Some(1)).ebx, 1);
    }

    #[test]
    fn nothing_is_left_to_calibrate() {
        let leaves = for_guest(&host(INTEL), FOUR);
        let one = get(&leaves, 1, None);
        assert_eq!(one.ecx, X2APIC | TSC_DEADLINE | HYPERVISOR | 1 << 26);
        assert_eq!(get(&leaves, 6, None).eax & ARAT, ARAT);
        assert!(get(&leaves, 0, None).eax >= 0x16);
        let ratio = get(&leaves, 0x15, None);
        assert_eq!((ratio.ebx, ratio.eax, ratio.ecx), (13, 5, 1_000_000_000));
        let timing = get(&leaves, PV_TIMING, None);
        assert_eq!((timing.eax, timing.ebx), (2_600_000, 1_000_000));
        assert_eq!(get(&leaves, PV_SIGNATURE, None).eax, PV_TIMING);
        assert_eq!(get(&leaves, PV_FEATURES, None).eax, 0x0100_7efb & !ASYNC_PAGE_FAULTS);
        // Only Intel has the leaves.
        let leaves = for_guest(&host(AMD), FOUR);
        assert!(find(&leaves, 0x15).is_none());
        assert_eq!(get(&leaves, PV_TIMING, None).eax, 2_600_000);
        // Another hypervisor's guest on AMD finds neither.
        let mut bare = host(AMD);
        bare.retain(|leaf| leaf.function & 0x4000_0000 == 0);
        let told = [&host(INTEL), &host(AMD), &bare].map(|supported| tells_tsc(supported));
        assert_eq!(told, [true, true, false]);
        // Nothing is left of its interface but the frequencies.
        bare.push(leaf(0x4000_0003, 1, 1, 1, 1));
        let leaves = for_guest(&bare, FOUR);
        assert!(find(&leaves, 0x4000_0003).is_none());
        assert_eq!(get(&leaves, PV_SIGNATURE, None).eax, PV_TIMING);
        assert_eq!(get(&leaves, PV_TIMING, None).eax, 2_600_000);
    }

    #[test]
    fn ratios_are_right_to_half_a_millionth_and_fit_linux() {
        for tsc_khz in [1_000_000, 1_996_249, 2_599_998, 2_994_373, 3_599_999, 4_200_001] {
            let (numerator, denominator) = closest_ratio(tsc_khz, 1_000_000, u32::MAX / 1_000_000);
            let crystal_khz = 1_000_000_u32;
            let seen = crystal_khz.checked_mul(numerator).expect("no overflow") / denominator;
            let error = f64::from(seen.abs_diff(tsc_khz)) / f64::from(tsc_khz);
            assert!(error < 1e-6, "{tsc_khz} kHz reads as {seen} kHz");
        }
        assert_eq!(closest_ratio(5_000_000, 1_000_000, 4294), (5, 1));
        assert_eq!(closest_ratio(u32::MAX, 1, 10), (10, 1));
    }

    #[test]
    fn hiding_xsave_hides_all_that_stands_on_it() {
        let mut leaves = host(INTEL);
        hide_xsave(&mut leaves);
        assert_eq!(get(&leaves, 1, None).ecx, VMX);
        assert!(find(&leaves, 0xd).is_none());
        assert!(!leaves.iter().any(|leaf| (leaf.function, leaf.index) == (7, Some(1))));
        let seven = get(&leaves, 7, Some(0));
        assert_eq!(seven.eax, 0);
        // AVX2, AVX-512F, PKU, AMX tiles go; SMEP, UMIP, fast short rep mov stay.
        assert_eq!(seven.ebx & (1 << 5 | 1 << 16 | 1 << 7), 1 << 7);
        assert_eq!(seven.ecx & (1 << 3 | 1 << 2), 1 << 2);
        assert_eq!(seven.edx & (1 << 24 | 1 << 4), 1 << 4);
    }

    #[test]
    fn a_guest_goes_on_where_nothing_is_missing() {
        let here = for_guest(&host(INTEL), FOUR);
        assert_eq!(check_compatible(&here, &here), Ok(()));
        // Another vCPU of the same machine, and a processor that can more.
        let other = for_guest(&host(INTEL), Options { index: 0, ..FOUR });
        assert_eq!(check_compatible(&other, &here), Ok(()));
        let mut less = here.clone();
        at(&mut less, 1).edx &= !HTT;
        assert_eq!(check_compatible(&less, &here), Ok(()));
        let missing = Mismatch::Features { function: 1, index: 0, missing: HTT };
        assert_eq!(check_compatible(&here, &less), Err(missing));
        let amd = for_guest(&host(AMD), FOUR);
        let refused = check_compatible(&here, &amd).unwrap_err().to_string();
        assert!(refused.contains("GenuineIntel 0x806f8; here AuthenticAMD"), "{refused}");
        let mut wider = here.clone();
        at(&mut wider, 0xd).eax |= 1 << 9;
        assert_eq!(check_compatible(&here, &wider), Err(Mismatch::Xsave));
    }

    #[test]
    fn nested_virtualization_is_hidden() {
        let leaves = for_guest(&host(AMD), FOUR);
        assert_eq!(get(&leaves, 1, None).ecx & VMX, 0);
        assert_eq!(get(&leaves, 0x8000_0001, None).ecx & SVM, 0);
        assert!(find(&leaves, 0x8000_000a).is_none());
    }
}
