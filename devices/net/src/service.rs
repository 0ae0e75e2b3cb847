//! What both queues do after a round.

use cabana_os::Event;
use cabana_virtio::{DeviceInterrupt, QueueError};

/// Rings the queue's own bell if there is more, since the loop has others to serve first; asks the driver
/// for a reset if the ring is broken, which is the answer.
pub(crate) fn conclude(
    round: Result<bool, QueueError>,
    doorbell: &Event,
    interrupt: &DeviceInterrupt,
) -> bool {
    match round {
        Ok(more) => {
            if more {
                doorbell.signal();
            }
            false
        }
        Err(error) => {
            interrupt.needs_reset(error);
            true
        }
    }
}
