//! Kicks.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cabana_hv::VmExit;

use crate::{Guest, Runner, boot_state, thread_of};

/// Both vCPUs of `guest` spin.
pub fn stops_its_guest_and_no_other(guest: &Guest) {
    let (kicked, other) = (guest.seat(0), guest.seat(1));
    let (kicker, other_kicker) = (kicked.kicker(), other.kicker());
    let spin = |mut runner: Runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        runner.run()
    };
    let kicked = thread_of(kicked, spin);
    let other = thread_of(other, spin);
    thread::sleep(Duration::from_millis(30));
    kicker.kick();
    assert_eq!(kicked.join().unwrap(), VmExit::Kicked);
    assert!(!other.is_finished());
    other_kicker.kick();
    assert_eq!(other.join().unwrap(), VmExit::Kicked);
    // Their vCPUs are gone: nothing happens.
    kicker.kick();
    other_kicker.kick();
}

/// `guest` ends at once.
pub fn before_the_run_stops_the_next_run_once(guest: &Guest) {
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    kicker.kick();
    kicker.kick();
    let mut runner = Runner::bind(seat);
    runner.vcpu.set_boot_state(&boot_state()).unwrap();
    assert_eq!(runner.run(), VmExit::Kicked, "kicked before it was bound");
    kicker.kick();
    assert_eq!(runner.run(), VmExit::Kicked, "kicked between runs");
    runner.expect_end();
}

/// `guest` asks by `ask`, says what it has read by `said`, and ends.
pub fn does_not_drop_an_access(guest: &Guest, ask: VmExit, said: impl Fn(u64) -> VmExit) {
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let mut runner = Runner::bind(seat);
    runner.vcpu.set_boot_state(&boot_state()).unwrap();
    assert_eq!(runner.run(), ask);
    kicker.kick();
    assert_eq!(runner.data(0x1234_5678), VmExit::Kicked);
    runner.expect(&[(said(0x1234_5678), 0)]);
}

/// `guest` waits for an interrupt that never comes, again and again.
pub fn stops_a_guest_that_waits(guest: &Guest) {
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let thread = thread_of(seat, |mut runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        [runner.run(), runner.run()]
    });
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(20));
        kicker.kick();
    }
    assert_eq!(thread.join().unwrap(), [VmExit::Kicked; 2]);
}

/// `guest` makes exits that are `its`, one after the other.
pub fn none_is_lost_among_many_exits(guest: &Guest, kicks: u32, its: fn(&VmExit) -> bool) {
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let seen = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut runner = Runner::bind(seat);
            runner.vcpu.set_boot_state(&boot_state()).unwrap();
            while seen.load(Ordering::Acquire) < kicks {
                match runner.run() {
                    VmExit::Kicked => {
                        seen.fetch_add(1, Ordering::Release);
                    }
                    exit => assert!(its(&exit), "{exit:?}"),
                }
            }
        });
        for kick in 0..kicks {
            kicker.kick();
            let begin = Instant::now();
            while seen.load(Ordering::Acquire) <= kick {
                assert!(begin.elapsed() < Duration::from_secs(10), "kick {kick} was lost");
                thread::yield_now();
            }
        }
    });
    assert_eq!(seen.load(Ordering::Acquire), kicks, "one answer a kick");
}
