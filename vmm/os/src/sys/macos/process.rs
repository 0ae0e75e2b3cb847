//! What belongs to this process: its clock.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Time of the host that only goes forward, from an unknown beginning.
pub fn monotonic() -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed()
}
