//! Guests of a few instructions: a kernel that says a byte and ends, and inits that end the machine
//! or idle in it.

use std::fs;
use std::path::{Path, PathBuf};

use cabana_agent::initramfs;

use crate::Error;

/// Where Cabana's exit port is, and where QEMU is told to put its own.
pub const EXIT_PORT: u16 = 0xf4;

/// A kernel that writes `!` to COM1 and 0 to the exit port, in 32-bit protected mode.
const KERNEL: [u8; 13] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'!', //             mov al, '!'
    0xee, //                   out dx, al
    0x30, 0xc0, //             xor al, al
    0xe6, 0xf4, //             out 0xf4, al
    0xeb, 0xfe, //             jmp .
];

/// An init that asks for the ports and writes 0 to the exit port.
const ENDING_INIT: [u8; 18] = [
    0xb8, 0xac, 0x00, 0x00, 0x00, // mov eax, 172 (iopl)
    0xbf, 0x03, 0x00, 0x00, 0x00, // mov edi, 3
    0x0f, 0x05, //                   syscall
    0x30, 0xc0, //                   xor al, al
    0xe6, 0xf4, //                   out 0xf4, al
    0xeb, 0xfe, //                   jmp .
];

/// An init that sleeps for ever.
const IDLE_INIT: [u8; 9] = [
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34 (pause)
    0x0f, 0x05, //                   syscall
    0xeb, 0xf7, //                   jmp to the first
];

/// Where programs are linked, and the kernel.
const PROGRAM_BASE: u64 = 0x40_0000;
const KERNEL_BASE: u64 = 0x10_0000;

/// A PVH note: name `Xen`, type 18 (`XEN_ELFNOTE_PHYS32_ENTRY`), the entry's address.
const PVH_NOTE: [u32; 5] = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0];

/// ELF-64: sizes of the file's header and of a program header.
const EHDR: usize = 64;
const PHDR: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// The files.
#[derive(Clone, Debug)]
pub struct Guests {
    /// A kernel that writes `!` to COM1, then 0 to the exit port.
    pub kernel: PathBuf,
    /// An initramfs whose init writes 0 to the exit port at once.
    pub ending: PathBuf,
    /// An initramfs whose init sleeps for ever.
    pub idle: PathBuf,
}

impl Guests {
    /// Writes them into `folder`.
    pub fn make(folder: &Path) -> Result<Self, Error> {
        let write = |name: &str, bytes: Vec<u8>| {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(Error::file(&path))?;
            Ok(path)
        };
        Ok(Self {
            kernel: write("kernel", kernel())?,
            ending: write("ending.cpio", initramfs::pack(&program(&ENDING_INIT)))?,
            idle: write("idle.cpio", initramfs::pack(&program(&IDLE_INIT)))?,
        })
    }
}

/// The kernel as an ELF file with a PVH entry.
fn kernel() -> Vec<u8> {
    let headers = EHDR + 2 * PHDR;
    let entry = KERNEL_BASE + (headers + size_of_val(&PVH_NOTE)) as u64;
    let mut note = PVH_NOTE;
    note[4] = entry as u32;
    let mut body: Vec<u8> = note.iter().flat_map(|word| word.to_le_bytes()).collect();
    body.extend_from_slice(&KERNEL);
    let len = headers + body.len();
    let load = segment(PT_LOAD, 0, KERNEL_BASE, len);
    let note = segment(PT_NOTE, headers, KERNEL_BASE + headers as u64, size_of_val(&PVH_NOTE));
    elf(entry, &[load, note], &body)
}

/// A static program of this code.
fn program(code: &[u8]) -> Vec<u8> {
    let headers = EHDR + PHDR;
    let load = segment(PT_LOAD, 0, PROGRAM_BASE, headers + code.len());
    elf(PROGRAM_BASE + headers as u64, &[load], code)
}

/// A program header, readable and executable.
fn segment(kind: u32, offset: usize, address: u64, len: usize) -> [u8; PHDR] {
    const READ_EXECUTE: u32 = 5;
    let mut header = [0; PHDR];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[4..8].copy_from_slice(&READ_EXECUTE.to_le_bytes());
    let words = [offset as u64, address, address, len as u64, len as u64, 4096];
    for (field, word) in header[8..].chunks_exact_mut(8).zip(words) {
        field.copy_from_slice(&word.to_le_bytes());
    }
    header
}

/// An x86-64 executable: header, program headers, body.
fn elf(entry: u64, segments: &[[u8; PHDR]], body: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (executable, x86_64, version) = (2u16, 62u16, 1u32);
    file.extend_from_slice(&executable.to_le_bytes());
    file.extend_from_slice(&x86_64.to_le_bytes());
    file.extend_from_slice(&version.to_le_bytes());
    for word in [entry, EHDR as u64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [EHDR as u16, PHDR as u16, segments.len() as u16, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for segment in segments {
        file.extend_from_slice(segment);
    }
    file.extend_from_slice(body);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_one_that_linux_runs() {
        // exit(7) in place of the ports, which need privilege.
        let code = [0xb8, 0x3c, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seven");
        fs::write(&path, program(&code)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).unwrap();
        let status = std::process::Command::new(&path).status().unwrap();
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn the_kernel_is_one_that_the_loader_takes() {
        let folder = tempfile::tempdir().unwrap();
        let guests = Guests::make(folder.path()).unwrap();
        cabana_boot::Kernel::open(&guests.kernel).unwrap();
        let kernel = kernel();
        assert_eq!(kernel.len(), EHDR + 2 * PHDR + 20 + KERNEL.len());
        let entry = u32::from_le_bytes(kernel[EHDR + 2 * PHDR + 16..][..4].try_into().unwrap());
        assert_eq!(entry as usize, KERNEL_BASE as usize + EHDR + 2 * PHDR + 20);
    }
}
