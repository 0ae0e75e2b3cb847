//! Ports: every width, immediate and DX forms, strings.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use cabana_hv::VmExit;
use cabana_test_hv::{Guest, case, layout, payload};

fn read(port: u16, size: u8, answer: u64) -> (VmExit, u64) {
    (VmExit::PioRead { port, size }, answer)
}

fn write(port: u16, size: u8, data: u32) -> (VmExit, u64) {
    (VmExit::PioWrite { port, size, data }, 0)
}

payload!(payload_ports:
    "mov eax, 0x81828384"
    "out 0x10, al"
    "out 0x12, ax"
    "out 0x14, eax"
    "mov dx, 0x3f8"
    "out dx, al"
    "out dx, ax"
    "out dx, eax"
    "mov rax, -1"
    "in al, 0x10"
    "mov [0x20000], rax"
    "mov rax, -1"
    "in ax, 0x12"
    "mov [0x20008], rax"
    "mov rax, -1"
    "in eax, 0x14"
    "mov [0x20010], rax"
    "in al, dx"
    "in eax, dx"
    "mov [0x20018], rax"
    "out 0xf4, al"
);

case!(ports_of_every_width, |backend| {
    let guest = Guest::new(backend, payload_ports());
    guest.start().expect(&[
        write(0x10, 1, 0x84),
        write(0x12, 2, 0x8384),
        write(0x14, 4, 0x8182_8384),
        write(0x3f8, 1, 0x84),
        write(0x3f8, 2, 0x8384),
        write(0x3f8, 4, 0x8182_8384),
        read(0x10, 1, 0xffff_ff11),
        read(0x12, 2, 0x1122),
        read(0x14, 4, 0x1122_3344),
        read(0x3f8, 1, 0x55),
        read(0x3f8, 4, 0x6677_8899),
    ]);
    let results = [0, 8, 16, 24].map(|at| guest.read_u64(layout::DATA + at));
    // A port read of four bytes clears the upper half; the shorter ones keep the rest.
    let expected = [0xffff_ffff_ffff_ff11, 0xffff_ffff_ffff_1122, 0x1122_3344, 0x6677_8899];
    assert_eq!(results, expected, "{results:#x?}");
});

payload!(payload_port_strings:
    "cld"
    "mov dx, 0x300"
    "mov esi, 0x20100"
    "mov ecx, 3"
    "rep outsb"
    "mov ecx, 2"
    "rep outsd"
    "outsw"
    "mov edi, 0x20000"
    "mov ecx, 3"
    "rep insb"
    "insw"
    "mov ecx, 2"
    "rep insd"
    "mov [0x20040], rcx"
    "mov [0x20048], rdi"
    "mov [0x20050], rsi"
    "out 0xf4, al"
);

case!(string_ports_come_element_by_element, |backend| {
    let guest = Guest::new(backend, payload_port_strings());
    guest.write(layout::DATA + 0x100, &[1, 2, 3, 4, 0, 0, 0, 5, 0, 0, 0, 6, 7]);
    guest.write_u64(layout::DATA + 0x40, u64::MAX);
    guest.start().expect(&[
        write(0x300, 1, 1),
        write(0x300, 1, 2),
        write(0x300, 1, 3),
        write(0x300, 4, 4),
        write(0x300, 4, 5),
        write(0x300, 2, 0x0706),
        read(0x300, 1, 0x11),
        read(0x300, 1, 0x12),
        read(0x300, 1, 0x13),
        read(0x300, 2, 0x1514),
        read(0x300, 4, 0x1918_1716),
        read(0x300, 4, 0x1d1c_1b1a),
    ]);
    let expected: Vec<u8> = (0x11..=0x1d).collect();
    assert_eq!(guest.read(layout::DATA, 13), expected);
    let ends = [0x40, 0x48, 0x50].map(|at| guest.read_u64(layout::DATA + at));
    assert_eq!(ends, [0, layout::DATA + 13, layout::DATA + 0x100 + 13]);
});

payload!(payload_long_string:
    "cld"
    "mov dx, 0x300"
    "mov edi, 0x20000"
    "mov ecx, 5000"
    "rep insb"
    "out 0xf4, al"
);

case!(a_long_string_arrives_whole, |backend| {
    let guest = Guest::new(backend, payload_long_string());
    let mut runner = guest.start();
    let mut exit = runner.run();
    for at in 0..5000u64 {
        assert_eq!(exit, VmExit::PioRead { port: 0x300, size: 1 }, "element {at}");
        exit = runner.data(at % 251);
    }
    assert!(matches!(exit, VmExit::PioWrite { port: layout::END_PORT, .. }), "{exit:?}");
    let expected: Vec<u8> = (0..5000u64).map(|at| (at % 251) as u8).collect();
    assert_eq!(guest.read(layout::DATA, 5000), expected);
});
