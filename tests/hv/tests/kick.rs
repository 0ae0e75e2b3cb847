//! A kick stops a vCPU wherever it is, and none is lost.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cabana_hv::VmExit;
use cabana_test_hv::{Guest, Runner, boot_state, case, payload, thread_of};

payload!(payload_spin: "2:" "jmp 2b");
payload!(payload_halt: "cli" "hlt" "jmp payload_halt + 8");
payload!(payload_exit_forever: "2:" "out 0x10, al" "jmp 2b");
payload!(payload_end: "out 0xf4, al");

case!(a_kick_stops_its_spinning_guest_and_no_other, |backend| {
    let guest = Guest::with_cpus(backend, payload_spin(), 2);
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
});

case!(a_kick_before_the_run_stops_the_next_run_once, |backend| {
    let guest = Guest::new(backend, payload_end());
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
});

case!(a_kick_does_not_drop_an_access, |backend| {
    let guest = Guest::new(backend, payload_read());
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let mut runner = Runner::bind(seat);
    runner.vcpu.set_boot_state(&boot_state()).unwrap();
    assert_eq!(runner.run(), VmExit::PioRead { port: 0x10, size: 4 });
    kicker.kick();
    assert_eq!(runner.data(0x1234_5678), VmExit::Kicked);
    runner.expect(&[(VmExit::PioWrite { port: 0x11, size: 4, data: 0x1234_5678 }, 0)]);
});

payload!(payload_read: "in eax, 0x10" "out 0x11, eax" "out 0xf4, al");

case!(a_kick_stops_a_halted_guest, |backend| {
    let guest = Guest::new(backend, payload_halt());
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
});

case!(no_kick_is_lost_among_many_exits, |backend| {
    const KICKS: u32 = 500;
    let guest = Guest::new(backend, payload_exit_forever());
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let seen = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut runner = Runner::bind(seat);
            runner.vcpu.set_boot_state(&boot_state()).unwrap();
            while seen.load(Ordering::Acquire) < KICKS {
                match runner.run() {
                    VmExit::Kicked => {
                        seen.fetch_add(1, Ordering::Release);
                    }
                    exit => assert!(matches!(exit, VmExit::PioWrite { port: 0x10, .. })),
                }
            }
        });
        for kick in 0..KICKS {
            kicker.kick();
            let begin = Instant::now();
            while seen.load(Ordering::Acquire) <= kick {
                assert!(begin.elapsed() < Duration::from_secs(10), "kick {kick} was lost");
                thread::yield_now();
            }
        }
    });
    assert_eq!(seen.load(Ordering::Acquire), KICKS, "one answer a kick");
});
