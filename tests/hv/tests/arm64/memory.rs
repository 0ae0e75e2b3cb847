//! Memory that comes and goes, is read-only or tracked; doorbells.

use std::thread;
use std::time::Duration;

use cabana_hv::{Doorbell, HvError, MemorySlot, VmExit};
use cabana_os::{Event, Mapping};
use cabana_test_hv::{Guest, boot_state, case, lacks, layout, payload, thread_of};

/// A second piece of memory, above RAM.
const EXTRA: u64 = 0x5000_0000;
const PAGE: u64 = 4096;

fn memory(pages: usize) -> Mapping {
    Mapping::anonymous(pages * PAGE as usize).unwrap()
}

fn set_byte(memory: &Mapping, at: usize, value: u8) {
    assert!(at < memory.len());
    // SAFETY: inside the mapping, to which nobody has references.
    unsafe { memory.as_ptr().add(at).write_volatile(value) };
}

fn byte(memory: &Mapping, at: usize) -> u8 {
    assert!(at < memory.len());
    // SAFETY: inside the mapping, to which nobody has references.
    unsafe { memory.as_ptr().add(at).read_volatile() }
}

fn map(guest: &Guest, memory: &Mapping, read_only: bool, track_dirty: bool) {
    let (host, len) = (memory.as_ptr(), memory.len());
    let slot = MemorySlot { guest: EXTRA, host, len, read_only, track_dirty };
    // SAFETY: each case keeps its memory longer than its guest, and nobody makes references to it.
    unsafe { guest.vm.map(&slot) }.unwrap();
}

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
    let extra = memory(1);
    let guest = Guest::new(backend, payload_poll());
    let mut runner = guest.start();
    let ask = VmExit::MmioRead { addr: EXTRA, size: 1 };
    assert_eq!(runner.run(), ask, "nothing is there");
    assert_eq!(runner.data(1), ask, "nor is it now");
    map(&guest, &extra, false, false);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            set_byte(&extra, 0, 0x42);
        });
        let end = runner.data(1);
        assert!(matches!(end, VmExit::MmioWrite { addr: layout::END, .. }), "{end:?}");
    });
});

case!(memory_vanishes_under_a_running_vcpu, |backend| {
    let extra = memory(1);
    let ask = VmExit::MmioRead { addr: EXTRA, size: 1 };
    let guest = Guest::new(backend, payload_poll());
    map(&guest, &extra, false, false);
    let vcpu = thread_of(guest.seat(0), |mut runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        let gone = runner.run();
        (gone, runner.data(0x42))
    });
    thread::sleep(Duration::from_millis(30));
    assert!(!vcpu.is_finished(), "it reads without exits");
    guest.vm.unmap(EXTRA).unwrap();
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
    let extra = memory(1);
    set_byte(&extra, 0, 0x42);
    set_byte(&extra, 8, 0x43);
    let guest = Guest::new(backend, payload_write_extra());
    map(&guest, &extra, true, false);
    let write = VmExit::MmioWrite { addr: EXTRA + 8, size: 4, data: 0x77 };
    guest.start().expect(&[(write, 0)]);
    assert_eq!(byte(&extra, 8), 0x43, "the memory is as it was");
    assert_eq!(guest.read_u64(layout::DATA), 0x42);
    assert_eq!(guest.read_u64(layout::DATA + 8), 0x43);
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
    let extra = memory(70);
    let guest = Guest::new(backend, payload_dirty());
    map(&guest, &extra, false, true);
    let mut runner = guest.start();
    let said = VmExit::MmioWrite { addr: layout::DEVICE, size: 4, data: 0 };
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [0, 0], "nothing was written yet");
    assert_eq!(runner.run(), said);
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [1 << 1 | 1 << 3, 1 << 1]);
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [0, 0], "asked for before");
    assert_eq!(runner.run(), said);
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [1 << 1 | 1 << 2, 0]);
    assert!(guest.vm.dirty_pages(layout::RAM).is_err(), "RAM is not tracked");
    runner.expect_end();
});

case!(nonsense_is_refused, |backend| {
    let extra = memory(2);
    let guest = Guest::new(backend, payload_dirty());
    let slot = MemorySlot {
        guest: EXTRA,
        host: extra.as_ptr(),
        len: extra.len(),
        read_only: false,
        track_dirty: false,
    };
    let refused = |slot: MemorySlot| {
        // SAFETY: the mapping outlives the guest.
        unsafe { guest.vm.map(&slot) }.unwrap_err()
    };
    for wrong in [
        MemorySlot { guest: EXTRA + 1, ..slot },
        MemorySlot { len: 100, ..slot },
        MemorySlot { len: 0, ..slot },
    ] {
        assert!(matches!(refused(wrong), HvError::Invalid(_)));
    }
    // Over RAM, and beyond all addresses.
    refused(MemorySlot { guest: layout::RAM_END - PAGE, ..slot });
    refused(MemorySlot { guest: 1 << 52, ..slot });
    assert!(matches!(guest.vm.unmap(EXTRA), Err(HvError::Invalid(_))));
    assert!(matches!(guest.vm.dirty_pages(EXTRA), Err(HvError::Invalid(_))));
    // What was refused has taken nothing.
    map(&guest, &extra, false, false);
    guest.vm.unmap(EXTRA).unwrap();
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
    let guest = Guest::new(backend, payload_doorbell());
    let bell = Event::new().unwrap();
    let addr = layout::DEVICE + 0x50;
    match guest.vm.doorbell(Doorbell { guest: addr, value: 1 }, &bell) {
        Err(HvError::Unsupported(what)) => return lacks(what),
        other => other.unwrap(),
    }
    let mut runner = guest.start();
    assert_eq!(runner.run(), VmExit::MmioWrite { addr, size: 4, data: 2 });
    assert!(bell.take(), "the first write rang");
    assert_eq!(runner.run(), VmExit::MmioWrite { addr, size: 2, data: 1 });
    assert!(bell.take(), "the third write rang");
    assert_eq!(runner.run(), VmExit::MmioWrite { addr: addr + 4, size: 4, data: 1 });
    runner.expect_end();
    assert!(!bell.take());
});
