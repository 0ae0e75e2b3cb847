//! The interrupt controller's lines, edge and level; the timer; waiting and waking; one vCPU to another.

use std::thread;
use std::time::Duration;

use cabana_hv::{HvError, VmExit};
use cabana_os::Event;
use cabana_test_hv::{Guest, case, lacks, layout, payload, thread_of};

/// The line that payloads here enable: interrupt 37.
const LINE: u32 = 5;

fn said(offset: u64, data: u64) -> (VmExit, u64) {
    (VmExit::MmioWrite { addr: layout::DEVICE + offset, size: 4, data }, 0)
}

// Says which interrupt came at DEVICE, and 1023 there when there is none any more; then returns.
payload!(payload_tell:
    "movz x1, #0x1000, lsl #16"
    "mrs x3, S3_0_C12_C12_0" // ICC_IAR1_EL1
    "str w3, [x1]"
    "msr S3_0_C12_C12_1, x3" // ICC_EOIR1_EL1
    "eret"
);

// Makes line 5 edge-triggered and enables it; says 1 at DEVICE + 4; waits for interrupts for ever.
payload!(payload_edge:
    "movz x9, #0x4001, lsl #16"
    "movk x9, #0xc000"
    "blr x9"
    "movz x9, #0x0800, lsl #16"
    "mov w10, #0x800" // Interrupt 37 in GICD_ICFGR2
    "str w10, [x9, #0xc08]"
    "mov w10, #0x20"
    "str w10, [x9, #0x104]" // GICD_ISENABLER1
    "msr daifclr, #2"
    "movz x1, #0x1000, lsl #16"
    "mov w0, #1"
    "str w0, [x1, #4]"
    "2:"
    "wfi"
    "b 2b"
);

case!(an_edge_comes_once_however_long_the_line_is_high, |backend| {
    let guest = Guest::new(backend, payload_edge());
    guest.handler(payload_tell());
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let vcpu = thread_of(seat, |mut runner| {
        runner.vcpu.set_boot_state(&cabana_test_hv::boot_state()).unwrap();
        let exits: Vec<_> = std::iter::from_fn(|| Some(runner.run()))
            .take_while(|exit| *exit != VmExit::Kicked)
            .collect();
        exits
    });
    for level in [true, false, true, false] {
        thread::sleep(Duration::from_millis(30));
        guest.vm.irq_line(LINE, level).unwrap();
    }
    thread::sleep(Duration::from_millis(30));
    kicker.kick();
    let told = said(0, layout::interrupt(LINE)).0;
    assert_eq!(vcpu.join().unwrap(), [said(4, 1).0, told, told]);
});

// The same line, level-triggered.
payload!(payload_level:
    "movz x9, #0x4001, lsl #16"
    "movk x9, #0xc000"
    "blr x9"
    "movz x9, #0x0800, lsl #16"
    "str wzr, [x9, #0xc08]"
    "mov w10, #0x20"
    "str w10, [x9, #0x104]"
    "movz x1, #0x1000, lsl #16"
    "mov w0, #1"
    "str w0, [x1, #4]"
    "msr daifclr, #2"
    "movz w4, #2, lsl #16" // Interrupts come soon, not at once.
    "2:"
    "subs w4, w4, #1"
    "b.ne 2b"
    "mov w0, #2"
    "str w0, [x1, #4]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(a_level_comes_again_until_it_is_lowered, |backend| {
    let guest = Guest::new(backend, payload_level());
    guest.handler(payload_tell());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(4, 1).0);
    guest.vm.irq_line(LINE, true).unwrap();
    let told = said(0, layout::interrupt(LINE)).0;
    for time in 0..3 {
        assert_eq!(runner.run(), told, "time {time}");
    }
    guest.vm.irq_line(LINE, false).unwrap();
    runner.expect(&[said(4, 2)]);
});

case!(an_event_of_anybody_raises_its_line, |backend| {
    let guest = Guest::new(backend, payload_edge());
    guest.handler(payload_tell());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(4, 1).0);
    let event = Event::new().unwrap();
    match guest.vm.irq_event(LINE, &event) {
        Err(HvError::Unsupported(what)) => return lacks(what),
        other => other.unwrap(),
    }
    for _ in 0..3 {
        event.signal();
        assert_eq!(runner.run(), said(0, layout::interrupt(LINE)).0);
    }
});

