//! What an instruction sees beside its registers: the guest's memory and its vector registers.

use cabana_hv::HvError;
use cabana_hv_x86::Surroundings;

use super::cpu::Cpu;
use super::paging::Paging;
use crate::memory::Slots;

const PAGE: u64 = 4096;

pub(crate) struct Around<'a> {
    pub(crate) cpu: &'a Cpu,
    /// Held, so that nothing is unmapped meanwhile.
    pub(crate) slots: &'a mut Slots,
    pub(crate) paging: Paging,
    /// The page whose translation the exit told: linear and guest-physical address.
    pub(crate) known: Option<(u64, u64)>,
}

impl Around<'_> {
    /// Instruction bytes from `linear` on, as many as there are.
    pub(crate) fn fetch(&mut self, linear: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let at = linear.wrapping_add(done as u64);
            let Some(guest) = self.paging.translate(self.slots, at, false) else { break };
            let part = ((PAGE - at % PAGE) as usize).min(bytes.len() - done);
            if !self.read(guest, &mut bytes[done..done + part]) {
                break;
            }
            done += part;
        }
        done
    }
}

impl Surroundings for Around<'_> {
    fn translate(&mut self, linear: u64, write: bool) -> Result<Option<u64>, HvError> {
        if let Some((page, guest)) = self.known
            && page == linear & !(PAGE - 1)
        {
            return Ok(Some(guest | (linear & (PAGE - 1))));
        }
        Ok(self.paging.translate(self.slots, linear, write))
    }

    fn read(&mut self, guest: u64, data: &mut [u8]) -> bool {
        let Some(from) = self.slots.host(guest, data.len(), false) else { return false };
        for (at, byte) in data.iter_mut().enumerate() {
            // SAFETY: within mapped memory, by the line above; the guest may change it meanwhile.
            *byte = unsafe { from.add(at).read_volatile() };
        }
        true
    }

    fn write(&mut self, guest: u64, data: &[u8]) -> bool {
        let Some(to) = self.slots.host(guest, data.len(), true) else { return false };
        if self.slots.written(guest).is_err() {
            return false;
        }
        for (at, &byte) in data.iter().enumerate() {
            // SAFETY: within mapped memory that may be written, by the lines above.
            unsafe { to.add(at).write_volatile(byte) };
        }
        true
    }

    fn xmm(&mut self, index: usize) -> Result<u128, HvError> {
        self.cpu.xmm(index)
    }

    fn set_xmm(&mut self, index: usize, value: u128) -> Result<(), HvError> {
        self.cpu.set_xmm(index, value)
    }
}
