//! What processors answer to CPUID.

use cabana_hv::x86::CpuidLeaf;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use windows_sys::Win32::Foundation::{E_FAIL, E_INVALIDARG};
use windows_sys::Win32::System::Hypervisor::{
    WHV_CPUID_OUTPUT, WHV_X64_CPUID_RESULT2, WHvX64CpuidResult2FlagSubleafSpecific,
    WHvX64CpuidResult2FlagVpSpecific,
};

use crate::Answer;

/// Leaf 1 ECX: the local APIC, which is KVM's, takes deadlines. KVM does not list that.
const TSC_DEADLINE: u32 = 1 << 24;
/// KVM's own interface, which this platform does not have.
const PARAVIRTUAL: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_00ff;

/// What the platform answers by itself.
pub(crate) fn supported(kvm: &kvm_ioctls::Kvm) -> Answer<Vec<CpuidLeaf>> {
    let mut leaves = cabana_shim_x86::supported(kvm).map_err(|_| E_FAIL)?;
    leaves.retain(|leaf| !PARAVIRTUAL.contains(&leaf.function));
    for leaf in &mut leaves {
        if leaf.function == 1 {
            leaf.ecx |= TSC_DEADLINE;
        }
    }
    Ok(leaves)
}

fn same(leaf: &CpuidLeaf, function: u32, index: u32) -> bool {
    leaf.function == function && leaf.index.is_none_or(|own| own == index)
}

/// The answer of a processor with these leaves.
pub(crate) fn answer(leaves: &[CpuidLeaf], eax: u32, ecx: u32) -> WHV_CPUID_OUTPUT {
    let leaf = leaves.iter().find(|leaf| same(leaf, eax, ecx)).copied().unwrap_or_default();
    WHV_CPUID_OUTPUT { Eax: leaf.eax, Ebx: leaf.ebx, Ecx: leaf.ecx, Edx: leaf.edx }
}

/// Changes `leaves` of processor `vp` as a partition's result list says: where the mask is set the given bits
/// take the place of the platform's.
pub(crate) fn apply(leaves: &mut Vec<CpuidLeaf>, results: &[WHV_X64_CPUID_RESULT2], vp: u32) {
    for result in results {
        if result.Flags & WHvX64CpuidResult2FlagVpSpecific != 0 && result.VpIndex != vp {
            continue;
        }
        let by_index = result.Flags & WHvX64CpuidResult2FlagSubleafSpecific != 0;
        let index = by_index.then_some(result.Index);
        let at = leaves.iter().position(|leaf| {
            leaf.function == result.Function && (!by_index || leaf.index == index)
        });
        let at = at.unwrap_or_else(|| {
            leaves.push(CpuidLeaf { function: result.Function, index, ..CpuidLeaf::default() });
            leaves.len() - 1
        });
        let leaf = &mut leaves[at];
        let (output, mask) = (&result.Output, &result.Mask);
        for (register, output, mask) in [
            (&mut leaf.eax, output.Eax, mask.Eax),
            (&mut leaf.ebx, output.Ebx, mask.Ebx),
            (&mut leaf.ecx, output.Ecx, mask.Ecx),
            (&mut leaf.edx, output.Edx, mask.Edx),
        ] {
            *register = *register & !mask | output & mask;
        }
    }
}

/// The leaves in KVM's words.
pub(crate) fn for_kvm(leaves: &[CpuidLeaf]) -> Answer<CpuId> {
    let entry = |leaf: &CpuidLeaf| kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index.unwrap_or(0),
        flags: leaf.index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..kvm_cpuid_entry2::default()
    };
    let entries: Vec<_> = leaves.iter().map(entry).collect();
    CpuId::from_entries(&entries).map_err(|_| E_INVALIDARG)
}
