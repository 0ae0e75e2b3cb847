//! The guest begins with what its boot state says.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use cabana_hv::x86::Regs;
use cabana_hv::{VmEntry, VmExit};
use cabana_test_hv::{Guest, Runner, boot_state, case, layout, payload};

payload!(payload_end: "out 0xf4, al" "hlt");

payload!(payload_store_registers:
    "mov [rsp - 8], rax"
    "mov rax, 0x20000"
    "mov [rax + 0x08], rbx"
    "mov [rax + 0x10], rcx"
    "mov [rax + 0x18], rdx"
    "mov [rax + 0x20], rsi"
    "mov [rax + 0x28], rdi"
    "mov [rax + 0x30], rsp"
    "mov [rax + 0x38], rbp"
    "mov [rax + 0x40], r8"
    "mov [rax + 0x48], r9"
    "mov [rax + 0x50], r10"
    "mov [rax + 0x58], r11"
    "mov [rax + 0x60], r12"
    "mov [rax + 0x68], r13"
    "mov [rax + 0x70], r14"
    "mov [rax + 0x78], r15"
    "mov rbx, [rsp - 8]"
    "mov [rax], rbx"
    "mov rbx, cr3"
    "mov [rax + 0x80], rbx"
    "xor ebx, ebx"
    "mov bx, cs"
    "mov [rax + 0x88], rbx"
    "mov bx, ss"
    "mov [rax + 0x90], rbx"
    "out 0xf4, al"
);

case!(the_guest_finds_its_boot_registers, |backend| {
    let guest = Guest::new(backend, payload_store_registers());
    let mut boot = boot_state();
    boot.regs = Regs {
        rax: 0x1111_2222_3333_4444,
        rbx: u64::MAX,
        rcx: 3,
        rdx: 4,
        rsi: 0x7000,
        rdi: 6,
        rbp: 0xffff_8000_0000_0000,
        r8: 8,
        r9: 9,
        r10: 10,
        r11: 11,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 0xf0f0_f0f0_f0f0_f0f0,
        ..boot.regs
    };
    let mut runner = Runner::bind(guest.seat(0));
    runner.vcpu.set_boot_state(&boot).unwrap();
    runner.expect_end();
    let regs = boot.regs;
    let expected = [
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rsp,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        boot.system.cr3,
        0x10,
        0x18,
    ];
    for (at, value) in expected.into_iter().enumerate() {
        assert_eq!(guest.read_u64(layout::DATA + 8 * at as u64), value, "register {at}");
    }
});

case!(the_state_read_back_is_the_boot_state, |backend| {
    let guest = Guest::new(backend, payload_end());
    let mut runner = guest.start();
    let (boot, state) = (boot_state(), runner.vcpu.state().unwrap());
    assert_eq!(state.regs, boot.regs);
    for (found, set) in [
        (state.system.cs, boot.system.cs),
        (state.system.ds, boot.system.ds),
        (state.system.ss, boot.system.ss),
        (state.system.tr, boot.system.tr),
    ] {
        assert_eq!(found, set);
    }
    assert_eq!(
        (state.system.cr0, state.system.cr3, state.system.cr4, state.system.efer),
        (boot.system.cr0, boot.system.cr3, boot.system.cr4, boot.system.efer)
    );
    assert_eq!((state.system.gdt, state.system.idt), (boot.system.gdt, boot.system.idt));
    // The APIC stays at reset: enabled, at its place, of the boot processor.
    assert_eq!(state.system.apic_base, 0xfee0_0900);
    runner.expect_end();
    // After the last write the instruction is done.
    assert_eq!(runner.vcpu.state().unwrap().regs.rip, layout::CODE + 2);
});

case!(exits_and_time_go_on, |backend| {
    let guest = Guest::new(backend, payload_end());
    let mut runner = guest.start();
    let before = (runner.vcpu.exits(), runner.vcpu.counter().unwrap());
    runner.expect_end();
    assert!(runner.vcpu.counter().unwrap() > before.1);
    match (before.0, runner.vcpu.exits()) {
        (Some(before), Some(after)) => assert!(after > before, "{before} {after}"),
        (None, None) => println!("{} counts no exits", backend.name),
        other => panic!("{other:?}"),
    }
    assert!(guest.vm.tsc_khz().unwrap() > 100_000);
});

payload!(payload_cpuid:
    "mov eax, 1"
    "xor ecx, ecx"
    "cpuid"
    "mov rdi, 0x20000"
    "mov [rdi], ebx"
    "mov [rdi + 4], ecx"
    "mov eax, 0x40000010"
    "cpuid"
    "mov [rdi + 8], eax"
    "out 0xf4, al"
);

case!(the_guest_sees_the_cpuid_that_was_made_for_it, |backend| {
    let guest = Guest::new(backend, payload_cpuid());
    guest.start().expect_end();
    let ebx_ecx = guest.read_u64(layout::DATA);
    assert_eq!(ebx_ecx as u32 >> 24, 0, "APIC id");
    assert_eq!(ebx_ecx >> 63, 1, "hypervisor bit");
    assert_eq!(ebx_ecx >> (32 + 24) & 1, 1, "TSC-deadline timer");
    let timing = guest.read_u64(layout::DATA + 8) as u32;
    assert_eq!(timing, guest.vm.tsc_khz().unwrap());
});

case!(a_wrong_answer_is_refused, |backend| {
    let guest = Guest::new(backend, payload_read_port());
    let mut runner = guest.start();
    assert!(runner.vcpu.run(VmEntry::Data(0)).is_err(), "nobody asked");
    assert_eq!(runner.run(), VmExit::PioRead { port: 0x10, size: 1 });
    assert!(runner.vcpu.run(VmEntry::Resume).is_err(), "the read is not answered");
    assert!(matches!(runner.data(1), VmExit::PioWrite { data: 1, .. }));
});

payload!(payload_read_port: "in al, 0x10" "out 0xf4, al");
