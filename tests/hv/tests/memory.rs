//! Memory slots: coming and going under a running vCPU, read-only, dirty pages, doorbells.

#![cfg(target_arch = "x86_64")]
// Guest memory is mapped.
#![allow(unsafe_code)]

use cabana_hv::{Doorbell, HvError, MemorySlot, VmEntry, VmExit};
use cabana_os::{Event, Mapping};
use cabana_test_hv::{Guest, Runner, boot_state, case, lacks, layout, payload, thread_of};

/// A second piece of memory, above RAM.
const EXTRA: u64 = 0x40_0000;
const PAGE: u64 = 0x1000;

fn memory(pages: u64) -> Mapping {
    Mapping::anonymous((pages * PAGE) as usize).unwrap()
}

fn byte(mapping: &Mapping, at: u64) -> u8 {
    assert!((at as usize) < mapping.len());
    // SAFETY: within the mapping.
    unsafe { mapping.as_ptr().add(at as usize).read_volatile() }
}

fn set_byte(mapping: &Mapping, at: u64, value: u8) {
    assert!((at as usize) < mapping.len());
    // SAFETY: within the mapping.
    unsafe { mapping.as_ptr().add(at as usize).write_volatile(value) }
}

/// Maps all of `mapping` at [`EXTRA`]; it must outlive the guest.
fn map(guest: &Guest, mapping: &Mapping, read_only: bool, track_dirty: bool) {
    let slot = MemorySlot {
        guest: EXTRA,
        host: mapping.as_ptr(),
        len: mapping.len(),
        read_only,
        track_dirty,
    };
    // SAFETY: every case declares its mapping before the guest, so that it is dropped after it.
    unsafe { guest.vm.map(&slot) }.unwrap();
}

payload!(payload_read_extra:
    "2:"
    "mov al, [0x400000]"
    "out 0x10, al"
    "jmp 2b"
);

case!(memory_comes_and_goes_between_runs, |backend| {
    let (first, second) = (memory(1), memory(2));
    set_byte(&first, 0, 0x11);
    set_byte(&second, 0, 0x22);
    let guest = Guest::new(backend, payload_read_extra());
    let mut runner = guest.start();
    let said = |data| VmExit::PioWrite { port: 0x10, size: 1, data };
    assert_eq!(runner.run(), VmExit::MmioRead { addr: EXTRA, size: 1 });
    assert_eq!(runner.data(0x99), said(0x99));
    map(&guest, &first, false, false);
    assert_eq!(runner.run(), said(0x11));
    guest.vm.unmap(EXTRA).unwrap();
    assert_eq!(runner.run(), VmExit::MmioRead { addr: EXTRA, size: 1 });
    map(&guest, &second, false, false);
    assert_eq!(runner.data(0), said(0));
    assert_eq!(runner.run(), said(0x22));
});

payload!(payload_read_until_marked:
    "mov ebx, 0x400000"
    "2:"
    "mov al, [rbx]"
    "cmp al, 0x5a"
    "jne 2b"
    "out 0xf4, al"
);

case!(memory_goes_under_a_running_vcpu, |backend| {
    let extra = memory(1);
    let guest = Guest::new(backend, payload_read_until_marked());
    map(&guest, &extra, false, false);
    let seat = guest.seat(0);
    let thread = thread_of(seat, |mut runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        // It reads zeros from memory until that is gone, then asks us.
        let exit = runner.run();
        (exit, runner.data(0x5a))
    });
    std::thread::sleep(std::time::Duration::from_millis(30));
    guest.vm.unmap(EXTRA).unwrap();
    let (exit, end) = thread.join().unwrap();
    assert_eq!(exit, VmExit::MmioRead { addr: EXTRA, size: 1 });
    assert!(matches!(end, VmExit::PioWrite { port: layout::END_PORT, .. }), "{end:?}");
});

