//! A vCPU saved in one VM goes on in another.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cabana_hv::VmExit;
use cabana_hv::x86::{Activity, Msi, VcpuState};
use cabana_test_hv::cases::state as cases;
use cabana_test_hv::{
    Backend, Guest, Needs, Payload, Runner, boot_state, case, layout, payload, thread_of,
};

/// A new VM with a copy of `guest`'s RAM; its vCPU goes on where `runner`'s stands, which is gone then: a process may
/// have no more than one.
fn moved(backend: &Backend, guest: Guest, payload: Payload, mut runner: Runner) -> (Guest, Runner) {
    let state = runner.vcpu.state().unwrap();
    let ram = guest.read(0, layout::RAM_END as usize);
    drop((runner, guest));
    let copy = Guest::new(backend, payload);
    copy.write(0, &ram);
    let runner = copy.resume(&state);
    (copy, runner)
}

fn said(data: u32) -> VmExit {
    VmExit::PioWrite { port: 0x10, size: 4, data }
}

// Leaves its marks everywhere, says 1; then collects them.
payload!(payload_marks:
    "mov rbx, 0x1111222233334444"
    "mov r15, 0x5555666677778888"
    "mov [0x20100], rbx"
    "mov [0x20108], r15"
    "movdqu xmm3, [0x20100]"
    "movdqu xmm15, [0x20108]"
    "mov rax, 0xfffff000"
    "mov cr2, rax"
    "mov ecx, 0xc0000082" // LSTAR
    "mov eax, 0x12345678"
    "mov edx, 0xffff8000"
    "wrmsr"
    "mov ecx, 0xc0000102" // KERNEL_GS_BASE
    "mov eax, 0x9abcdef0"
    "mov edx, 0x0000007f"
    "wrmsr"
    "mov rax, 0xfeed000"
    "mov dr0, rax"
    "mov rsi, 0xfee00000"
    "mov dword ptr [rsi + 0xf0], 0x1ff"
    "mov dword ptr [rsi + 0x320], 0x10042" // Timer, masked, vector 0x42
    "push 0x77"
    "std"
    "mov eax, 1"
    "out 0x10, eax"
    "pushfq"
    "pop rax"
    "cld"
    "mov edi, 0x20000"
    "stosq"
    "mov rax, rbx"
    "stosq"
    "mov rax, r15"
    "stosq"
    "movdqu [rdi], xmm3"
    "add edi, 16"
    "movdqu [rdi], xmm15"
    "add edi, 16"
    "mov rax, cr2"
    "stosq"
    "mov ecx, 0xc0000082"
    "rdmsr"
    "shl rdx, 32"
    "or rax, rdx"
    "stosq"
    "mov ecx, 0xc0000102"
    "rdmsr"
    "shl rdx, 32"
    "or rax, rdx"
    "stosq"
    "mov rax, dr0"
    "stosq"
    "mov eax, [rsi + 0x320]"
    "stosq"
    "pop rax"
    "stosq"
    "out 0xf4, al"
);

const MARKS: [u64; 12] = [
    0x1111_2222_3333_4444,
    0x5555_6666_7777_8888,
    0x1111_2222_3333_4444,
    0x5555_6666_7777_8888,
    0x5555_6666_7777_8888,
    0,
    0xffff_f000,
    0xffff_8000_1234_5678,
    0x0000_007f_9abc_def0,
    0x0fee_d000,
    0x10042,
    0x77,
];

case!(all_registers_move_to_a_new_vm, |backend| {
    let guest = Guest::new(backend, payload_marks());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    let (copy, mut runner) = moved(backend, guest, payload_marks(), runner);
    runner.expect_end();
    // The direction flag was set.
    assert_eq!(copy.read_u64(layout::DATA) & 1 << 10, 1 << 10);
    for (at, mark) in MARKS.into_iter().enumerate() {
        let found = copy.read_u64(layout::DATA + 8 * (at as u64 + 1));
        assert_eq!(found, mark, "mark {at}: {found:#x}");
    }
});

payload!(payload_x87:
    "fninit"
    "fldpi"
    "fld1"
    "mov eax, 1"
    "out 0x10, eax"
    "mov edi, 0x20000"
    "fistp qword ptr [rdi]"
    "fistp qword ptr [rdi + 8]"
    "out 0xf4, al"
);

case!(the_fpu_stack_moves_to_a_new_vm, Needs::Processor("no x87 arithmetic"), |backend| {
    let guest = Guest::new(backend, payload_x87());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    let (copy, mut runner) = moved(backend, guest, payload_x87(), runner);
    runner.expect_end();
    assert_eq!([0, 8].map(|at| copy.read_u64(layout::DATA + at)), [1, 3]);
});

