//! A kick stops a vCPU wherever it is, and none is lost.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cabana_hv::VmExit;
use cabana_test_hv::{Guest, Runner, boot_state, case, layout, payload, thread_of};

payload!(payload_spin: "b .");
payload!(payload_wait: "2:" "wfi" "b 2b");
payload!(payload_exit_forever: "movz x1, #0x1000, lsl #16" "2:" "str wzr, [x1]" "b 2b");
payload!(payload_end: "movz x1, #0x1100, lsl #16" "str wzr, [x1]");
payload!(payload_echo:
    "movz x1, #0x1000, lsl #16"
    "ldr w0, [x1]"
    "str w0, [x1, #4]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(a_kick_stops_its_spinning_guest_and_no_other, |backend| {
    let guest = Guest::with_cpus(backend, payload_spin(), &[true; 2]);
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
    let guest = Guest::new(backend, payload_echo());
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let mut runner = Runner::bind(seat);
    runner.vcpu.set_boot_state(&boot_state()).unwrap();
    assert_eq!(runner.run(), VmExit::MmioRead { addr: layout::DEVICE, size: 4 });
    kicker.kick();
    assert_eq!(runner.data(0x1234_5678), VmExit::Kicked);
    let said = VmExit::MmioWrite { addr: layout::DEVICE + 4, size: 4, data: 0x1234_5678 };
    runner.expect(&[(said, 0)]);
});

case!(a_kick_stops_a_guest_that_waits_for_interrupts, |backend| {
    let guest = Guest::new(backend, payload_wait());
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

case!(a_kick_stops_a_vcpu_that_is_off, |backend| {
    let guest = Guest::with_cpus(backend, payload_end(), &[true, false]);
    let seat = guest.seat(1);
    let kicker = seat.kicker();
    let thread = thread_of(seat, |mut runner| runner.run());
    thread::sleep(Duration::from_millis(20));
    assert!(!thread.is_finished());
    kicker.kick();
    assert_eq!(thread.join().unwrap(), VmExit::Kicked);
});

case!(no_kick_is_lost_among_many_exits, |backend| {
    const KICKS: u32 = 200;
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
                    exit => assert!(matches!(exit, VmExit::MmioWrite { .. }), "{exit:?}"),
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
