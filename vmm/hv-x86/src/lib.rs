//! x86 instructions that a hypervisor hands over undone, because they touch devices: decoded with iced-x86
//! and carried out. KVM does this in the kernel; the Windows Hypervisor Platform and Hypervisor.framework on
//! Intel leave it to their users.
//!
//! An instruction is carried out by *replay*. It runs on a copy of the registers; when it needs an answer of a
//! device that is not there yet, the try ends with that access as a [`VmExit`], and begins anew with one
//! answer more. So there is no state between two accesses but their answers, an instruction that is given up in
//! between has changed nothing, and exchanging values stays the contract. Of a repeated string instruction one
//! element is done; the guest then executes it again.

mod alu;
mod cpu;
mod execute;
#[cfg(test)]
mod tests;

use cabana_hv::{HvError, VmEntry, VmExit};
use iced_x86::{Decoder, DecoderOptions, Instruction};

pub use cpu::{Cpu, Mode};

/// The longest instruction that a processor takes (Intel SDM 2A §2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// What an instruction sees beside the registers.
pub trait Surroundings {
    /// The guest-physical address behind a linear one; `None` where the guest would have a page fault.
    fn translate(&mut self, linear: u64, write: bool) -> Result<Option<u64>, HvError>;

    /// Reads RAM, within a page; `false` where there is none, which makes it a device's.
    fn read(&mut self, guest: u64, data: &mut [u8]) -> bool;

    /// Writes RAM, within a page; `false` where there is none or it is read-only.
    fn write(&mut self, guest: u64, data: &[u8]) -> bool;

    /// The vector register XMM`index`.
    fn xmm(&mut self, index: usize) -> Result<u128, HvError>;

    /// Sets the vector register XMM`index`.
    fn set_xmm(&mut self, index: usize, value: u128) -> Result<(), HvError>;
}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A device is asked, or told: answer and try again.
    Exit(VmExit),
    /// The instruction, or one element of a repeated one, is done.
    Done,
    /// It is not: the guest has a page fault at this linear address.
    PageFault {
        /// Where.
        linear: u64,
        /// Was it a write?
        write: bool,
    },
}

/// An instruction in work.
#[derive(Debug)]
pub struct Emulation {
    instruction: Instruction,
    accesses: Accesses,
}

impl Emulation {
    /// The instruction at `cpu.regs.rip`, whose first bytes are these.
    pub fn begin(cpu: &Cpu, bytes: &[u8]) -> Result<Self, HvError> {
        let bits = match cpu.mode {
            Mode::Bits16 => 16,
            Mode::Bits32 => 32,
            Mode::Bits64 => 64,
        };
        let mut decoder = Decoder::with_ip(bits, bytes, cpu.regs.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            let rip = cpu.regs.rip;
            return Err(HvError::Guest(format!(
                "an instruction that touches a device cannot be decoded: {bytes:02x?}, at RIP {rip:#x}"
            )));
        }
        Ok(Self { instruction, accesses: Accesses::default() })
    }

    /// Takes the entry of a vCPU whose instruction in work this is, if there is one; whether it is to be tried again.
    pub fn resume(work: Option<&mut Self>, entry: VmEntry) -> Result<bool, HvError> {
        match (work, entry) {
            (Some(work), entry) => work.answer(entry).map(|()| true),
            (None, VmEntry::Resume) => Ok(false),
            (None, VmEntry::Data(_)) => {
                Err(HvError::Invalid("data for an exit that was no read".into()))
            }
        }
    }

    /// Takes `entry` as the answer to the access that the last try ended with.
    pub fn answer(&mut self, entry: VmEntry) -> Result<(), HvError> {
        let asked = self.accesses.asked;
        let answer = match (asked, entry) {
            (Some(VmExit::MmioRead { .. } | VmExit::PioRead { .. }), VmEntry::Data(data)) => data,
            (Some(VmExit::MmioWrite { .. } | VmExit::PioWrite { .. }), VmEntry::Resume) => 0,
            (_, VmEntry::Resume) => {
                return Err(HvError::Invalid("a read was not answered with data".into()));
            }
            (_, VmEntry::Data(_)) => {
                return Err(HvError::Invalid("data for an exit that was no read".into()));
            }
        };
        self.accesses.asked = None;
        if let Some(asked) = asked {
            self.accesses.answers.push((asked, answer));
        }
        Ok(())
    }

    /// Tries the instruction. `cpu` changes when it is done, and only then.
    pub fn step(
        &mut self,
        cpu: &mut Cpu,
        surroundings: &mut dyn Surroundings,
    ) -> Result<Step, HvError> {
        self.accesses.used = 0;
        let mut tried = cpu.clone();
        let mut work = execute::Work {
            instruction: &self.instruction,
            cpu: &mut tried,
            surroundings,
            accesses: &mut self.accesses,
        };
        match work.run() {
            Ok(()) => {
                *cpu = tried;
                Ok(Step::Done)
            }
            Err(Stop::Ask(exit)) => {
                self.accesses.asked = Some(exit);
                Ok(Step::Exit(exit))
            }
            Err(Stop::PageFault { linear, write }) => Ok(Step::PageFault { linear, write }),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    /// Has the last access changed a device, with nothing asked after it? Then the instruction may be
    /// brought to its end without the machine.
    pub fn only_told(&self) -> bool {
        matches!(self.accesses.asked, Some(VmExit::MmioWrite { .. } | VmExit::PioWrite { .. }))
    }
}

/// The device accesses of one instruction, in their order.
#[derive(Debug, Default)]
struct Accesses {
    answers: Vec<(VmExit, u64)>,
    /// How many of them this try has used.
    used: usize,
    asked: Option<VmExit>,
}

impl Accesses {
    /// The answer to an access, if it is there.
    fn device(&mut self, exit: VmExit) -> Result<u64, Stop> {
        let (_, answer) = self.answers.get(self.used).copied().ok_or(Stop::Ask(exit))?;
        self.used += 1;
        Ok(answer)
    }

    /// Was it a device that was at this address in an earlier try? It stays one for this instruction, even if
    /// memory has come there meanwhile.
    fn was_device(&self, guest: u64) -> bool {
        match self.answers.get(self.used) {
            Some((VmExit::MmioRead { addr, .. } | VmExit::MmioWrite { addr, .. }, _)) => {
                *addr == guest
            }
            _ => false,
        }
    }
}

/// Why a try ends early.
enum Stop {
    Ask(VmExit),
    PageFault { linear: u64, write: bool },
    Error(HvError),
}

impl From<HvError> for Stop {
    fn from(error: HvError) -> Self {
        Self::Error(error)
    }
}
