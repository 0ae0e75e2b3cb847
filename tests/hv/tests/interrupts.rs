//! Interrupts by message, by event and by level; halting and waking.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cabana_hv::x86::{Msi, MsiRoute};
use cabana_hv::{HvError, VmEntry, VmExit};
use cabana_os::Event;
use cabana_test_hv::{Backend, Guest, Runner, case, lacks, layout, payload, thread_of};

const VECTOR: u8 = 0x41;
const READY: VmExit = VmExit::PioWrite { port: 0x10, size: 1, data: 0 };

/// Fixed delivery to APIC 0, edge-triggered.
fn msi(vector: u8) -> Msi {
    Msi { address: 0xfee0_0000, data: u32::from(vector) }
}

/// The same, level-triggered and asserted.
fn level(vector: u8) -> Msi {
    Msi { data: u32::from(vector) | 1 << 15 | 1 << 14, ..msi(vector) }
}

// Turns the local APIC on (spurious vector 0xff), says so, then waits until the handler has counted
// `[0x20000]` up, ends, and waits again. It does not halt: with a message already on its way it
// would need the instruction after `sti` to be safe from interrupts, which the lab does not keep.
payload!(payload_wait:
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0xf0], 0x1ff"
    "xor eax, eax"
    "out 0x10, al"
    "2:"
    "sti"
    "3:"
    "cmp qword ptr [0x20000], 0"
    "je 3b"
    "cli"
    "out 0xf4, al"
    "mov qword ptr [0x20000], 0"
    "jmp 2b"
);

// The same, but halts, and once.
payload!(payload_halt:
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0xf0], 0x1ff"
    "xor eax, eax"
    "out 0x10, al"
    "sti"
    "hlt"
    "cli"
    "out 0xf4, al"
);

// Counts, and acknowledges to the local APIC.
payload!(payload_count:
    "push rax"
    "inc qword ptr [0x20000]"
    "mov eax, 0xfee000b0"
    "mov dword ptr [rax], 0"
    "pop rax"
    "iretq"
);

/// A guest that waits for [`VECTOR`], up to the point where it is ready for it.
fn waiting(backend: &Backend) -> (Guest, Runner) {
    ready(Guest::new(backend, payload_wait()))
}

fn ready(guest: Guest) -> (Guest, Runner) {
    guest.handler(VECTOR, payload_count());
    let mut runner = guest.start();
    assert_eq!(runner.run(), READY);
    (guest, runner)
}

case!(a_message_interrupts, |backend| {
    let (guest, mut runner) = waiting(backend);
    guest.vm.signal_msi(msi(VECTOR)).unwrap();
    runner.expect_end();
    assert_eq!(guest.read_u64(layout::DATA), 1);
    guest.vm.signal_msi(msi(VECTOR)).unwrap();
    runner.expect_end();
});

case!(a_message_wakes_a_halted_vcpu, |backend| {
    let (guest, mut runner) = ready(Guest::new(backend, payload_halt()));
    thread::scope(|scope| {
        scope.spawn(|| {
            // By now it halts; if not, the case still holds.
            thread::sleep(Duration::from_millis(30));
            guest.vm.signal_msi(msi(VECTOR)).unwrap();
        });
        runner.expect_end();
    });
});

/// An event that sends `gsi`'s message, or what the hypervisor lacks for it.
fn event(guest: &Guest, gsi: u32) -> Result<Event, &'static str> {
    let event = Event::new().unwrap();
    match guest.vm.irq_event(gsi, &event) {
        Err(HvError::Unsupported(what)) => Err(what),
        other => {
            other.unwrap();
            Ok(event)
        }
    }
}

case!(an_event_interrupts_through_its_route, |backend| {
    let (guest, mut runner) = waiting(backend);
    guest.vm.set_msi_routes(&[MsiRoute { gsi: 30, msi: msi(VECTOR) }]).unwrap();
    let event = match event(&guest, 30) {
        Ok(event) => event,
        Err(what) => return lacks(what),
    };
    event.signal();
    runner.expect_end();
    // The next route table takes the place of the first.
    guest.handler(VECTOR + 1, payload_count());
    guest.vm.set_msi_routes(&[MsiRoute { gsi: 30, msi: msi(VECTOR + 1) }]).unwrap();
    event.signal();
    runner.expect_end();
});

/// Runs until the end of `count` level-triggered interrupts was told, and does `then` each time. An
/// instruction emulator may tell it some instructions late, so the payload's own exits are skipped.
fn ends(runner: &mut Runner, count: u32, mut then: impl FnMut()) {
    for _ in 0..count {
        let told = (0..3).map(|_| runner.run()).find(|exit| !is_end(exit));
        assert_eq!(told, Some(VmExit::EndOfInterrupt { vector: VECTOR }));
        then();
    }
}

fn is_end(exit: &VmExit) -> bool {
    matches!(exit, VmExit::PioWrite { port: layout::END_PORT, .. })
}

