//! Fields of the VMCS (Intel SDM 3D, appendix B): which there are, and what may stand in the controls.

use cabana_hv_hvf::HV_BAD_ARGUMENT;

use crate::Answer;

pub(crate) const CONTROLS: u32 = 0x4002;
pub(crate) const SECOND_CONTROLS: u32 = 0x401e;
pub(crate) const PIN_CONTROLS: u32 = 0x4000;
pub(crate) const EXIT_CONTROLS: u32 = 0x400c;
pub(crate) const ENTRY_CONTROLS: u32 = 0x4012;
pub(crate) const ENTRY_EVENT: u32 = 0x4016;
pub(crate) const ENTRY_ERROR: u32 = 0x4018;
pub(crate) const CR0_MASK: u32 = 0x6000;
pub(crate) const CR4_MASK: u32 = 0x6002;
pub(crate) const CR0_SHADOW: u32 = 0x6004;
pub(crate) const CR4_SHADOW: u32 = 0x6006;
pub(crate) const REASON: u32 = 0x4402;
pub(crate) const QUALIFICATION: u32 = 0x6400;
pub(crate) const LENGTH: u32 = 0x440c;
pub(crate) const VECTORING: u32 = 0x4408;
pub(crate) const VECTORING_ERROR: u32 = 0x440a;
pub(crate) const GUEST_LINEAR: u32 = 0x640a;
pub(crate) const GUEST_PHYSICAL: u32 = 0x2400;
pub(crate) const EFER: u32 = 0x2806;
pub(crate) const CR0: u32 = 0x6800;
pub(crate) const CR3: u32 = 0x6802;
pub(crate) const CR4: u32 = 0x6804;
pub(crate) const GDTR_LIMIT: u32 = 0x4810;
pub(crate) const IDTR_LIMIT: u32 = 0x4812;
pub(crate) const GDTR_BASE: u32 = 0x6816;
pub(crate) const IDTR_BASE: u32 = 0x6818;
pub(crate) const DR7: u32 = 0x681a;
pub(crate) const RSP: u32 = 0x681c;
pub(crate) const RIP: u32 = 0x681e;
pub(crate) const RFLAGS: u32 = 0x6820;
pub(crate) const SHADOW: u32 = 0x4824;
pub(crate) const ACTIVITY: u32 = 0x4826;

/// The guest waits by itself for nothing: interrupts, ports, MSRs and HLT exit.
pub(crate) const INTERRUPT_WINDOW: u64 = 1 << 2;
pub(crate) const HLT: u64 = 1 << 7;
/// `ENTRY_CONTROLS`: long mode.
pub(crate) const LONG: u64 = 1 << 9;
/// `ENTRY_EVENT`, `VECTORING`: valid, with an error code.
pub(crate) const VALID: u64 = 1 << 31;
pub(crate) const HAS_ERROR: u64 = 1 << 11;

/// Kept as they are written, besides the controls: exception bitmap, page fault masks, instruction length, TPR threshold,
/// link, PDPTEs, pending debug exceptions.
const KEPT: [u32; 14] = [
    0x4004,
    0x4006,
    0x4008,
    ENTRY_EVENT,
    ENTRY_ERROR,
    0x401a,
    0x401c,
    0x2800,
    0x280a,
    0x280c,
    0x280e,
    0x2810,
    0x6822,
    ACTIVITY,
];
const MASKS: [u32; 4] = [CR0_MASK, CR4_MASK, CR0_SHADOW, CR4_SHADOW];

/// What an exit tells, which may only be read.
pub(crate) fn is_told(field: u32) -> bool {
    matches!(field, 0x4400..=0x440e | QUALIFICATION..=GUEST_LINEAR | GUEST_PHYSICAL)
        && field.is_multiple_of(2)
}

/// Fields that this shim keeps in a table.
pub(crate) fn is_kept(field: u32) -> bool {
    is_told(field) || KEPT.contains(&field) || MASKS.contains(&field) || bounds(field).is_some()
}

/// A field of controls: what must be set, and what may be.
fn bounds(field: u32) -> Option<(u64, u64)> {
    match field {
        PIN_CONTROLS => capability(0).ok(),
        CONTROLS => capability(1).ok(),
        SECOND_CONTROLS => capability(2).ok(),
        ENTRY_CONTROLS => capability(3).ok(),
        EXIT_CONTROLS => capability(4).ok(),
        _ => None,
    }
}

/// `hv_vmx_read_capability`: what must be set, and what may be.
pub(crate) fn capability(number: u32) -> Answer<(u64, u64)> {
    Ok(match number {
        // External interrupts and NMIs exit.
        0 => (0x1f, 0x3f),
        // Ports exit; MSR bitmaps, second controls.
        1 => (0x0400_6172 | 1 << 24 | 1 << 28 | 1 << 31, 0xfff9_fffe),
        // EPT, and besides RDTSCP, VPID, unrestricted guests, INVPCID.
        2 => (1 << 1, 1 << 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 12),
        3 => (0x11fb, 0xffff),
        4 => (0x3_6ffb, 0x7f_ffff),
        _ => return Err(HV_BAD_ARGUMENT),
    })
}

/// May controls have this value?
pub(crate) fn fits(field: u32, value: u64) -> bool {
    bounds(field).is_none_or(|(must, may)| value & must == must && value & !may == 0)
}
