//! What a guest may see of the host's processor: only what needs nothing of us but what is here (Intel SDM 2A, CPUID).

use cabana_hv::x86::CpuidLeaf;

use super::functions::Host;

/// Leaves that describe a processor, and how many answers each has.
const LEAVES: [(u32, u32); 17] = [
    (0, 1),
    (1, 1),
    (2, 1),
    (4, 8),
    (6, 1),
    (7, 1),
    (0xd, 3),
    (0x8000_0000, 1),
    (0x8000_0001, 1),
    (0x8000_0002, 1),
    (0x8000_0003, 1),
    (0x8000_0004, 1),
    (0x8000_0005, 1),
    (0x8000_0006, 1),
    (0x8000_0007, 1),
    (0x8000_0008, 1),
    (0x8000_001d, 8),
];

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const LEAF_1_ECX: u32 = 1 << 0
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | XSAVE
    | 1 << 28
    | 1 << 29
    | 1 << 30;
const XSAVE: u32 = 1 << 26;
/// Leaf 1 EDX: FPU to CX8, APIC, SEP to PSE36, CLFLUSH, MMX to SS.
const LEAF_1_EDX: u32 = 0x3ff & !(1 << 10) | 0b111_1111 << 11 | 1 << 19 | 0b1_1111 << 23;
/// Leaf 6 EAX: the APIC's timer never stops.
const LEAF_6_EAX: u32 = 1 << 2;
/// Leaf 7 EBX: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
const LEAF_7_EBX: u32 = 1 << 0
    | 1 << 3
    | 1 << 5
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 10
    | 1 << 18
    | 1 << 19
    | 1 << 20
    | 1 << 23
    | 1 << 24
    | 1 << 29;
/// Leaf 7 ECX: UMIP, VAES, VPCLMULQDQ, RDPID.
const LEAF_7_ECX: u32 = 1 << 2 | 1 << 9 | 1 << 10 | 1 << 22;
/// Leaf 7 EDX: fast short REP MOV, `MD_CLEAR`.
const LEAF_7_EDX: u32 = 1 << 4 | 1 << 10;
/// Leaf 0xd: x87, SSE, AVX; XSAVEOPT, XSAVEC, XGETBV with one.
const XSTATE: u32 = 0b111;
const XSAVE_FORMS: u32 = 0b111;
/// The area's bytes with x87 and SSE alone.
const XSAVE_BASE: u32 = 576;
/// Leaf `0x8000_0001` ECX: LAHF, several cores, LZCNT, SSE4A, misaligned SSE, PREFETCHW.
const EXTENDED_ECX: u32 = 1 << 0 | 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;
/// Leaf `0x8000_0001` EDX: what AMD repeats of leaf 1; SYSCALL, NX, MMX's extensions, FXSR's, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 =
    0x0183_f3ff | 1 << 11 | 1 << 20 | 1 << 22 | 1 << 25 | 1 << 26 | 1 << 27 | 1 << 29;
/// Leaf `0x8000_0007` EDX: the time-stamp counter never stops.
const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 1: bits that follow the state of the processor.
const OSXSAVE: u32 = 1 << 27;
const APIC: u32 = 1 << 9;

/// The leaves that a guest may see of this processor.
pub(crate) fn supported(host: &Host) -> Vec<CpuidLeaf> {
    let last = [0, 0x8000_0000].map(|first| (host.cpuid)(first, 0)[0]);
    let mut leaves = Vec::new();
    for (function, count) in LEAVES {
        let exists = if function < 0x8000_0000 { function <= last[0] } else { function <= last[1] };
        if !exists {
            continue;
        }
        for index in 0..count {
            let [eax, ebx, ecx, edx] = (host.cpuid)(function, index);
            let index = (count > 1 || function == 7).then_some(index);
            let leaf = masked(CpuidLeaf { function, index, eax, ebx, ecx, edx });
            leaves.extend(leaf);
        }
    }
    let has_xsave = leaves.iter().any(|leaf| leaf.function == 1 && leaf.ecx & XSAVE != 0);
    if !has_xsave {
        leaves.retain(|leaf| leaf.function != 0xd);
    }
    leaves
}