case!(an_edge_waits_while_interrupts_are_masked, |backend| {
    let guest = Guest::new(backend, payload_late());
    guest.handler(payload_tell());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(4, 1).0);
    guest.vm.irq_line(LINE, true).unwrap();
    guest.vm.irq_line(LINE, false).unwrap();
    runner.expect(&[said(4, 2), said(0, layout::interrupt(LINE)), said(4, 3)]);
});

payload!(payload_late:
    "movz x9, #0x4001, lsl #16"
    "movk x9, #0xc000"
    "blr x9"
    "movz x9, #0x0800, lsl #16"
    "mov w10, #0x800"
    "str w10, [x9, #0xc08]"
    "mov w10, #0x20"
    "str w10, [x9, #0x104]"
    "movz x1, #0x1000, lsl #16"
    "mov w0, #1"
    "str w0, [x1, #4]"
    "mov w0, #2"
    "str w0, [x1, #4]"
    "msr daifclr, #2"
    "movz w4, #2, lsl #16"
    "2:"
    "subs w4, w4, #1"
    "b.ne 2b"
    "mov w0, #3"
    "movz x1, #0x1000, lsl #16"
    "str w0, [x1, #4]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

// The virtual timer, private interrupt 27, one millisecond from now; it is turned off by its handler.
payload!(payload_timer:
    "movz x9, #0x4001, lsl #16"
    "movk x9, #0xc000"
    "blr x9"
    "movz x9, #0x080b, lsl #16"
    "mov w10, #0x08000000"
    "str w10, [x9, #0x100]" // GICR_ISENABLER0
    "mrs x10, cntfrq_el0"
    "mov x11, #1000"
    "udiv x10, x10, x11"
    "msr cntv_tval_el0, x10"
    "mov x10, #1"
    "msr cntv_ctl_el0, x10"
    "isb"
    "msr daifclr, #2"
    "2:"
    "wfi"
    "ldr x4, [x2]"
    "cbz x4, 2b"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);
payload!(payload_timer_came:
    "msr cntv_ctl_el0, xzr"
    "mrs x3, S3_0_C12_C12_0"
    "movz x1, #0x1000, lsl #16"
    "str w3, [x1]"
    "msr S3_0_C12_C12_1, x3"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
    "b ."
);

case!(the_timer_wakes_a_waiting_guest, |backend| {
    let guest = Guest::new(backend, payload_timer());
    guest.handler(payload_timer_came());
    guest.start().expect(&[said(0, 27)]);
});

// Sends software-generated interrupt 3 to vCPU 1.
payload!(payload_send:
    "movz x9, #0x4001, lsl #16"
    "movk x9, #0xc000"
    "blr x9"
    "movz x9, #0x4002, lsl #16"
    "2:"
    "ldr w0, [x9]"
    "cbz w0, 2b"
    "movz x10, #0x0300, lsl #16"
    "movk x10, #2"
    "msr S3_0_C12_C11_5, x10" // ICC_SGI1R_EL1
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);
payload!(payload_receive:
    "movz x9, #0x4001, lsl #16"
    "movk x9, #0xc000"
    "blr x9"
    "movz x9, #0x080d, lsl #16"
    "mov w10, #8"
    "str w10, [x9, #0x100]"
    "msr daifclr, #2"
    "movz x9, #0x4002, lsl #16"
    "mov w0, #1"
    "str w0, [x9]"
    "2:"
    "wfi"
    "b 2b"
);

case!(one_vcpu_interrupts_another, |backend| {
    let guest = Guest::with_cpus(backend, payload_send(), &[true; 2]);
    guest.handler(payload_tell());
    guest.second(payload_receive());
    let receiver = thread_of(guest.seat(1), |mut runner| {
        let state = cabana_hv::arm64::BootState { pc: layout::SECOND, x0: 0 };
        runner.vcpu.set_boot_state(&state).unwrap();
        runner.run()
    });
    guest.start().expect_end();
    assert_eq!(receiver.join().unwrap(), said(0, 3).0);
});
