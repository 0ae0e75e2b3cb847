//! The keyboard controller's status and command port, as far as a reset needs it: a kernel waits
//! for an empty input buffer, then sends 0xfe (`arch/x86/kernel/reboot.c`, `BOOT_KBD`).

use cabana_bus::BusDevice;

/// The command that pulses output line 0, which is the processor's reset line.
pub const PULSE_RESET: u8 = 0xfe;

/// Calls back when the guest resets itself.
pub struct ResetPort {
    on_reset: Box<dyn Fn() + Send + Sync>,
}

impl ResetPort {
    /// `on_reset` may be called more than once.
    pub fn new(on_reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self { on_reset: Box::new(on_reset) }
    }
}

impl BusDevice for ResetPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Both buffers are empty: nothing to read, ready for a command.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            (self.on_reset)();
        }
    }
}

impl std::fmt::Debug for ResetPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResetPort").finish_non_exhaustive()
    }
}
