//! A vCPU on its thread that cannot run forever.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use cabana_hv::{Vcpu, VcpuKicker, VcpuSeat, VmEntry, VmExit};

use crate::{Processor, is_end};

/// No case takes longer; a vCPU that does is kicked, and its case fails.
const WATCHDOG: Duration = Duration::from_secs(20);

/// A vCPU on its thread that cannot run forever.
pub struct Runner {
    /// The vCPU.
    pub vcpu: Box<dyn Vcpu<Processor>>,
    /// Stops it.
    pub kicker: Box<dyn VcpuKicker>,
    /// Ends the watchdog when it is dropped.
    _watchdog: Sender<()>,
}

impl Runner {
    /// Binds `seat` to this thread.
    pub fn bind(seat: Box<dyn VcpuSeat<Processor>>) -> Self {
        let (kicker, watchdog) = (seat.kicker(), watch(seat.kicker()));
        Self { vcpu: seat.bind().expect("the vCPU is bound"), kicker, _watchdog: watchdog }
    }

    /// Runs on to the next exit.
    pub fn run(&mut self) -> VmExit {
        self.answer(VmEntry::Resume)
    }

    /// Answers a read with `data` and runs on to the next exit.
    pub fn data(&mut self, data: u64) -> VmExit {
        self.answer(VmEntry::Data(data))
    }

    fn answer(&mut self, entry: VmEntry) -> VmExit {
        self.vcpu.run(entry).expect("the vCPU runs")
    }

    /// Runs on and demands these exits in their order; reads are answered with the value beside
    /// them.
    pub fn expect(&mut self, script: &[(VmExit, u64)]) {
        let mut entry = VmEntry::Resume;
        for (step, &(expected, answer)) in script.iter().enumerate() {
            let exit = self.answer(entry);
            assert_eq!(exit, expected, "exit {step}");
            entry = match exit {
                VmExit::MmioRead { .. } | VmExit::PioRead { .. } => VmEntry::Data(answer),
                _ => VmEntry::Resume,
            };
        }
        let end = self.answer(entry);
        assert!(is_end(&end), "{end:?}");
    }

    /// Runs on and demands that the payload ends.
    pub fn expect_end(&mut self) {
        self.expect(&[]);
    }
}

/// Kicks the vCPU when time is over, unless the sender was dropped before.
fn watch(kicker: Box<dyn VcpuKicker>) -> Sender<()> {
    let (running, ended) = channel();
    thread::spawn(move || {
        // Again and again: a case may take a kick for the one that it expects.
        while ended.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the watchdog kicks a vCPU that ran for {WATCHDOG:?}");
            kicker.kick();
        }
    });
    running
}

/// Runs `body` with a bound vCPU on a thread of its own.
pub fn thread_of<T: Send + 'static>(
    seat: Box<dyn VcpuSeat<Processor>>,
    body: impl FnOnce(Runner) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(move || body(Runner::bind(seat)))
}
