//! What the processor is told of its guest: which instructions exit, and the control registers, of which the guest sees
//! some bits otherwise than they are (Intel SDM 3C, §24.6 and §25.3).

use cabana_hv::HvError;

use super::cpu::Cpu;
use super::functions::Functions;
use super::vmcs::{
    self, CONTROLS, CR0, CR0_MASK, CR0_SHADOW, CR3, CR4, CR4_MASK, CR4_SHADOW, DIRECTORIES, EFER,
    ENTRY_CONTROLS, EXCEPTIONS, EXIT_CONTROLS, PIN_CONTROLS, SECOND_CONTROLS,
};
use crate::functions::check;
use crate::memory::Slots;

/// Virtual NMIs, and what they need: host NMIs exit.
const PIN: u64 = 1 << 3 | 1 << 5;
/// HLT, TSC offset, MWAIT, RDPMC, loads and stores of CR8, ports, MSR bitmaps, MONITOR, the second controls.
const MAIN: u64 =
    1 << 3 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 19 | 1 << 20 | 1 << 24 | 1 << 28 | 1 << 29 | 1 << 31;
pub(crate) const INTERRUPT_WINDOW: u64 = 1 << 2;
pub(crate) const NMI_WINDOW: u64 = 1 << 22;
/// EPT, RDTSCP, unrestricted guests, INVPCID.
const SECOND: u64 = 1 << 1 | 1 << 3 | UNRESTRICTED | 1 << 12;
const UNRESTRICTED: u64 = 1 << 7;
/// Debug controls, 64-bit host, and EFER: saved and loaded.
const EXIT: u64 = 1 << 2 | 1 << 9 | 1 << 20 | 1 << 21;
/// Debug controls and EFER.
const ENTRY: u64 = 1 << 2 | 1 << 15;
/// The guest is in long mode.
const ENTRY_LONG: u64 = 1 << 9;

/// `CR0`: PE, NE, NW, CD and PG.
const PE: u64 = 1;
const NE: u64 = 1 << 5;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
/// Bits of CR0 whose changes exit: caches are the host's, and NE is always set.
const CR0_OURS: u64 = NE | NW | CD;
/// `CR4`: PAE, and VMXE, which is always set and never seen.
const PAE: u64 = 1 << 5;
const VMXE: u64 = 1 << 13;

/// `EFER`: system calls, long mode enabled, long mode active, no-execute.
const SCE: u64 = 1;
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;

/// `hv_vmx_capability_t`.
const CAPABILITIES: [u32; 5] = [0, 1, 2, 3, 4];

/// The controls of every vCPU of this host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Controls {
    pin: u64,
    pub(crate) main: u64,
    second: u64,
    entry: u64,
    exit: u64,
}

impl Controls {
    /// Those that are wanted, as far as the processor has them.
    pub(crate) fn new(functions: &Functions) -> Result<Self, HvError> {
        let [pin, main, second, entry, exit] = CAPABILITIES.map(|capability| {
            let mut allowed = 0;
            // SAFETY: the value is written.
            let code = unsafe { (functions.hv_vmx_read_capability)(capability, &raw mut allowed) };
            check("hv_vmx_read_capability", code).map(|()| allowed)
        });
        // The low half says what must be set, the high half what may be.
        let fit = |allowed: u64, wanted: u64| (wanted | allowed & 0xffff_ffff) & allowed >> 32;
        let controls = Self {
            pin: fit(pin?, PIN),
            main: fit(main?, MAIN),
            second: fit(second?, SECOND),
            entry: fit(entry?, ENTRY) & !ENTRY_LONG,
            exit: fit(exit?, EXIT),
        };
        if controls.second & UNRESTRICTED == 0 {
            return Err(HvError::Unsupported("guests in real mode (unrestricted guests)"));
        }
        Ok(controls)
    }

    /// Sets a new vCPU up.
    pub(crate) fn set_up(&self, cpu: &Cpu) -> Result<(), HvError> {
        for (field, value) in [
            (PIN_CONTROLS, self.pin),
            (CONTROLS, self.main),
            (SECOND_CONTROLS, self.second),
            (EXIT_CONTROLS, self.exit),
            (ENTRY_CONTROLS, self.entry),
            (EXCEPTIONS, 0),
            (CR0_MASK, CR0_OURS),
            (CR4_MASK, VMXE),
        ] {
            cpu.set_field(field, value)?;
        }
        Ok(())
    }
}

/// CR0 as the guest sees it.
pub(crate) fn cr0(cpu: &Cpu) -> Result<u64, HvError> {
    Ok(cpu.field(CR0)? & !CR0_OURS | cpu.field(CR0_SHADOW)? & CR0_OURS)
}

pub(crate) fn set_cr0(cpu: &Cpu, value: u64) -> Result<(), HvError> {
    cpu.set_field(CR0, value & !CR0_OURS | NE)?;
    cpu.set_field(CR0_SHADOW, value)
}

/// CR4 as the guest sees it.
pub(crate) fn cr4(cpu: &Cpu) -> Result<u64, HvError> {
    Ok(cpu.field(CR4)? & !VMXE)
}

pub(crate) fn set_cr4(cpu: &Cpu, value: u64) -> Result<(), HvError> {
    cpu.set_field(CR4, value | VMXE)?;
    cpu.set_field(CR4_SHADOW, value & !VMXE)
}

