//! What guests of all processors have in common: vCPUs to start, memory to look at.

use std::ops::Deref;

use cabana_hv::{Arch, VcpuSeat};

use crate::{Guest, Processor, Ram, Runner, boot_state};

impl Guest {
    /// vCPU `index`, not bound.
    pub fn seat(&self, index: u32) -> Box<dyn VcpuSeat<Processor>> {
        self.vm.vcpu_seat(index).expect("a vCPU")
    }

    /// vCPU 0 on this thread, at the payload's first instruction.
    pub fn start(&self) -> Runner {
        let mut runner = Runner::bind(self.seat(0));
        runner.vcpu.set_boot_state(&boot_state()).expect("the boot state is taken");
        runner
    }

    /// vCPU 0 on this thread, with a saved state.
    pub fn resume(&self, state: &<Processor as Arch>::State) -> Runner {
        let mut runner = Runner::bind(self.seat(0));
        runner.vcpu.set_state(state).expect("the saved state is taken");
        runner
    }
}

impl Deref for Guest {
    type Target = Ram;

    fn deref(&self) -> &Ram {
        &self.ram
    }
}