case!(the_end_of_a_level_triggered_interrupt_is_told, |backend| {
    let (guest, mut runner) = waiting(backend);
    guest.vm.set_msi_routes(&[MsiRoute { gsi: 5, msi: level(VECTOR) }]).unwrap();
    for _ in 0..2 {
        guest.vm.signal_msi(level(VECTOR)).unwrap();
        ends(&mut runner, 1, || ());
    }
    // An edge-triggered one tells nothing.
    guest.handler(VECTOR + 1, payload_count());
    let kicker = &runner.kicker;
    guest.vm.signal_msi(msi(VECTOR + 1)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            kicker.kick();
        });
        let vcpu = &mut runner.vcpu;
        let mut exits = std::iter::from_fn(|| vcpu.run(VmEntry::Resume).ok());
        assert_eq!(exits.find(|exit| !is_end(exit)), Some(VmExit::Kicked));
    });
});

case!(a_level_that_stays_comes_again_after_its_end, |backend| {
    let (guest, mut runner) = waiting(backend);
    guest.vm.set_msi_routes(&[MsiRoute { gsi: 5, msi: level(VECTOR) }]).unwrap();
    match event(&guest, 5) {
        Ok(event) => event.signal(),
        Err(_) => guest.vm.signal_msi(level(VECTOR)).unwrap(),
    }
    // As an I/O APIC does while the line is up.
    ends(&mut runner, 3, || guest.vm.signal_msi(level(VECTOR)).unwrap());
});

payload!(payload_masked:
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0xf0], 0x1ff"
    "xor eax, eax"
    "out 0x10, al"
    "mov rcx, [0x20000]"
    "mov [0x20008], rcx"
    "sti"
    "2:"
    "cmp qword ptr [0x20000], 0"
    "je 2b"
    "out 0xf4, al"
);

case!(a_masked_interrupt_waits, |backend| {
    let guest = Guest::new(backend, payload_masked());
    guest.handler(VECTOR, payload_count());
    let mut runner = guest.start();
    assert_eq!(runner.run(), READY);
    guest.vm.signal_msi(msi(VECTOR)).unwrap();
    runner.expect_end();
    assert_eq!(guest.read_u64(layout::DATA + 8), 0, "not while interrupts are off");
    assert_eq!(guest.read_u64(layout::DATA), 1);
});

case!(messages_to_nobody_are_harmless, |backend| {
    let (guest, mut runner) = waiting(backend);
    let nobody = 99 << 12;
    // Fixed, lowest priority, logical; vectors and delivery modes that are none.
    for data in [u32::from(VECTOR), 1 << 8 | u32::from(VECTOR), 0, 3 << 8, u32::MAX] {
        for address in [0xfee0_0000 | nobody, 0xfee0_0004 | nobody, 0xfee0_0000 | 1 << 19] {
            guest.vm.signal_msi(Msi { address, data }).unwrap();
        }
    }
    guest.vm.signal_msi(msi(0)).unwrap();
    guest.vm.signal_msi(msi(VECTOR)).unwrap();
    runner.expect_end();
});

// INIT and SIPI (vector 8) to APIC 1, then to the end.
payload!(payload_start_other:
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0xf0], 0x1ff"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x00004500"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x00004608"
    "out 0xf4, al"
);

// In real mode: says its code segment and its initial APIC id.
payload!(payload_other:
    ".code16"
    "mov ax, cs"
    "out 0x42, ax"
    "mov eax, 1"
    "cpuid"
    "shr ebx, 24"
    "mov eax, ebx"
    "out 0x43, al"
    "cli"
    "hlt"
);

case!(a_second_processor_starts_by_init_and_sipi, |backend| {
    let guest = Guest::with_cpus(backend, payload_start_other(), 2);
    guest.real_mode(payload_other());
    let seat = guest.seat(1);
    let kicker = seat.kicker();
    let (spoken, has_spoken) = mpsc::channel();
    let other = thread_of(seat, move |mut runner| {
        let said = [runner.run(), runner.run()];
        spoken.send(()).unwrap();
        (said, runner.run())
    });
    guest.start().expect_end();
    has_spoken.recv().unwrap();
    kicker.kick();
    let (said, end) = other.join().unwrap();
    assert_eq!(
        said,
        [
            VmExit::PioWrite { port: 0x42, size: 2, data: layout::REAL_MODE as u32 >> 4 },
            VmExit::PioWrite { port: 0x43, size: 1, data: 1 },
        ]
    );
    assert_eq!(end, VmExit::Kicked);
});

case!(a_processor_that_nobody_starts_waits_and_can_be_kicked, |backend| {
    let guest = Guest::with_cpus(backend, payload_start_other(), 2);
    let seat = guest.seat(1);
    let kicker = seat.kicker();
    let other = thread_of(seat, |mut runner| runner.run());
    thread::sleep(Duration::from_millis(20));
    kicker.kick();
    assert_eq!(other.join().unwrap(), VmExit::Kicked);
});
