//! Fields of the VMCS (Intel SDM 3D, appendix B), the framework's registers (`hv_x86_reg_t`), and what stands in them.

/// `hv_x86_reg_t`, in the order of [`cabana_hv::x86::Regs`].
pub(crate) const GENERAL: [u32; 18] =
    [2, 5, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, RIP, RFLAGS];
pub(crate) const RIP: u32 = 0;
pub(crate) const RFLAGS: u32 = 1;
pub(crate) const RAX: u32 = 2;
pub(crate) const RCX: u32 = 3;
pub(crate) const RDX: u32 = 4;
pub(crate) const RBX: u32 = 5;
pub(crate) const CR2: u32 = 38;
/// DR0 to DR3, DR6.
pub(crate) const DEBUG: [u32; 5] = [41, 42, 43, 44, 47];
pub(crate) const XCR0: u32 = 50;

// Controls.
pub(crate) const PIN_CONTROLS: u32 = 0x4000;
pub(crate) const CONTROLS: u32 = 0x4002;
pub(crate) const SECOND_CONTROLS: u32 = 0x401e;
pub(crate) const EXCEPTIONS: u32 = 0x4004;
pub(crate) const EXIT_CONTROLS: u32 = 0x400c;
pub(crate) const ENTRY_CONTROLS: u32 = 0x4012;
pub(crate) const ENTRY_EVENT: u32 = 0x4016;
pub(crate) const ENTRY_ERROR: u32 = 0x4018;
pub(crate) const ENTRY_LENGTH: u32 = 0x401a;
pub(crate) const CR0_MASK: u32 = 0x6000;
pub(crate) const CR4_MASK: u32 = 0x6002;
pub(crate) const CR0_SHADOW: u32 = 0x6004;
pub(crate) const CR4_SHADOW: u32 = 0x6006;

// What an exit says.
pub(crate) const REASON: u32 = 0x4402;
pub(crate) const QUALIFICATION: u32 = 0x6400;
pub(crate) const LENGTH: u32 = 0x440c;
pub(crate) const VECTORING: u32 = 0x4408;
pub(crate) const VECTORING_ERROR: u32 = 0x440a;
pub(crate) const GUEST_LINEAR: u32 = 0x640a;
pub(crate) const GUEST_PHYSICAL: u32 = 0x2400;

// The guest.
pub(crate) const EFER: u32 = 0x2806;
/// Four of them, every second number.
pub(crate) const DIRECTORIES: u32 = 0x280a;
pub(crate) const CR0: u32 = 0x6800;
pub(crate) const CR3: u32 = 0x6802;
pub(crate) const CR4: u32 = 0x6804;
pub(crate) const DR7: u32 = 0x681a;
pub(crate) const SHADOW: u32 = 0x4824;
pub(crate) const GDTR_LIMIT: u32 = 0x4810;
pub(crate) const IDTR_LIMIT: u32 = 0x4812;
pub(crate) const GDTR_BASE: u32 = 0x6816;
pub(crate) const IDTR_BASE: u32 = 0x6818;

/// A segment: selector, limit, access rights and base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentFields {
    pub(crate) selector: u32,
    pub(crate) limit: u32,
    pub(crate) rights: u32,
    pub(crate) base: u32,
}

/// The segments by their number in the VMCS: ES, CS, SS, DS, FS, GS, LDTR, TR.
pub(crate) const fn segment(number: u32) -> SegmentFields {
    SegmentFields {
        selector: 0x800 + 2 * number,
        limit: 0x4800 + 2 * number,
        rights: 0x4814 + 2 * number,
        base: 0x6806 + 2 * number,
    }
}
pub(crate) const CS: SegmentFields = segment(1);
pub(crate) const SS: SegmentFields = segment(2);
/// Of a segment that is not usable.
pub(crate) const UNUSABLE: u64 = 1 << 16;

// Exit reasons (appendix C).
pub(crate) const EXCEPTION: u64 = 0;
pub(crate) const EXTERNAL: u64 = 1;
pub(crate) const TRIPLE_FAULT: u64 = 2;
pub(crate) const INTERRUPT_WINDOW: u64 = 7;
pub(crate) const NMI_WINDOW: u64 = 8;
pub(crate) const CPUID: u64 = 10;
pub(crate) const HLT: u64 = 12;
pub(crate) const INVD: u64 = 13;
pub(crate) const RDPMC: u64 = 15;
pub(crate) const VMCALL: u64 = 18;
pub(crate) const VMXON: u64 = 27;
pub(crate) const CR_ACCESS: u64 = 28;
pub(crate) const IO: u64 = 30;
pub(crate) const RDMSR: u64 = 31;
pub(crate) const WRMSR: u64 = 32;
pub(crate) const MWAIT: u64 = 36;
pub(crate) const MONITOR: u64 = 39;
pub(crate) const PAUSE: u64 = 40;
pub(crate) const EPT_VIOLATION: u64 = 48;
pub(crate) const INVEPT: u64 = 50;
pub(crate) const TIMER: u64 = 52;
pub(crate) const INVVPID: u64 = 53;
pub(crate) const WBINVD: u64 = 54;
pub(crate) const XSETBV: u64 = 55;
/// The processor refused the guest's state.
pub(crate) const NOT_ENTERED: u64 = 1 << 31;

/// Bits of interruptibility: after STI, after a load of SS, NMIs.
pub(crate) const BY_STI: u64 = 1 << 0;
pub(crate) const BY_SS: u64 = 1 << 1;
pub(crate) const BY_NMI: u64 = 1 << 3;

/// `RFLAGS.IF`.
pub(crate) const INTERRUPTS: u64 = 1 << 9;