/// The part of an answer that may be seen.
fn masked(leaf: CpuidLeaf) -> Option<CpuidLeaf> {
    let CpuidLeaf { function, index, eax, ebx, ecx, edx } = leaf;
    let answer = |eax, ebx, ecx, edx| Some(CpuidLeaf { eax, ebx, ecx, edx, ..leaf });
    match (function, index.unwrap_or(0)) {
        (0, _) => answer(eax.min(0xd), ebx, ecx, edx),
        (1, _) => answer(eax, ebx, ecx & LEAF_1_ECX, edx & LEAF_1_EDX),
        // Caches: the list ends with the first that is none.
        (4 | 0x8000_001d, 1..) if eax.trailing_zeros() >= 5 => None,
        (6, _) => answer(eax & LEAF_6_EAX, 0, 0, 0),
        (7, _) => answer(0, ebx & LEAF_7_EBX, ecx & LEAF_7_ECX, edx & LEAF_7_EDX),
        (0xd, 0) => {
            let states = eax & XSTATE;
            let bytes = XSAVE_BASE + if states & 4 == 0 { 0 } else { 256 };
            answer(states, bytes, bytes, 0)
        }
        (0xd, 1) => answer(eax & XSAVE_FORMS, 0, 0, 0),
        (0x8000_0000, _) => answer(eax.min(0x8000_001e), ebx, ecx, edx),
        (0x8000_0001, _) => answer(eax, ebx, ecx & EXTENDED_ECX, edx & EXTENDED_EDX),
        (0x8000_0007, _) => answer(0, 0, 0, edx & INVARIANT_TSC),
        (0x8000_0008, _) => answer(eax, 0, ecx, 0),
        _ => Some(leaf),
    }
}

/// What a processor with these leaves answers, in its present state.
pub(crate) fn answer(
    leaves: &[CpuidLeaf],
    function: u32,
    index: u32,
    osxsave: bool,
    apic: bool,
) -> [u32; 4] {
    let matches =
        |leaf: &&CpuidLeaf| leaf.function == function && leaf.index.is_none_or(|own| own == index);
    let Some(leaf) = leaves.iter().find(matches) else { return [0; 4] };
    let (mut ecx, mut edx) = (leaf.ecx, leaf.edx);
    if function == 1 {
        ecx = ecx & !OSXSAVE | if osxsave { OSXSAVE } else { 0 };
        edx &= if apic { !0 } else { !APIC };
    }
    [leaf.eax, leaf.ebx, ecx, edx]
}

/// May the guest's XCR0 be this?
pub(crate) fn allows_xcr0(leaves: &[CpuidLeaf], value: u64) -> bool {
    let states = leaves.iter().find(|leaf| leaf.function == 0xd && leaf.index == Some(0));
    let states = states.map_or(0, |leaf| u64::from(leaf.eax));
    // x87 always; AVX with SSE alone.
    value & 1 != 0 && value & !states == 0 && (value & 4 == 0 || value & 2 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(function: u32, index: u32) -> [u32; 4] {
        match (function, index) {
            (0, _) => [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
            (4, 4..) => [0; 4],
            _ => [u32::MAX; 4],
        }
    }

    #[test]
    fn a_guest_sees_what_is_carried_out_here() {
        let leaves = supported(&Host { cpuid: everything, tsc_hertz: || 1 });
        let seen = |function, index| answer(&leaves, function, index, false, true);
        assert_eq!(seen(0, 0)[0], 0xd);
        let [_, _, ecx, edx] = seen(1, 0);
        // No VMX, monitor or performance capabilities, debug store, thermal monitor.
        assert_eq!(ecx & (1 << 5 | 1 << 3 | 1 << 15 | OSXSAVE), 0);
        assert_eq!(edx & (1 << 21 | 1 << 22 | 1 << 29), 0);
        assert_ne!(edx & APIC, 0);
        let [eax, ebx, _, edx] = seen(7, 0);
        // No AVX-512, SGX, TSC_ADJUST, SPEC_CTRL.
        assert_eq!((eax, ebx & (1 << 16 | 1 << 2 | 1 << 1), edx & 1 << 26), (0, 0, 0));
        assert_eq!(seen(0xa, 0), [0; 4], "no performance counters");
        assert_eq!(seen(0xd, 0), [7, 832, 832, 0]);
        assert!(leaves.iter().filter(|leaf| leaf.function == 4).count() == 4);
        let changed = answer(&leaves, 1, 0, true, false);
        assert_eq!((changed[2] & OSXSAVE, changed[3] & APIC), (OSXSAVE, 0));
        assert!(allows_xcr0(&leaves, 7) && !allows_xcr0(&leaves, 5) && !allows_xcr0(&leaves, 0xe7));
    }
}
