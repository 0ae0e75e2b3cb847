//! Boots a kernel directly, with no firmware: finds out what the file is, maps or copies it into
//! guest RAM, adds initramfs, command line and tables, and says where and how the first vCPU
//! starts.
//!
//! - uncompressed ELF: mapped from the file, entered through PVH if it has the note
//!   ([`elf`], [`x86_64::pvh`]), else in 64-bit mode as Linux's `vmlinux` is;
//! - bzImage: copied, entered in 64-bit mode ([`bzimage`], the kernel's
//!   `Documentation/arch/x86/boot.rst`);
//! - arm64's `Image`: copied, entered with a device tree ([`arm64_image`], [`aarch64`], the kernel's
//!   `Documentation/arch/arm64/booting.rst`).
//!
//! Guest-architecture code is plain data: it compiles and is tested on every host.

// Files are read straight into guest RAM, which has an address and no Rust reference.
#![allow(unsafe_code)]

pub mod aarch64;
pub mod arm64_image;
pub mod bzimage;
pub mod elf;
mod error;
mod initrd;
pub mod x86_64;

use std::fs::File;
use std::path::{Path, PathBuf};

use cabana_memory::{GuestAddress, GuestRam, MemoryError};
use cabana_os::file::read_pieces_at;

pub use error::BootError;
pub use initrd::Initrd;

/// A kernel file, recognized.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: File,
    format: Format,
}

#[derive(Debug)]
enum Format {
    X86(X86Format),
    Arm64(arm64_image::Arm64Image),
}

#[derive(Debug)]
enum X86Format {
    Elf(elf::Elf),
    BzImage(bzimage::BzImage),
}

impl Kernel {
    /// Opens the file and reads its headers.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { path: path.to_owned(), source };
        // Asked before the opening, which on Windows fails for a folder.
        if !path.metadata().map_err(read)?.is_file() {
            return Err(BootError::NotAKernel { path: path.to_owned(), why: "it is not a file" });
        }
        let file = File::open(path).map_err(read)?;
        let mut head = vec![0; bzimage::HEADER_LEN];
        let len = read_up_to(&file, &mut head, 0).map_err(read)?;
        head.truncate(len);
        let format = if head.starts_with(elf::MAGIC) {
            Format::X86(X86Format::Elf(elf::Elf::parse(path, &file, &head)?))
        } else if let Some(image) = bzimage::BzImage::parse(path, &file, &head)? {
            Format::X86(X86Format::BzImage(image))
        } else if let Some(image) = arm64_image::Arm64Image::parse(path, &file, &head)? {
            Format::Arm64(image)
        } else {
            return Err(unknown(path, &head));
        };
        Ok(Self { path: path.to_owned(), file, format })
    }

    /// Where in RAM a whole large page (2 MiB) is mapped from the file, of which the kernel writes little or nothing.
    pub fn large_pages(&self) -> Vec<GuestAddress> {
        match &self.format {
            Format::X86(X86Format::Elf(elf)) => elf.large_pages(),
            Format::X86(X86Format::BzImage(_)) | Format::Arm64(_) => Vec::new(),
        }
    }
}

/// Says what the file is in place of a kernel.
fn unknown(path: &Path, head: &[u8]) -> BootError {
    let path = path.to_owned();
    let why = match head {
        [] => "it is empty",
        [0x1f, 0x8b, ..] => "it is compressed with gzip; unpack it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed with zstd; unpack it first",
        [0xfd, b'7', b'z', ..] => "it is compressed with xz; unpack it first",
        _ => "it is neither an ELF file nor a bzImage nor an arm64 Image",
    };
    BootError::NotAKernel { path, why }
}

fn check_command_line(line: &str, max: usize) -> Result<(), BootError> {
    if line.len() > max {
        return Err(BootError::CommandLine { len: line.len(), max });
    }
    if line.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(BootError::CommandLineCharacter);
    }
    Ok(())
}

/// Reads `len` bytes of the file at `offset` straight into guest RAM; fewer at the file's end.
fn read_into(
    file: &File,
    offset: u64,
    ram: &GuestRam,
    at: GuestAddress,
    len: usize,
) -> Result<(), ReadInto> {
    let mut done = 0;
    while done < len {
        let piece = ram.piece(GuestAddress(at.0 + done as u64), len - done)?;
        // SAFETY: the piece lies in guest RAM, which `ram` keeps and nobody has references into.
        let count = unsafe { read_pieces_at(file, &[piece], offset + done as u64) }?;
        if count == 0 {
            break;
        }
        done += count;
    }
    Ok(())
}

/// Either end of [`read_into`].
#[derive(Debug, thiserror::Error)]
enum ReadInto {
    #[error(transparent)]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Ram(#[from] MemoryError),
}

impl ReadInto {
    fn of(self, path: &Path) -> BootError {
        match self {
            Self::File(source) => BootError::Read { path: path.to_owned(), source },
            Self::Ram(error) => BootError::Memory(error),
        }
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            count => len += count,
        }
    }
    Ok(len)
}
