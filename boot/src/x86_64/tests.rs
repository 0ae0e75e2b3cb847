use super::*;
use crate::BootError;
use cabana_os::file::FileExt;
use std::io::Write;
use tempfile::NamedTempFile;

const MIB: usize = 1 << 20;

fn ram(mib: usize) -> GuestRam {
    GuestRam::new(&[(GuestAddress(0), mib * MIB)]).unwrap()
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An ELF file with one segment of 2 MiB and half a page at 16 MiB, and a PVH note if asked for.
fn elf(pvh: bool) -> Vec<u8> {
    let mut bytes = vec![0; 0x20_1800];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62_u16.to_le_bytes());
    put(24, &0x100_0123_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &(1 + u16::from(pvh)).to_le_bytes());
    for (at, value) in [(0, 1), (8, 0x1000), (24, 0x100_0000), (32, 0x20_0800_u64), (40, 0x20_2000)]
    {
        put(64 + at, &value.to_le_bytes());
    }
    if pvh {
        for (at, value) in [(0, 4), (8, 0x200), (32, 20_u64), (40, 20)] {
            put(120 + at, &value.to_le_bytes());
        }
        put(0x200, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0, 0, 0, 1]);
    }
    put(0x1000, b"first page");
    put(0x20_17ff, b"!");
    bytes
}

fn boot_file(bytes: &[u8], ram: &GuestRam, command_line: &str) -> Result<Start, BootError> {
    let file = file(bytes);
    let kernel = Kernel::open(file.path())?;
    let boot = Boot { kernel: &kernel, initrd: None, command_line, cpus: 1, pins: 24, acpi: None };
    load(&boot, ram)
}

#[test]
fn an_elf_kernel_is_mapped_with_its_tail() {
    let ram = ram(32);
    let start = boot_file(&elf(false), &ram, "quiet").unwrap();
    assert_eq!(
        start,
        Start::Linux64 { entry: 0x100_0123, boot_params: 0x7000, page_tables: 0x9000, gdt: 0x500 }
    );
    let mut head = [0; 10];
    ram.read_bytes(GuestAddress(0x100_0000), &mut head).unwrap();
    assert_eq!(&head, b"first page");
    assert_eq!(ram.read::<[u8; 2]>(GuestAddress(0x120_07ff)).unwrap(), *b"!\0");
    // Command line, memory map and the first page table entry.
    assert_eq!(ram.read::<[u8; 6]>(GuestAddress(0x2_0000)).unwrap(), *b"quiet\0");
    assert_eq!(ram.read::<u8>(GuestAddress(0x7000 + 0x1e8)).unwrap(), 2);
    assert_eq!(ram.read::<u64>(GuestAddress(0x7000 + 0x2d0 + 28)).unwrap(), 31 << 20);
    assert_eq!(ram.read::<u64>(GuestAddress(0xb008)).unwrap(), 0x20_0083);
}

#[test]
fn whole_large_pages_of_the_file_are_named() {
    let named = |bytes: &[u8]| Kernel::open(file(bytes).path()).unwrap().large_pages();
    assert_eq!(named(&elf(false)), [GuestAddress(0x100_0000)]);
    let mut small = elf(false);
    small[64 + 32..64 + 40].copy_from_slice(&0x1f_f000_u64.to_le_bytes());
    assert_eq!(named(&small), []);
    let mut written = elf(false);
    written[68] = 2;
    assert_eq!(named(&written), []);
}

#[test]
fn a_kernel_with_the_note_starts_through_pvh() {
    let ram = ram(32);
    let start = boot_file(&elf(true), &ram, "").unwrap();
    assert_eq!(start, Start::Pvh { entry: 0x100_0000, start_info: 0x6000 });
    assert_eq!(ram.read::<u32>(GuestAddress(0x6000)).unwrap(), pvh::MAGIC);
    // No module; the map's second entry is RAM from 1 MiB.
    assert_eq!(ram.read::<u32>(GuestAddress(0x600c)).unwrap(), 0);
    let map = ram.read::<u64>(GuestAddress(0x6028)).unwrap();
    assert_eq!(ram.read::<u64>(GuestAddress(map + 24)).unwrap(), EXTENDED_RAM);
}

#[test]
fn an_initrd_lies_at_the_top_of_ram() {
    let ram = ram(32);
    let (kernel, cpio) = (file(&elf(true)), file(b"070701 and so on"));
    let kernel = Kernel::open(kernel.path()).unwrap();
    let initrd = Initrd::open(cpio.path()).unwrap();
    let boot = Boot {
        kernel: &kernel,
        initrd: Some(&initrd),
        command_line: "",
        cpus: 2,
        pins: 24,
        acpi: None,
    };
    load(&boot, &ram).unwrap();
    let module = ram.read::<u64>(GuestAddress(0x6010)).unwrap();
    assert_eq!(ram.read::<u64>(GuestAddress(module)).unwrap(), (32 << 20) - 4096);
    assert_eq!(ram.read::<u64>(GuestAddress(module + 8)).unwrap(), 16);
    let mut bytes = [0; 6];
    ram.read_bytes(GuestAddress((32 << 20) - 4096), &mut bytes).unwrap();
    assert_eq!(&bytes, b"070701");
}

