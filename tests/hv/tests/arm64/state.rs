//! A vCPU saved in one VM goes on in another.

use std::thread;
use std::time::Duration;

use cabana_hv::arm64::VcpuState;
use cabana_hv::{HvError, VmExit};
use cabana_test_hv::cases::state as cases;
use cabana_test_hv::{Backend, Guest, Payload, Runner, case, layout, payload};

/// A new VM with a copy of `guest`'s RAM and interrupt controller; its vCPU goes on where `runner`'s stood. The old
/// one is gone before: not every hypervisor has two in a process.
fn moved(backend: &Backend, guest: Guest, payload: Payload, mut runner: Runner) -> (Guest, Runner) {
    let (state, gic) = (runner.vcpu.state().unwrap(), guest.vm.gic_state().unwrap());
    let ram = guest.read(layout::RAM, (layout::RAM_END - layout::RAM) as usize);
    drop(runner);
    drop(guest);
    let copy = Guest::new(backend, payload);
    copy.write(layout::RAM, &ram);
    let runner = copy.resume(&state);
    copy.vm.set_gic_state(&gic).unwrap();
    (copy, runner)
}

fn said(data: u64) -> VmExit {
    VmExit::MmioWrite { addr: layout::DEVICE, size: 4, data }
}

// Leaves its marks everywhere, says 1; then collects them.
payload!(payload_marks:
    "mov x10, #3"
    "lsl x10, x10, #20"
    "msr cpacr_el1, x10" // Vector registers for use
    "isb"
    "movz x20, #0x1111, lsl #48"
    "movk x20, #0x4444"
    "movz x29, #0x5555, lsl #48"
    "movk x29, #0x8888"
    "fmov d3, x20"
    "mov v31.d[1], x29"
    "mov v31.d[0], x20"
    "mov x10, #0x1000"
    "msr tpidr_el0, x10"
    "add x10, x10, #0x1000"
    "msr tpidr_el1, x10"
    "add x10, x10, #0x1000"
    "msr vbar_el1, x10"
    "add x10, x10, #0x1000"
    "msr ttbr0_el1, x10"
    "add x10, x10, #0x1000"
    "msr mair_el1, x10"
    "add x10, x10, #0x1000"
    "msr elr_el1, x10"
    "add x10, x10, #0x1000"
    "msr sp_el0, x10"
    "add x10, x10, #0x1000"
    "mov sp, x10"
    "add x10, x10, #0x1000"
    "msr cntv_cval_el0, x10"
    "mov x10, #2"
    "msr cntv_ctl_el0, x10" // Masked
    "mov x10, #0x3000000"
    "msr fpcr, x10"
    "movz x1, #0x1000, lsl #16"
    "mov w0, #1"
    "cmp w0, #1"
    "str w0, [x1]"
    "cset w2, eq"
    "movz x9, #0x4002, lsl #16"
    "str x20, [x9]"
    "str x29, [x9, #8]"
    "fmov x10, d3"
    "str x10, [x9, #16]"
    "mov x10, v31.d[1]"
    "str x10, [x9, #24]"
    "str x2, [x9, #32]"
    "mrs x10, tpidr_el0"
    "str x10, [x9, #40]"
    "mrs x10, tpidr_el1"
    "str x10, [x9, #48]"
    "mrs x10, vbar_el1"
    "str x10, [x9, #56]"
    "mrs x10, ttbr0_el1"
    "str x10, [x9, #64]"
    "mrs x10, mair_el1"
    "str x10, [x9, #72]"
    "mrs x10, elr_el1"
    "str x10, [x9, #80]"
    "mrs x10, sp_el0"
    "str x10, [x9, #88]"
    "mov x10, sp"
    "str x10, [x9, #96]"
    "mrs x10, cntv_cval_el0"
    "str x10, [x9, #104]"
    "mrs x10, fpcr"
    "str x10, [x9, #112]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

const MARKS: [u64; 15] = [
    0x1111_0000_0000_4444,
    0x5555_0000_0000_8888,
    0x1111_0000_0000_4444,
    0x5555_0000_0000_8888,
    1,
    0x1000,
    0x2000,
    0x3000,
    0x4000,
    0x5000,
    0x6000,
    0x7000,
    0x8000,
    0x9000,
    0x300_0000,
];

case!(all_registers_move_to_a_new_vm, |backend| {
    let guest = Guest::new(backend, payload_marks());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    let (copy, mut runner) = moved(backend, guest, payload_marks(), runner);
    runner.expect_end();
    for (at, mark) in MARKS.into_iter().enumerate() {
        let found = copy.read_u64(layout::DATA + 8 * at as u64);
        assert_eq!(found, mark, "mark {at}: {found:#x}");
    }
});

case!(a_state_that_is_set_reads_back, |backend| {
    let guest = Guest::new(backend, payload_marks());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    let saved = runner.vcpu.state().unwrap();
    let gic = guest.vm.gic_state().unwrap();
    let (copy, mut runner) = moved(backend, guest, payload_marks(), runner);
    let again = runner.vcpu.state().unwrap();
    assert_eq!((&again.regs, &again.simd, again.off), (&saved.regs, &saved.simd, saved.off));
    assert_eq!(again.system, saved.system);
    assert!(again.counter >= saved.counter, "the counter goes on");
    assert_eq!(copy.vm.gic_state().unwrap(), gic);
});

payload!(payload_moved_echo:
    "movz x1, #0x1000, lsl #16"
    "mov w3, #0"
    "2:"
    "ldr w2, [x1]"
    "add w3, w3, w2"
    "str w3, [x1]"
    "b 2b"
);

case!(an_unanswered_read_is_read_again, |backend| {
    let guest = Guest::new(backend, payload_moved_echo());
    let ask = VmExit::MmioRead { addr: layout::DEVICE, size: 4 };
    cases::an_unanswered_read_is_read_again(
        guest,
        ask,
        |sum: u32| said(sum.into()),
        |guest, runner| moved(backend, guest, payload_moved_echo(), runner),
    );
});

case!(a_vcpu_goes_back_to_where_it_was, |backend| {
    cases::a_vcpu_goes_back_to_where_it_was(
        &Guest::new(backend, payload_moved_echo()),
        |sum: u32| said(sum.into()),
    );
});

// Line 5 edge-triggered and enabled, interrupts masked; says 1; then lets them come and waits.
payload!(payload_moved_wait:
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
    "str w0, [x1]"
    "msr daifclr, #2"
    "2:"
    "wfi"
    "b 2b"
);
payload!(payload_came:
    "mrs x3, S3_0_C12_C12_0"
    "movz x1, #0x1000, lsl #16"
    "str w3, [x1]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
    "b ."
);

case!(an_interrupt_on_its_way_arrives_in_the_new_vm, |backend| {
    let guest = Guest::new(backend, payload_moved_wait());
    guest.handler(payload_came());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    guest.vm.irq_line(5, true).unwrap();
    guest.vm.irq_line(5, false).unwrap();
    let (_copy, mut runner) = moved(backend, guest, payload_moved_wait(), runner);
    runner.expect(&[(said(layout::interrupt(5)), 0)]);
});

case!(a_waiting_vcpu_wakes_in_the_new_vm, |backend| {
    let guest = Guest::new(backend, payload_moved_wait());
    guest.handler(payload_came());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    let (copy, mut runner) = moved(backend, guest, payload_moved_wait(), runner);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            copy.vm.irq_line(5, true).unwrap();
        });
        runner.expect(&[(said(layout::interrupt(5)), 0)]);
    });
});

