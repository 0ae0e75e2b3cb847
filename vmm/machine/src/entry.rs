//! The first vCPU's registers for each way to start a kernel.

use cabana_boot::x86_64::Start;
use cabana_hv::x86::{BootState, DescriptorTable, Regs, Segment, SystemRegs};

/// Access rights: present, code or data, DPL 0, type; then granularity with D/B or L.
const CODE_32: u16 = 0xc09b;
const CODE_64: u16 = 0xa09b;
const DATA: u16 = 0xc093;
const BUSY_TSS: u16 = 0x008b;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Four descriptors.
const GDT_LIMIT: u16 = 0x1f;

/// What the boot protocol prescribes.
pub(crate) fn boot_state(start: Start) -> BootState {
    match start {
        // Xen's docs/misc/pvh.pandoc: flat 4-GiB segments, only PE set.
        Start::Pvh { entry, start_info } => BootState {
            regs: Regs {
                rip: entry.into(),
                rbx: start_info.into(),
                rflags: RFLAGS,
                ..Regs::default()
            },
            system: SystemRegs { cr0: CR0_PE, ..flat(CODE_32) },
        },
        // Documentation/arch/x86/boot.rst, 64-bit boot protocol.
        Start::Linux64 { entry, boot_params, page_tables, gdt } => BootState {
            regs: Regs { rip: entry, rsi: boot_params, rflags: RFLAGS, ..Regs::default() },
            system: SystemRegs {
                cr0: CR0_PE | CR0_PG,
                cr3: page_tables,
                cr4: CR4_PAE,
                efer: EFER_LME_LMA,
                gdt: DescriptorTable { base: gdt, limit: GDT_LIMIT },
                ..flat(CODE_64)
            },
        },
    }
}

fn flat(code: u16) -> SystemRegs {
    let segment = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    let data = segment(DATA_SELECTOR, DATA);
    SystemRegs {
        cs: segment(CODE_SELECTOR, code),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment { selector: 0, base: 0, limit: 0x67, attributes: BUSY_TSS },
        ..SystemRegs::default()
    }
}