pub(crate) fn set_efer(cpu: &Cpu, value: u64) -> Result<(), HvError> {
    let controls = cpu.field(ENTRY_CONTROLS)? & !ENTRY_LONG;
    cpu.set_field(ENTRY_CONTROLS, controls | if value & LMA == 0 { 0 } else { ENTRY_LONG })?;
    cpu.set_field(EFER, value)
}

/// The guest writes EFER; `false` if that is a fault.
pub(crate) fn write_efer(cpu: &Cpu, value: u64) -> Result<bool, HvError> {
    let before = cpu.field(EFER)?;
    let paging = cr0(cpu)? & PG != 0;
    if value & !(SCE | LME | LMA | NXE) != 0 || paging && (before ^ value) & LME != 0 {
        return Ok(false);
    }
    set_efer(cpu, value & !LMA | before & LMA)?;
    Ok(true)
}

/// The guest writes CR0 with another bit of [`CR0_OURS`]; `false` if that is a fault.
pub(crate) fn write_cr0(cpu: &Cpu, slots: &Slots, value: u64) -> Result<bool, HvError> {
    let efer = cpu.field(EFER)?;
    let (paging, long) = (value & PG != 0, efer & LME != 0);
    let pae = cpu.field(CR4)? & PAE != 0;
    let wrong = value >> 32 != 0
        || paging && value & PE == 0
        || value & (NW | CD) == NW
        || paging && long && !pae;
    if wrong {
        return Ok(false);
    }
    set_cr0(cpu, value)?;
    set_efer(cpu, if paging && long { efer | LMA } else { efer & !LMA })?;
    load_directories(cpu, slots)
}

/// The guest writes CR4 with VMXE; `false` if that is a fault.
pub(crate) fn write_cr4(cpu: &Cpu, value: u64) -> Result<bool, HvError> {
    if value & VMXE != 0 {
        return Ok(false);
    }
    set_cr4(cpu, value)?;
    Ok(true)
}

/// With PAE outside of long mode the processor holds the four entries that CR3 points to; `false` where no memory is.
pub(crate) fn load_directories(cpu: &Cpu, slots: &Slots) -> Result<bool, HvError> {
    let pae = cpu.field(CR0)? & PG != 0 && cpu.field(CR4)? & PAE != 0;
    if !pae || cpu.field(EFER)? & LMA != 0 {
        return Ok(true);
    }
    let table = cpu.field(CR3)? & 0xffff_ffe0;
    let Some(place) = slots.host(table, 32, false) else { return Ok(false) };
    for at in 0..4 {
        #[expect(clippy::cast_ptr_alignment, reason = "the table's address is a multiple of 32")]
        // SAFETY: within mapped memory, by the line above, and aligned; the guest may change it meanwhile.
        let entry = unsafe { place.cast::<u64>().add(at as usize).read_volatile() };
        cpu.set_field(DIRECTORIES + 2 * at, entry)?;
    }
    Ok(true)
}

/// Fields that hold what an entry injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    info: u64,
    error: u64,
    length: u64,
}

const VALID: u64 = 1 << 31;
const HAS_ERROR: u64 = 1 << 11;

/// Kinds of events (§24.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Interrupt,
    Nmi,
    Exception,
    /// By an instruction: INT n, INT1, INT3, INTO.
    Software,
}

impl Event {
    pub(crate) fn interrupt(vector: u8) -> Self {
        Self { info: VALID | u64::from(vector), error: 0, length: 0 }
    }

    pub(crate) fn nmi() -> Self {
        Self { info: VALID | 2 << 8 | 2, error: 0, length: 0 }
    }

    pub(crate) fn exception(vector: u8, error: Option<u32>) -> Self {
        let has = if error.is_some() { HAS_ERROR } else { 0 };
        let info = VALID | 3 << 8 | u64::from(vector) | has;
        Self { info, error: error.unwrap_or(0).into(), length: 0 }
    }

    /// What was on its way when the vCPU came back.
    pub(crate) fn interrupted(cpu: &Cpu) -> Result<Option<Self>, HvError> {
        let info = cpu.field(vmcs::VECTORING)?;
        if info & VALID == 0 {
            return Ok(None);
        }
        // Bit 12 is undefined here, and must not be set where it is injected again.
        let info = info & !(1 << 12);
        let error = if info & HAS_ERROR == 0 { 0 } else { cpu.field(vmcs::VECTORING_ERROR)? };
        let event = Self { info, error, length: 0 };
        let length = if event.kind() == Kind::Software { cpu.field(vmcs::LENGTH)? } else { 0 };
        Ok(Some(Self { length, ..event }))
    }

    pub(crate) fn inject(self, cpu: &Cpu) -> Result<(), HvError> {
        cpu.set_field(vmcs::ENTRY_EVENT, self.info)?;
        if self.info & HAS_ERROR != 0 {
            cpu.set_field(vmcs::ENTRY_ERROR, self.error)?;
        }
        if self.kind() == Kind::Software {
            cpu.set_field(vmcs::ENTRY_LENGTH, self.length)?;
        }
        Ok(())
    }

    pub(crate) fn kind(self) -> Kind {
        match self.info >> 8 & 7 {
            0 => Kind::Interrupt,
            2 => Kind::Nmi,
            3 => Kind::Exception,
            _ => Kind::Software,
        }
    }

    pub(crate) fn vector(self) -> u8 {
        self.info as u8
    }

    pub(crate) fn error(self) -> Option<u32> {
        (self.info & HAS_ERROR != 0).then_some(self.error as u32)
    }
}
