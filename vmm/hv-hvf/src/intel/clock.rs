//! The host's time in nanoseconds, ticks and the guest's time-stamp counter.

use std::sync::Arc;

use cabana_hv::HvError;
use cabana_lapic::{Deadline, Now};

use super::functions::Framework;
use crate::functions::{Timebase, check};

const SECOND: u128 = 1_000_000_000;

#[derive(Debug)]
pub(crate) struct Clock {
    framework: Arc<Framework>,
    /// A tick of `mach_absolute_time` is `numer / denom` nanoseconds.
    base: Timebase,
    tsc_hertz: u64,
}

impl Clock {
    pub(crate) fn new(framework: Arc<Framework>) -> Result<Self, HvError> {
        let mut base = Timebase::default();
        // SAFETY: the structure is written.
        let code = unsafe { (framework.functions.mach_timebase_info)(&raw mut base) };
        check("mach_timebase_info", code)?;
        let tsc_hertz = (framework.host.tsc_hertz)();
        if base.numer == 0 || base.denom == 0 || tsc_hertz == 0 {
            return Err(HvError::Unsupported("frequency of its clocks to tell"));
        }
        Ok(Self { framework, base, tsc_hertz })
    }

    pub(crate) fn tsc_khz(&self) -> u32 {
        u32::try_from(self.tsc_hertz / 1000).unwrap_or(u32::MAX)
    }

    /// The framework's clock, which ticks as the time-stamp counter does.
    pub(crate) fn tsc(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { (self.framework.functions.hv_tsc_clock)() }
    }

    /// Now, for a guest whose time-stamp counter is as much more than the framework's.
    pub(crate) fn now(&self, offset: i64) -> Now {
        // SAFETY: no arguments.
        let ticks = unsafe { (self.framework.functions.mach_absolute_time)() };
        let (numer, denom) = (u128::from(self.base.numer), u128::from(self.base.denom));
        Now {
            nanoseconds: (u128::from(ticks) * numer / denom) as u64,
            tsc: self.tsc().wrapping_add_signed(offset),
        }
    }

    /// The nanoseconds of a deadline, never before it.
    pub(crate) fn nanoseconds(&self, deadline: Deadline, now: Now) -> u64 {
        match deadline {
            Deadline::Nanoseconds(at) => at,
            Deadline::Tsc(at) => {
                let left = u128::from(at.saturating_sub(now.tsc)) * SECOND;
                let left = left.div_ceil(u128::from(self.tsc_hertz));
                now.nanoseconds.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
            }
        }
    }

    /// What `mach_absolute_time` will be then.
    pub(crate) fn ticks(&self, nanoseconds: u64) -> u64 {
        let (numer, denom) = (u128::from(self.base.numer), u128::from(self.base.denom));
        // The last value of all means never.
        let ticks = (u128::from(nanoseconds) * denom).div_ceil(numer);
        u64::try_from(ticks).unwrap_or(u64::MAX).min(u64::MAX - 1)
    }
}
