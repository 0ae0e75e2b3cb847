//! The sleep registers of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7), as far as powering off needs
//! them: there is nothing to wake up from.

use cabana_bus::BusDevice;

/// The sleep type that powers off; `\_S5` of the DSDT names it.
pub const POWER_OFF: u8 = 5;

/// The control register is the first port; the status register, behind it, is always 0.
const CONTROL: u64 = 0;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 0x7;
const SLEEP_ENABLE: u8 = 1 << 5;

/// Calls back when the guest powers itself off.
pub struct SleepPorts {
    on_power_off: Box<dyn Fn() + Send + Sync>,
}

impl SleepPorts {
    /// `on_power_off` may be called more than once.
    pub fn new(on_power_off: impl Fn() + Send + Sync + 'static) -> Self {
        Self { on_power_off: Box::new(on_power_off) }
    }
}

impl BusDevice for SleepPorts {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(control) = data.first().filter(|_| offset == CONTROL) else { return };
        let sleep_type = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        if control & SLEEP_ENABLE != 0 && sleep_type == POWER_OFF {
            (self.on_power_off)();
        }
    }
}

impl std::fmt::Debug for SleepPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SleepPorts").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn only_type_5_with_enable_powers_off() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let ports = SleepPorts::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        // Another type, no enable bit, the status register, nothing at all.
        for (offset, data) in [(0, &[0x2c][..]), (0, &[0x14]), (1, &[0x34]), (0, &[])] {
            ports.write(offset, data);
        }
        assert_eq!(count.load(Ordering::Relaxed), 0);
        ports.write(0, &[0x34]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let mut status = [0xff];
        ports.read(1, &mut status);
        assert_eq!(status, [0]);
    }
}
