//! What a vCPU is at its first instruction.

use cabana_hv::arm64::{BootState, EL1H_MASKED};
use cabana_test_hv::{Guest, Runner, boot_state, case, layout, payload};

payload!(payload_nothing: "movz x1, #0x1100, lsl #16" "str wzr, [x1]");

payload!(payload_look:
    "movz x1, #0x4002, lsl #16"
    "str x0, [x1]"
    "str x2, [x1, #8]"
    "str x30, [x1, #16]"
    "mrs x2, CurrentEL"
    "str x2, [x1, #24]"
    "mrs x2, daif"
    "str x2, [x1, #32]"
    "mrs x2, spsel"
    "str x2, [x1, #40]"
    "mrs x2, sctlr_el1"
    "str x2, [x1, #48]"
    "mrs x2, mpidr_el1"
    "str x2, [x1, #56]"
    "mrs x2, S3_0_C0_C4_0" // ID_AA64PFR0_EL1
    "str x2, [x1, #64]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(a_vcpu_starts_at_el1_with_the_mmu_off_and_interrupts_masked, |backend| {
    let guest = Guest::new(backend, payload_look());
    let mut runner = Runner::bind(guest.seat(0));
    runner.vcpu.set_boot_state(&BootState { x0: 0x1234_5678_9abc, ..boot_state() }).unwrap();
    runner.expect_end();
    let seen: Vec<u64> = (0..9).map(|at| guest.read_u64(layout::DATA + 8 * at)).collect();
    assert_eq!(seen[..3], [0x1234_5678_9abc, 0, 0], "X0 is the argument, others are zero");
    assert_eq!(seen[3], 1 << 2, "EL1");
    assert_eq!(seen[4], EL1H_MASKED & 0x3c0, "all is masked");
    assert_eq!(seen[5], 1, "EL1's own stack pointer");
    assert_eq!(seen[6] & (1 | 1 << 2 | 1 << 12), 0, "MMU and caches are off");
    assert_eq!(seen[7] & 0xff_00ff_ffff, 0, "the first vCPU's affinity");
    assert_eq!(seen[8] >> 32 & 0xf, 0, "no SVE");
});

payload!(payload_affinity:
    "mrs x2, mpidr_el1"
    "movz x1, #0x4002, lsl #16"
    "str x2, [x1]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(vcpus_are_numbered_in_clusters_of_sixteen, |backend| {
    let guest = Guest::with_cpus(backend, payload_affinity(), &[true; 18]);
    for (index, affinity) in [(1, 1), (15, 15), (16, 0x100), (17, 0x101)] {
        let mut runner = Runner::bind(guest.seat(index));
        runner.vcpu.set_boot_state(&boot_state()).unwrap();
        runner.expect_end();
        assert_eq!(guest.read_u64(layout::DATA) & 0xff_00ff_ffff, affinity, "vCPU {index}");
    }
});

case!(a_vcpu_is_given_once_and_the_counter_runs, |backend| {
    let guest = Guest::new(backend, payload_nothing());
    let mut runner = guest.start();
    assert!(guest.vm.vcpu_seat(0).is_err() && guest.vm.vcpu_seat(1).is_err());
    assert!((1..=1024).contains(&guest.vm.max_vcpus()));
    let before = runner.vcpu.counter().unwrap();
    runner.expect_end();
    assert!(runner.vcpu.counter().unwrap() > before);
});
