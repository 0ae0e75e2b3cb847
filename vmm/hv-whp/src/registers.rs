//! Neutral registers and the vendor's, both ways.

use cabana_hv::x86::{DescriptorTable, Segment};
use windows_sys::Win32::System::Hypervisor::{
    WHV_REGISTER_NAME, WHV_REGISTER_VALUE, WHV_UINT128, WHV_X64_SEGMENT_REGISTER,
    WHV_X64_SEGMENT_REGISTER_0, WHV_X64_TABLE_REGISTER, WHvX64RegisterR8, WHvX64RegisterR9,
    WHvX64RegisterR10, WHvX64RegisterR11, WHvX64RegisterR12, WHvX64RegisterR13, WHvX64RegisterR14,
    WHvX64RegisterR15, WHvX64RegisterRax, WHvX64RegisterRbp, WHvX64RegisterRbx, WHvX64RegisterRcx,
    WHvX64RegisterRdi, WHvX64RegisterRdx, WHvX64RegisterRflags, WHvX64RegisterRip,
    WHvX64RegisterRsi, WHvX64RegisterRsp,
};

/// A register's value. The vendor's header aligns it to 16 bytes; the generated declaration does not say so.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Value(pub(crate) WHV_REGISTER_VALUE);

const _: () = assert!(size_of::<Value>() == 16);

impl Default for Value {
    fn default() -> Self {
        Self::wide(0)
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.as_wide())
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::wide(value.into())
    }
}

impl From<Segment> for Value {
    fn from(segment: Segment) -> Self {
        Self(WHV_REGISTER_VALUE {
            Segment: WHV_X64_SEGMENT_REGISTER {
                Base: segment.base,
                Limit: segment.limit,
                Selector: segment.selector,
                Anonymous: WHV_X64_SEGMENT_REGISTER_0 { Attributes: segment.attributes },
            },
        })
    }
}

impl From<DescriptorTable> for Value {
    fn from(table: DescriptorTable) -> Self {
        let table = WHV_X64_TABLE_REGISTER { Pad: [0; 3], Limit: table.limit, Base: table.base };
        Self(WHV_REGISTER_VALUE { Table: table })
    }
}

impl Value {
    /// All 128 bits.
    pub(crate) fn wide(value: u128) -> Self {
        let part = |at: u32| (value >> (32 * at)) as u32;
        let dwords = [part(0), part(1), part(2), part(3)];
        Self(WHV_REGISTER_VALUE { Reg128: WHV_UINT128 { Dword: dwords } })
    }

    /// All 128 bits.
    pub(crate) fn as_wide(self) -> u128 {
        // SAFETY: every member is plain bits, and all 16 bytes are set.
        let dwords = unsafe { self.0.Reg128.Dword };
        dwords.iter().rev().fold(0, |all, &part| all << 32 | u128::from(part))
    }

    /// The low 64 bits.
    pub(crate) fn as_u64(self) -> u64 {
        self.as_wide() as u64
    }

    /// Of a segment register.
    pub(crate) fn as_segment(self) -> Segment {
        // SAFETY: plain bits.
        segment(unsafe { &self.0.Segment })
    }

    /// Of a table register.
    pub(crate) fn as_table(self) -> DescriptorTable {
        // SAFETY: plain bits.
        let table = unsafe { self.0.Table };
        DescriptorTable { base: table.Base, limit: table.Limit }
    }
}

pub(crate) fn segment(segment: &WHV_X64_SEGMENT_REGISTER) -> Segment {
    Segment {
        selector: segment.Selector,
        base: segment.Base,
        limit: segment.Limit,
        // SAFETY: plain bits.
        attributes: unsafe { segment.Anonymous.Attributes },
    }
}

/// General registers, RIP and RFLAGS, in the order of [`cabana_hv::x86::Regs`].
pub(crate) const GENERAL: [WHV_REGISTER_NAME; 18] = [
    WHvX64RegisterRax,
    WHvX64RegisterRbx,
    WHvX64RegisterRcx,
    WHvX64RegisterRdx,
    WHvX64RegisterRsi,
    WHvX64RegisterRdi,
    WHvX64RegisterRsp,
    WHvX64RegisterRbp,
    WHvX64RegisterR8,
    WHvX64RegisterR9,
    WHvX64RegisterR10,
    WHvX64RegisterR11,
    WHvX64RegisterR12,
    WHvX64RegisterR13,
    WHvX64RegisterR14,
    WHvX64RegisterR15,
    WHvX64RegisterRip,
    WHvX64RegisterRflags,
];

#[cfg(test)]
mod tests {
    use super::*;
    use cabana_hv::x86::Regs;

    #[test]
    fn values_survive_both_ways() {
        let wide = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;
        assert_eq!(Value::wide(wide).as_wide(), wide);
        assert_eq!(Value::from(7).as_u64(), 7);
        let code = Segment { selector: 0x10, base: 1, limit: u32::MAX, attributes: 0xa09b };
        assert_eq!(Value::from(code).as_segment(), code);
        let table = DescriptorTable { base: 0xffff_8000_0000_1000, limit: 0xfff };
        assert_eq!(Value::from(table).as_table(), table);
        let numbers = std::array::from_fn(|at| at as u64);
        assert_eq!(Regs::of(numbers).values(), numbers);
    }
}
