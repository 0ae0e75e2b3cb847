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
        let mut chain = Chain::new(self.ram.clone(), 0);
        Ok(self.pop_into(&mut chain)?.then_some(chain))
    }

    /// Like [`Queue::pop`], in place of a buffer that was taken from this queue before and is done with: for
    /// devices that do little for each. False if there is none.
    pub fn pop_into(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let offered = Wrapping(self.ram.load_u16(self.avail_index())?) - self.next_avail;
        if offered.0 == 0 {
            return Ok(false);
        }
        if offered.0 > self.layout.size {
            return Err(QueueError::TooManyAvailable(offered.0, self.layout.size));
        }
        let slot = u64::from(self.next_avail.0 % self.layout.size);
        let head = u16::from_le(self.ram.read(GuestAddress(self.layout.avail + 4 + 2 * slot))?);
        chain.clear(head);
        self.walk(head, chain)?;
        self.next_avail += 1;
        Ok(true)
    }

    /// Gives back the buffer taken last, as if it had not been popped.
    pub fn unpop(&mut self) {
        self.next_avail -= 1;
    }

    /// Returns a buffer to the driver with `written` bytes in its writable part.
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), QueueError> {
        self.push_all([(chain, written)])
    }

    /// Returns buffers that belong together: the driver sees all of them or none.
    pub fn push_all<'a>(
        &mut self,
        buffers: impl IntoIterator<Item = (&'a Chain, u32)>,
    ) -> Result<(), QueueError> {
        for (chain, written) in buffers {
            let slot = u64::from(self.next_used.0 % self.layout.size);
            let entry = GuestAddress(self.layout.used + 4 + 8 * slot);
            self.ram.write(entry, u32::from(chain.head()).to_le())?;
            self.ram.write(GuestAddress(entry.0 + 4), written.to_le())?;
            self.next_used += 1;
        }
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

    /// Asks for a notification once `count` more buffers are there, or for none where the driver cannot do
    /// that. True if so many came in the meantime: look again.
    pub fn delay_doorbell(&mut self, count: u16) -> Result<bool, QueueError> {
        if !self.event_idx {
            return Ok(false);
        }
        let avail_event = GuestAddress(self.layout.used + 4 + 8 * u64::from(self.layout.size));
        let last = self.next_avail + Wrapping(count.saturating_sub(1));
        self.ram.store_u16(avail_event, last.0)?;
        fence(Ordering::SeqCst);
        let offered = Wrapping(self.ram.load_u16(self.avail_index())?) - self.next_avail;
        Ok(offered.0 >= count)
    }

    fn avail_index(&self) -> GuestAddress {
        GuestAddress(self.layout.avail + 2)
    }

    /// Collects the chain that starts at `head`: at most `size` descriptors, and as many again in
    /// an indirect table, where a Linux driver puts up to `size`.
    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
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
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        INDIRECT, NEXT, Noise, RAM_SIZE, RawDescriptor, Setup, WRITE, bare_queue,
    };
    use crate::{F_EVENT_IDX, QueueContext};

    fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
        RawDescriptor { addr, len, flags, next }
    }

    /// What the device makes of one descriptor table whose first entry is offered.
    fn walk(table: &[RawDescriptor], setup: Setup) -> Result<Option<Chain>, QueueError> {
        let (mut driver, QueueContext { mut queue, .. }) = bare_queue(8, setup);
        for (index, &descriptor) in (0..).zip(table) {
            driver.write_descriptor(0, index, descriptor);
        }
        driver.offer(0, 0);
        queue.pop()
    }

    #[test]
    fn a_chain_in_a_circle_is_refused() {
        for flags in [NEXT, NEXT | WRITE] {
            let circle = [descriptor(0x1000, 1, flags, 1), descriptor(0x1000, 1, flags, 0)];
            assert!(matches!(walk(&circle, Setup::default()), Err(QueueError::TooLong)));
        }
    }

    #[test]
    fn buffers_outside_ram_are_refused() {
        let end = RAM_SIZE as u64;
        for (addr, len) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX), (0, !0)] {
            let result = walk(&[descriptor(addr, len, WRITE, 0)], Setup::default());
            assert!(matches!(result, Err(QueueError::Memory(_))), "{addr:#x} {len:#x}");
        }
        let whole = walk(&[descriptor(end - 2, 2, WRITE, 0)], Setup::default()).unwrap().unwrap();
        assert_eq!(whole.writer().left(), 2);
    }

    #[test]
    fn a_chain_of_more_than_four_gigabytes_is_refused() {
        // Every piece is in RAM; only the sum is too much.
        let (mut driver, QueueContext { mut queue, .. }) = bare_queue(128, Setup::default());
        for index in 0..127 {
            let half = (RAM_SIZE / 2) as u32 + 0x10_0000;
            driver.write_descriptor(0, index, descriptor(0, half, NEXT, index + 1));
        }
        driver.write_descriptor(0, 127, descriptor(0, 1, 0, 0));
        driver.offer(0, 0);
        assert!(matches!(queue.pop(), Err(QueueError::TooLong)));
    }

    #[test]
    fn numbers_beyond_the_table_are_refused() {
        let next = [descriptor(0x1000, 1, NEXT, 8)];
        assert!(matches!(walk(&next, Setup::default()), Err(QueueError::NoSuchDescriptor(8, 8))));
        let (mut driver, QueueContext { mut queue, .. }) = bare_queue(8, Setup::default());
        driver.offer(0, 0xffff);
        assert!(matches!(queue.pop(), Err(QueueError::NoSuchDescriptor(0xffff, 8))));
        driver.set_avail_index(0, 9);
        assert!(matches!(queue.pop(), Err(QueueError::TooManyAvailable(9, 8))));
    }

    #[test]
    fn a_readable_descriptor_behind_a_writable_one_is_refused() {
        let table = [descriptor(0x1000, 1, WRITE | NEXT, 1), descriptor(0x1000, 1, 0, 0)];
        assert!(matches!(walk(&table, Setup::default()), Err(QueueError::Order)));
    }

    #[test]
    fn indirect_tables_are_checked() {
        let refused = [
            descriptor(0x10_0000, 0, INDIRECT, 0),
            descriptor(0x10_0000, 17, INDIRECT, 0),
            descriptor(0x10_0000, 16, INDIRECT | NEXT, 1),
        ];
        for bad in refused {
            let result = walk(&[bad], Setup::default());
            assert!(matches!(result, Err(QueueError::Indirect)), "{bad:?}");
        }
        for addr in [u64::MAX - 15, RAM_SIZE as u64 - 8] {
            let outside = [descriptor(addr, 32, INDIRECT, 0)];
            assert!(matches!(walk(&outside, Setup::default()), Err(QueueError::Memory(_))));
        }
        let whole = [descriptor(0x10_0000, 16, INDIRECT, 0)];
        assert!(matches!(walk(&whole, Setup::plain()), Err(QueueError::Indirect)));
        // A table of zeroes: one readable descriptor of no length.
        assert_eq!(walk(&whole, Setup::default()).unwrap().unwrap().reader().left(), 0);
    }

    #[test]
    fn a_table_in_a_table_and_one_in_a_circle_are_refused() {
        for (entry, refused_as_indirect) in [
            (descriptor(0x20_0000, 16, INDIRECT, 0), true),
            (descriptor(0x1000, 1, NEXT, 0), false),
        ] {
            let (mut driver, QueueContext { mut queue, .. }) = bare_queue(8, Setup::default());
            driver.write_table(0x20_0000, 0, entry);
            driver.write_descriptor(0, 0, descriptor(0x20_0000, 16, INDIRECT, 0));
            driver.offer(0, 0);
            match queue.pop() {
                Err(QueueError::Indirect) => assert!(refused_as_indirect),
                Err(QueueError::TooLong) => assert!(!refused_as_indirect),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_indirect_table_may_be_as_long_as_the_queue() {
        let setup = Setup { indirect: true, ..Setup::default() };
        let (mut driver, QueueContext { mut queue, .. }) = bare_queue(8, setup);
        driver.submit(0, &[&b"a"[..]; 4], &[1; 4]);
        assert_eq!(queue.pop().unwrap().unwrap().reader().left(), 4);
        driver.submit(0, &[&b"a"[..]; 5], &[1; 4]);
        assert!(matches!(queue.pop(), Err(QueueError::TooLong)));
    }

    #[test]
    fn a_chain_may_end_in_an_indirect_table() {
        let (mut driver, QueueContext { mut queue, .. }) = bare_queue(8, Setup::default());
        driver.write_table(0x20_0000, 0, descriptor(0x1000, 5, 0, 0));
        driver.write_descriptor(0, 0, descriptor(0x1000, 2, NEXT, 1));
        // The device ignores WRITE beside INDIRECT (virtio 1.3 §2.7.5.3.2).
        driver.write_descriptor(0, 1, descriptor(0x20_0000, 16, INDIRECT | WRITE, 0));
        driver.offer(0, 0);
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.reader().left(), chain.writer().left()), (7, 0));
    }

    #[test]
    fn rings_must_lie_in_ram_and_have_a_valid_size() {
        let (driver, _context) = bare_queue(8, Setup::default());
        let good = driver.layout(0);
        let try_it = |layout| Queue::new(driver.ram().clone(), layout, 8, 0);
        assert!(try_it(good).is_ok());
        for size in [0, 3, 16, 0xffff] {
            assert!(matches!(try_it(QueueLayout { size, ..good }), Err(QueueError::Size(_))));
        }
        for place in [RAM_SIZE as u64 - 6, u64::MAX - 1, u64::MAX] {
            assert!(try_it(QueueLayout { descriptors: place, ..good }).is_err());
            assert!(try_it(QueueLayout { avail: place, ..good }).is_err());
            assert!(try_it(QueueLayout { used: place, ..good }).is_err());
        }
        assert!(try_it(QueueLayout { avail: good.avail + 1, ..good }).is_err());
        assert!(try_it(QueueLayout { used: good.used + 1, ..good }).is_err());
    }

    #[test]
    fn a_buffer_put_back_is_taken_again_and_the_state_says_so() {
        let (mut driver, QueueContext { mut queue, .. }) = bare_queue(8, Setup::default());
        let head = driver.submit(0, &[b"x"], &[]);
        assert_eq!(queue.pop().unwrap().unwrap().head(), head);
        assert_eq!(queue.state().next_avail, 1);
        queue.unpop();
        assert_eq!(queue.state().next_avail, 0);
        let mut elsewhere =
            Queue::resume(driver.ram().clone(), queue.state(), 8, F_EVENT_IDX).unwrap();
        let chain = elsewhere.pop().unwrap().unwrap();
        elsewhere.push(&chain, 0).unwrap();
        assert_eq!(driver.poll(0).unwrap().head, head);
        assert!(elsewhere.pop().unwrap().is_none());
    }

    /// virtio 1.3 §2.7.7.2 says the same with a condition over all that was pushed.
    #[test]
    fn an_interrupt_is_needed_exactly_when_the_event_index_was_passed() {
        let (driver, QueueContext { queue, .. }) = bare_queue(256, Setup::default());
        let layout = queue.state().layout;
        let used_event = GuestAddress(layout.avail + 4 + 2 * 256);
        let mut noise = Noise::new(7);
        for _ in 0..20_000 {
            let start = if noise.below(2) == 0 { noise.next() as u16 } else { 0xfff0 };
            let state = QueueState { layout, next_avail: start, next_used: start };
            let mut queue = Queue::resume(driver.ram().clone(), state, 256, F_EVENT_IDX).unwrap();
            let pushed = noise.below(40) as u16;
            let event = start.wrapping_add(noise.below(60) as u16).wrapping_sub(10);
            driver.ram().store_u16(used_event, event).unwrap();
            for _ in 0..pushed {
                queue.push(&Chain::new(driver.ram().clone(), 0), 0).unwrap();
            }
            let passed = (0..pushed).any(|step| start.wrapping_add(step) == event);
            assert_eq!(queue.needs_interrupt().unwrap(), passed, "{start} {pushed} {event}");
            assert!(!queue.needs_interrupt().unwrap(), "nothing new was pushed");
        }
    }

    #[test]
    fn without_event_index_a_flag_decides() {
        let (driver, QueueContext { mut queue, .. }) = bare_queue(8, Setup::plain());
        let layout = driver.layout(0);
        assert!(queue.needs_interrupt().unwrap());
        driver.ram().store_u16(GuestAddress(layout.avail), AVAIL_NO_INTERRUPT).unwrap();
        assert!(!queue.needs_interrupt().unwrap());
        queue.disable_doorbell().unwrap();
        assert_eq!(driver.ram().load_u16(GuestAddress(layout.used)).unwrap(), USED_NO_NOTIFY);
        driver.set_avail_index(0, 1);
        assert!(queue.enable_doorbell().unwrap(), "one came in the meantime");
        assert_eq!(driver.ram().load_u16(GuestAddress(layout.used)).unwrap(), 0);
    }

    /// Random tables, indirect ones too: whatever comes out is sound, and nothing panics or hangs.
    #[test]
    fn noise_in_the_rings_does_no_harm() {
        let mut noise = Noise::new(0xcaba);
        let (mut driver, QueueContext { mut queue, .. }) = bare_queue(16, Setup::default());
        let table = 0x40_0000;
        let (mut whole, mut refused) = (0, 0);
        for _ in 0..20_000 {
            for index in 0..16 {
                let addr = match noise.below(8) {
                    0 => noise.next(),
                    1 => RAM_SIZE as u64 - noise.below(64),
                    2..4 => table,
                    _ => noise.below(RAM_SIZE as u64 - 0x1000),
                };
                let len = match noise.below(8) {
                    0 => noise.next() as u32,
                    1..4 => 16 * noise.below(17) as u32,
                    _ => noise.below(0x1000) as u32,
                };
                let flags = noise.below(8) as u16 & noise.below(8) as u16;
                let random = descriptor(addr, len, flags, noise.below(18) as u16);
                if noise.below(2) == 0 {
                    driver.write_descriptor(0, index, random);
                } else {
                    driver.write_table(table, index, random);
                }
            }
            driver.offer(0, noise.below(17) as u16);
            match queue.pop() {
                Ok(Some(chain)) => {
                    whole += 1;
                    let (mut reader, mut writer) = (chain.reader(), chain.writer());
                    let (readable, writable) = (reader.left(), writer.left());
                    let sum =
                        |pieces: crate::Pieces| pieces.iter().map(|piece| piece.len).sum::<usize>();
                    assert_eq!(sum(reader.pieces(usize::MAX).unwrap()), readable);
                    assert_eq!(sum(writer.pieces(usize::MAX).unwrap()), writable);
                    queue.push(&chain, 0).unwrap();
                }
                Ok(None) => panic!("something was offered"),
                Err(_) => {
                    refused += 1;
                    // As after a reset: go on behind what was refused.
                    let QueueState { layout, next_avail, next_used } = queue.state();
                    let next_avail = next_avail.wrapping_add(1);
                    let state = QueueState { layout, next_avail, next_used };
                    let features = crate::F_INDIRECT_DESC | F_EVENT_IDX;
                    queue = Queue::resume(driver.ram().clone(), state, 16, features).unwrap();
                }
            }
        }
        assert!(whole > 1000 && refused > 1000, "{whole} {refused}");
    }
}