case!(a_state_that_is_set_reads_back, |backend| {
    let guest = Guest::new(backend, payload_marks());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    let saved = runner.vcpu.state().unwrap();
    let (_copy, mut runner) = moved(backend, guest, payload_marks(), runner);
    let again = runner.vcpu.state().unwrap();
    assert_eq!((again.regs, again.system), (saved.regs, saved.system));
    assert_eq!((again.debug, again.activity), (saved.debug, saved.activity));
    assert_eq!((again.events, &again.xcrs), (saved.events, &saved.xcrs));
    // Time goes on; everything else is the same.
    let still = |state: &VcpuState| -> Vec<(u32, u64)> {
        state.msrs.iter().copied().filter(|msr| msr.0 != 0x10).collect()
    };
    assert_eq!(still(&again), still(&saved));
    let tsc = |state: &VcpuState| state.msrs.iter().find(|msr| msr.0 == 0x10).map(|msr| msr.1);
    assert!(tsc(&again) >= tsc(&saved), "the time-stamp counter goes on");
});

payload!(payload_echo:
    "xor ebx, ebx"
    "2:"
    "in eax, 0x10"
    "add ebx, eax"
    "mov eax, ebx"
    "out 0x10, eax"
    "jmp 2b"
);

case!(an_unanswered_read_is_read_again, |backend| {
    let guest = Guest::new(backend, payload_echo());
    let ask = VmExit::PioRead { port: 0x10, size: 4 };
    cases::an_unanswered_read_is_read_again(guest, ask, said, |guest, runner| {
        moved(backend, guest, payload_echo(), runner)
    });
});

case!(a_vcpu_goes_back_to_where_it_was, |backend| {
    cases::a_vcpu_goes_back_to_where_it_was(&Guest::new(backend, payload_echo()), said);
});

payload!(payload_in_string:
    "cld"
    "mov dx, 0x300"
    "mov edi, 0x20000"
    "mov ecx, 4"
    "rep insb"
    "out 0xf4, al"
);

case!(the_state_in_the_middle_of_a_string_is_refused_or_right, |backend| {
    let guest = Guest::new(backend, payload_in_string());
    let mut runner = guest.start();
    let ask = VmExit::PioRead { port: 0x300, size: 1 };
    assert_eq!(runner.run(), ask);
    assert_eq!(runner.data(1), ask);
    let saved = runner.vcpu.state();
    for answer in 2..4 {
        assert_eq!(runner.data(answer), ask);
    }
    assert!(matches!(runner.data(4), VmExit::PioWrite { port: layout::END_PORT, .. }));
    assert_eq!(guest.read(layout::DATA, 4), [1, 2, 3, 4]);
    drop((runner, guest));
    let Ok(saved) = saved else { return };
    // It begins again where its registers say.
    let copy = Guest::new(backend, payload_in_string());
    let mut runner = copy.resume(&saved);
    let left = usize::try_from(saved.regs.rcx).unwrap();
    assert!((1..=4).contains(&left));
    runner.expect(&vec![(ask, 9); left]);
    assert_eq!(copy.read(layout::DATA + 4 - left as u64, left), vec![9; left]);
});

// Turns the APIC on and halts with interrupts on; the handler ends.
payload!(payload_halt:
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0xf0], 0x1ff"
    "mov eax, 1"
    "out 0x10, eax"
    "sti"
    "2:"
    "hlt"
    "jmp 2b"
);
payload!(payload_end: "out 0xf4, al");

case!(a_halted_vcpu_stays_halted_and_wakes_in_the_new_vm, |backend| {
    const VECTOR: u8 = 0x51;
    let guest = Guest::new(backend, payload_halt());
    guest.handler(VECTOR, payload_end());
    let seat = guest.seat(0);
    let kicker = seat.kicker();
    let (begun, has_begun) = mpsc::channel();
    let halted = thread_of(seat, move |mut runner| {
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        assert_eq!(runner.run(), said(1));
        begun.send(()).unwrap();
        assert_eq!(runner.run(), VmExit::Kicked);
        runner.vcpu.state().unwrap()
    });
    has_begun.recv().unwrap();
    thread::sleep(Duration::from_millis(50));
    kicker.kick();
    let state = halted.join().unwrap();
    assert_eq!(state.activity, Activity::Halted);

    let ram = guest.read(0, layout::RAM_END as usize);
    drop(guest);
    let copy = Guest::new(backend, payload_halt());
    copy.write(0, &ram);
    let mut runner = copy.resume(&state);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            let msi = Msi { address: 0xfee0_0000, data: u32::from(VECTOR) };
            copy.vm.signal_msi(msi).unwrap();
        });
        runner.expect_end();
    });
});

case!(an_interrupt_on_its_way_arrives_in_the_new_vm, |backend| {
    const VECTOR: u8 = 0x52;
    let guest = Guest::new(backend, payload_halt());
    guest.handler(VECTOR, payload_end());
    let mut runner = guest.start();
    assert_eq!(runner.run(), said(1));
    guest.vm.signal_msi(Msi { address: 0xfee0_0000, data: u32::from(VECTOR) }).unwrap();
    let (_copy, mut runner) = moved(backend, guest, payload_halt(), runner);
    runner.expect_end();
});

case!(a_state_of_nothing_is_refused, |backend| {
    let guest = Guest::new(backend, payload_end());
    let mut runner = guest.start();
    assert!(runner.vcpu.set_state(&VcpuState::default()).is_err());
});
