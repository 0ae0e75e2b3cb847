//! Whatever the guest does, the host gets an exit or an error, and can stop it.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use cabana_hv::{HvError, Verdict, VmEntry, VmExit};
use cabana_test_hv::{Backend, Guest, Payload, Runner, backends, boot_state, case, payload};

payload!(payload_triple_fault: "lidt [0x30000]" "ud2");
payload!(payload_jump_to_nowhere: "mov eax, 0x70000000" "jmp rax");
payload!(payload_jump_non_canonical: "mov rax, 0x8000000000000000" "jmp rax");
payload!(payload_stack_in_device: "mov esp, 0xd0000800" "push rax" "ud2");
payload!(payload_wild_msr: "mov ecx, 0xdeadbeef" "xor eax, eax" "wrmsr" "ud2");
payload!(payload_page_tables_in_device: "mov eax, 0xd0000000" "mov cr3, rax" "nop" "ud2");
payload!(payload_wild_cr0: "xor eax, eax" "mov cr0, rax" "ud2");
payload!(payload_wild_cr4: "mov rax, -1" "mov cr4, rax" "ud2");
payload!(payload_unhandled: "ud2");

/// Runs until the guest has given up; reads get ones. It must come to that soon.
fn gives_up(backend: &Backend, payload: Payload) -> Result<VmExit, HvError> {
    let guest = Guest::new(backend, payload);
    let mut runner = guest.start();
    let mut entry = VmEntry::Resume;
    for _ in 0..10_000 {
        match runner.vcpu.run(entry) {
            Ok(VmExit::MmioRead { .. } | VmExit::PioRead { .. }) => entry = VmEntry::Data(u64::MAX),
            Ok(VmExit::MmioWrite { .. } | VmExit::PioWrite { .. }) => entry = VmEntry::Resume,
            end => return end,
        }
    }
    panic!("the guest does not end");
}

case!(a_triple_fault_is_a_shutdown, |backend| {
    assert_eq!(gives_up(backend, payload_triple_fault()).unwrap(), VmExit::Shutdown);
});

case!(wild_jumps_accesses_and_registers_end_the_guest_alone, |backend| {
    for (what, payload) in [
        ("a jump to unmapped memory", payload_jump_to_nowhere()),
        ("a jump out of the address space", payload_jump_non_canonical()),
        ("a stack in device memory", payload_stack_in_device()),
        ("a model-specific register that is none", payload_wild_msr()),
        ("no protection in long mode", payload_wild_cr0()),
        ("all of CR4", payload_wild_cr4()),
        ("an exception without a handler", payload_unhandled()),
    ] {
        match gives_up(backend, payload) {
            Ok(VmExit::Shutdown) => {}
            Err(HvError::Guest(why)) => {
                println!("{what}: {why}");
                assert!(why.contains("RIP"), "it says where: {why}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
});

case!(page_tables_in_device_memory_end_the_guest_or_leave_it_stoppable, |backend| {
    let guest = Guest::new(backend, payload_page_tables_in_device());
    let Runner { vcpu, kicker, .. } = &mut guest.start();
    let (ended, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A processor may fault for ever: the handler's address is not to be had either.
            if wait.recv_timeout(Duration::from_millis(300)) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let end = vcpu.run(VmEntry::Resume);
        drop(ended);
        let fine = matches!(end, Ok(VmExit::Shutdown | VmExit::Kicked) | Err(HvError::Guest(_)));
        assert!(fine, "{end:?}");
    });
});

payload!(payload_mmio_storm: "mov ebx, 0xd0000000" "2:" "mov [rbx], eax" "jmp 2b");
payload!(payload_pio_storm: "cld" "2:" "mov dx, 0x300" "mov esi, 0x20000" "mov ecx, -1" "rep outsb" "jmp 2b");

case!(a_storm_of_exits_stays_stoppable, |backend| {
    for payload in [payload_mmio_storm(), payload_pio_storm()] {
        let guest = Guest::new(backend, payload);
        let seat = guest.seat(0);
        let kicker = seat.kicker();
        let exits = AtomicU64::new(0);
        let soon = |done: &dyn Fn() -> bool| {
            let begin = Instant::now();
            while !done() && begin.elapsed() < Duration::from_secs(5) {
                thread::sleep(Duration::from_millis(1));
            }
            done()
        };
        thread::scope(|scope| {
            let vcpu = scope.spawn(|| {
                let mut runner = Runner::bind(seat);
                runner.vcpu.set_boot_state(&boot_state()).unwrap();
                while runner.run() != VmExit::Kicked {
                    exits.fetch_add(1, Ordering::Relaxed);
                }
            });
            let storm = soon(&|| exits.load(Ordering::Relaxed) > 10);
            kicker.kick();
            assert!(soon(&|| vcpu.is_finished()), "the kick came through");
            assert!(storm, "it was a storm");
        });
    }
});

#[test]
fn every_probe_answers_and_explains() {
    for backend in backends() {
        let probe = backend.probe();
        println!("{}: {probe:?}", backend.name);
        match &probe.verdict {
            Verdict::Works => assert!(probe.instructions_per_second > Some(50_000_000)),
            verdict => assert!(verdict.why().is_some_and(|why| !why.is_empty())),
        }
    }
}