// The virtual timer in 20 ms; says 1; waits.
payload!(payload_moved_timer:
    "movz x9, #0x4001, lsl #16"
    "movk x9, #0xc000"
    "blr x9"
    "movz x9, #0x080b, lsl #16"
    "mov w10, #0x08000000"
    "str w10, [x9, #0x100]"
    "mrs x10, cntfrq_el0"
    "mov x11, #50"
    "udiv x10, x10, x11"
    "msr cntv_tval_el0, x10"
    "mov x10, #1"
    "msr cntv_ctl_el0, x10"
    "movz x1, #0x1000, lsl #16"
    "mov w0, #1"
    "str w0, [x1]"
    "msr daifclr, #2"
    "2:"
    "wfi"
    "b 2b"
);
payload!(payload_moved_timer_came:
    "msr cntv_ctl_el0, xzr"
    "mrs x3, S3_0_C12_C12_0"
    "movz x1, #0x1000, lsl #16"
    "str w3, [x1]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
    "b ."
);

case!(a_timer_fires_in_the_new_vm, |backend| {
    let guest = Guest::new(backend, payload_moved_timer());
    guest.handler(payload_moved_timer_came());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    let (_copy, mut runner) = moved(backend, guest, payload_moved_timer(), runner);
    runner.expect(&[(said(27), 0)]);
});

case!(a_state_of_nothing_is_refused, |backend| {
    let guest = Guest::new(backend, payload_moved_echo());
    let mut runner = guest.start();
    assert!(matches!(runner.vcpu.set_state(&VcpuState::default()), Err(HvError::Invalid(_))));
    assert!(matches!(guest.vm.set_gic_state(&[0; 24]), Err(HvError::Invalid(_))));
    assert!(matches!(guest.vm.set_gic_state(&[]), Err(HvError::Invalid(_))));
});
