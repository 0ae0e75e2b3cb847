//! An APIC's saved state: its register page, as far as it has registers.

use crate::Apic;
use crate::registers::{
    COMMAND, COMMAND_HIGH, COUNT, DIVIDE, ERROR, ERRORS, FORMAT, IN_SERVICE, INITIAL, LEVEL,
    LOGICAL, REQUESTED, SPURIOUS, TASK_PRIORITY, TIMER,
};
use crate::timer::Now;

/// Bytes of a state.
pub const PAGE: usize = 1024;

/// These bytes are no APIC's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoState;

impl Apic {
    /// Its registers. The base and the deadline, which are model-specific registers, are not among them.
    pub fn state(&self, now: Now) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        for offset in (0..PAGE).step_by(16) {
            page[offset..offset + 4].copy_from_slice(&self.read(offset as u32, now).to_le_bytes());
        }
        page
    }

    /// Takes saved registers over; the base stays, the deadline is none.
    pub fn restore(&mut self, page: &[u8], now: Now) -> Result<(), NoState> {
        if page.len() != PAGE {
            return Err(NoState);
        }
        let register = |offset: u32| {
            let bytes = &page[offset as usize..offset as usize + 4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let mut apic = Self { base: self.base, ..Self::new(self.id) };
        apic.set_spurious(register(SPURIOUS));
        for offset in (TIMER..=ERROR).step_by(16) {
            apic.write(offset, register(offset), now);
        }
        for offset in [TASK_PRIORITY, LOGICAL, DIVIDE] {
            apic.write(offset, register(offset), now);
        }
        apic.format = register(FORMAT) | 0x0fff_ffff;
        apic.errors = register(ERRORS);
        apic.command = u64::from(register(COMMAND_HIGH)) << 32 | u64::from(register(COMMAND));
        apic.timer.initial = register(INITIAL);
        apic.timer.start(register(COUNT), now);
        for word in 0..8 {
            let at = u32::from(word) * 16;
            apic.in_service.set_word(word, register(IN_SERVICE + at));
            apic.level.set_word(word, register(LEVEL + at));
            apic.requested.set_word(word, register(REQUESTED + at));
        }
        *self = apic;
        Ok(())
    }
}
