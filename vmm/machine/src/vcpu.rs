//! A vCPU's thread: enter the guest, take the exit to the bus, enter again.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use cabana_bus::Bus;
use cabana_hv::{Arch, HvError, VcpuKicker, VcpuSeat, VmEntry, VmExit};

use crate::control::{Control, Next, Outcome};
use crate::exits::Counters;
use crate::prefetch::Prefetch;
use crate::timeline::Timeline;

/// What vCPU threads share.
pub(crate) struct Shared<A: Arch> {
    pub(crate) mmio: Bus,
    pub(crate) pio: Bus,
    pub(crate) control: Arc<Control<A>>,
    pub(crate) counters: Counters,
    pub(crate) timeline: Arc<Timeline>,
}

/// How a vCPU comes to its first instruction.
pub(crate) enum Begin<A: Arch> {
    /// The first one of a machine that boots.
    Boot(A::BootState),
    /// The others: the first one starts them.
    Sleep,
    /// It goes on with this, once the machine is resumed.
    Restored(Box<A::State>, Option<Prefetch>),
}

/// A running vCPU.
pub(crate) struct Running {
    pub(crate) kicker: Box<dyn VcpuKicker>,
    pub(crate) thread: JoinHandle<()>,
}

/// Starts the thread of vCPU `index`.
pub(crate) fn spawn<A: Arch>(
    index: u32,
    seat: Box<dyn VcpuSeat<A>>,
    begin: Begin<A>,
    shared: Arc<Shared<A>>,
) -> std::io::Result<Running> {
    let kicker = seat.kicker();
    let thread = thread::Builder::new().name(format!("vcpu{index}")).stack_size(256 << 10).spawn(
        move || {
            if let Err(error) = run(index, seat, begin, &shared) {
                shared.control.end(Outcome::Failed(error.to_string()));
            }
        },
    )?;
    Ok(Running { kicker, thread })
}

fn run<A: Arch>(
    index: u32,
    seat: Box<dyn VcpuSeat<A>>,
    begin: Begin<A>,
    shared: &Shared<A>,
) -> Result<(), HvError> {
    let mut vcpu = seat.bind()?;
    match begin {
        Begin::Boot(state) => vcpu.set_boot_state(&state)?,
        Begin::Sleep => {}
        Begin::Restored(state, prefetch) => {
            vcpu.set_state(&state)?;
            if let Some(prefetch) = &prefetch {
                prefetch.ram(vcpu.as_mut());
            }
            if shared.control.wait_start(index, vcpu.as_mut()) == Next::End {
                return Ok(());
            }
            if let Some(prefetch) = prefetch {
                prefetch.devices(vcpu.as_mut());
            }
        }
    }
    if index == 0 {
        shared.timeline.mark(FIRST_INSTRUCTION);
    }
    let mut entry = VmEntry::Resume;
    loop {
        let exit = vcpu.run(entry)?;
        shared.counters.count(&exit);
        entry = VmEntry::Resume;
        match exit {
            VmExit::MmioRead { addr, size } => {
                let mut data = [0; 8];
                shared.mmio.read(addr, &mut data[..usize::from(size.min(8))]);
                entry = VmEntry::Data(u64::from_le_bytes(data));
            }
            VmExit::MmioWrite { addr, size, data } => {
                shared.mmio.write(addr, &data.to_le_bytes()[..usize::from(size.min(8))]);
            }
            VmExit::PioRead { port, size } => {
                let mut data = [0; 8];
                shared.pio.read(port.into(), &mut data[..usize::from(size.min(4))]);
                entry = VmEntry::Data(u64::from_le_bytes(data));
            }
            VmExit::PioWrite { port, size, data } => {
                shared.pio.write(port.into(), &data.to_le_bytes()[..usize::from(size.min(4))]);
            }
            VmExit::Halt => {
                shared.control.wait_end(index, vcpu.as_mut());
                return Ok(());
            }
            VmExit::Shutdown => shared.control.end(Outcome::TripleFault),
            VmExit::PowerOff => shared.control.end(Outcome::Exit(0)),
            VmExit::Reset => shared.control.end(Outcome::Reset),
            // Our I/O APIC has no level-triggered lines, so that nothing is to be done at their end.
            VmExit::Kicked | VmExit::EndOfInterrupt { .. } => {}
        }
        // A device may have ended the machine in this thread; others are kicked.
        let looked = matches!(
            exit,
            VmExit::Kicked
                | VmExit::Shutdown
                | VmExit::PowerOff
                | VmExit::Reset
                | VmExit::PioWrite { .. }
        );
        if looked && shared.control.checkpoint(index, vcpu.as_mut()) == Next::End {
            return Ok(());
        }
    }
}

/// The mark just before the guest's first instruction.
pub(crate) const FIRST_INSTRUCTION: &str = "first guest instruction";
