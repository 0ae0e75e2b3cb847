//! One try of one instruction.

use cabana_hv::{HvError, VmExit};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::alu::{self, CF, DF, Op, ZF, mask};
use crate::{Accesses, Cpu, Mode, Stop, Surroundings};

const PAGE: u64 = 4096;

pub(crate) struct Work<'a> {
    pub(crate) instruction: &'a Instruction,
    pub(crate) cpu: &'a mut Cpu,
    pub(crate) surroundings: &'a mut dyn Surroundings,
    pub(crate) accesses: &'a mut Accesses,
}

type Try<T> = Result<T, Stop>;

impl Work<'_> {
    /// Carries the instruction out and moves RIP, unless it is to be repeated.
    pub(crate) fn run(&mut self) -> Try<()> {
        let instruction = self.instruction;
        if is_string(instruction) {
            return self.string();
        }
        self.plain()?;
        self.cpu.regs.rip = instruction.next_ip();
        Ok(())
    }

    fn plain(&mut self) -> Try<()> {
        use Mnemonic as M;
        let size = self.size();
        match self.instruction.mnemonic() {
            M::Mov | M::Movnti | M::Movzx => {
                let value = self.get(1)?;
                self.set(0, value)
            }
            M::Movsx | M::Movsxd => {
                let from = self.operand_size(1);
                let value = self.get(1)? as u64;
                let unused = 64 - 8 * from as u32;
                self.set(0, ((value << unused) as i64 >> unused) as u64 as u128)
            }
            // Of the shorter ones a register loses what memory does not give.
            M::Movdqu
            | M::Movdqa
            | M::Movups
            | M::Movupd
            | M::Movaps
            | M::Movapd
            | M::Lddqu
            | M::Movntdq
            | M::Movntdqa
            | M::Movntps
            | M::Movntpd
            | M::Movq
            | M::Movd
            | M::Movss
            | M::Movsd => {
                let len = self.instruction.memory_size().size();
                let value = self.get(1)? & wide_mask(len);
                self.set(0, value)
            }
            M::Add => self.arithmetic(Op::Add, true),
            M::Adc => self.arithmetic(Op::AddCarry, true),
            M::Sub => self.arithmetic(Op::Sub, true),
            M::Sbb => self.arithmetic(Op::SubBorrow, true),
            M::And => self.arithmetic(Op::And, true),
            M::Or => self.arithmetic(Op::Or, true),
            M::Xor => self.arithmetic(Op::Xor, true),
            M::Cmp => self.arithmetic(Op::Sub, false),
            M::Test => self.arithmetic(Op::And, false),
            M::Inc | M::Dec => {
                let up = self.instruction.mnemonic() == M::Inc;
                let value = self.get(0)? as u64;
                let value = alu::step(up, value, size, &mut self.cpu.regs.rflags);
                self.set(0, value.into())
            }
            M::Not => {
                let value = self.get(0)?;
                self.set(0, !value)
            }
            M::Neg => {
                let value = self.get(0)? as u64;
                let value = alu::binary(Op::Sub, 0, value, size, &mut self.cpu.regs.rflags);
                self.set(0, value.into())
            }
            M::Xchg => {
                let (first, second) = (self.get(0)?, self.get(1)?);
                self.set(0, second)?;
                self.set(1, first)
            }
            M::Xadd => {
                let (first, second) = (self.get(0)? as u64, self.get(1)? as u64);
                let sum = alu::binary(Op::Add, first, second, size, &mut self.cpu.regs.rflags);
                self.set(0, sum.into())?;
                self.set(1, first.into())
            }
            M::Cmpxchg => {
                let held = self.get(0)? as u64;
                let expected = self.cpu.regs.rax & mask(size);
                alu::binary(Op::Sub, expected, held, size, &mut self.cpu.regs.rflags);
                if expected == held {
                    let new = self.get(1)?;
                    return self.set(0, new);
                }
                // Memory is written all the same, with what it held.
                self.set(0, held.into())?;
                self.cpu.set(accumulator(size), held);
                Ok(())
            }
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit(size),
            M::Push => {
                let value = self.get(0)? as u64;
                let len = self.stack_size();
                let top = self.cpu.regs.rsp.wrapping_sub(len as u64);
                self.store(self.stack(top), len, value.into())?;
                self.cpu.regs.rsp = top;
                Ok(())
            }
            M::Pop => {
                let (len, top) = (self.stack_size(), self.cpu.regs.rsp);
                let value = self.load(self.stack(top), len)?;
                self.cpu.regs.rsp = top.wrapping_add(len as u64);
                self.set(0, value)
            }
            M::In => {
                let (port, size) = (self.get(1)? as u16, self.operand_size(0) as u8);
                let value = self.accesses.device(VmExit::PioRead { port, size })?;
                self.set(0, value.into())
            }
            M::Out => {
                let (port, size) = (self.get(0)? as u16, self.operand_size(1) as u8);
                let data = self.get(1)? as u32;
                self.accesses.device(VmExit::PioWrite { port, size, data })?;
                Ok(())
            }
            _ => Err(self.unknown()),
        }
    }

    fn arithmetic(&mut self, op: Op, keep: bool) -> Try<()> {
        let (first, second, size) = (self.get(0)? as u64, self.get(1)? as u64, self.size());
        let value = alu::binary(op, first, second, size, &mut self.cpu.regs.rflags);
        if keep { self.set(0, value.into()) } else { Ok(()) }
    }

    /// `BT` and its kin with an immediate, whose offset stays within the operand.
    fn bit(&mut self, size: usize) -> Try<()> {
        if self.instruction.op1_kind() == OpKind::Register {
            return Err(self.unknown());
        }
        let value = self.get(0)? as u64;
        let bit = 1 << (self.get(1)? as u64 & (8 * size as u64 - 1));
        let flags = &mut self.cpu.regs.rflags;
        *flags = if value & bit != 0 { *flags | CF } else { *flags & !CF };
        let value = match self.instruction.mnemonic() {
            Mnemonic::Bts => value | bit,
            Mnemonic::Btr => value & !bit,
            Mnemonic::Btc => value ^ bit,
            _ => return Ok(()),
        };
        self.set(0, value.into())
    }

    /// One element of a string instruction. Nothing of a repeated one is done when its count is zero.
    fn string(&mut self) -> Try<()> {
        let instruction = self.instruction;
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let count = match address_size(instruction) {
            2 => Register::CX,
            4 => Register::ECX,
            _ => Register::RCX,
        };
        let left = self.cpu.get(count).unwrap_or(0);
        if repeated && left == 0 {
            self.cpu.regs.rip = instruction.next_ip();
            return Ok(());
        }
        let goes_on = self.element()?;
        for operand in 0..instruction.op_count() {
            self.advance(operand);
        }
        if repeated {
            self.cpu.set(count, left.wrapping_sub(1));
        }
        if !repeated || left == 1 || !goes_on {
            self.cpu.regs.rip = instruction.next_ip();
        }
        Ok(())
    }

    /// Whether another element may follow.
    fn element(&mut self) -> Try<bool> {
        use Mnemonic as M;
        let size = self.instruction.memory_size().size();
        match self.instruction.mnemonic() {
            M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq => {
                let value = self.get(1)?;
                self.set(0, value)?;
                Ok(true)
            }
            M::Insb | M::Insw | M::Insd => {
                let (port, len) = (self.cpu.regs.rdx as u16, size as u8);
                let value = self.accesses.device(VmExit::PioRead { port, size: len })?;
                self.set(0, value.into())?;
                Ok(true)
            }
            M::Outsb | M::Outsw | M::Outsd => {
                let (port, len) = (self.cpu.regs.rdx as u16, size as u8);
                let data = self.get(1)? as u32;
                self.accesses.device(VmExit::PioWrite { port, size: len, data })?;
                Ok(true)
            }
            _ => {
                // Compares: SCAS and CMPS.
                let (first, second) = (self.get(0)? as u64, self.get(1)? as u64);
                alu::binary(Op::Sub, first, second, size, &mut self.cpu.regs.rflags);
                let equal = self.cpu.regs.rflags & ZF != 0;
                Ok(equal != self.instruction.has_repne_prefix())
            }
        }
    }

    /// Moves the index register of a string operand on.
    fn advance(&mut self, operand: u32) {
        let register = match self.instruction.op_kind(operand) {
            OpKind::MemorySegSI => Register::SI,
            OpKind::MemorySegESI => Register::ESI,
            OpKind::MemorySegRSI => Register::RSI,
            OpKind::MemoryESDI | OpKind::MemorySegDI => Register::DI,
            OpKind::MemoryESEDI | OpKind::MemorySegEDI => Register::EDI,
            OpKind::MemoryESRDI | OpKind::MemorySegRDI => Register::RDI,
            _ => return,
        };
        let size = self.instruction.memory_size().size() as u64;
        let step = if self.cpu.regs.rflags & DF == 0 { size } else { size.wrapping_neg() };
        let at = self.cpu.get(register).unwrap_or(0);
        self.cpu.set(register, at.wrapping_add(step));
    }

    /// Bytes of the first operand.
    fn size(&self) -> usize {
        self.operand_size(0)
    }

    fn operand_size(&self, operand: u32) -> usize {
        match self.instruction.op_kind(operand) {
            OpKind::Register => self.instruction.op_register(operand).size(),
            _ if is_memory(self.instruction.op_kind(operand)) => {
                self.instruction.memory_size().size()
            }
            _ => 8,
        }
        .clamp(1, 16)
    }

    fn get(&mut self, operand: u32) -> Try<u128> {
        let kind = self.instruction.op_kind(operand);
        if kind == OpKind::Register {
            let register = self.instruction.op_register(operand);
            if register.is_xmm() {
                return Ok(self.surroundings.xmm(register.number())?);
            }
            if register.is_segment_register() {
                return Err(self.unknown());
            }
            return self.cpu.get(register).map(u128::from).ok_or_else(|| self.unknown());
        }
        if is_memory(kind) {
            let len = self.operand_size(operand);
            let linear = self.linear(operand)?;
            return self.load(linear, len);
        }
        self.instruction.try_immediate(operand).map(u128::from).map_err(|_| self.unknown())
    }

    fn set(&mut self, operand: u32, value: u128) -> Try<()> {
        let kind = self.instruction.op_kind(operand);
        if kind == OpKind::Register {
            let register = self.instruction.op_register(operand);
            if register.is_xmm() {
                return Ok(self.surroundings.set_xmm(register.number(), value)?);
            }
            if !register.is_gpr() {
                return Err(self.unknown());
            }
            self.cpu.set(register, value as u64);
            return Ok(());
        }
        let len = self.operand_size(operand);
        let linear = self.linear(operand)?;
        self.store(linear, len, value)
    }

    fn linear(&self, operand: u32) -> Try<u64> {
        let address = self
            .instruction
            .virtual_address(operand, 0, |register, _, _| self.cpu.get(register))
            .ok_or_else(|| self.unknown())?;
        Ok(if self.cpu.mode == Mode::Bits64 { address } else { address & 0xffff_ffff })
    }

    fn stack_size(&self) -> usize {
        match self.cpu.mode {
            Mode::Bits64 => 8,
            Mode::Bits32 => 4,
            Mode::Bits16 => 2,
        }
    }

    fn stack(&self, top: u64) -> u64 {
        self.cpu.get(Register::SS).unwrap_or(0).wrapping_add(top)
    }

    fn load(&mut self, linear: u64, len: usize) -> Try<u128> {
        let mut bytes = [0u8; 16];
        for (from, part) in pieces(linear, len) {
            let at = linear.wrapping_add(from as u64);
            let guest = self.translate(at, false)?;
            let Some(piece) = bytes.get_mut(from..from + part) else { continue };
            if !self.accesses.was_device(guest) && self.surroundings.read(guest, piece) {
                continue;
            }
            for (offset, size) in device_sizes(part) {
                let (addr, size) = (guest + offset as u64, size as u8);
                let answer = self.accesses.device(VmExit::MmioRead { addr, size })?.to_le_bytes();
                let size = usize::from(size);
                piece[offset..offset + size].copy_from_slice(&answer[..size]);
            }
        }
        Ok(u128::from_le_bytes(bytes))
    }

    fn store(&mut self, linear: u64, len: usize, value: u128) -> Try<()> {
        let bytes = value.to_le_bytes();
        for (from, part) in pieces(linear, len) {
            let guest = self.translate(linear.wrapping_add(from as u64), true)?;
            let Some(piece) = bytes.get(from..from + part) else { continue };
            if !self.accesses.was_device(guest) && self.surroundings.write(guest, piece) {
                continue;
            }
            for (offset, size) in device_sizes(part) {
                let mut data = [0; 8];
                data[..size].copy_from_slice(&piece[offset..offset + size]);
                let (addr, data) = (guest + offset as u64, u64::from_le_bytes(data));
                self.accesses.device(VmExit::MmioWrite { addr, size: size as u8, data })?;
            }
        }
        Ok(())
    }

    fn translate(&mut self, linear: u64, write: bool) -> Try<u64> {
        self.surroundings.translate(linear, write)?.ok_or(Stop::PageFault { linear, write })
    }

    fn unknown(&self) -> Stop {
        let rip = self.cpu.regs.rip;
        Stop::Error(HvError::Guest(format!(
            "device memory was touched by an instruction that is not emulated ({:?}), at RIP {rip:#x}",
            self.instruction.code()
        )))
    }
}

