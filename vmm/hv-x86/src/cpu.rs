//! The registers that an instruction uses, by their names in iced-x86.

use cabana_hv::x86::{Regs, Segment};
use iced_x86::Register;

/// How wide addresses and operands are unless a prefix says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, and 16-bit segments.
    Bits16,
    /// 32-bit segments.
    Bits32,
    /// Long mode.
    Bits64,
}

impl Mode {
    /// The mode that a code segment makes (Intel SDM 3A §3.4.5): its L and D bits.
    pub fn of(code: &Segment) -> Self {
        match (code.attributes & 1 << 13 != 0, code.attributes & 1 << 14 != 0) {
            (true, _) => Self::Bits64,
            (false, true) => Self::Bits32,
            (false, false) => Self::Bits16,
        }
    }
}

/// General registers, and where segments begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// General registers, RIP and RFLAGS.
    pub regs: Regs,
    /// The mode.
    pub mode: Mode,
    /// Bases of ES, CS, SS, DS, FS and GS, in this order.
    pub bases: [u64; 6],
}

impl Cpu {
    /// A full register by its number in instructions.
    fn full(&mut self, number: usize) -> &mut u64 {
        let regs = &mut self.regs;
        match number {
            0 => &mut regs.rax,
            1 => &mut regs.rcx,
            2 => &mut regs.rdx,
            3 => &mut regs.rbx,
            4 => &mut regs.rsp,
            5 => &mut regs.rbp,
            6 => &mut regs.rsi,
            7 => &mut regs.rdi,
            8 => &mut regs.r8,
            9 => &mut regs.r9,
            10 => &mut regs.r10,
            11 => &mut regs.r11,
            12 => &mut regs.r12,
            13 => &mut regs.r13,
            14 => &mut regs.r14,
            _ => &mut regs.r15,
        }
    }

    /// A general register of any width, or a segment's base; `None` of other registers.
    pub(crate) fn get(&self, register: Register) -> Option<u64> {
        if register.is_segment_register() {
            return Some(self.base(register));
        }
        if !register.is_gpr() {
            return None;
        }
        let full = *self.clone().full(register.full_register().number());
        Some(match register.size() {
            1 if is_high(register) => full >> 8 & 0xff,
            1 => full & 0xff,
            2 => full & 0xffff,
            4 => full & 0xffff_ffff,
            _ => full,
        })
    }

    /// Sets a general register; a write of 32 bits clears the upper half, narrower ones keep the rest.
    pub(crate) fn set(&mut self, register: Register, value: u64) {
        let full = self.full(register.full_register().number());
        *full = match register.size() {
            1 if is_high(register) => *full & !0xff00 | (value & 0xff) << 8,
            1 => *full & !0xff | value & 0xff,
            2 => *full & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// In long mode only FS and GS have bases.
    fn base(&self, register: Register) -> u64 {
        let number = register.number();
        if self.mode == Mode::Bits64 && number < 4 {
            return 0;
        }
        self.bases.get(number).copied().unwrap_or(0)
    }
}

fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
