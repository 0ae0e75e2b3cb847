//! Messages between APICs and from devices, and whom they are for (Intel SDM 3A §10.6.2, §10.11).

use crate::Apic;

/// An interrupt on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it does.
    pub delivery: Delivery,
    /// The vector; of [`Delivery::StartUp`] the page to begin at.
    pub vector: u8,
    /// Is it level-triggered?
    pub level: bool,
    /// Whom it is for.
    pub to: To,
}

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Interrupts all that it is for.
    Fixed,
    /// Interrupts one of them.
    Lowest,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// SIPI.
    StartUp,
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// An id, or everybody.
    Physical(u32),
    /// Whoever is in this set.
    Logical(u32),
    /// The sender.
    Own,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

/// `DFR` of the cluster model.
const CLUSTER: u32 = 0x0fff_ffff;
/// Everybody, in 8 and in 32 bits.
const EVERYBODY: u32 = 0xff;
const EVERYBODY_WIDE: u32 = u32::MAX;

impl Delivery {
    fn of(mode: u32) -> Option<Self> {
        match mode & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::Lowest),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            // SMI, and what is reserved or for external controllers.
            _ => None,
        }
    }
}

impl Message {
    /// A device's; `None` of delivery modes that devices do not use.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        let delivery = Delivery::of(data >> 8).filter(|kind| *kind != Delivery::StartUp)?;
        let to = (address >> 12 & 0xff) as u32;
        let to = if address & 1 << 2 == 0 { To::Physical(to) } else { To::Logical(to) };
        Some(Self { delivery, vector: data as u8, level: data & 1 << 15 != 0, to })
    }

    /// What an interrupt command asks for; `to` is its destination field.
    pub(crate) fn from_command(low: u32, to: u32) -> Option<Self> {
        let delivery = Delivery::of(low >> 8)?;
        // The end of an INIT, which no processor since the Pentium has.
        if delivery == Delivery::Init && low & (1 << 14 | 1 << 15) == 1 << 15 {
            return None;
        }
        let to = match low >> 18 & 3 {
            0 if low & 1 << 11 == 0 => To::Physical(to),
            0 => To::Logical(to),
            1 => To::Own,
            2 => To::All,
            _ => To::Others,
        };
        Some(Self { delivery, vector: low as u8, level: false, to })
    }
}

impl Apic {
    /// Is a message for this APIC? `from` is the sender's id, of messages that APICs send.
    pub fn is_for(&self, to: To, from: Option<u32>) -> bool {
        match to {
            To::Own => from == Some(self.id),
            To::All | To::Logical(EVERYBODY_WIDE) => true,
            To::Others => from != Some(self.id),
            To::Physical(to) => [self.id, EVERYBODY, EVERYBODY_WIDE].contains(&to),
            To::Logical(to) if self.is_x2apic() => {
                let logical = self.logical_id();
                logical >> 16 == to >> 16 && logical & to & 0xffff != 0
            }
            To::Logical(to) => {
                let logical = self.logical >> 24;
                if self.format == CLUSTER {
                    let same = to >> 4 & 0xf == logical >> 4 || to >> 4 & 0xf == 0xf;
                    same && to & logical & 0xf != 0
                } else {
                    to & logical & 0xff != 0
                }
            }
        }
    }

    /// Who of several takes [`Delivery::Lowest`]: less comes first.
    pub fn arbitration(&self) -> u8 {
        self.priority()
    }

    /// The logical destination register.
    pub(crate) fn logical_id(&self) -> u32 {
        if self.is_x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 0xf) } else { self.logical }
    }
}
