//! The board's fixed devices, over `bus` alone: they are the same under every hypervisor.

mod exit;
mod input;
mod ioapic;
mod pl011;
mod reset;
mod rtc;
mod serial;
mod sleep;
mod state;
mod timer;

pub use exit::ExitPort;
pub use input::SerialInput;
pub use ioapic::{IoApic, MessageSink};
pub use pl011::Pl011;
pub use reset::{PULSE_RESET, ResetPort};
pub use rtc::Rtc;
pub use serial::Serial;
pub use sleep::{POWER_OFF, SleepPorts};
pub use state::IoApicState;
pub use timer::AbsentTimer;

/// The I/O APIC's register block, in bytes.
pub const IO_APIC_SIZE: u64 = 0x1000;
/// COM1's first port and its interrupt line.
pub const COM1: (u64, u8) = (0x3f8, 4);
/// The register block of a PL011, in bytes.
pub const PL011_SIZE: u64 = 0x1000;
/// Ports of a 16550.
pub const SERIAL_PORTS: u64 = 8;
/// The keyboard controller's command port, of which guests use the reset command.
pub const RESET_PORT: u64 = 0x64;
/// The real-time clock's index port, with its data port behind it.
pub const RTC_PORT: u64 = 0x70;
/// Ports of both.
pub const RTC_PORTS: u64 = 2;
/// Channel 2 of the interval timer.
pub const TIMER_PORT: u64 = 0x42;
/// ACPI's sleep control register, with the sleep status register behind it.
pub const SLEEP_PORT: u64 = 0x600;
/// Ports of both.
pub const SLEEP_PORTS: u64 = 2;
/// A byte written here ends the machine with that status.
pub const EXIT_PORT: u64 = 0xf4;
