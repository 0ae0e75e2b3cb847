//! The device's side of a split virtqueue (virtio 1.3 §2.7).

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use cabana_memory::{GuestAddress, GuestRam, MemoryError};
use serde::{Deserialize, Serialize};

use crate::chain::{Chain, Descriptor};

/// The driver asks for no interrupts (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// The device asks for no notifications (`VIRTQ_USED_F_NO_NOTIFY`).
const USED_NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor.
const DESCRIPTOR_SIZE: u64 = 16;

/// A ring that does not follow the rules. The queue stops being served until the driver resets
/// the device.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring or a descriptor table outside RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A size of zero, above the maximum, or not a power of two.
    #[error("queue size {0} is not valid")]
    Size(u16),
    /// The avail ring's index is further ahead than the queue is long.
    #[error("the driver offers {0} buffers in a queue of {1}")]
    TooManyAvailable(u16, u16),
    /// A descriptor's number beyond its table.
    #[error("descriptor {0} is not in a table of {1}")]
    NoSuchDescriptor(u16, u32),
    /// A chain that is longer than the queue (it runs in circles) or than 4 GiB.
    #[error("a descriptor chain is too long")]
    TooLong,
    /// An indirect table in a table, not negotiated, empty or not whole.
    #[error("an indirect descriptor is not valid")]
    Indirect,
    /// A readable descriptor after a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
}

/// Where the driver put the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueLayout {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Descriptor table, guest-physical.
    pub descriptors: u64,
    /// Avail ring (the driver's), guest-physical.
    pub avail: u64,
    /// Used ring (the device's), guest-physical.
    pub used: u64,
}

/// A queue at rest: enough to go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Where the rings are.
    pub layout: QueueLayout,
    /// The next entry of the avail ring to take.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

/// A live queue.
#[derive(Debug)]
pub struct Queue {
    ram: GuestRam,
    layout: QueueLayout,
    indirect: bool,
    event_idx: bool,
    next_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// `next_used` when the driver was last interrupted.
    signalled_used: Wrapping<u16>,
}

impl Queue {
    /// A queue from its beginning. `features` are the negotiated ones; `max_size` the device's.
    pub fn new(
        ram: GuestRam,
        layout: QueueLayout,
        max_size: u16,
        features: u64,
    ) -> Result<Self, QueueError> {
        let state = QueueState { layout, next_avail: 0, next_used: 0 };
        Self::resume(ram, state, max_size, features)
    }

    /// A queue that goes on where [`Queue::state`] stood.
    pub fn resume(
        ram: GuestRam,
        state: QueueState,
        max_size: u16,
        features: u64,
    ) -> Result<Self, QueueError> {
        let layout = state.layout;
        if !layout.size.is_power_of_two() || layout.size > max_size {
            return Err(QueueError::Size(layout.size));
        }
        // All accesses below stay within these three ranges, so they cannot overflow.
        let size = usize::from(layout.size);
        ram.piece(GuestAddress(layout.descriptors), 16 * size)?;
        ram.piece(GuestAddress(layout.avail), 6 + 2 * size)?;
        ram.piece(GuestAddress(layout.used), 6 + 8 * size)?;
        for ring in [layout.avail, layout.used] {
            if ring % 2 != 0 {
                return Err(MemoryError::OutOfRange { addr: ring, len: 2 }.into());
            }
        }
        Ok(Self {
            ram,
            layout,
            indirect: features & crate::F_INDIRECT_DESC != 0,
            event_idx: features & crate::F_EVENT_IDX != 0,
            next_avail: Wrapping(state.next_avail),
            next_used: Wrapping(state.next_used),
            signalled_used: Wrapping(state.next_used),
        })
    }

    /// Where the queue stands.
    pub fn state(&self) -> QueueState {
        QueueState {
            layout: self.layout,
            next_avail: self.next_avail.0,
            next_used: self.next_used.0,
        }
    }

