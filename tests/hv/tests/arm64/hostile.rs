//! Guests that do what no guest should.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cabana_hv::arm64::BootState;
use cabana_hv::{HvError, Verdict, VmEntry, VmExit};
use cabana_test_hv::{Backend, Guest, Payload, Runner, backends, boot_state, case, payload};

payload!(payload_jump_to_nowhere: "movz x1, #0x7000, lsl #16" "br x1");
payload!(payload_undefined: "udf #0");
payload!(payload_atomic_on_device: "movz x1, #0x1000, lsl #16" "2:" "ldxr w2, [x1]" "stxr w3, w2, [x1]" "b 2b");
payload!(payload_page_tables_in_device:
    "movz x1, #0x1000, lsl #16"
    "msr ttbr0_el1, x1"
    "mov x2, #25"
    "msr tcr_el1, x2"
    "isb"
    "mrs x2, sctlr_el1"
    "orr x2, x2, #1"
    "msr sctlr_el1, x2"
    "isb"
    "b ."
);
payload!(payload_storm: "movz x1, #0x1000, lsl #16" "2:" "str wzr, [x1]" "b 2b");
payload!(payload_gic_storm:
    "movz x1, #0x0800, lsl #16"
    "mov w2, #-1"
    "2:"
    "mov x3, #0"
    "3:"
    "str w2, [x1, x3]"
    "ldr w4, [x1, x3]"
    "add x3, x3, #4"
    "cmp x3, #0x10, lsl #12"
    "b.ne 3b"
    "b 2b"
);

/// A guest may fault for ever, end, or be given up; but it stays stoppable.
fn stays_stoppable(backend: &Backend, payload: Payload, boot: &BootState) {
    let guest = Guest::new(backend, payload);
    let Runner { vcpu, kicker, .. } = &mut Runner::bind(guest.seat(0));
    vcpu.set_boot_state(boot).unwrap();
    let (ended, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let mut end = vcpu.run(VmEntry::Resume);
        while let Ok(VmExit::MmioRead { .. } | VmExit::MmioWrite { .. }) = end {
            let read = matches!(end, Ok(VmExit::MmioRead { .. }));
            end = vcpu.run(if read { VmEntry::Data(u64::MAX) } else { VmEntry::Resume });
        }
        drop(ended);
        let fine = matches!(end, Ok(VmExit::Shutdown | VmExit::Kicked) | Err(HvError::Guest(_)));
        assert!(fine, "{end:?}");
    });
}

case!(guests_that_fault_for_ever_stay_stoppable, |backend| {
    for payload in [
        payload_jump_to_nowhere(),
        payload_undefined(),
        payload_atomic_on_device(),
        payload_page_tables_in_device(),
    ] {
        stays_stoppable(backend, payload, &boot_state());
    }
});

case!(an_entry_at_nonsense_stays_stoppable, |backend| {
    for pc in [0, 1, 0x1000_0000, u64::MAX, boot_state().pc + 2] {
        stays_stoppable(backend, payload_undefined(), &BootState { pc, x0: u64::MAX });
    }
});

case!(storms_of_exits_stay_stoppable, |backend| {
    for payload in [payload_storm(), payload_gic_storm()] {
        stays_stoppable(backend, payload, &boot_state());
    }
});

#[test]
fn every_probe_answers_and_explains() {
    for backend in backends() {
        let probe = backend.probe();
        println!("{}: {probe:?}", backend.name);
        match &probe.verdict {
            Verdict::Works => assert!(probe.instructions_per_second > Some(50_000_000)),
            verdict => assert!(verdict.why().is_some_and(|why| !why.is_empty())),
        }
    }
}
