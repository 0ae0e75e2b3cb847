//! virtio-rng (virtio 1.3 §5.4): every buffer that the driver offers comes back filled with random
//! bytes of the host's operating system.

use cabana_os::LoopHandle;
use cabana_os::process::random_bytes;
use cabana_virtio::{
    Chain, Identity, QueueContext, QueueState, ServedQueue, StartError, VirtioDevice,
};

/// The most bytes that one buffer gets; the driver asks again for more.
const MAX_BYTES: usize = 64 << 10;
/// Bytes fetched at once.
const STEP: usize = 256;

/// The device.
#[derive(Debug)]
pub struct Rng {
    events: LoopHandle,
    queue: Option<ServedQueue>,
}

impl Rng {
    /// A device that is served on the loop of `events`.
    pub fn new(events: LoopHandle) -> Self {
        Self { events, queue: None }
    }
}

impl VirtioDevice for Rng {
    fn identity(&self) -> Identity {
        Identity { device_type: 4, features: 0, queue_sizes: vec![8], config_len: 0 }
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        if index != 0 {
            return Err(StartError::NoSuchQueue(index));
        }
        self.queue = Some(ServedQueue::start(&self.events, context, fill)?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(ServedQueue::stop)
    }
}

/// Fills the writable part; a host that has no entropy to give leaves it shorter.
fn fill(chain: &Chain) -> u32 {
    let mut writer = chain.writer();
    let mut left = writer.left().min(MAX_BYTES);
    while left > 0 {
        let Ok(bytes) = random_bytes::<STEP>() else { break };
        let count = left.min(STEP);
        if writer.write_all(&bytes[..count]).is_err() {
            break;
        }
        left -= count;
    }
    writer.written()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabana_os::EventLoop;
    use cabana_virtio::testing::TestDriver;

    fn driver() -> (EventLoop, TestDriver) {
        let events = EventLoop::spawn("test").unwrap();
        let driver = TestDriver::new(Rng::new(events.handle()));
        (events, driver)
    }

    #[test]
    fn buffers_are_filled_to_the_end_with_bytes_that_differ() {
        let (_events, mut driver) = driver();
        let one = driver.send(0, &[], &[300, 1, 212]);
        let two = driver.send(0, &[], &[513]);
        assert_eq!((one.len(), two.len()), (513, 513));
        assert_ne!(one, two[..513]);
        for bytes in [one, two] {
            // 513 uniform bytes miss more than 60 in 256 values once in many universes.
            let kinds: std::collections::HashSet<u8> = bytes.iter().copied().collect();
            assert!(kinds.len() > 150, "{} kinds of bytes", kinds.len());
            assert!(bytes[505..].iter().any(|byte| *byte != 0xa5), "the end was left alone");
        }
    }

    #[test]
    fn another_goes_on_with_other_bytes() {
        let (events, mut driver) = driver();
        let one = driver.send(0, &[], &[64]);
        driver.move_to(Rng::new(events.handle())).unwrap();
        assert_ne!(driver.send(0, &[], &[64]), one);
    }

    #[test]
    fn one_buffer_gets_no_more_than_the_limit() {
        let (_events, mut driver) = driver();
        assert_eq!(driver.send(0, &[], &[MAX_BYTES / 2, 1 << 20]).len(), MAX_BYTES);
    }

    #[test]
    fn a_buffer_without_room_comes_back_empty() {
        let (_events, mut driver) = driver();
        assert_eq!(driver.send(0, &[b"readable"], &[]), b"");
        assert_eq!(driver.send(0, &[], &[0]), b"");
        assert_eq!(driver.send(0, &[], &[4]).len(), 4);
    }
}
