//! The exit port: how a guest without firmware says that it is done, and with what status.

use cabana_bus::BusDevice;

/// Calls back with the byte that the guest writes.
pub struct ExitPort {
    on_exit: Box<dyn Fn(u8) + Send + Sync>,
}

impl ExitPort {
    /// `on_exit` gets the status; it may be called more than once.
    pub fn new(on_exit: impl Fn(u8) + Send + Sync + 'static) -> Self {
        Self { on_exit: Box::new(on_exit) }
    }
}

impl BusDevice for ExitPort {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(status) = data.first() {
            (self.on_exit)(*status);
        }
    }
}

impl std::fmt::Debug for ExitPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExitPort").finish_non_exhaustive()
    }
}
