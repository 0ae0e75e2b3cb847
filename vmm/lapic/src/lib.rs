//! The local APIC (Intel SDM 3A §10, "Advanced Programmable Interrupt Controller"), for hypervisors that bring none.
//!
//! An [`Apic`] is plain data without threads, clocks or hypervisors: who runs the vCPU passes accesses on
//! ([`Apic::read`] and [`Apic::write`] of the register page, [`Apic::read_msr`] and [`Apic::write_msr`]), carries out
//! the [`Effect`] of a write, says what time it is ([`Now`]), and asks what is to be done next: [`Apic::pending`],
//! [`Apic::acknowledge`], [`Apic::deadline`]. Whatever the guest writes ends in a value or a [`Fault`].

mod message;
mod msr;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use message::{Delivery, Message, To};
pub use state::{NoState, PAGE};
pub use timer::{Deadline, Now};

use timer::Timer;
use vectors::Vectors;

/// Where the register page is (Intel SDM 3A §10.4.1). It cannot be moved here.
pub const ADDRESS: u64 = 0xfee0_0000;
/// Ticks of the timer before its divider, in kHz: one a nanosecond.
pub const TIMER_KHZ: u32 = 1_000_000;

/// `IA32_APIC_BASE`: the boot processor, x2APIC mode, enabled.
const BASE_BOOT: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;

/// `SVR`: enabled by software.
const SOFTWARE_ENABLED: u32 = 1 << 8;
/// A local vector's mask.
const MASKED: u32 = 1 << 16;
/// `ESR`: a vector below 16 was sent, or received.
const SENT_ILLEGAL: u32 = 1 << 5;
const RECEIVED_ILLEGAL: u32 = 1 << 6;

/// What the guest did is a general-protection fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// What a write asks of who passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Deliver this message.
    Send(Message),
    /// Tell the I/O APIC that the level-triggered interrupt of this vector has ended.
    EndOfLevel(u8),
}

/// The local vectors, in the order of their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Local {
    timer: u32,
    thermal: u32,
    performance: u32,
    lint0: u32,
    lint1: u32,
    error: u32,
}

/// One processor's local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apic {
    id: u32,
    base: u64,
    task_priority: u8,
    logical: u32,
    format: u32,
    spurious: u32,
    /// Errors as the guest reads them, and those since it last asked.
    errors: u32,
    new_errors: u32,
    command: u64,
    local: Local,
    timer: Timer,
    in_service: Vectors,
    level: Vectors,
    requested: Vectors,
}

impl Apic {
    /// After power-up (§10.4.7.1): of the boot processor if its id is 0.
    pub fn new(id: u32) -> Self {
        let boot = if id == 0 { BASE_BOOT } else { 0 };
        let local = Local {
            timer: MASKED,
            thermal: MASKED,
            performance: MASKED,
            lint0: MASKED,
            lint1: MASKED,
            error: MASKED,
        };
        Self {
            id,
            base: ADDRESS | BASE_ENABLED | boot,
            task_priority: 0,
            logical: 0,
            format: u32::MAX,
            spurious: 0xff,
            errors: 0,
            new_errors: 0,
            command: 0,
            local,
            timer: Timer::default(),
            in_service: Vectors::default(),
            level: Vectors::default(),
            requested: Vectors::default(),
        }
    }

    /// INIT: everything but the base is as after power-up (§10.4.7.3).
    pub fn init(&mut self) {
        *self = Self { base: self.base, ..Self::new(self.id) };
    }

    /// `IA32_APIC_BASE`.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Does it answer at [`ADDRESS`]?
    pub fn is_mapped(&self) -> bool {
        self.base & (BASE_ENABLED | BASE_X2APIC) == BASE_ENABLED
    }

    fn is_x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// What CR8 shows of the task priority.
    pub fn cr8(&self) -> u64 {
        (self.task_priority >> 4).into()
    }

    /// Sets the task priority as a write of CR8 does.
    pub fn set_cr8(&mut self, value: u64) {
        self.task_priority = (value as u8 & 0xf) << 4;
    }

    /// The processor's priority (§10.8.3.1).
    fn priority(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= in_service >> 4 {
            self.task_priority
        } else {
            in_service & 0xf0
        }
    }

    /// Requests an interrupt, if the APIC is on.
    pub fn request(&mut self, vector: u8, level: bool) {
        let on = self.base & BASE_ENABLED != 0 && self.spurious & SOFTWARE_ENABLED != 0;
        if !on {
            return;
        }
        if vector < 16 {
            self.error(RECEIVED_ILLEGAL);
            return;
        }
        self.level.set(vector, level);
        self.requested.set(vector, true);
    }

    /// The vector that the processor should be interrupted with, if its priority allows one.
    pub fn pending(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (vector >> 4 > self.priority() >> 4).then_some(vector)
    }

    /// The processor takes the pending interrupt.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested.set(vector, false);
        self.in_service.set(vector, true);
        Some(vector)
    }

    /// The end of the interrupt in service.
    fn end(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else { return Effect::None };
        self.in_service.set(vector, false);
        if self.level.has(vector) { Effect::EndOfLevel(vector) } else { Effect::None }
    }

    /// When [`Apic::tick`] has something to do.
    pub fn deadline(&self) -> Option<Deadline> {
        if self.local.timer & MASKED != 0 {
            return None;
        }
        self.timer.deadline(self.local.timer)
    }

    /// Lets the timer request its interrupt if its time has come.
    pub fn tick(&mut self, now: Now) {
        if self.timer.fires(self.local.timer, now) && self.local.timer & MASKED == 0 {
            self.request(self.local.timer as u8, false);
        }
    }

    /// Notes an error, and interrupts for it if the guest wants that.
    fn error(&mut self, error: u32) {
        self.new_errors |= error;
        let vector = self.local.error;
        if vector & MASKED == 0 && vector as u8 >= 16 {
            self.request(vector as u8, false);
        }
    }
}
