//! A small 64-bit guest: identity page tables, flat segments, a payload.

use cabana_hv::x86::cpuid::{self, Options};
use cabana_hv::x86::{BootState, DescriptorTable, Regs, Segment, SystemRegs, VcpuSetup};
use cabana_hv::{VmExit, X86Vm};

use crate::{Backend, Payload, Ram};

/// Guest-physical addresses; the first 4 GiB are mapped as they are.
pub mod layout {
    /// RAM begins here.
    pub const RAM: u64 = 0;
    /// Page tables, five pages and one.
    pub const PAGE_TABLES: u64 = 0x1000;
    /// Where [`super::Guest::real_mode`] puts its payload; SIPI vector 8.
    pub const REAL_MODE: u64 = 0x8000;
    /// The stack grows down from here.
    pub const STACK: u64 = 0xa000;
    /// Interrupt descriptors.
    pub const IDT: u64 = 0xb000;
    /// Segment descriptors.
    pub const GDT: u64 = 0xc000;
    /// Where the payload begins.
    pub const CODE: u64 = 0x1_0000;
    /// Where [`super::Guest::handler`] puts its payload.
    pub const HANDLER: u64 = 0x1_8000;
    /// Zeroed memory for results.
    pub const DATA: u64 = 0x2_0000;
    /// RAM ends here.
    pub const RAM_END: u64 = 0x20_0000;
    /// A second piece of memory may be here, above RAM.
    pub const EXTRA: u64 = 0x40_0000;
    /// Nothing is mapped here.
    pub const DEVICE: u64 = 0xd000_0000;
    /// Payloads end with a write to this port.
    pub const END_PORT: u16 = 0xf4;
}

/// The code segment's selector.
const CODE_SELECTOR: u16 = 0x10;

/// A VM with some RAM.
pub struct Guest {
    /// The VM.
    pub vm: Box<dyn X86Vm>,
    // After the VM, which must not outlive it.
    pub(crate) ram: Ram,
}

impl Guest {
    /// One vCPU, this payload.
    pub fn new(backend: &Backend, payload: Payload) -> Self {
        Self::with_cpus(backend, payload, 1)
    }

    /// Several vCPUs; they have to be started.
    pub fn with_cpus(backend: &Backend, payload: Payload, cpus: u32) -> Self {
        let vm = backend.hypervisor().create_x86_vm().expect("a VM");
        vm.set_vcpus(processors(vm.as_ref(), cpus)).expect("the vCPUs are taken");
        let ram = Ram::map(vm.as_ref(), 0, layout::RAM_END);
        let guest = Self { vm, ram };
        guest.page_tables();
        // Null, unused, 64-bit code, data.
        for (at, descriptor) in
            [0, 0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff].into_iter().enumerate()
        {
            guest.write(layout::GDT + 8 * at as u64, &descriptor.to_le_bytes());
        }
        guest.write(layout::CODE, payload.code);
        guest
    }

    /// Four GiB in pages of 2 MiB.
    fn page_tables(&self) {
        const LEAF: u64 = 0x83;
        const TABLE: u64 = 3;
        let directories = layout::PAGE_TABLES + 0x2000;
        self.write_u64(layout::PAGE_TABLES, (layout::PAGE_TABLES + 0x1000) | TABLE);
        for gib in 0..4 {
            let directory = directories + 0x1000 * gib;
            self.write_u64(layout::PAGE_TABLES + 0x1000 + 8 * gib, directory | TABLE);
            for page in 0..512 {
                self.write_u64(directory + 8 * page, gib << 30 | page << 21 | LEAF);
            }
        }
    }

    /// Puts `payload` at [`layout::HANDLER`] and makes it the handler of interrupt `vector`.
    pub fn handler(&self, vector: u8, payload: Payload) {
        self.write(layout::HANDLER, payload.code);
        // A 64-bit interrupt gate (Intel SDM 3A §6.14.1); the handler is below 64 KiB times two.
        let target = layout::HANDLER;
        let low = target & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e << 40;
        self.write_u64(layout::IDT + 16 * u64::from(vector), low | (target >> 16) << 48);
    }

    /// Puts `payload` at [`layout::REAL_MODE`].
    pub fn real_mode(&self, payload: Payload) {
        self.write(layout::REAL_MODE, payload.code);
    }
}

/// Is it how payloads end?
pub(crate) fn is_end(exit: &VmExit) -> bool {
    matches!(exit, VmExit::PioWrite { port: layout::END_PORT, .. })
}

/// Processors as a machine makes them.
fn processors(vm: &dyn X86Vm, count: u32) -> Vec<VcpuSetup> {
    let supported = vm.supported_cpuid().expect("CPUID");
    let (tsc_khz, apic_khz) = (vm.tsc_khz().expect("the TSC's frequency"), vm.apic_khz());
    let processor = |index| {
        let cpuid = cpuid::for_guest(&supported, Options { index, count, tsc_khz, apic_khz });
        let msrs = cabana_hv::x86::firmware_msrs(&cpuid);
        VcpuSetup { cpuid, msrs }
    };
    (0..count).map(processor).collect()
}

/// 64-bit mode with flat segments, at the payload.
pub fn boot_state() -> BootState {
    let data = Segment { selector: 0x18, base: 0, limit: u32::MAX, attributes: 0xc093 };
    BootState {
        regs: Regs { rip: layout::CODE, rsp: layout::STACK, rflags: 2, ..Regs::default() },
        system: SystemRegs {
            cs: Segment { selector: CODE_SELECTOR, attributes: 0xa09b, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment { selector: 0, base: 0, limit: 0x67, attributes: 0x8b },
            gdt: DescriptorTable { base: layout::GDT, limit: 31 },
            idt: DescriptorTable { base: layout::IDT, limit: 0xfff },
            // Protection, native FPU errors and monitoring, write protection, paging.
            cr0: 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31,
            cr3: layout::PAGE_TABLES,
            // PAE; SSE is ready for use.
            cr4: 1 << 5 | 1 << 9 | 1 << 10,
            // Long mode, enabled and active.
            efer: 1 << 8 | 1 << 10,
            ..SystemRegs::default()
        },
    }
}
