//! Arithmetic with flags (Intel SDM 1 §3.4.3.1).

pub(crate) const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
pub(crate) const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

/// The low `size` bytes, all ones.
pub(crate) fn mask(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}

fn sign(value: u64, size: usize) -> bool {
    value >> (8 * size - 1) & 1 != 0
}

/// Sets or clears flags.
fn put(flags: &mut u64, which: u64, on: bool) {
    if on { *flags |= which } else { *flags &= !which }
}

/// Zero, sign and parity of a result.
fn result(flags: &mut u64, value: u64, size: usize) {
    put(flags, ZF, value & mask(size) == 0);
    put(flags, SF, sign(value, size));
    put(flags, PF, (value as u8).count_ones() & 1 == 0);
}

/// What two operands give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    AddCarry,
    Sub,
    SubBorrow,
    And,
    Or,
    Xor,
}

/// `a op b`, `size` bytes wide.
pub(crate) fn binary(op: Op, a: u64, b: u64, size: usize, flags: &mut u64) -> u64 {
    let (a, b) = (a & mask(size), b & mask(size));
    let carry = *flags & CF;
    *flags &= !ALL;
    let value = match op {
        Op::And => a & b,
        Op::Or => a | b,
        Op::Xor => a ^ b,
        Op::Add | Op::AddCarry => {
            let carry = if op == Op::AddCarry { carry } else { 0 };
            let wide = u128::from(a) + u128::from(b) + u128::from(carry);
            put(flags, CF, wide > u128::from(mask(size)));
            let value = wide as u64 & mask(size);
            put(flags, OF, sign((a ^ value) & (b ^ value), size));
            put(flags, AF, (a ^ b ^ value) & 0x10 != 0);
            value
        }
        Op::Sub | Op::SubBorrow => {
            let borrow = if op == Op::SubBorrow { carry } else { 0 };
            put(flags, CF, u128::from(a) < u128::from(b) + u128::from(borrow));
            let value = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
            put(flags, OF, sign((a ^ b) & (a ^ value), size));
            put(flags, AF, (a ^ b ^ value) & 0x10 != 0);
            value
        }
    };
    result(flags, value, size);
    value
}

/// `INC` (1) and `DEC` (minus 1), which leave the carry alone.
pub(crate) fn step(up: bool, a: u64, size: usize, flags: &mut u64) -> u64 {
    let carry = *flags & CF;
    let value = binary(if up { Op::Add } else { Op::Sub }, a, 1, size, flags);
    put(flags, CF, carry != 0);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_sums_and_differences() {
        let mut flags = 0;
        assert_eq!(binary(Op::Add, 0xff, 1, 1, &mut flags), 0);
        assert_eq!(flags, CF | ZF | PF | AF);
        assert_eq!(binary(Op::AddCarry, 0x7fff_ffff, 0, 4, &mut flags), 0x8000_0000);
        assert_eq!(flags & (CF | OF | SF | ZF), OF | SF);
        assert_eq!(binary(Op::Sub, 0, 1, 8, &mut flags), u64::MAX);
        assert_eq!(flags & (CF | OF | SF | ZF), CF | SF);
        assert_eq!(binary(Op::SubBorrow, 5, 4, 2, &mut flags), 0);
        assert_eq!(flags & (CF | ZF), ZF);
        flags |= CF;
        assert_eq!(step(true, 0xffff, 2, &mut flags), 0);
        assert_eq!(flags & (CF | ZF), CF | ZF);
        assert_eq!(binary(Op::And, 0b1100, 0b0110, 1, &mut flags), 0b0100);
        assert_eq!(flags & ALL, 0);
    }
}
