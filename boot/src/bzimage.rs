//! bzImage: the compressed kernel with its setup header (`Documentation/arch/x86/boot.rst`).

use std::fs::File;
use std::path::Path;

use cabana_memory::{GuestAddress, GuestRam};

use crate::{BootError, read_into};

/// Bytes of the file that hold the whole setup header.
pub const HEADER_LEN: usize = 0x400;

/// `boot_flag` and `header` of the setup header.
const BOOT_FLAG: (usize, &[u8]) = (0x1fe, b"\x55\xaa");
const HEADER_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// Protocol 2.12 brought `xloadflags` with the 64-bit entry point.
const OLDEST_PROTOCOL: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const SECTOR: u64 = 512;
/// The 64-bit entry point stands this far behind the protected-mode code's start.
const ENTRY_64: u64 = 0x200;

/// What the setup header says.
#[derive(Debug)]
pub struct BzImage {
    /// The setup header as the kernel wants it back in its `boot_params`, from 0x1f1.
    setup_header: Vec<u8>,
    code_offset: u64,
    code_len: u64,
    preferred_address: u64,
    init_size: u64,
    pub(crate) cmdline_max: usize,
}

impl BzImage {
    /// Reads the setup header; `None` if this is no bzImage.
    pub(crate) fn parse(path: &Path, file: &File, head: &[u8]) -> Result<Option<Self>, BootError> {
        let has = |(at, bytes): (usize, &[u8])| head.get(at..at + bytes.len()) == Some(bytes);
        if !has(BOOT_FLAG) || !has(HEADER_MAGIC) {
            return Ok(None);
        }
        let read = |source| BootError::Read { path: path.to_owned(), source };
        if head.len() < HEADER_LEN {
            return Err(BootError::Truncated { path: path.to_owned(), what: "its setup header" });
        }
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let u32_at = |at: usize| u64::from(u16_at(at)) | u64::from(u16_at(at + 2)) << 16;
        if u16_at(0x206) < OLDEST_PROTOCOL || u16_at(0x236) & XLF_KERNEL_64 == 0 {
            let why = "it has no 64-bit entry point (boot protocol 2.12)";
            return Err(BootError::NotAKernel { path: path.to_owned(), why });
        }
        let setup_sectors = match head[0x1f1] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let code_offset = (setup_sectors + 1) * SECTOR;
        // `syssize` counts 16-byte units of protected-mode code.
        let code_len = u32_at(0x1f4) * 16;
        if file.metadata().map_err(read)?.len() < code_offset + code_len {
            return Err(BootError::Truncated { path: path.to_owned(), what: "its code" });
        }
        // The header ends where the jump at 0x200 leads.
        let end = (0x202 + usize::from(head[0x201])).clamp(0x268, 0x290);
        Ok(Some(Self {
            setup_header: head[0x1f1..end].to_vec(),
            code_offset,
            code_len,
            preferred_address: u32_at(0x258) | u32_at(0x25c) << 32,
            init_size: u32_at(0x260),
            cmdline_max: u32_at(0x238) as usize,
        }))
    }

    /// The setup header, to stand at 0x1f1 of `boot_params`.
    pub(crate) fn setup_header(&self) -> &[u8] {
        &self.setup_header
    }

    /// The 64-bit entry point.
    pub(crate) fn entry(&self) -> u64 {
        self.preferred_address + ENTRY_64
    }

    /// One past the last byte that the kernel needs while it unpacks itself.
    pub(crate) fn end(&self) -> u64 {
        self.preferred_address.saturating_add(self.init_size.max(self.code_len))
    }

    /// Copies the code to where it prefers to be.
    pub(crate) fn load(&self, path: &Path, file: &File, ram: &GuestRam) -> Result<(), BootError> {
        let (at, len) = (GuestAddress(self.preferred_address), self.code_len as usize);
        read_into(file, self.code_offset, ram, at, len).map_err(|error| error.of(path))
    }
}
