//! The power state interface (Arm DEN 0022), which is the hypervisor's.

use std::thread;
use std::time::Duration;

use cabana_hv::VmExit;
use cabana_test_hv::{Guest, boot_state, case, layout, payload, thread_of};

// Starts vCPU 1 at `layout::SECOND` with the argument 0x77, waits for its mark, asks how it is, ends.
payload!(payload_start_second:
    "movz x9, #0x4002, lsl #16"
    "movz x0, #0x8400, lsl #16" // PSCI_VERSION
    "hvc #0"
    "str x0, [x9, #8]"
    "movz x0, #0xc400, lsl #16" // CPU_ON
    "movk x0, #3"
    "mov x1, #1"
    "movz x2, #0x4001, lsl #16"
    "movk x2, #0xa000"
    "mov x3, #0x77"
    "hvc #0"
    "str x0, [x9, #16]"
    "2:"
    "ldr x4, [x9]"
    "cbz x4, 2b"
    "movz x0, #0xc400, lsl #16" // CPU_ON, of one that is on
    "movk x0, #3"
    "mov x1, #1"
    "hvc #0"
    "str x0, [x9, #24]"
    "movz x0, #0xc400, lsl #16" // CPU_ON, of one that is not there
    "movk x0, #3"
    "mov x1, #5"
    "hvc #0"
    "str x0, [x9, #32]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);
payload!(payload_second:
    "movz x9, #0x4002, lsl #16"
    "mrs x1, CurrentEL"
    "str x1, [x9, #40]"
    "str x0, [x9]"
    "b ."
);

case!(cpu_on_starts_a_vcpu_with_its_argument, |backend| {
    let guest = Guest::with_cpus(backend, payload_start_second(), &[true, false]);
    guest.second(payload_second());
    let seat = guest.seat(1);
    let kicker = seat.kicker();
    let second = thread_of(seat, |mut runner| runner.run());
    guest.start().expect_end();
    kicker.kick();
    assert_eq!(second.join().unwrap(), VmExit::Kicked);
    let seen: Vec<i64> = (0..6).map(|at| guest.read_u64(layout::DATA + 8 * at) as i64).collect();
    assert_eq!(seen[0], 0x77, "the argument");
    assert!(seen[1] >= 0x1_0000, "version 1.0 at least: {:#x}", seen[1]);
    // Success, ALREADY_ON, INVALID_PARAMETERS.
    assert_eq!(seen[2..5], [0, -4, -2]);
    assert_eq!(seen[5], 1 << 2, "EL1");
});

payload!(payload_off: "movz x0, #0x8400, lsl #16" "movk x0, #8" "hvc #0" "b .");
payload!(payload_reset: "movz x0, #0x8400, lsl #16" "movk x0, #9" "hvc #0" "b .");

case!(power_off_and_reset_are_exits, |backend| {
    for (payload, end) in [(payload_off(), VmExit::PowerOff), (payload_reset(), VmExit::Reset)] {
        let guest = Guest::new(backend, payload);
        assert_eq!(guest.start().run(), end);
    }
});

// CPU_OFF of vCPU 1 itself; nothing more is heard of it.
payload!(payload_cpu_off: "2:" "movz x0, #0x8400, lsl #16" "movk x0, #2" "hvc #0" "b 2b");

case!(cpu_off_stops_a_vcpu, |backend| {
    let guest = Guest::with_cpus(backend, payload_cpu_off(), &[true; 2]);
    let seat = guest.seat(1);
    let kicker = seat.kicker();
    let stopped = thread_of(seat, |mut runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        let exit = runner.run();
        (exit, runner.vcpu.state().unwrap().off)
    });
    thread::sleep(Duration::from_millis(50));
    kicker.kick();
    assert_eq!(stopped.join().unwrap(), (VmExit::Kicked, true));
});

payload!(payload_nonsense:
    "movz x9, #0x4002, lsl #16"
    "movz x0, #0x8400, lsl #16"
    "movk x0, #0x1fff"
    "hvc #0"
    "str x0, [x9]"
    "movz x0, #0xbeef"
    "hvc #0x77"
    "str x0, [x9, #8]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(calls_that_nobody_knows_are_not_supported, |backend| {
    let guest = Guest::new(backend, payload_nonsense());
    guest.start().expect_end();
    assert_eq!(guest.read_u64(layout::DATA) as i32, -1);
    assert_eq!(guest.read_u64(layout::DATA + 8) as i32, -1);
});