payload!(payload_write_extra:
    "mov ebx, 0x400000"
    "mov eax, [rbx]"
    "mov dword ptr [rbx + 8], 0x77"
    "mov ecx, [rbx + 8]"
    "mov [0x20000], rax"
    "mov [0x20008], rcx"
    "out 0xf4, al"
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
    "mov ebx, 0x400000"
    "mov byte ptr [rbx + 0x1000], 1"
    "mov byte ptr [rbx + 0x3fff], 1"
    "mov al, [rbx + 0x5000]"
    "mov byte ptr [rbx + 0x41000], 1"
    "out 0x10, al"
    "mov byte ptr [rbx + 0x2000], 1"
    "mov byte ptr [rbx + 0x1000], 2"
    "out 0x10, al"
    "out 0xf4, al"
);

case!(written_pages_are_dirty_until_they_are_asked_for, |backend| {
    let extra = memory(70);
    let guest = Guest::new(backend, payload_dirty());
    map(&guest, &extra, false, true);
    let mut runner = guest.start();
    let said = VmExit::PioWrite { port: 0x10, size: 1, data: 0 };
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [0, 0], "nothing was written yet");
    assert_eq!(runner.run(), said);
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [1 << 1 | 1 << 3, 1 << 1]);
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [0, 0], "asked for before");
    assert_eq!(runner.run(), said);
    assert_eq!(guest.vm.dirty_pages(EXTRA).unwrap(), [1 << 1 | 1 << 2, 0]);
    assert!(guest.vm.dirty_pages(0).is_err(), "RAM is not tracked");
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
    // Over RAM.
    refused(MemorySlot { guest: layout::RAM_END - PAGE, ..slot });
    assert!(matches!(guest.vm.unmap(EXTRA), Err(HvError::Invalid(_))));
    assert!(matches!(guest.vm.dirty_pages(EXTRA), Err(HvError::Invalid(_))));
    // What was refused has taken nothing.
    map(&guest, &extra, false, false);
    guest.vm.unmap(EXTRA).unwrap();
});

payload!(payload_doorbell:
    "mov ebx, 0xd0000050"
    "mov dword ptr [rbx], 1"
    "mov dword ptr [rbx], 2"
    "mov eax, 1"
    "mov [rbx], eax"
    "mov word ptr [rbx], 1"
    "mov dword ptr [rbx + 4], 1"
    "out 0xf4, al"
);

case!(a_doorbell_takes_its_value_and_nothing_else, |backend| {
    let guest = Guest::new(backend, payload_doorbell());
    let bell = Event::new().unwrap();
    match guest.vm.doorbell(Doorbell { guest: layout::DEVICE + 0x50, value: 1 }, &bell) {
        Err(HvError::Unsupported(what)) => return lacks(what),
        other => other.unwrap(),
    }
    let mut runner = guest.start();
    let addr = layout::DEVICE + 0x50;
    assert_eq!(runner.run(), VmExit::MmioWrite { addr, size: 4, data: 2 });
    assert!(bell.take(), "the first write rang");
    assert_eq!(runner.run(), VmExit::MmioWrite { addr, size: 2, data: 1 });
    assert!(bell.take(), "the third write rang");
    assert_eq!(runner.run(), VmExit::MmioWrite { addr: addr + 4, size: 4, data: 1 });
    runner.expect_end();
    assert!(!bell.take());
});

case!(a_vm_and_its_memory_end_while_others_go_on, |backend| {
    let extra = memory(1);
    let stays = Guest::new(backend, payload_read_extra());
    map(&stays, &extra, false, false);
    let mut runner: Runner = stays.start();
    for _ in 0..20 {
        let goes = Guest::new(backend, payload_read_extra());
        let mut runner = goes.start();
        assert_eq!(runner.run(), VmExit::MmioRead { addr: EXTRA, size: 1 });
    }
    assert_eq!(
        runner.vcpu.run(VmEntry::Resume).unwrap(),
        VmExit::PioWrite { port: 0x10, size: 1, data: 0 }
    );
});
