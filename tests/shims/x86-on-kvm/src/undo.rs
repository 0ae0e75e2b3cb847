//! KVM carries out a port's or an MSR's instruction in two halves: it exits, and finishes when the processor
//! runs again, with the answer that was left for it. The platform exits before anything is done and never
//! finishes. So each exit is finished at once, with an answer that changes nothing, and the registers are set
//! back to where the instruction begins.

use iced_x86::{Instruction, Mnemonic};
use kvm_bindings::kvm_regs;

use crate::{Memory, Place};

/// `RFLAGS.DF`.
const DOWN: u64 = 1 << 10;
/// The longest of the string instructions with all their prefixes that make sense: REP, 66, 67, segment, REX.
const LONGEST: u64 = 6;

/// Is it `OUT` of `size` bytes to `port`?
pub fn is_out<M: Memory>(
    place: &Place<'_, M>,
    instruction: &Instruction,
    port: u16,
    size: usize,
) -> bool {
    let to = match instruction.try_immediate(0) {
        Ok(immediate) => immediate as u16,
        Err(_) => place.regs.rdx as u16,
    };
    instruction.mnemonic() == Mnemonic::Out
        && to == port
        && instruction.op1_register().size() == size
}

/// Does it put strings to ports?
fn is_outs(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd)
}

/// KVM has already sent an element of `size` bytes by the time it tells of `OUTS`: where its registers stood
/// before. `None` if no such instruction is where it must be.
pub fn before_outs<M: Memory>(place: &Place<'_, M>, size: u64) -> Option<kvm_regs> {
    let mut regs = place.regs;
    let step = if regs.rflags & DOWN == 0 { size } else { size.wrapping_neg() };
    regs.rsi = regs.rsi.wrapping_sub(step);
    let right = |instruction: &Instruction| {
        is_outs(instruction) && instruction.memory_size().size() as u64 == size
    };
    // Repeated: RIP moves only when the count is found to be zero.
    if let (_, Some(instruction)) = place.instruction()
        && right(&instruction)
        && instruction.has_rep_prefix()
    {
        regs.rcx = regs.rcx.wrapping_add(1);
        return Some(regs);
    }
    // Else the instruction stands before RIP. The longest one is it, for every prefix that it may have belongs
    // to it.
    (1..=LONGEST).rev().find_map(|len| {
        let rip = regs.rip.wrapping_sub(len);
        let instruction = place.decode(&place.bytes(place.code(rip), len as usize), rip)?;
        let whole = instruction.len() as u64 == len && right(&instruction);
        (whole && !instruction.has_rep_prefix()).then_some(kvm_regs { rip, ..regs })
    })
}

/// What stands in memory where `INS` would put an element of `size` bytes, so that putting it there changes
/// nothing.
pub fn under_ins<M: Memory>(place: &Place<'_, M>, size: usize) -> Vec<u8> {
    let base = if place.bits() == 64 { 0 } else { place.sregs.es.base };
    let mut there = place.bytes(base.wrapping_add(place.regs.rdi), size);
    there.resize(size, 0);
    there
}