    /// How many descriptors there are: the most buffers that the driver can offer at once.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// The RAM that the rings and buffers lie in.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The next buffer that the driver offers, if there is one.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let offered = Wrapping(self.ram.load_u16(self.avail_index())?) - self.next_avail;
        if offered.0 == 0 {
            return Ok(None);
        }
        if offered.0 > self.layout.size {
            return Err(QueueError::TooManyAvailable(offered.0, self.layout.size));
        }
        let slot = u64::from(self.next_avail.0 % self.layout.size);
        let head = u16::from_le(self.ram.read(GuestAddress(self.layout.avail + 4 + 2 * slot))?);
        let chain = self.walk(head)?;
        self.next_avail += 1;
        Ok(Some(chain))
    }

    /// Gives back the buffer taken last, as if it had not been popped.
    pub fn unpop(&mut self) {
        self.next_avail -= 1;
    }

    /// Returns a buffer to the driver with `written` bytes in its writable part.
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used.0 % self.layout.size);
        let entry = GuestAddress(self.layout.used + 4 + 8 * slot);
        self.ram.write(entry, u32::from(chain.head()).to_le())?;
        self.ram.write(GuestAddress(entry.0 + 4), written.to_le())?;
        self.next_used += 1;
        Ok(self.ram.store_u16(GuestAddress(self.layout.used + 2), self.next_used.0)?)
    }

    /// Does the driver want to hear of what was pushed since this last said yes?
    /// (virtio 1.3 §2.7.7.2)
    pub fn needs_interrupt(&mut self) -> Result<bool, QueueError> {
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = self.ram.load_u16(GuestAddress(self.layout.avail))?;
            return Ok(flags & AVAIL_NO_INTERRUPT == 0);
        }
        let used_event = GuestAddress(self.layout.avail + 4 + 2 * u64::from(self.layout.size));
        let event = Wrapping(self.ram.load_u16(used_event)?);
        let before = std::mem::replace(&mut self.signalled_used, self.next_used);
        Ok((self.next_used - event - Wrapping(1)).0 < (self.next_used - before).0)
    }

    /// Asks the driver for no notifications while the queue is being emptied.
    pub fn disable_doorbell(&mut self) -> Result<(), QueueError> {
        if !self.event_idx {
            self.ram.store_u16(GuestAddress(self.layout.used), USED_NO_NOTIFY)?;
        }
        Ok(())
    }

    /// Asks for a notification of the next buffer. True if one came in the meantime: look again.
    pub fn enable_doorbell(&mut self) -> Result<bool, QueueError> {
        if self.event_idx {
            let avail_event = GuestAddress(self.layout.used + 4 + 8 * u64::from(self.layout.size));
            self.ram.store_u16(avail_event, self.next_avail.0)?;
        } else {
            self.ram.store_u16(GuestAddress(self.layout.used), 0)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.ram.load_u16(self.avail_index())? != self.next_avail.0)
    }

    fn avail_index(&self) -> GuestAddress {
        GuestAddress(self.layout.avail + 2)
    }

    /// Collects the chain that starts at `head`: at most `size` descriptors, and as many again in
    /// an indirect table, where a Linux driver puts up to `size`.
    fn walk(&self, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain::new(self.ram.clone(), head);
        let mut table = (self.layout.descriptors, u32::from(self.layout.size));
        let mut indirect = false;
        let mut next = Some(head);
        let mut left = self.layout.size;
        while let Some(index) = next {
            left = left.checked_sub(1).ok_or(QueueError::TooLong)?;
            let descriptor = self.descriptor(table, index)?;
            if descriptor.is_indirect() {
                let whole = u64::from(descriptor.len) % DESCRIPTOR_SIZE == 0;
                if !self.indirect
                    || indirect
                    || !whole
                    || descriptor.len == 0
                    || descriptor.has_next()
                {
                    return Err(QueueError::Indirect);
                }
                indirect = true;
                left = self.layout.size;
                table = (descriptor.addr, descriptor.len / DESCRIPTOR_SIZE as u32);
                next = Some(0);
                continue;
            }
            chain.add(&descriptor)?;
            next = descriptor.has_next().then_some(descriptor.next);
        }
        Ok(chain)
    }

    fn descriptor(&self, (base, len): (u64, u32), index: u16) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= len {
            return Err(QueueError::NoSuchDescriptor(index, len));
        }
        let at = base
            .checked_add(DESCRIPTOR_SIZE * u64::from(index))
            .ok_or(MemoryError::OutOfRange { addr: base, len: DESCRIPTOR_SIZE as usize })?;
        let mut bytes = [0; DESCRIPTOR_SIZE as usize];
        self.ram.read_bytes(GuestAddress(at), &mut bytes)?;
        Ok(Descriptor::parse(&bytes))
    }
}
