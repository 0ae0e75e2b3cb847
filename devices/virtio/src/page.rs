//! The page from which the guest reads a device's registers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cabana_os::Mapping;

use crate::registers;

/// Bytes of a register block, and of a page.
pub(crate) const SIZE: u64 = 0x1000;
const WORDS: usize = SIZE as usize / 4;

/// All that the driver can read of a device, ready in host memory. A machine may map it read-only
/// into the guest at the device's address: reads then cost no exit at all, and only writes trap.
#[derive(Debug)]
pub struct RegisterPage {
    mapping: Arc<Mapping>,
    index: usize,
}

impl RegisterPage {
    /// Pages for `count` devices that follow one another in host memory, so that one read-only
    /// memory slot can hold them all.
    pub fn contiguous(count: usize) -> io::Result<Vec<Self>> {
        let len = count.checked_mul(SIZE as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let mapping = Arc::new(Mapping::anonymous(len)?);
        Ok((0..count).map(|index| Self { mapping: Arc::clone(&mapping), index }).collect())
    }

    /// The page in this process: 4096 bytes, valid while the value lives, not to be written.
    pub fn host(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.index * SIZE as usize)
    }

    fn words(&self) -> &[AtomicU32; WORDS] {
        // SAFETY: the page lies within the mapping (`contiguous` made it so), is aligned, zeroed
        // and lives as long as `self`; it is accessed as atomics alone, by the guest only to read.
        unsafe { &*self.host().cast() }
    }

    fn word(&self, register: u64) -> &AtomicU32 {
        &self.words()[register as usize / 4]
    }

    pub(crate) fn load(&self, register: u64) -> u32 {
        u32::from_le(self.word(register).load(Ordering::SeqCst))
    }

    pub(crate) fn store(&self, register: u64, value: u32) {
        self.word(register).store(value.to_le(), Ordering::SeqCst);
    }

    /// Stores the halves of a 64-bit value in two registers.
    pub(crate) fn store_halves(&self, low: u64, high: u64, value: u64) {
        self.store(low, value as u32);
        self.store(high, (value >> 32) as u32);
    }

    pub(crate) fn set_bits(&self, register: u64, bits: u32) {
        self.word(register).fetch_or(bits.to_le(), Ordering::SeqCst);
    }

    pub(crate) fn clear_bits(&self, register: u64, bits: u32) {
        self.word(register).fetch_and(!bits.to_le(), Ordering::SeqCst);
    }

    /// Any bytes of the page; what lies beyond it stays as it is.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..SIZE) {
            *byte = self.load(at).to_le_bytes()[at as usize % 4];
        }
    }

    /// Replaces the device configuration if it differs, with the generation changed before and
    /// after (virtio 1.3 §2.5.3), so that a driver that reads in between reads again. True if so.
    pub(crate) fn store_config(&self, config: &[u8]) -> bool {
        let words: Vec<u32> = config
            .chunks(4)
            .map(|chunk| {
                let mut bytes = [0; 4];
                bytes[..chunk.len()].copy_from_slice(chunk);
                u32::from_le_bytes(bytes)
            })
            .collect();
        let place = |index: usize| registers::CONFIG + 4 * index as u64;
        if words.iter().enumerate().all(|(index, word)| self.load(place(index)) == *word) {
            return false;
        }
        self.next_generation();
        for (index, word) in words.iter().enumerate() {
            self.store(place(index), *word);
        }
        self.next_generation();
        true
    }

    fn next_generation(&self) {
        let generation = self.load(registers::CONFIG_GENERATION);
        self.store(registers::CONFIG_GENERATION, generation.wrapping_add(1));
    }
}
