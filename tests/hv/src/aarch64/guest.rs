//! A small guest at EL1 with the MMU off: all its memory counts as a device's, so that accesses are aligned.

use cabana_hv::arm64::{BootState, Gic, VcpuSetup};
use cabana_hv::{Arm64Vm, VmExit};

use crate::{Backend, Payload, Ram, payload};

/// Guest-physical addresses.
pub mod layout {
    /// The interrupt controller's distributor.
    pub const DISTRIBUTOR: u64 = 0x800_0000;
    /// Its redistributors.
    pub const REDISTRIBUTORS: u64 = 0x80a_0000;
    /// Nothing is mapped here.
    pub const DEVICE: u64 = 0x1000_0000;
    /// Payloads end with a write here; nothing is mapped either.
    pub const END: u64 = 0x1100_0000;
    /// RAM begins here.
    pub const RAM: u64 = 0x4000_0000;
    /// Where the payload begins.
    pub const CODE: u64 = RAM + 0x1_0000;
    /// Exception vectors; [`super::Guest::handler`] puts its payload where an interrupt at EL1 leads.
    pub const VECTORS: u64 = RAM + 0x1_8000;
    /// Where [`super::Guest::second`] puts its payload.
    pub const SECOND: u64 = RAM + 0x1_a000;
    /// A function that makes the interrupt controller ready for this vCPU: `blr` to it, X9 to X11 are gone. All of
    /// its interrupts belong to group 1; none is enabled.
    pub const READY: u64 = RAM + 0x1_c000;
    /// Zeroed memory for results.
    pub const DATA: u64 = RAM + 0x2_0000;
    /// RAM ends here.
    pub const RAM_END: u64 = RAM + 0x20_0000;
    /// A second piece of memory may be here, above RAM.
    pub const EXTRA: u64 = 0x5000_0000;

    /// The interrupt controller's number of a line, as a handler reads it.
    pub fn interrupt(line: u32) -> u64 {
        u64::from(32 + line)
    }
}

/// Lines of the interrupt controller.
const LINES: u32 = 64;
/// Where an IRQ at EL1 with EL1's stack pointer leads (Arm DDI 0487 D1.3.1).
const IRQ_VECTOR: u64 = 0x280;
payload!(
    /// Arm IHI 0069: affinity routing and group 1 in the distributor; this vCPU's redistributor awake; all
    /// interrupts in group 1 and of a middling priority; the processor's interface open.
    payload_ready:
    "movz x9, #0x0800, lsl #16"
    "mov w10, #0x12" // GICD_CTLR: ARE, EnableGrp1
    "str w10, [x9]"
    "mov w10, #-1"
    "str w10, [x9, #0x84]" // GICD_IGROUPR1
    "str w10, [x9, #0x88]"
    "movz x9, #0x080a, lsl #16"
    "mrs x10, mpidr_el1"
    "and x10, x10, #0xf"
    "add x9, x9, x10, lsl #17"
    "str wzr, [x9, #0x14]" // GICR_WAKER
    "add x9, x9, #0x10, lsl #12"
    "mov w10, #-1"
    "str w10, [x9, #0x80]" // GICR_IGROUPR0
    "mov x10, #7"
    "msr S3_0_C12_C12_5, x10" // ICC_SRE_EL1
    "isb"
    "mov x10, #0xff"
    "msr S3_0_C4_C6_0, x10" // ICC_PMR_EL1
    "mov x10, #1"
    "msr S3_0_C12_C12_7, x10" // ICC_IGRPEN1_EL1
    "movz x10, #0x4001, lsl #16"
    "movk x10, #0x8000"
    "msr vbar_el1, x10"
    "isb"
    "ret"
);

/// A VM with some RAM.
pub struct Guest {
    /// The VM.
    pub vm: Box<dyn Arm64Vm>,
    // After the VM, which must not outlive it.
    pub(crate) ram: Ram,
}

impl Guest {
    /// One vCPU, this payload.
    pub fn new(backend: &Backend, payload: Payload) -> Self {
        Self::with_cpus(backend, payload, &[true])
    }

    /// As many vCPUs, on or off.
    pub fn with_cpus(backend: &Backend, payload: Payload, on: &[bool]) -> Self {
        let gic = Gic {
            distributor: layout::DISTRIBUTOR,
            redistributors: layout::REDISTRIBUTORS,
            lines: LINES,
        };
        let vm = backend.hypervisor().create_arm64_vm(gic).expect("a VM");
        let setups = on.iter().map(|&on| VcpuSetup { off: !on });
        vm.set_vcpus(setups.collect()).expect("the vCPUs are taken");
        let ram = Ram::map(vm.as_ref(), layout::RAM, layout::RAM_END);
        ram.write(layout::CODE, payload.code);
        ram.write(layout::READY, payload_ready().code);
        Self { vm, ram }
    }

    /// Puts `payload` where an interrupt leads, and a loop wherever any other exception leads.
    pub fn handler(&self, payload: Payload) {
        const LOOP: u32 = 0x1400_0000;
        for vector in (0..0x800).step_by(0x80) {
            self.write(layout::VECTORS + vector, &LOOP.to_le_bytes());
        }
        self.write(layout::VECTORS + IRQ_VECTOR, payload.code);
    }

    /// Puts `payload` at [`layout::SECOND`].
    pub fn second(&self, payload: Payload) {
        self.write(layout::SECOND, payload.code);
    }
}

/// At the payload.
pub fn boot_state() -> BootState {
    BootState { pc: layout::CODE, x0: 0 }
}

/// Is it how payloads end?
pub(crate) fn is_end(exit: &VmExit) -> bool {
    matches!(exit, VmExit::MmioWrite { addr: layout::END, .. })
}
