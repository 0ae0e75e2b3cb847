//! A kick stops a vCPU wherever it is, and none is lost.

use std::thread;
use std::time::Duration;

use cabana_hv::VmExit;
use cabana_test_hv::cases::kick;
use cabana_test_hv::{Guest, case, layout, payload, thread_of};

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
    kick::stops_its_guest_and_no_other(&Guest::with_cpus(backend, payload_spin(), &[true; 2]));
});

case!(a_kick_before_the_run_stops_the_next_run_once, |backend| {
    kick::before_the_run_stops_the_next_run_once(&Guest::new(backend, payload_end()));
});

case!(a_kick_does_not_drop_an_access, |backend| {
    let guest = Guest::new(backend, payload_echo());
    let ask = VmExit::MmioRead { addr: layout::DEVICE, size: 4 };
    let said = |data| VmExit::MmioWrite { addr: layout::DEVICE + 4, size: 4, data };
    kick::does_not_drop_an_access(&guest, ask, said);
});

case!(a_kick_stops_a_guest_that_waits_for_interrupts, |backend| {
    kick::stops_a_guest_that_waits(&Guest::new(backend, payload_wait()));
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
    let its = |exit: &VmExit| matches!(exit, VmExit::MmioWrite { .. });
    kick::none_is_lost_among_many_exits(&Guest::new(backend, payload_exit_forever()), 200, its);
});
