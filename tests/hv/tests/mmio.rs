//! Device memory: every width, and the instruction forms that compilers and Linux emit.

#![cfg(target_arch = "x86_64")]
// Payloads are assembled.
#![allow(unsafe_code)]

use cabana_hv::VmExit;
use cabana_test_hv::{Guest, case, layout, payload};

const DEVICE: u64 = layout::DEVICE;

fn read(offset: u64, size: u8, answer: u64) -> (VmExit, u64) {
    (VmExit::MmioRead { addr: DEVICE + offset, size }, answer)
}

fn write(offset: u64, size: u8, data: u64) -> (VmExit, u64) {
    (VmExit::MmioWrite { addr: DEVICE + offset, size, data }, 0)
}

// RBX points to the device, RDI to results, eight bytes each.
payload!(payload_loads:
    "mov ebx, 0xd0000000"
    "mov edi, 0x20000"
    "mov rax, -1"
    "mov al, [rbx]"
    "stosq"
    "mov rax, -1"
    "mov ax, [rbx + 2]"
    "stosq"
    "mov rax, -1"
    "mov eax, [rbx + 4]"
    "stosq"
    "mov rax, [rbx + 8]"
    "stosq"
    "movzx eax, byte ptr [rbx + 1]"
    "stosq"
    "movzx eax, word ptr [rbx + 2]"
    "stosq"
    "movsx rax, byte ptr [rbx + 1]"
    "stosq"
    "movsx eax, word ptr [rbx + 2]"
    "stosq"
    "movsxd rax, dword ptr [rbx + 4]"
    "stosq"
    "mov rcx, rbx"
    "mov edx, 4"
    "mov r9d, [rcx + rdx * 2 + 4]"
    "mov rax, r9"
    "stosq"
    "out 0xf4, al"
);

case!(loads_of_every_width_and_extension, |backend| {
    let guest = Guest::new(backend, payload_loads());
    guest.start().expect(&[
        read(0, 1, 0x81),
        read(2, 2, 0x8182),
        read(4, 4, 0x8182_8384),
        read(8, 8, 0x8182_8384_8586_8788),
        read(1, 1, 0x91),
        read(2, 2, 0x9192),
        read(1, 1, 0xa1),
        read(2, 2, 0xa1a2),
        read(4, 4, 0xa1a2_a3a4),
        read(12, 4, 0xb1b2_b3b4),
    ]);
    let expected = [
        0xffff_ffff_ffff_ff81,
        0xffff_ffff_ffff_8182,
        0x8182_8384,
        0x8182_8384_8586_8788,
        0x91,
        0x9192,
        0xffff_ffff_ffff_ffa1,
        0xffff_a1a2,
        0xffff_ffff_a1a2_a3a4,
        0xb1b2_b3b4,
    ];
    for (at, value) in expected.into_iter().enumerate() {
        let found = guest.read_u64(layout::DATA + 8 * at as u64);
        assert_eq!(found, value, "result {at}: {found:#x}");
    }
});

payload!(payload_stores:
    "mov ebx, 0xd0000000"
    "mov rax, 0x8182838485868788"
    "mov [rbx], al"
    "mov [rbx + 2], ax"
    "mov [rbx + 4], eax"
    "mov [rbx + 8], rax"
    "mov [rbx + 1], ah"
    "mov byte ptr [rbx], 0x11"
    "mov word ptr [rbx + 2], 0x1122"
    "mov dword ptr [rbx + 4], 0x11223344"
    "mov qword ptr [rbx + 8], -2"
    "mov r12, rbx"
    "mov r13d, 0x55"
    "mov [r12 + 0x60], r13d"
    "out 0xf4, al"
);

case!(stores_of_every_width_and_immediates, |backend| {
    let guest = Guest::new(backend, payload_stores());
    guest.start().expect(&[
        write(0, 1, 0x88),
        write(2, 2, 0x8788),
        write(4, 4, 0x8586_8788),
        write(8, 8, 0x8182_8384_8586_8788),
        write(1, 1, 0x87),
        write(0, 1, 0x11),
        write(2, 2, 0x1122),
        write(4, 4, 0x1122_3344),
        write(8, 8, 0xffff_ffff_ffff_fffe),
        write(0x60, 4, 0x55),
    ]);
});

payload!(payload_read_modify_write:
    "mov ebx, 0xd0000000"
    "mov ecx, 0x0f"
    "or dword ptr [rbx], 0x10"
    "and byte ptr [rbx + 4], 0x3c"
    "add dword ptr [rbx + 8], ecx"
    "sub word ptr [rbx + 8], 1"
    "xor [rbx + 12], ecx"
    "or ecx, [rbx + 16]"
    "mov [0x20000], rcx"
    "mov eax, 0x77"
    "xchg [rbx + 20], eax"
    "mov [0x20008], rax"
    "out 0xf4, al"
);

case!(read_modify_write_is_a_read_and_a_write, |backend| {
    let guest = Guest::new(backend, payload_read_modify_write());
    guest.start().expect(&[
        read(0, 4, 0x1),
        write(0, 4, 0x11),
        read(4, 1, 0xff),
        write(4, 1, 0x3c),
        read(8, 4, 0xffff_fff1),
        write(8, 4, 0),
        read(8, 2, 0),
        write(8, 2, 0xffff),
        read(12, 4, 0xf0),
        write(12, 4, 0xff),
        read(16, 4, 0xf0),
        read(20, 4, 0x66),
        write(20, 4, 0x77),
    ]);
    assert_eq!(guest.read_u64(layout::DATA), 0xff);
    assert_eq!(guest.read_u64(layout::DATA + 8), 0x66);
});

