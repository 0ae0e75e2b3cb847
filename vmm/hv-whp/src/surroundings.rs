//! What an instruction sees beside its registers: the guest's memory and its vector registers.

use cabana_hv::HvError;
use cabana_hv_x86::Surroundings;
use windows_sys::Win32::System::Hypervisor::{
    WHV_REGISTER_NAME, WHV_TRANSLATE_GVA_FLAGS, WHV_TRANSLATE_GVA_RESULT,
    WHvTranslateGvaFlagSetPageTableBits, WHvTranslateGvaFlagValidateExecute,
    WHvTranslateGvaFlagValidateRead, WHvTranslateGvaFlagValidateWrite,
    WHvTranslateGvaResultGpaNoReadAccess, WHvTranslateGvaResultGpaNoWriteAccess,
    WHvTranslateGvaResultGpaUnmapped, WHvTranslateGvaResultSuccess, WHvX64RegisterXmm0,
};

use crate::functions::check;
use crate::partition::Processor;
use crate::registers::Value;
use crate::vm::Slots;

const PAGE: u64 = 4096;

pub(crate) struct Around<'a> {
    pub(crate) processor: &'a Processor,
    /// Held, so that nothing is unmapped meanwhile.
    pub(crate) slots: &'a Slots,
    /// The page whose translation the exit told: linear and guest-physical address.
    pub(crate) known: Option<(u64, u64)>,
}

impl Around<'_> {
    /// The guest-physical address behind `linear`, if the access is allowed there.
    fn ask(&self, linear: u64, flags: WHV_TRANSLATE_GVA_FLAGS) -> Result<Option<u64>, HvError> {
        let mut result = WHV_TRANSLATE_GVA_RESULT::default();
        let mut guest = 0;
        let translate = self.processor.functions().translate_gva;
        let (partition, index) = (self.processor.partition.handle, self.processor.index);
        // SAFETY: both answers are written.
        let code =
            unsafe { translate(partition, index, linear, flags, &raw mut result, &raw mut guest) };
        check("WHvTranslateGva", code)?;
        // Where device memory is, nothing is mapped; the address is known all the same.
        let found = [
            WHvTranslateGvaResultSuccess,
            WHvTranslateGvaResultGpaUnmapped,
            WHvTranslateGvaResultGpaNoReadAccess,
            WHvTranslateGvaResultGpaNoWriteAccess,
        ];
        // Only the page's address is taken from the answer.
        let guest = guest & !(PAGE - 1) | (linear & (PAGE - 1));
        Ok(found.contains(&result.ResultCode).then_some(guest))
    }

    /// Instruction bytes from `linear` on, as many as there are.
    pub(crate) fn fetch(&mut self, linear: u64, bytes: &mut [u8]) -> Result<usize, HvError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = linear.wrapping_add(done as u64);
            let Some(guest) = self.ask(at, WHvTranslateGvaFlagValidateExecute)? else { break };
            let part = ((PAGE - at % PAGE) as usize).min(bytes.len() - done);
            if !self.read(guest, &mut bytes[done..done + part]) {
                break;
            }
            done += part;
        }
        Ok(done)
    }

    /// The host address of `len` bytes of RAM at `guest`.
    fn host(&self, guest: u64, len: usize, write: bool) -> Option<*mut u8> {
        let (&start, slot) = self.slots.range(..=guest).next_back()?;
        let offset = guest - start;
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= slot.len);
        let allowed = inside && !(write && slot.read_only);
        allowed.then(|| std::ptr::with_exposed_provenance_mut(slot.host + offset as usize))
    }
}

impl Surroundings for Around<'_> {
    fn translate(&mut self, linear: u64, write: bool) -> Result<Option<u64>, HvError> {
        if let Some((page, guest)) = self.known
            && page == linear & !(PAGE - 1)
        {
            return Ok(Some(guest | (linear & (PAGE - 1))));
        }
        let access =
            if write { WHvTranslateGvaFlagValidateWrite } else { WHvTranslateGvaFlagValidateRead };
        self.ask(linear, access | WHvTranslateGvaFlagSetPageTableBits)
    }

    fn read(&mut self, guest: u64, data: &mut [u8]) -> bool {
        let Some(from) = self.host(guest, data.len(), false) else { return false };
        for (at, byte) in data.iter_mut().enumerate() {
            // SAFETY: within mapped memory, by the line above; the guest may change it meanwhile.
            *byte = unsafe { from.add(at).read_volatile() };
        }
        true
    }

    fn write(&mut self, guest: u64, data: &[u8]) -> bool {
        let Some(to) = self.host(guest, data.len(), true) else { return false };
        for (at, &byte) in data.iter().enumerate() {
            // SAFETY: within mapped memory that may be written, by the line above.
            unsafe { to.add(at).write_volatile(byte) };
        }
        true
    }

    fn xmm(&mut self, index: usize) -> Result<u128, HvError> {
        let [value] = self.processor.get([xmm_name(index)])?;
        Ok(value.as_wide())
    }

    fn set_xmm(&mut self, index: usize, value: u128) -> Result<(), HvError> {
        self.processor.set(&[(xmm_name(index), Value::wide(value))])
    }
}

fn xmm_name(index: usize) -> WHV_REGISTER_NAME {
    WHvX64RegisterXmm0 + (index as WHV_REGISTER_NAME & 0xf)
}
