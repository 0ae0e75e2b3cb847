//! The register page (Intel SDM 3A §10.4.1, table 10-1). Registers have 32 bits and stand every 16 bytes.

use crate::message::{Delivery, Message};
use crate::timer::{Mode, Now};
use crate::{Apic, Effect, MASKED, SENT_ILLEGAL};

pub(crate) const ID: u32 = 0x20;
pub(crate) const VERSION: u32 = 0x30;
pub(crate) const TASK_PRIORITY: u32 = 0x80;
const PROCESSOR_PRIORITY: u32 = 0xa0;
pub(crate) const END: u32 = 0xb0;
pub(crate) const LOGICAL: u32 = 0xd0;
pub(crate) const FORMAT: u32 = 0xe0;
pub(crate) const SPURIOUS: u32 = 0xf0;
pub(crate) const IN_SERVICE: u32 = 0x100;
pub(crate) const LEVEL: u32 = 0x180;
pub(crate) const REQUESTED: u32 = 0x200;
pub(crate) const ERRORS: u32 = 0x280;
pub(crate) const COMMAND: u32 = 0x300;
pub(crate) const COMMAND_HIGH: u32 = 0x310;
pub(crate) const TIMER: u32 = 0x320;
pub(crate) const ERROR: u32 = 0x370;
pub(crate) const INITIAL: u32 = 0x380;
pub(crate) const COUNT: u32 = 0x390;
pub(crate) const DIVIDE: u32 = 0x3e0;

/// Version 0x14, six local vectors.
const VERSION_VALUE: u32 = 0x14 | 5 << 16;
/// Writable bits of the local vectors: of the timer, of the two pins, and of the others.
const TIMER_BITS: u32 = 0xff | MASKED | 3 << 17;
const PIN_BITS: u32 = 0xff | 7 << 8 | 1 << 13 | 1 << 15 | MASKED;
const OTHER_BITS: u32 = 0xff | 7 << 8 | MASKED;

impl Apic {
    /// Reads the register at `offset`; what is none reads as zero.
    pub fn read(&self, offset: u32, now: Now) -> u32 {
        let word = (offset >> 4 & 7) as u8;
        match offset & !0xf {
            ID if self.is_x2apic() => self.id,
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TASK_PRIORITY => self.task_priority.into(),
            PROCESSOR_PRIORITY => self.priority().into(),
            LOGICAL => self.logical_id(),
            FORMAT => self.format,
            SPURIOUS => self.spurious,
            IN_SERVICE..LEVEL => self.in_service.word(word),
            LEVEL..REQUESTED => self.level.word(word),
            REQUESTED..ERRORS => self.requested.word(word),
            ERRORS => self.errors,
            COMMAND => self.command as u32,
            COMMAND_HIGH => (self.command >> 32) as u32,
            at @ TIMER..=ERROR => *self.clone().local(at),
            INITIAL | COUNT if Mode::of(self.local.timer) == Mode::Deadline => 0,
            INITIAL => self.timer.initial,
            COUNT => self.timer.count(now),
            DIVIDE => self.timer.divide,
            _ => 0,
        }
    }

    /// Writes the register at `offset`; what is none, or may only be read, takes no notice.
    pub fn write(&mut self, offset: u32, value: u32, now: Now) -> Effect {
        match offset & !0xf {
            TASK_PRIORITY => self.task_priority = value as u8,
            END => return self.end(),
            LOGICAL if !self.is_x2apic() => self.logical = value & 0xff00_0000,
            FORMAT if !self.is_x2apic() => self.format = value | 0x0fff_ffff,
            SPURIOUS => self.set_spurious(value),
            ERRORS => self.errors = std::mem::take(&mut self.new_errors),
            COMMAND => {
                // Delivery status: always idle.
                let low = value & !(1 << 12);
                self.command = self.command & !0xffff_ffff | u64::from(low);
                let to = (self.command >> 32) as u32;
                return self.send(low, if self.is_x2apic() { to } else { to >> 24 });
            }
            COMMAND_HIGH => self.command = self.command & 0xffff_ffff | u64::from(value) << 32,
            at @ TIMER..=ERROR => self.set_local(at, value),
            INITIAL if Mode::of(self.local.timer) != Mode::Deadline => {
                self.timer.initial = value;
                self.timer.start(value, now);
            }
            DIVIDE => self.timer.set_divide(value, now),
            _ => {}
        }
        Effect::None
    }

    /// Carries out an interrupt command.
    pub(crate) fn send(&mut self, low: u32, to: u32) -> Effect {
        let Some(message) = Message::from_command(low, to) else { return Effect::None };
        if matches!(message.delivery, Delivery::Fixed | Delivery::Lowest) && message.vector < 16 {
            self.error(SENT_ILLEGAL);
            return Effect::None;
        }
        Effect::Send(message)
    }

    /// Switched off by software, all local vectors are masked (§10.4.7.2).
    pub(crate) fn set_spurious(&mut self, value: u32) {
        self.spurious = value & 0x1ff;
        if self.spurious & crate::SOFTWARE_ENABLED == 0 {
            for at in (TIMER..=ERROR).step_by(16) {
                *self.local(at) |= MASKED;
            }
        }
    }

    fn set_local(&mut self, at: u32, value: u32) {
        let mut value = value
            & match at {
                TIMER => TIMER_BITS,
                0x350 | 0x360 => PIN_BITS,
                _ => OTHER_BITS,
            };
        if self.spurious & crate::SOFTWARE_ENABLED == 0 {
            value |= MASKED;
        }
        if at == TIMER {
            self.timer.switch(self.local.timer, value);
        }
        *self.local(at) = value;
    }

    pub(crate) fn local(&mut self, at: u32) -> &mut u32 {
        match at {
            TIMER => &mut self.local.timer,
            0x330 => &mut self.local.thermal,
            0x340 => &mut self.local.performance,
            0x350 => &mut self.local.lint0,
            0x360 => &mut self.local.lint1,
            _ => &mut self.local.error,
        }
    }
}
