//! Memory that comes and goes, is read-only or tracked; doorbells.

use std::thread;
use std::time::Duration;

use cabana_hv::VmExit;
use cabana_test_hv::cases::memory;
use cabana_test_hv::{Extra, Guest, boot_state, case, layout, payload, thread_of};

// Reads EXTRA again and again, until it is 0x42; tells what is read otherwise.
payload!(payload_poll:
    "movz x1, #0x5000, lsl #16"
    "2:"
    "ldrb w0, [x1]"
    "cmp w0, #0x42"
    "b.ne 2b"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(memory_appears_under_a_vcpu, |backend| {
    let extra = Extra::new(1);
    let guest = Guest::new(backend, payload_poll());
    let mut runner = guest.start();
    let ask = VmExit::MmioRead { addr: layout::EXTRA, size: 1 };
    assert_eq!(runner.run(), ask, "nothing is there");
    assert_eq!(runner.data(1), ask, "nor is it now");
    extra.map(&guest, false, false);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            extra.set_byte(0, 0x42);
        });
        let end = runner.data(1);
        assert!(matches!(end, VmExit::MmioWrite { addr: layout::END, .. }), "{end:?}");
    });
});

case!(memory_vanishes_under_a_running_vcpu, |backend| {
    let extra = Extra::new(1);
    let ask = VmExit::MmioRead { addr: layout::EXTRA, size: 1 };
    let guest = Guest::new(backend, payload_poll());
    extra.map(&guest, false, false);
    let vcpu = thread_of(guest.seat(0), |mut runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        let gone = runner.run();
        (gone, runner.data(0x42))
    });
    thread::sleep(Duration::from_millis(30));
    assert!(!vcpu.is_finished(), "it reads without exits");
    guest.vm.unmap(layout::EXTRA).unwrap();
    let (gone, end) = vcpu.join().unwrap();
    assert_eq!(gone, ask);
    assert!(matches!(end, VmExit::MmioWrite { addr: layout::END, .. }), "{end:?}");
});

payload!(payload_write_extra:
    "movz x1, #0x5000, lsl #16"
    "movz x2, #0x4002, lsl #16"
    "ldr w0, [x1]"
    "str x0, [x2]"
    "mov w0, #0x77"
    "str w0, [x1, #8]"
    "ldr w0, [x1, #8]"
    "str x0, [x2, #8]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(read_only_memory_is_read_without_exits_and_not_written, |backend| {
    memory::read_only_is_read_without_exits_and_not_written(backend, payload_write_extra());
});

payload!(payload_dirty:
    "movz x1, #0x5000, lsl #16"
    "movz x5, #0x1000, lsl #16"
    "mov w0, #1"
    "add x2, x1, #1, lsl #12"
    "strb w0, [x2]"
    "add x2, x1, #3, lsl #12"
    "strb w0, [x2, #0xfff]"
    "add x2, x1, #5, lsl #12"
    "ldrb w3, [x2]"
    "add x2, x1, #0x41, lsl #12"
    "strb w0, [x2]"
    "str wzr, [x5]"
    "add x2, x1, #2, lsl #12"
    "strb w0, [x2]"
    "add x2, x1, #1, lsl #12"
    "strb w0, [x2]"
    "str wzr, [x5]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(written_pages_are_dirty_until_they_are_asked_for, |backend| {
    let said = VmExit::MmioWrite { addr: layout::DEVICE, size: 4, data: 0 };
    memory::written_pages_are_dirty_until_asked_for(backend, payload_dirty(), said);
});

case!(nonsense_is_refused, |backend| {
    // Beyond all addresses, too.
    memory::nonsense_is_refused(backend, payload_dirty(), &[1 << 52]);
});

payload!(payload_doorbell:
    "movz x1, #0x1000, lsl #16"
    "mov w2, #1"
    "mov w3, #2"
    "str w2, [x1, #0x50]"
    "str w3, [x1, #0x50]"
    "str w2, [x1, #0x50]"
    "strh w2, [x1, #0x50]"
    "str w2, [x1, #0x54]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(a_doorbell_takes_its_value_and_nothing_else, |backend| {
    memory::a_doorbell_takes_its_value_alone(backend, payload_doorbell());
});
