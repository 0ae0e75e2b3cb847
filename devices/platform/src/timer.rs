//! The interval timer's channel 2, as far as its absence goes. A kernel that is not told its frequencies by
//! CPUID counts them with this timer (Linux, `arch/x86/kernel/tsc.c`, `quick_pit_calibrate`): it waits for the
//! count to leave 0xff. Where nobody answers, all reads are ones, and it waits for 50,000 of them. Zeroes tell it
//! at once.

use cabana_bus::BusDevice;

/// Reads as zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct AbsentTimer;

impl BusDevice for AbsentTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
