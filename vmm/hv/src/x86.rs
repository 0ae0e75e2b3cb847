//! What only x86-64 has: message-signalled interrupts into the local APICs, CPUID, its registers.
//! All plain data; it compiles on every host.

pub mod cpuid;
pub mod trial;

use cabana_os::Event;
use serde::{Deserialize, Serialize};

use crate::{Arch, HvError, Vm};

/// The architecture.
#[derive(Clone, Copy, Debug, Default)]
pub struct X86;

impl Arch for X86 {
    type Setup = VcpuSetup;
    type BootState = BootState;
    type State = VcpuState;
}

/// What a vCPU is from birth. Its position, from 0, is its initial APIC id.
#[derive(Clone, Debug, Default)]
pub struct VcpuSetup {
    /// The processor that the guest sees (see [`X86Vm::supported_cpuid`]).
    pub cpuid: Vec<CpuidLeaf>,
    /// Model-specific registers that differ from reset before the guest's first instruction, as
    /// firmware would have left them (see [`firmware_msrs`]).
    pub msrs: Vec<(u32, u64)>,
}

/// An x86-64 VM whose local APICs are the hypervisor's and whose I/O APIC is ours.
pub trait X86Vm: Vm<X86> {
    /// Sends one message-signalled interrupt.
    fn signal_msi(&self, msi: Msi) -> Result<(), HvError>;

    /// Tells the hypervisor which messages the numbered interrupts (GSIs) send; replaces the whole
    /// table. A level-triggered one below [`IOAPIC_PINS`] makes [`crate::VmExit::EndOfInterrupt`]
    /// come for its vector. Costly (the hypervisor waits for its readers): set many at once.
    fn set_msi_routes(&self, routes: &[MsiRoute]) -> Result<(), HvError>;

    /// Sends GSI `gsi`'s message whenever `event` is signalled, by whatever process.
    fn irq_event(&self, gsi: u32, event: &Event) -> Result<(), HvError>;

    /// What the host's processor and hypervisor together can show a guest.
    fn supported_cpuid(&self) -> Result<Vec<CpuidLeaf>, HvError>;

    /// Ticks per second of the guest's time-stamp counter, in kHz.
    fn tsc_khz(&self) -> Result<u32, HvError>;

    /// Ticks per second of the local APIC's timer before its divider, in kHz.
    fn apic_khz(&self) -> u32;

    /// The VM's paravirtual clock in nanoseconds; zero where the hypervisor has none.
    fn clock(&self) -> Result<u64, HvError>;

    /// Lets the paravirtual clock go on from `nanoseconds`: the last thing before the vCPUs of a
    /// restored machine run, when their time-stamp counters are set.
    fn set_clock(&self, nanoseconds: u64) -> Result<(), HvError>;
}

/// GSIs that belong to the I/O APIC's pins: `0..IOAPIC_PINS`.
pub const IOAPIC_PINS: u32 = 24;

/// `IA32_MISC_ENABLE` (Intel SDM 4, table 2-2) with fast strings, without branch trace store and
/// precise sampling.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1 | 1 << 11 | 1 << 12);
/// `IA32_MTRR_DEF_TYPE` (Intel SDM 3A §12.11.2.1): enabled, write-back everywhere.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// What firmware leaves in every processor's model-specific registers and Linux misses otherwise:
/// while the MTRRs are off all memory counts as uncacheable (older kernels then give up PAT), and
/// without the fast-string bit Linux copies and clears memory by slower means on Intel.
pub fn firmware_msrs(cpuid: &[CpuidLeaf]) -> Vec<(u32, u64)> {
    if cpuid::is_intel(cpuid) { vec![MTRR_DEF_TYPE, MISC_ENABLE] } else { vec![MTRR_DEF_TYPE] }
}

/// A message-signalled interrupt (Intel SDM 3A §11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msi {
    /// `0xfee0_0000` with destination and mode.
    pub address: u64,
    /// Vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Which message a numbered interrupt sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRoute {
    /// The number.
    pub gsi: u32,
    /// Its message.
    pub msi: Msi,
}

/// One answer of the CPUID instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX asked for.
    pub function: u32,
    /// ECX asked for; `None` where it does not matter.
    pub index: Option<u32>,
    /// Answer in EAX.
    pub eax: u32,
    /// Answer in EBX.
    pub ebx: u32,
    /// Answer in ECX.
    pub ecx: u32,
    /// Answer in EDX.
    pub edx: u32,
}

/// General registers at entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the registers have no other names")]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl Regs {
    /// The registers with these values, in the order of the fields.
    pub fn of(values: [u64; 18]) -> Self {
        let [
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        ] = values;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }

    /// Their values, in the order of the fields.
    pub fn values(&self) -> [u64; 18] {
        let r = self;
        [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags,
        ]
    }
}

/// A segment register with its hidden part (Intel SDM 3A §3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// What the program sees.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Access rights as in bits 8–23 of a descriptor's upper half: type, S, DPL, P, AVL, L, D/B, G.
    pub attributes: u16,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Segment, control and system registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the registers have no other names")]
pub struct SystemRegs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

/// What a boot protocol prescribes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootState {
    /// General registers.
    pub regs: Regs,
    /// Segments, control registers and tables. `apic_base` and `cr8` are left at reset.
    pub system: SystemRegs,
}

/// Everything that a vCPU is: enough to go on elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers.
    pub regs: Regs,
    /// Segments, control registers and tables.
    pub system: SystemRegs,
    /// Model-specific registers: index and value.
    pub msrs: Vec<(u32, u64)>,
    /// FPU and vector state in the layout of XSAVE (Intel SDM 1 §13.4), or FXSAVE's 512 bytes.
    #[serde(with = "serde_bytes")]
    pub xsave: Vec<u8>,
    /// Extended control registers: index and value.
    pub xcrs: Vec<(u32, u64)>,
    /// The local APIC's register page, as much of it as has registers (KVM: 1 KiB).
    #[serde(with = "serde_bytes")]
    pub lapic: Vec<u8>,
    /// Pending exceptions, interrupts and NMIs, and the interrupt shadow.
    pub events: PendingEvents,
    /// Debug registers DR0–DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// Running, waiting for SIPI, or halted.
    pub activity: Activity,
}

/// What was on its way into a vCPU when it stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the architecture")]
pub struct PendingEvents {
    pub exception: Option<(u8, Option<u32>)>,
    pub interrupt: Option<(u8, bool)>,
    pub interrupt_shadow: u8,
    pub nmi_injected: bool,
    pub nmi_pending: bool,
    pub nmi_masked: bool,
    pub sipi_vector: u32,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Running instructions.
    #[default]
    Running,
    /// An application processor that nobody has started.
    WaitForSipi,
    /// Got INIT, waits for SIPI.
    InitReceived,
    /// Halted until an interrupt.
    Halted,
}
