//! What the guest's next instruction is, and what memory it touches.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess,
    OpKind, Register,
};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::slots::PAGE;

/// The longest instruction.
const MAX_INSTRUCTION: usize = 15;

/// A guest's memory, as the shim has mapped it.
pub trait Memory {
    /// Copies from mapped memory, within a page.
    fn read(&self, guest: u64, bytes: &mut [u8]) -> bool;

    /// May the guest do this there? `None` where nothing is mapped.
    fn allows(&self, guest: u64, write: bool) -> Option<bool>;

    /// Does KVM itself answer there?
    fn is_kvms(&self, _guest: u64) -> bool {
        false
    }
}

/// A processor's registers where it stands.
pub struct Place<'a, M> {
    /// It.
    pub vcpu: &'a VcpuFd,
    /// Its memory.
    pub memory: &'a M,
    /// Its general registers.
    pub regs: kvm_regs,
    /// Its segments and control registers.
    pub sregs: kvm_sregs,
}

/// The guest-physical address behind a linear one. KVM looks as the guest's kernel would, which may not look at
/// user memory (SMAP) unless RFLAGS.AC says so.
pub fn translate(vcpu: &VcpuFd, linear: u64) -> Option<u64> {
    const AC: u64 = 1 << 18;
    const SMAP: u64 = 1 << 21;
    let ask = || vcpu.translate_gva(linear).ok().filter(|found| found.valid != 0);
    if let Some(found) = ask() {
        return Some(found.physical_address);
    }
    let (regs, sregs) = (vcpu.get_regs().ok()?, vcpu.get_sregs().ok()?);
    if sregs.cr4 & SMAP == 0 || sregs.ss.dpl != 3 {
        return None;
    }
    let allowed = kvm_regs { rflags: regs.rflags | AC, ..regs };
    vcpu.set_regs(&allowed).ok()?;
    let found = ask();
    vcpu.set_regs(&regs).ok()?;
    Some(found?.physical_address)
}

/// Memory that the instruction may not touch without help.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The linear address.
    pub gva: u64,
    /// The guest-physical address.
    pub gpa: u64,
    /// Is it a write?
    pub write: bool,
    /// Is there no memory at all?
    pub unmapped: bool,
}

impl<M: Memory> Place<'_, M> {
    /// How wide its code is.
    pub fn bits(&self) -> u32 {
        match (self.sregs.cs.l, self.sregs.cs.db) {
            (1, _) => 64,
            (_, 1) => 32,
            _ => 16,
        }
    }

    /// The linear address of `rip`.
    pub fn code(&self, rip: u64) -> u64 {
        if self.bits() == 64 { rip } else { self.sregs.cs.base.wrapping_add(rip) & 0xffff_ffff }
    }

    /// The guest-physical address behind a linear one.
    pub fn translate(&self, linear: u64) -> Option<u64> {
        translate(self.vcpu, linear)
    }

    /// Bytes at a linear address, up to the first that cannot be read.
    pub fn bytes(&self, linear: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = linear.wrapping_add(done as u64);
            let part = ((PAGE - at % PAGE) as usize).min(len - done);
            let Some(gpa) = self.translate(at) else { break };
            if !self.memory.read(gpa, &mut bytes[done..done + part]) {
                break;
            }
            done += part;
        }
        bytes.truncate(done);
        bytes
    }

    /// The instruction at RIP, if its bytes are there.
    pub fn instruction(&self) -> (Vec<u8>, Option<Instruction>) {
        let bytes = self.bytes(self.code(self.regs.rip), MAX_INSTRUCTION);
        let decoded = self.decode(&bytes, self.regs.rip);
        (bytes, decoded)
    }

    /// The instruction that these bytes begin with.
    pub fn decode(&self, bytes: &[u8], rip: u64) -> Option<Instruction> {
        let mut decoder = Decoder::with_ip(self.bits(), bytes, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// The first memory that the instruction may not touch.
    pub fn fault(&self, instruction: &Instruction) -> Option<Fault> {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        info.used_memory().iter().find_map(|used| {
            let (reads, writes) = match used.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                _ => return None,
            };
            let gva = used.virtual_address(0, |register, _, _| self.register(register))?;
            let len = used.memory_size().size().max(1) as u64;
            // It may begin where memory is and end where none is.
            let last = gva.wrapping_add(len - 1);
            [gva, if last / PAGE == gva / PAGE { gva } else { last & !(PAGE - 1) }].iter().find_map(
                |&gva| {
                    let gpa = self.translate(gva)?;
                    if self.memory.is_kvms(gpa) {
                        return None;
                    }
                    let allowed = self.memory.allows(gpa, writes);
                    let unmapped = allowed.is_none();
                    let write = writes && (!unmapped || !reads);
                    (allowed != Some(true)).then_some(Fault { gva, gpa, write, unmapped })
                },
            )
        })
    }

    /// What a plain store of four bytes stores.
    pub fn stored(&self, instruction: &Instruction) -> Option<u64> {
        let is_store = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op0_kind() == OpKind::Memory
            && matches!(instruction.memory_size(), MemorySize::UInt32 | MemorySize::Int32);
        if !is_store {
            return None;
        }
        match instruction.op1_kind() {
            OpKind::Register => self.register(instruction.op1_register()),
            _ => instruction.try_immediate(1).ok(),
        }
        .map(|value| value & 0xffff_ffff)
    }

    /// A general register's value, or a segment's base.
    fn register(&self, register: Register) -> Option<u64> {
        let flat = self.bits() == 64;
        let base = |segment: &kvm_segment, always: bool| {
            Some(if flat && !always { 0 } else { segment.base })
        };
        let (r, s) = (&self.regs, &self.sregs);
        let full = match register.full_register() {
            Register::ES => return base(&s.es, false),
            Register::CS => return base(&s.cs, false),
            Register::SS => return base(&s.ss, false),
            Register::DS => return base(&s.ds, false),
            Register::FS => return base(&s.fs, true),
            Register::GS => return base(&s.gs, true),
            Register::RAX => r.rax,
            Register::RCX => r.rcx,
            Register::RDX => r.rdx,
            Register::RBX => r.rbx,
            Register::RSP => r.rsp,
            Register::RBP => r.rbp,
            Register::RSI => r.rsi,
            Register::RDI => r.rdi,
            Register::R8 => r.r8,
            Register::R9 => r.r9,
            Register::R10 => r.r10,
            Register::R11 => r.r11,
            Register::R12 => r.r12,
            Register::R13 => r.r13,
            Register::R14 => r.r14,
            Register::R15 => r.r15,
            _ => return None,
        };
        Some(match register.size() {
            1 if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) => {
                full >> 8 & 0xff
            }
            1 => full & 0xff,
            2 => full & 0xffff,
            4 => full & 0xffff_ffff,
            _ => full,
        })
    }
}
