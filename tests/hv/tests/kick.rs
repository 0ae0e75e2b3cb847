//! A kick stops a vCPU wherever it is, and none is lost.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use cabana_hv::VmExit;
use cabana_test_hv::cases::kick;
use cabana_test_hv::{Guest, case, payload};

payload!(payload_spin: "2:" "jmp 2b");
payload!(payload_halt: "2: cli" "hlt" "jmp 2b");
payload!(payload_exit_forever: "2:" "out 0x10, al" "jmp 2b");
payload!(payload_end: "out 0xf4, al");

case!(a_kick_stops_its_spinning_guest_and_no_other, |backend| {
    kick::stops_its_guest_and_no_other(&Guest::with_cpus(backend, payload_spin(), 2));
});

case!(a_kick_before_the_run_stops_the_next_run_once, |backend| {
    kick::before_the_run_stops_the_next_run_once(&Guest::new(backend, payload_end()));
});

case!(a_kick_does_not_drop_an_access, |backend| {
    let guest = Guest::new(backend, payload_read());
    let said = |data: u64| VmExit::PioWrite { port: 0x11, size: 4, data: data as u32 };
    kick::does_not_drop_an_access(&guest, VmExit::PioRead { port: 0x10, size: 4 }, said);
});

payload!(payload_read: "in eax, 0x10" "out 0x11, eax" "out 0xf4, al");

case!(a_kick_stops_a_halted_guest, |backend| {
    kick::stops_a_guest_that_waits(&Guest::new(backend, payload_halt()));
});

case!(no_kick_is_lost_among_many_exits, |backend| {
    let its = |exit: &VmExit| matches!(exit, VmExit::PioWrite { port: 0x10, .. });
    kick::none_is_lost_among_many_exits(&Guest::new(backend, payload_exit_forever()), 500, its);
});
