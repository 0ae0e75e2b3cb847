//! What differs between processors: the time stamp counter and the machine's end.

use cabana_protocol::exit_port;
use rustix::system::{RebootCommand, reboot};

/// Ends the machine with a status, see [`cabana_protocol::exit_port`].
pub(super) fn end_machine(status: u8) -> ! {
    write_exit_port(status);
    // There is no exit port: a machine that is not Cabana's, or not x86. There the one good end is to be switched off.
    let is_off = cfg!(not(target_arch = "x86_64")) && status == exit_port::POWER_OFF;
    let _ = reboot(if is_off { RebootCommand::PowerOff } else { RebootCommand::Restart });
    loop {
        std::thread::park();
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use self::x86_64::{tsc, write_exit_port};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::{asm, x86_64::_rdtsc};

    use cabana_protocol::exit_port;

    /// The time stamp counter.
    pub(in super::super) fn tsc() -> u64 {
        // SAFETY: reads a counter; every x86-64 processor has it, and Linux lets processes read it.
        unsafe { _rdtsc() }
    }

    pub(in super::super) fn write_exit_port(status: u8) {
        // SAFETY: asks the kernel for one port; without it the `out` below would be a fault.
        let allowed = unsafe { libc::ioperm(exit_port::PORT.into(), 1, 1) } == 0;
        if allowed {
            // SAFETY: the kernel allowed this port. It ends the machine or, in a machine that has no
            // exit port, does nothing.
            unsafe {
                asm!("out dx, al", in("dx") exit_port::PORT, in("al") status,
                    options(nomem, nostack, preserves_flags));
            }
        }
    }
}

/// There is no time stamp counter.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn tsc() -> u64 {
    0
}

/// There are no ports.
#[cfg(not(target_arch = "x86_64"))]
fn write_exit_port(_status: u8) {}
