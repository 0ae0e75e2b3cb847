//! virtio-blk (virtio 1.3 §5.2) over a raw, sparse file. Data moves straight between the file and
//! guest memory, on the event loop that the device is given; a machine gives it one of its own
//! where a slow disk must not hold up other devices.

// Guest memory is handed to the kernel as raw pieces.
#![allow(unsafe_code)]

mod disk;
mod overlay;
mod request;
mod state;

use std::sync::Arc;

use cabana_bus::{Persist, SavedState, StateError};
use cabana_os::LoopHandle;
use cabana_virtio::{Identity, QueueContext, QueueState, ServedQueue, StartError, VirtioDevice};

pub use disk::{Disk, DiskError, OpenError, Operation};
pub use state::BlockState;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const QUEUE_SIZE: u16 = 256;
/// Data segments of a request, beside its header and status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of a segment.
const SEGMENT_BYTES: u32 = 256 << 10;
/// Bytes of a read or a write, so that one request cannot keep the loop for long.
const MAX_TRANSFER: usize = (SEGMENTS * SEGMENT_BYTES) as usize;
/// Ranges of one discard, and sectors of each: 1 GiB, which costs the host's file system little.
const MAX_DISCARD_SEGMENTS: u32 = 32;
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Sectors to zero at once: 16 MiB, for hosts where they must be written.
const MAX_ZERO_SECTORS: u32 = 1 << 15;
/// Bytes of `struct virtio_blk_config` up to the features offered.
const CONFIG_LEN: u32 = 60;

/// Told of what the host could not do.
type OnError = Arc<dyn Fn(&DiskError) + Send + Sync>;

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    on_error: OnError,
    events: LoopHandle,
    queue: Option<ServedQueue>,
}

impl Block {
    /// Serves `disk` on the loop of `events`.
    pub fn new(disk: Disk, events: LoopHandle) -> Self {
        Self { disk: Arc::new(disk), on_error: Arc::new(|_| {}), events, queue: None }
    }

    /// The disk, to be copied while the device is paused.
    pub fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.disk)
    }

    /// Calls `hook`, on the loop's thread, for each request that the host could not do: the guest
    /// learns only of an I/O error, but who started it can be told that the host's disk is full
    /// ([`DiskError::host_is_full`]).
    #[must_use]
    pub fn on_error(mut self, hook: impl Fn(&DiskError) + Send + Sync + 'static) -> Self {
        self.on_error = Arc::new(hook);
        self
    }
}

impl VirtioDevice for Block {
    fn identity(&self) -> Identity {
        let access = match (self.disk.read_only, self.disk.offers_flush) {
            (true, _) => F_RO,
            (false, true) => F_DISCARD | F_WRITE_ZEROES | F_FLUSH,
            // Nothing of it lasts, so there is nothing to flush.
            (false, false) => F_DISCARD | F_WRITE_ZEROES,
        };
        Identity {
            device_type: 2,
            features: F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | access,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: CONFIG_LEN,
        }
    }

    /// `struct virtio_blk_config`.
    fn read_config(&self, config: &mut [u8]) {
        let mut put = |at: usize, value: u32| {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0, self.disk.sectors as u32);
        put(4, (self.disk.sectors >> 32) as u32);
        put(8, SEGMENT_BYTES);
        put(12, SEGMENTS);
        put(20, disk::SECTOR as u32);
        // Physical blocks of 4096 bytes (2^3 sectors), aligned, and no smaller accesses, please:
        // what the host's page cache and file system work with.
        put(24, 3 | 8 << 16);
        put(36, MAX_DISCARD_SECTORS);
        put(40, MAX_DISCARD_SEGMENTS);
        put(44, 8);
        put(48, MAX_ZERO_SECTORS);
        put(52, 1);
        // Zeroed ranges may be given back to the host.
        put(56, 1);
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        if index != 0 {
            return Err(StartError::NoSuchQueue(index));
        }
        let (disk, on_error) = (Arc::clone(&self.disk), Arc::clone(&self.on_error));
        let serve = move |chain: &_| request::serve(&disk, &*on_error, chain);
        self.queue = Some(ServedQueue::start(&self.events, context, serve)?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(ServedQueue::stop)
    }

    fn save(&self) -> SavedState {
        SavedState::of(self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.into_part(self)
    }
}

impl Persist for Block {
    const VERSION: u16 = 1;
    type State = BlockState;

    fn save(&self) -> BlockState {
        BlockState { sectors: self.disk.sectors }
    }

    fn restore(&self, state: BlockState) -> Result<(), StateError> {
        StateError::unless_same("the disk's length", &state, &Persist::save(self))
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("disk", &self.disk).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
