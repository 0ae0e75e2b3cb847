//! Memory slots: coming and going under a running vCPU, read-only, dirty pages, doorbells.

#![cfg(target_arch = "x86_64")]
// Guest memory is mapped.
#![allow(unsafe_code)]

use cabana_hv::{VmEntry, VmExit};
use cabana_test_hv::cases::memory;
use cabana_test_hv::{Extra, Guest, Runner, boot_state, case, lacks, layout, payload, thread_of};

payload!(payload_read_extra:
    "2:"
    "mov al, [0x400000]"
    "out 0x10, al"
    "jmp 2b"
);

case!(memory_comes_and_goes_between_runs, |backend| {
    let (first, second) = (Extra::new(1), Extra::new(2));
    first.set_byte(0, 0x11);
    second.set_byte(0, 0x22);
    let guest = Guest::new(backend, payload_read_extra());
    let mut runner = guest.start();
    let said = |data| VmExit::PioWrite { port: 0x10, size: 1, data };
    assert_eq!(runner.run(), VmExit::MmioRead { addr: layout::EXTRA, size: 1 });
    assert_eq!(runner.data(0x99), said(0x99));
    first.map(&guest, false, false);
    assert_eq!(runner.run(), said(0x11));
    guest.vm.unmap(layout::EXTRA).unwrap();
    assert_eq!(runner.run(), VmExit::MmioRead { addr: layout::EXTRA, size: 1 });
    second.map(&guest, false, false);
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
    let extra = Extra::new(1);
    let guest = Guest::new(backend, payload_read_until_marked());
    extra.map(&guest, false, false);
    let seat = guest.seat(0);
    let thread = thread_of(seat, |mut runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        // It reads zeros from memory until that is gone, then asks us.
        let exit = runner.run();
        (exit, runner.data(0x5a))
    });
    std::thread::sleep(std::time::Duration::from_millis(30));
    guest.vm.unmap(layout::EXTRA).unwrap();
    let (exit, end) = thread.join().unwrap();
    assert_eq!(exit, VmExit::MmioRead { addr: layout::EXTRA, size: 1 });
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
    memory::read_only_is_read_without_exits_and_not_written(backend, payload_write_extra());
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
    let said = VmExit::PioWrite { port: 0x10, size: 1, data: 0 };
    memory::written_pages_are_dirty_until_asked_for(backend, payload_dirty(), said);
});

case!(nonsense_is_refused, |backend| {
    memory::nonsense_is_refused(backend, payload_dirty(), &[]);
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
    memory::a_doorbell_takes_its_value_alone(backend, payload_doorbell());
});

case!(a_vm_and_its_memory_end_while_others_go_on, |backend| {
    if backend.has_one_vm() {
        return lacks("second VM in a process");
    }
    let extra = Extra::new(1);
    let stays = Guest::new(backend, payload_read_extra());
    extra.map(&stays, false, false);
    let mut runner: Runner = stays.start();
    for _ in 0..20 {
        let goes = Guest::new(backend, payload_read_extra());
        let mut runner = goes.start();
        assert_eq!(runner.run(), VmExit::MmioRead { addr: layout::EXTRA, size: 1 });
    }
    assert_eq!(
        runner.vcpu.run(VmEntry::Resume).unwrap(),
        VmExit::PioWrite { port: 0x10, size: 1, data: 0 }
    );
});