/// An access of `len` bytes, page by page: offset and length of each piece.
fn pieces(linear: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = (PAGE - linear % PAGE).min(len as u64) as usize;
    [(0, first), (first, len - first)].into_iter().filter(|(_, len)| *len > 0)
}

/// In what sizes a device sees `len` bytes: those of the contract, or else byte by byte.
fn device_sizes(len: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = match len {
        1 | 2 | 4 | 8 => len,
        16 => 8,
        _ => 1,
    };
    (0..len).step_by(size).map(move |offset| (offset, size))
}

fn wide_mask(len: usize) -> u128 {
    if len >= 16 { u128::MAX } else { (1 << (8 * len)) - 1 }
}

fn accumulator(size: usize) -> Register {
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

fn is_memory(kind: OpKind) -> bool {
    kind == OpKind::Memory || index_size(kind).is_some()
}

/// The width of the index register of a string operand.
fn index_size(kind: OpKind) -> Option<usize> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    }
}

fn address_size(instruction: &Instruction) -> usize {
    instruction.op_kinds().find_map(index_size).unwrap_or(8)
}

/// Does it work on strings? `MOVSD` of vectors has the same mnemonic, and other operands.
fn is_string(instruction: &Instruction) -> bool {
    let moves =
        matches!(instruction.code(), Code::Maskmovq_rDI_mm_mm | Code::Maskmovdqu_rDI_xmm_xmm);
    !moves && instruction.op_kinds().any(|kind| index_size(kind).is_some())
}
