//! What only arm64 has: the generic interrupt controller, its lines, its registers. All plain data; it compiles
//! on every host.

pub mod trial;

use cabana_os::Event;
use serde::{Deserialize, Serialize};

use crate::{Arch, HvError, Vm};

/// The architecture.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arm64;

impl Arch for Arm64 {
    type Setup = VcpuSetup;
    type BootState = BootState;
    type State = VcpuState;
}

/// Where the interrupt controller, the hypervisor's GIC of version 3, has its registers, and how many lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor: [`GIC_DISTRIBUTOR_SIZE`] bytes at a multiple of that.
    pub distributor: u64,
    /// The redistributors, one behind the other: [`GIC_REDISTRIBUTOR_SIZE`] bytes a vCPU.
    pub redistributors: u64,
    /// Shared peripheral interrupts: at most 987.
    pub lines: u32,
}

/// Bytes of a distributor's registers (Arm IHI 0069 §12.8).
pub const GIC_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Bytes of a redistributor's registers: two frames (Arm IHI 0069 §12.10).
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// An arm64 VM with the hypervisor's interrupt controller, generic timers and PSCI (by `hvc`), whose calls to end the
/// machine are [`crate::VmExit::PowerOff`] and [`crate::VmExit::Reset`].
pub trait Arm64Vm: Vm<Arm64> {
    /// Sets the level of a shared peripheral interrupt, counted from 0 (interrupt 32 of the GIC). One that the
    /// guest has made edge-triggered becomes pending when its level rises.
    fn irq_line(&self, line: u32, level: bool) -> Result<(), HvError>;

    /// Raises and lowers a shared peripheral interrupt whenever `event` is signalled, by whatever process.
    fn irq_event(&self, line: u32, event: &Event) -> Result<(), HvError>;

    /// The interrupt controller's state, in a form of the hypervisor's own, while no vCPU runs.
    fn gic_state(&self) -> Result<Vec<u8>, HvError>;

    /// Sets the interrupt controller's state: after the vCPUs' states, before any of them runs.
    fn set_gic_state(&self, state: &[u8]) -> Result<(), HvError>;
}

/// What a vCPU is from birth. Its affinity (`MPIDR_EL1`) follows from its position: 16 to a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct VcpuSetup {
    /// It is off until another one starts it by PSCI's `CPU_ON`.
    pub off: bool,
}

/// `PSTATE` at entry: EL1 with its own stack pointer, all asynchronous exceptions masked.
pub const EL1H_MASKED: u64 = 0x3c5;

/// What a boot protocol prescribes: everything else is zero or at reset, so that the MMU and the caches are off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootState {
    /// The first instruction.
    pub pc: u64,
    /// X0, the boot protocol's argument.
    pub x0: u64,
}

/// General registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the registers have no other names")]
pub struct Regs {
    pub x: [u64; 31],
    pub sp_el0: u64,
    pub sp_el1: u64,
    pub pc: u64,
    pub pstate: u64,
    pub elr_el1: u64,
    pub spsr_el1: u64,
}

/// Vector registers and their control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the registers have no other names")]
pub struct Simd {
    pub v: [u128; 32],
    pub fpsr: u32,
    pub fpcr: u32,
}

/// A system register's name as its instruction has it: op0 (2 bits), op1 (3), `CRn` (4), `CRm` (4), op2 (3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SystemRegister(pub u16);

impl SystemRegister {
    /// `S<op0>_<op1>_C<crn>_C<crm>_<op2>`.
    pub const fn new(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> Self {
        Self((op0 & 3) << 14 | (op1 & 7) << 11 | (crn & 15) << 7 | (crm & 15) << 3 | op2 & 7)
    }
}

/// Everything that a vCPU is, but for the interrupt controller's part ([`Arm64Vm::gic_state`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers.
    pub regs: Regs,
    /// Vector registers.
    pub simd: Simd,
    /// System registers, those of the virtual timer included.
    pub system: Vec<(SystemRegister, u64)>,
    /// The virtual counter, `CNTVCT_EL0`.
    pub counter: u64,
    /// Off, by PSCI.
    pub off: bool,
}
