//! The APIC by model-specific registers: its base, the deadline, and all registers in x2APIC mode (Intel SDM 3A
//! §10.12).

use crate::registers::{
    COMMAND, COMMAND_HIGH, COUNT, END, ERROR, ERRORS, FORMAT, ID, LOGICAL, SPURIOUS, TASK_PRIORITY,
    TIMER, VERSION,
};
use crate::timer::{Mode, Now};
use crate::{ADDRESS, Apic, BASE_BOOT, BASE_ENABLED, BASE_X2APIC, Effect, Fault};

/// `IA32_APIC_BASE`.
const BASE: u32 = 0x1b;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;
/// The register page in x2APIC mode.
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;
/// Only in x2APIC mode: an interrupt to itself.
const SELF_IPI: u32 = 0x3f0;

impl Apic {
    /// Is this register the APIC's?
    pub fn has_msr(msr: u32) -> bool {
        msr == BASE || msr == TSC_DEADLINE || X2APIC.contains(&msr)
    }

    /// Reads one of its registers.
    pub fn read_msr(&self, msr: u32, now: Now) -> Result<u64, Fault> {
        match msr {
            BASE => Ok(self.base),
            TSC_DEADLINE => Ok(self.timer.at),
            _ => match self.offset(msr)? {
                COMMAND => Ok(self.command),
                END | FORMAT | COMMAND_HIGH | SELF_IPI => Err(Fault),
                offset if is_register(offset) => Ok(self.read(offset, now).into()),
                _ => Err(Fault),
            },
        }
    }

    /// Writes one of its registers.
    pub fn write_msr(&mut self, msr: u32, value: u64, now: Now) -> Result<Effect, Fault> {
        match msr {
            BASE => self.set_base(value)?,
            TSC_DEADLINE if Mode::of(self.local.timer) == Mode::Deadline => self.timer.at = value,
            // Without deadlines it takes no notice.
            TSC_DEADLINE => {}
            _ => return self.write_x2apic(self.offset(msr)?, value, now),
        }
        Ok(Effect::None)
    }

    fn write_x2apic(&mut self, offset: u32, value: u64, now: Now) -> Result<Effect, Fault> {
        let low = u32::try_from(value);
        match (offset, low) {
            (COMMAND, _) => {
                self.command = value & !(1 << 12);
                Ok(self.send(value as u32, (value >> 32) as u32))
            }
            (SELF_IPI, Ok(vector)) => Ok(self.send(vector & 0xff | 1 << 18, 0)),
            // These take a zero and nothing else.
            (END | ERRORS, Ok(1..)) => Err(Fault),
            (ID | VERSION | LOGICAL | FORMAT | COMMAND_HIGH | COUNT | 0xa0 | 0x100..ERRORS, _) => {
                Err(Fault)
            }
            (_, Ok(low)) if is_register(offset) => Ok(self.write(offset, low, now)),
            _ => Err(Fault),
        }
    }

    /// Where the register of this number is in the page.
    fn offset(&self, msr: u32) -> Result<u32, Fault> {
        if self.is_x2apic() && X2APIC.contains(&msr) {
            Ok((msr - X2APIC.start()) << 4)
        } else {
            Err(Fault)
        }
    }

    /// Modes change by a few ways only (§10.12.5): x2APIC is entered from xAPIC and left by switching off.
    fn set_base(&mut self, value: u64) -> Result<(), Fault> {
        const MODE: u64 = BASE_ENABLED | BASE_X2APIC;
        let (before, after) = (self.base & MODE, value & MODE);
        let known = value & !(MODE | BASE_BOOT) == ADDRESS;
        let way = !matches!((before, after), (_, BASE_X2APIC) | (MODE, BASE_ENABLED) | (0, MODE));
        if !known || !way {
            return Err(Fault);
        }
        if after == 0 && before != 0 {
            self.init();
        }
        self.base = value;
        Ok(())
    }

    /// Puts a saved base back, whatever way led there; `false` if it is none.
    pub fn restore_base(&mut self, value: u64) -> bool {
        let known = value & !(BASE_ENABLED | BASE_X2APIC | BASE_BOOT) == ADDRESS;
        let fits = known && value & (BASE_ENABLED | BASE_X2APIC) != BASE_X2APIC;
        if fits {
            self.base = value;
        }
        fits
    }
}

fn is_register(offset: u32) -> bool {
    matches!(
        offset,
        ID | VERSION | TASK_PRIORITY | 0xa0 | END | LOGICAL | SPURIOUS | 0x100..=ERRORS | COMMAND | TIMER..=ERROR
            | 0x380 | COUNT | 0x3e0
    )
}
