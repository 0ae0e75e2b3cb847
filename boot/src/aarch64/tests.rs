use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;
const RAM: u64 = 0x4000_0000;

fn ram(mib: u64) -> GuestRam {
    GuestRam::new(&[(GuestAddress(RAM), (mib * MIB) as usize)]).unwrap()
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An image of 64 KiB that takes 1 MiB.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 0x1_0000];
    bytes[8..16].copy_from_slice(&0x8_0000_u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&MIB.to_le_bytes());
    bytes[24] = 0xa;
    bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
    bytes[0xffff] = 0x42;
    bytes
}

fn board() -> Board {
    Board {
        gic: Gic { distributor: (0x800_0000, 0x1_0000), redistributors: (0x80a_0000, 0x4_0000) },
        serial: Some(Device { start: 0x900_0000, len: 0x1000, spi: 1 }),
        virtio: vec![
            Device { start: 0xa00_0000, len: 0x1000, spi: 2 },
            Device { start: 0xa00_1000, len: 0x1000, spi: 3 },
        ],
    }
}

fn boot(
    bytes: &[u8],
    ram: &GuestRam,
    initrd: Option<&Initrd>,
    command_line: &str,
) -> Result<Start, BootError> {
    let file = file(bytes);
    let kernel = Kernel::open(file.path())?;
    let board = board();
    let boot =
        Boot { kernel: &kernel, initrd, command_line, cpus: 18, board: &board, seed: [7; 64] };
    load(&boot, ram)
}

fn tree(ram: &GuestRam, at: u64) -> Vec<u8> {
    let mut header = [0; 8];
    ram.read_bytes(GuestAddress(at), &mut header).unwrap();
    assert_eq!(header[..4], [0xd0, 0x0d, 0xfe, 0xed]);
    let len = u32::from_be_bytes(header[4..].try_into().unwrap());
    let mut tree = vec![0; len as usize];
    ram.read_bytes(GuestAddress(at), &mut tree).unwrap();
    tree
}

#[test]
fn an_image_stands_at_its_offset_and_the_tree_at_the_end() {
    let ram = ram(8);
    let start = boot(&image(), &ram, None, "quiet").unwrap();
    assert_eq!(start, Start { entry: RAM + 0x8_0000, fdt: RAM + 6 * MIB });
    assert_eq!(ram.read::<u8>(GuestAddress(start.entry + 0xffff)).unwrap(), 0x42);
    let tree = tree(&ram, start.fdt);
    let has = |what: &[u8]| tree.windows(what.len()).any(|bytes| bytes == what);
    assert!(has(b"quiet\0") && has(b"rng-seed\0") && has(b"cpu@101\0"));
    assert!(!has(b"linux,initrd-start"), "there is none");
}

#[test]
fn an_initramfs_stands_below_the_tree_and_is_named_in_it() {
    let ram = ram(8);
    let file = file(b"cpio");
    let initrd = Initrd::open(file.path()).unwrap();
    let start = boot(&image(), &ram, Some(&initrd), "").unwrap();
    let at = start.fdt - PAGE;
    assert_eq!(ram.read::<[u8; 4]>(GuestAddress(at)).unwrap(), *b"cpio");
    let tree = tree(&ram, start.fdt);
    let has = |what: &[u8]| tree.windows(what.len()).any(|bytes| bytes == what);
    assert!(has(&at.to_be_bytes()) && has(&(at + 4).to_be_bytes()));
}

#[test]
fn the_tree_is_one_that_the_compiler_of_device_trees_reads() {
    let ram = ram(8);
    let start = boot(&image(), &ram, None, "quiet").unwrap();
    let dtc = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut dtc) = dtc else {
        println!("skipped: dtc is not installed");
        return;
    };
    dtc.stdin.take().unwrap().write_all(&tree(&ram, start.fdt)).unwrap();
    let output = dtc.wait_with_output().unwrap();
    let (text, warnings) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{warnings}");
    assert_eq!(warnings, "");
    assert!(text.contains("stdout-path = \"/pl011@9000000\""), "{text}");
    assert!(text.contains("interrupts = <0x00 0x03 0x01>"), "{text}");
}

#[test]
fn what_does_not_fit_says_how_much_it_needs() {
    let error = boot(&image(), &ram(2), None, "").unwrap_err();
    assert!(matches!(error, BootError::TooLittleMemory { .. }), "{error}");
    let mut huge = image();
    huge[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(
        boot(&huge, &ram(8), None, "").unwrap_err(),
        BootError::TooLittleMemory { .. }
    ));
    let file = file(&vec![1; 8 << 20]);
    let initrd = Initrd::open(file.path()).unwrap();
    let error = boot(&image(), &ram(8), Some(&initrd), "").unwrap_err();
    assert!(matches!(error, BootError::TooLittleMemory { .. }), "{error}");
}

#[test]
fn broken_and_foreign_images_are_named() {
    let with = |at: usize, value: u64| {
        let mut bytes = image();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        boot(&bytes, &ram(8), None, "").unwrap_err().to_string()
    };
    assert!(with(8, 2 << 20).ends_with("its text offset is not below 2 MiB"));
    assert!(with(16, 0).contains("older than 3.17"));
    assert!(with(24, 1).contains("big-endian"));
    let error = boot(&image(), &ram(8), None, &"x".repeat(2048)).unwrap_err();
    assert!(matches!(error, BootError::CommandLine { max: 2047, .. }));
    let error = boot(&image(), &ram(8), None, "a\nb").unwrap_err();
    assert!(matches!(error, BootError::CommandLineCharacter));
}
