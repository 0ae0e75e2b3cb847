//! Why a processor came back, in fewer words than the vendor's.

use cabana_hv::{HvError, VmExit};
use windows_sys::Win32::System::Hypervisor::{
    WHV_RUN_VP_EXIT_CONTEXT, WHvMemoryAccessExecute, WHvRunVpExitReasonCanceled,
    WHvRunVpExitReasonInvalidVpRegisterValue, WHvRunVpExitReasonMemoryAccess,
    WHvRunVpExitReasonUnrecoverableException, WHvRunVpExitReasonUnsupportedFeature,
    WHvRunVpExitReasonX64ApicEoi, WHvRunVpExitReasonX64Halt, WHvRunVpExitReasonX64IoPortAccess,
    WHvRunVpExitReasonX64MsrAccess,
};

/// `WHV_MEMORY_ACCESS_INFO.GvaValid`.
const GVA_VALID: u32 = 1 << 3;

pub(crate) enum Exit {
    /// The machine's business as it is.
    Machine(VmExit),
    /// A kick, or what is left of one.
    Canceled,
    /// An instruction touches a device.
    Instruction {
        /// As many of its bytes as the platform gives.
        bytes: Vec<u8>,
        /// A linear address and the guest-physical one behind it.
        known: Option<(u64, u64)>,
    },
    /// A model-specific register that the platform does not have is read or written.
    Msr {
        /// Which.
        msr: u32,
        /// The value written.
        write: Option<u64>,
        /// The instruction after it.
        next_rip: u64,
    },
}

pub(crate) fn decode(context: &WHV_RUN_VP_EXIT_CONTEXT) -> Result<Exit, HvError> {
    let rip = context.VpContext.Rip;
    let stuck = |what: &str| Err(HvError::Guest(format!("{what}, at RIP {rip:#x}")));
    let exit = match context.ExitReason {
        WHvRunVpExitReasonMemoryAccess => {
            // SAFETY: the member that belongs to this reason.
            let access = unsafe { context.Anonymous.MemoryAccess };
            // SAFETY: plain bits.
            let info = unsafe { access.AccessInfo.AsUINT32 };
            if info & 3 == WHvMemoryAccessExecute as u32 {
                let what = format!("the guest runs where no memory is ({:#x})", access.Gpa);
                return stuck(&what);
            }
            let known = (info & GVA_VALID != 0).then_some((access.Gva, access.Gpa));
            let bytes = given(&access.InstructionBytes, access.InstructionByteCount);
            Exit::Instruction { bytes, known }
        }
        WHvRunVpExitReasonX64IoPortAccess => {
            // SAFETY: the member that belongs to this reason.
            let access = unsafe { &context.Anonymous.IoPortAccess };
            let bytes = given(&access.InstructionBytes, access.InstructionByteCount);
            Exit::Instruction { bytes, known: None }
        }
        WHvRunVpExitReasonX64MsrAccess => {
            // SAFETY: the member that belongs to this reason.
            let access = unsafe { context.Anonymous.MsrAccess };
            // SAFETY: plain bits.
            let is_write = unsafe { access.AccessInfo.AsUINT32 } & 1 != 0;
            let value = access.Rdx << 32 | access.Rax & 0xffff_ffff;
            let len = match context.VpContext._bitfield & 0xf {
                // RDMSR and WRMSR.
                0 => 2,
                len => u64::from(len),
            };
            let (write, next_rip) = (is_write.then_some(value), rip.wrapping_add(len));
            Exit::Msr { msr: access.MsrNumber, write, next_rip }
        }
        WHvRunVpExitReasonX64ApicEoi => {
            // SAFETY: the member that belongs to this reason.
            let vector = unsafe { context.Anonymous.ApicEoi }.InterruptVector as u8;
            Exit::Machine(VmExit::EndOfInterrupt { vector })
        }
        WHvRunVpExitReasonX64Halt => Exit::Machine(VmExit::Halt),
        WHvRunVpExitReasonUnrecoverableException => Exit::Machine(VmExit::Shutdown),
        WHvRunVpExitReasonCanceled => Exit::Canceled,
        WHvRunVpExitReasonInvalidVpRegisterValue => {
            return stuck("the processor refused the guest's state");
        }
        WHvRunVpExitReasonUnsupportedFeature => {
            // SAFETY: the member that belongs to this reason.
            let feature = unsafe { context.Anonymous.UnsupportedFeature };
            let what = format!(
                "the guest uses a feature that the platform does not have (code {}, {:#x})",
                feature.FeatureCode, feature.FeatureParameter
            );
            return stuck(&what);
        }
        reason => return stuck(&format!("unexpected exit reason {reason:#x}")),
    };
    Ok(exit)
}

fn given(bytes: &[u8; 16], count: u8) -> Vec<u8> {
    bytes[..usize::from(count).min(bytes.len())].to_vec()
}
