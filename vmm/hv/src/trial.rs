//! What the trials of all architectures do: run a loop of two instructions, and see how fast it is.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::{Arch, HvError, Probe, Vcpu, VcpuSeat, Verdict, VmEntry, VmExit};

/// A processor, even one that QEMU translates, runs some hundred millions of plain instructions a
/// second; an instruction emulator a few millions.
pub const REAL: u64 = 50_000_000;
/// Below this a long measurement would only take long.
const CRAWLING: u64 = REAL / 10;
/// Turns of the loop in a short and in a long measurement, two instructions each.
const SHORT: u64 = 10_000;
const LONG: u64 = 1_000_000;
/// Each measurement is repeated this often before it is believed that the host is slow.
const TRIES: u32 = 3;
/// The payload is stopped after this time, whatever happens. Only a host that is far slower than an
/// instruction emulator, or stalls, ever comes to that.
const TIME_LIMIT: Duration = Duration::from_millis(400);

/// Runs `body` with the vCPU on this thread, and stops the vCPU when it takes too long.
pub(crate) fn watched<A: Arch, T>(
    seat: Box<dyn VcpuSeat<A>>,
    body: impl FnOnce(&mut dyn Vcpu<A>) -> Result<T, HvError>,
) -> Result<T, HvError> {
    let kicker = seat.kicker();
    let (finished, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if watch.recv_timeout(TIME_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    let result = seat.bind().and_then(|mut vcpu| body(&mut *vcpu));
    drop(finished);
    // The watchdog cannot panic; there is nothing to learn from its end.
    let _ = watchdog.join();
    result
}

/// Measures a payload that counts down from what it reads by the exit `ask`, again and again; the vCPU then
/// waits for its next answer. `time` is a clock of the calling thread. A verdict only if that is the end.
pub(crate) fn rate<A: Arch>(
    vcpu: &mut dyn Vcpu<A>,
    ask: VmExit,
    time: impl Fn() -> Duration,
    found: &mut Probe,
) -> Result<Option<Verdict>, HvError> {
    let mut exit = vcpu.run(VmEntry::Resume)?;
    let (mut best, mut turns, mut tries) = (0, SHORT, TRIES);
    while tries > 0 {
        if exit != ask {
            let why = format!("the test payload ended with {exit:?}");
            return Ok(Some(Verdict::Broken { why }));
        }
        let before = time();
        exit = vcpu.run(VmEntry::Data(turns))?;
        if exit == VmExit::Kicked {
            break;
        }
        let spent = time().saturating_sub(before).as_nanos().max(1);
        let rate = u64::try_from(2 * u128::from(turns) * 1_000_000_000 / spent).unwrap_or(u64::MAX);
        best = best.max(rate);
        if turns == SHORT && rate >= CRAWLING {
            (turns, tries) = (LONG, TRIES);
        } else if turns == LONG && best >= REAL {
            break;
        } else {
            tries -= 1;
        }
    }
    if best == 0 {
        return Ok(Some(too_slow()));
    }
    found.instructions_per_second = Some(best);
    Ok((best < REAL).then(|| Verdict::Emulated {
        why: format!(
            "guest instructions run in an emulator: {:.1} million a second, where a processor \
             runs hundreds of millions",
            best as f64 / 1e6
        ),
    }))
}

/// Of a vCPU that was stopped.
pub(crate) fn too_slow() -> Verdict {
    Verdict::Emulated {
        why: format!("a loop of {} instructions was not done in {TIME_LIMIT:?}", 2 * SHORT),
    }
}