#[test]
fn acpi_is_announced_where_there_is_acpi() {
    let serial = acpi::Device { start: 0x3f8, len: 8, pin: 4 };
    let devices =
        acpi::Devices { serial, virtio: Vec::new(), reset: (0x64, 0xfe), sleep: (0x600, 5) };
    for (pvh, announced) in [(true, 0x6020), (false, 0x7070)] {
        for acpi in [Some(&devices), None] {
            let ram = ram(32);
            let kernel = file(&elf(pvh));
            let kernel = Kernel::open(kernel.path()).unwrap();
            let boot =
                Boot { kernel: &kernel, initrd: None, command_line: "", cpus: 1, pins: 24, acpi };
            load(&boot, &ram).unwrap();
            // mov dx, 0x64; mov al, 0xfe; out dx, al
            let (address, signature, reset) = if acpi.is_some() {
                (0xe_0000, *b"RSD PTR ", *b"\xba\x64\0\xb0\xfe\xee")
            } else {
                (0, [0; 8], [0; 6])
            };
            assert_eq!(ram.read::<u64>(GuestAddress(announced)).unwrap(), address);
            assert_eq!(ram.read::<[u8; 8]>(GuestAddress(0xe_0000)).unwrap(), signature);
            assert_eq!(ram.read::<[u8; 6]>(GuestAddress(0xf_fff0)).unwrap(), reset);
        }
    }
}

#[test]
fn a_bzimage_gets_its_setup_header_back() {
    let mut image = vec![0; 0x400 + 0x1000];
    let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
    put(0x1f1, &[1]);
    put(0x1f4, &0x100_u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    put(0x400, b"code");
    let ram = ram(32);
    let start = boot_file(&image, &ram, "console=ttyS0").unwrap();
    assert!(matches!(start, Start::Linux64 { entry: 0x100_0200, .. }), "{start:?}");
    assert_eq!(ram.read::<[u8; 4]>(GuestAddress(0x100_0000)).unwrap(), *b"code");
    assert_eq!(ram.read::<[u8; 4]>(GuestAddress(0x7000 + 0x202)).unwrap(), *b"HdrS");
    assert_eq!(ram.read::<u8>(GuestAddress(0x7000 + 0x210)).unwrap(), 0xff);

    image.truncate(0x900);
    assert!(matches!(boot_file(&image, &ram, ""), Err(BootError::Truncated { .. })));
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    let ram = ram(32);
    let arm = {
        let mut bytes = elf(false);
        bytes[18] = 183;
        bytes
    };
    let message = boot_file(&arm, &ram, "").unwrap_err().to_string();
    assert!(message.contains("is a kernel for arm64"), "{message}");
    for (bytes, expected) in [
        (&b""[..], "it is empty"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"#!/bin/sh", "neither an ELF file nor a bzImage"),
        (b"\x7fELF", "truncated"),
        (&elf(false)[..0x2000], "truncated"),
    ] {
        let message = boot_file(bytes, &ram, "").unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert!(matches!(
        Kernel::open(std::path::Path::new("/nonexistent")),
        Err(BootError::Read { .. })
    ));
    assert!(matches!(Kernel::open(std::path::Path::new("/")), Err(BootError::NotAKernel { .. })));
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(matches!(
        boot_file(&elf(false), &ram(16), ""),
        Err(BootError::TooLittleMemory { needed: 0x120_2000, available: 0x100_0000, .. })
    ));
    let long = "x".repeat(2048);
    assert!(matches!(
        boot_file(&elf(false), &ram(32), &long),
        Err(BootError::CommandLine { len: 2048, max: 2047 })
    ));
    assert!(matches!(
        boot_file(&elf(false), &ram(32), "a\nb"),
        Err(BootError::CommandLineCharacter)
    ));
    // A hostile segment that ends beyond 64 bits.
    let mut wrapping = elf(false);
    wrapping[64 + 40..64 + 48].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(boot_file(&wrapping, &ram(32), ""), Err(BootError::TooLittleMemory { .. })));
    let odd = file(&elf(false));
    odd.as_file().write_at(&0x1000_0000_u64.to_le_bytes(), 32).unwrap();
    assert!(matches!(Kernel::open(odd.path()), Err(BootError::Truncated { .. })));
}
