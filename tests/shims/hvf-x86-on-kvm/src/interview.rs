//! CPUID, which exits on a Mac and does not on KVM: before a vCPU runs for the first time, it asks its caller for all
//! leaves, as if the guest had executed CPUID for each of them, and KVM answers the guest so from then on.

use cabana_hv_hvf::HV_ERROR;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_regs, kvm_vcpu_events,
};

use crate::state::State;
use crate::{Answer, failed};

/// Ranges of leaves that are asked for.
const RANGES: [std::ops::RangeInclusive<u32>; 3] =
    [0..=0x20, 0x4000_0000..=0x4000_0010, 0x8000_0000..=0x8000_0020];
/// CPUID has two bytes.
const LENGTH: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Interview {
    /// The guest's own state, once it has begun.
    saved: Option<(kvm_regs, kvm_vcpu_events)>,
    /// The question that is not answered yet.
    asked: usize,
    answers: Vec<kvm_cpuid_entry2>,
    over: bool,
}

/// Functions whose answers depend on ECX.
fn is_indexed(function: u32) -> bool {
    matches!(function, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d)
}

fn questions() -> impl Iterator<Item = (u32, u32)> {
    let functions = RANGES.into_iter().flatten();
    functions.flat_map(|function| {
        let count = if is_indexed(function) { 8 } else { 1 };
        (0..count).map(move |index| (function, index))
    })
}

impl Interview {
    /// Takes the answer to the last question. The bytes of the instruction that asks the next one, or nothing when it
    /// is over, and the guest is as it was.
    pub(crate) fn go_on(&mut self, state: &mut State) -> Answer<Option<u64>> {
        if self.over {
            return Ok(None);
        }
        if let Some((before, _)) = self.saved
            && state.regs()?.rip == before.rip.wrapping_add(LENGTH)
        {
            let regs = *state.regs()?;
            let (function, index) = questions().nth(self.asked).ok_or(HV_ERROR)?;
            self.note(function, index, &regs);
            self.asked += 1;
        } else {
            // It begins, or the caller has given the vCPU another state.
            self.saved = Some((*state.regs()?, *state.events()?));
        }
        let (before, events) = self.saved.ok_or(HV_ERROR)?;
        *state.regs()? = before;
        *state.events()? = events;
        if let Some((function, index)) = questions().nth(self.asked) {
            let regs = state.regs()?;
            (regs.rax, regs.rcx) = (function.into(), index.into());
            return Ok(Some(LENGTH));
        }
        let list = CpuId::from_entries(&self.answers).map_err(failed)?;
        state.vcpu.set_cpuid2(&list).map_err(failed)?;
        self.over = true;
        Ok(None)
    }

    fn note(&mut self, function: u32, index: u32, regs: &kvm_regs) {
        let [eax, ebx, ecx, edx] =
            [regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|value| value as u32);
        // What is zero is not worth an entry.
        if [eax, ebx, ecx, edx] != [0; 4] {
            let flags = if is_indexed(function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            let entry = kvm_cpuid_entry2 {
                function,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            };
            self.answers.push(entry);
        }
    }
}
