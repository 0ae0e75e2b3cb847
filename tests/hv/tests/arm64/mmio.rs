//! Device memory: every width, sign and form that a processor reports.

use cabana_hv::{HvError, VmEntry, VmExit};
use cabana_test_hv::{Guest, case, lacks, layout, payload};

const DEVICE: u64 = layout::DEVICE;

fn read(offset: u64, size: u8, answer: u64) -> (VmExit, u64) {
    (VmExit::MmioRead { addr: DEVICE + offset, size }, answer)
}

fn write(offset: u64, size: u8, data: u64) -> (VmExit, u64) {
    (VmExit::MmioWrite { addr: DEVICE + offset, size, data }, 0)
}

payload!(payload_writes:
    "movz x1, #0x1000, lsl #16"
    "movz x2, #0x8182"
    "movk x2, #0x8384, lsl #16"
    "movk x2, #0x8586, lsl #32"
    "movk x2, #0x8788, lsl #48"
    "strb w2, [x1]"
    "strh w2, [x1, #2]"
    "str w2, [x1, #4]"
    "str x2, [x1, #8]"
    "str xzr, [x1, #16]"
    "mov x3, #4"
    "str w2, [x1, x3, lsl #2]"
    "add x4, x1, #0x100"
    "stur w2, [x4, #-16]"
    "stlr w2, [x4]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(writes_of_every_width_and_form, |backend| {
    let guest = Guest::new(backend, payload_writes());
    let value = 0x8788_8586_8384_8182;
    guest.start().expect(&[
        write(0, 1, value & 0xff),
        write(2, 2, value & 0xffff),
        write(4, 4, value & 0xffff_ffff),
        write(8, 8, value),
        write(16, 8, 0),
        write(16, 4, value & 0xffff_ffff),
        write(0xf0, 4, value & 0xffff_ffff),
        write(0x100, 4, value & 0xffff_ffff),
    ]);
});

payload!(payload_reads:
    "movz x1, #0x1000, lsl #16"
    "movz x2, #0x4002, lsl #16"
    "mov x3, #-1"
    "ldrb w3, [x1]"
    "str x3, [x2]"
    "mov x3, #-1"
    "ldrh w3, [x1, #2]"
    "str x3, [x2, #8]"
    "mov x3, #-1"
    "ldr w3, [x1, #4]"
    "str x3, [x2, #16]"
    "ldr x3, [x1, #8]"
    "str x3, [x2, #24]"
    "ldar w3, [x1]"
    "str x3, [x2, #32]"
    "ldr xzr, [x1]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(reads_of_every_width_clear_what_is_above, |backend| {
    let guest = Guest::new(backend, payload_reads());
    // More bits than the width are not looked at.
    guest.start().expect(&[
        read(0, 1, 0xffff_ff81),
        read(2, 2, 0xffff_8182),
        read(4, 4, 0x1_8182_8384),
        read(8, 8, 0x8182_8384_8586_8788),
        read(0, 4, 0x55),
        read(0, 8, 0x66),
    ]);
    let seen: Vec<u64> = (0..5).map(|at| guest.read_u64(layout::DATA + 8 * at)).collect();
    let expected = [0x81, 0x8182, 0x8182_8384, 0x8182_8384_8586_8788, 0x55];
    assert_eq!(seen, expected, "{seen:#x?}");
});

payload!(payload_signed_reads:
    "movz x1, #0x1000, lsl #16"
    "movz x2, #0x4002, lsl #16"
    "ldrsb x3, [x1]"
    "str x3, [x2]"
    "mov x3, #-1"
    "ldrsb w3, [x1]"
    "str x3, [x2, #8]"
    "ldrsh x3, [x1]"
    "str x3, [x2, #16]"
    "ldrsw x3, [x1]"
    "str x3, [x2, #24]"
    "movz x1, #0x1100, lsl #16"
    "str wzr, [x1]"
);

case!(signed_reads_extend_as_the_instruction_says, |backend| {
    let guest = Guest::new(backend, payload_signed_reads());
    guest.start().expect(&[
        read(0, 1, 0x81),
        read(0, 1, 0x81),
        read(0, 2, 0x8182),
        read(0, 4, 0x8182_8384),
    ]);
    let seen: Vec<u64> = (0..4).map(|at| guest.read_u64(layout::DATA + 8 * at)).collect();
    if in_lab() && seen == [0x81, 0x81, 0x8182, 0x8182_8384] {
        return lacks("sign in what the lab's software CPU tells of an access");
    }
    let expected =
        [0xffff_ffff_ffff_ff81, 0xffff_ff81, 0xffff_ffff_ffff_8182, 0xffff_ffff_8182_8384];
    assert_eq!(seen, expected, "{seen:#x?}");
});

/// Is this the lab? KVM extends signs by what the processor tells it of the access (`ESR_EL2.SSE`), and the
/// lab's does not.
fn in_lab() -> bool {
    std::env::var_os("CABANA_LAB").is_some()
}

payload!(payload_pair: "movz x1, #0x1000, lsl #16" "ldp x2, x3, [x1]" "b .");
payload!(payload_post_index: "movz x1, #0x1000, lsl #16" "str w2, [x1], #4" "b .");

case!(an_access_that_the_processor_does_not_describe_ends_in_an_error, |backend| {
    for payload in [payload_pair(), payload_post_index()] {
        let guest = Guest::new(backend, payload);
        let mut runner = guest.start();
        let error = runner.vcpu.run(VmEntry::Resume).unwrap_err();
        let HvError::Guest(why) = &error else { panic!("{error}") };
        assert!(why.contains("PC 0x40010004"), "{why}");
    }
});

case!(answers_that_do_not_fit_the_exit_are_refused, |backend| {
    let guest = Guest::new(backend, payload_reads());
    let mut runner = guest.start();
    assert!(runner.vcpu.run(VmEntry::Data(1)).is_err());
    assert_eq!(runner.run(), VmExit::MmioRead { addr: DEVICE, size: 1 });
    assert!(runner.vcpu.run(VmEntry::Resume).is_err());
    assert_eq!(runner.data(7), VmExit::MmioRead { addr: DEVICE + 2, size: 2 });
    assert_eq!(guest.read_u64(layout::DATA), 7);
});
