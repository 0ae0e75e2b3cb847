//! The PC's real-time clock (Motorola MC146818A), as far as systems read the time at their start: they wait until
//! no update is in progress, and read seconds to century, in BCD and 24 hours. Where nobody answers, an update is
//! in progress for ever.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use cabana_bus::BusDevice;

/// Registers by their numbers.
const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const STATUS_A: u8 = 0xa;
const STATUS_B: u8 = 0xb;
const STATUS_D: u8 = 0xd;
/// Where most PCs have it, and ACPI's FADT says so.
const CENTURY: u8 = 0x32;

/// Status A: the usual divider and rate; no update is in progress.
const USUAL_RATE: u8 = 0x26;
/// Status B: 24 hours.
const HOURS_24: u8 = 1 << 1;
/// Status D: time is valid.
const VALID: u8 = 1 << 7;

/// Index and data port.
#[derive(Debug, Default)]
pub struct Rtc {
    index: AtomicU8,
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (1, Some(value)) = (offset, data.first_mut()) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *value = register(self.index.load(Ordering::Relaxed), now.as_secs());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(&index)) = (offset, data.first()) {
            // The highest bit masks NMIs.
            self.index.store(index & 0x7f, Ordering::Relaxed);
        }
    }
}

/// What a register reads `now` seconds after 1970 began.
fn register(index: u8, now: u64) -> u8 {
    let (days, second) = (now / 86_400, now % 86_400);
    let (year, month, day) = date(days);
    let value = match index {
        SECONDS => second % 60,
        MINUTES => second / 60 % 60,
        HOURS => second / 3600,
        // 1970 began on a Thursday, and weeks with a Sunday, 1.
        WEEKDAY => (days + 4) % 7 + 1,
        DAY => day,
        MONTH => month,
        YEAR => year % 100,
        CENTURY => year / 100,
        STATUS_A => return USUAL_RATE,
        STATUS_B => return HOURS_24,
        STATUS_D => return VALID,
        _ => return 0,
    };
    ((value / 10) << 4 | (value % 10)) as u8
}

/// Year, month and day of the month, so many days after 1970-01-01. Years are counted from March, in eras of 400
/// years, so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_new_years() {
        let seen = [0, 11_016, 11_017, 19_782, 19_783, 20_453, 20_454].map(date);
        assert_eq!(
            seen,
            [
                (1970, 1, 1),
                (2000, 2, 29),
                (2000, 3, 1),
                (2024, 2, 29),
                (2024, 3, 1),
                (2025, 12, 31),
                (2026, 1, 1)
            ]
        );
    }

    #[test]
    fn time_is_read_in_bcd_and_no_update_is_in_progress() {
        // 2026-11-28 13:59:58, a Saturday.
        let now = 20_785 * 86_400 + 13 * 3600 + 59 * 60 + 58;
        let indexes = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
        let read = indexes.map(|index| register(index, now));
        assert_eq!(read, [0x58, 0x59, 0x13, 0x07, 0x28, 0x11, 0x26, 0x20]);
        let rtc = Rtc::default();
        let mut status = [0xff];
        rtc.write(0, &[0x80 | STATUS_A]);
        rtc.read(1, &mut status);
        assert_eq!(status[0] & 1 << 7, 0);
    }
}