payload!(payload_compare:
    "mov ebx, 0xd0000000"
    "xor ecx, ecx"
    "cmp dword ptr [rbx], 0x74726976"
    "sete cl"
    "mov [0x20000], rcx"
    "mov eax, 8"
    "test [rbx + 4], eax"
    "setnz cl"
    "mov [0x20008], rcx"
    "test byte ptr [rbx + 8], 1"
    "setnz cl"
    "mov [0x20010], rcx"
    "out 0xf4, al"
);

case!(compares_read_once_and_set_flags, |backend| {
    let guest = Guest::new(backend, payload_compare());
    guest.start().expect(&[read(0, 4, 0x7472_6976), read(4, 4, 8), read(8, 1, 2)]);
    let flags = [0, 8, 16].map(|at| guest.read_u64(layout::DATA + at));
    assert_eq!(flags, [1, 1, 0]);
});

payload!(payload_strings:
    "cld"
    "mov edi, 0xd0000000"
    "mov rax, 0x8182838485868788"
    "stosb"
    "stosd"
    "mov ecx, 2"
    "rep stosw"
    "mov esi, 0x20100"
    "mov edi, 0xd0000010"
    "mov ecx, 2"
    "rep movsd"
    "mov esi, 0xd0000020"
    "mov edi, 0x20000"
    "mov ecx, 2"
    "rep movsb"
    "movsq"
    "mov esi, 0xd0000030"
    "lodsd"
    "mov [0x20010], rax"
    "out 0xf4, al"
);

case!(string_instructions_come_element_by_element, |backend| {
    let guest = Guest::new(backend, payload_strings());
    guest.write_u64(layout::DATA + 0x100, 0x2222_2222_1111_1111);
    guest.start().expect(&[
        write(0, 1, 0x88),
        write(1, 4, 0x8586_8788),
        write(5, 2, 0x8788),
        write(7, 2, 0x8788),
        write(0x10, 4, 0x1111_1111),
        write(0x14, 4, 0x2222_2222),
        read(0x20, 1, 0x41),
        read(0x21, 1, 0x42),
        read(0x22, 8, 0x4344_4546_4748_494a),
        read(0x30, 4, 0x99),
    ]);
    assert_eq!(
        guest.read(layout::DATA, 10),
        [0x41, 0x42, 0x4a, 0x49, 0x48, 0x47, 0x46, 0x45, 0x44, 0x43]
    );
    assert_eq!(guest.read_u64(layout::DATA + 16), 0x99);
});

payload!(payload_vector:
    "mov ebx, 0xd0000000"
    "mov edi, 0x20000"
    "movdqu xmm1, [rdi + 0x100]"
    "movdqu [rbx], xmm1"
    "movdqu xmm0, [rbx + 0x10]"
    "movdqu [rdi], xmm0"
    "out 0xf4, al"
);

case!(sixteen_bytes_come_as_two_times_eight, |backend| {
    let guest = Guest::new(backend, payload_vector());
    guest.write_u64(layout::DATA + 0x100, 0x1111);
    guest.write_u64(layout::DATA + 0x108, 0x2222);
    guest.start().expect(&[
        write(0, 8, 0x1111),
        write(8, 8, 0x2222),
        read(0x10, 8, 0x3333),
        read(0x18, 8, 0x4444),
    ]);
    assert_eq!(guest.read_u64(layout::DATA), 0x3333);
    assert_eq!(guest.read_u64(layout::DATA + 8), 0x4444);
});

payload!(payload_cross_page:
    "mov ebx, 0xd0000ffd"
    "mov dword ptr [rbx], 0x44332211"
    "mov eax, [rbx]"
    "mov [0x20000], rax"
    "out 0xf4, al"
);

case!(an_access_across_pages_comes_in_sizes_of_the_contract, |backend| {
    let guest = Guest::new(backend, payload_cross_page());
    let mut runner = guest.start();
    let mut written = [0u8; 4];
    let mut exit = runner.run();
    while let VmExit::MmioRead { addr, size } | VmExit::MmioWrite { addr, size, .. } = exit {
        assert!(matches!(size, 1 | 2 | 4), "{exit:?}");
        let at = (addr - (DEVICE + 0xffd)) as usize;
        exit = if let VmExit::MmioWrite { data, .. } = exit {
            let bytes = data.to_le_bytes();
            written[at..at + usize::from(size)].copy_from_slice(&bytes[..usize::from(size)]);
            runner.run()
        } else {
            let mut bytes = [0; 8];
            bytes[..usize::from(size)].copy_from_slice(&written[at..at + usize::from(size)]);
            runner.data(u64::from_le_bytes(bytes))
        };
    }
    assert!(matches!(exit, VmExit::PioWrite { port: layout::END_PORT, .. }), "{exit:?}");
    assert_eq!(written, [0x11, 0x22, 0x33, 0x44]);
    assert_eq!(guest.read_u64(layout::DATA), 0x4433_2211);
});
