//! ELF64 kernels (System V ABI, chapters 4 and 5): Linux's `vmlinux` and whoever follows PVH.

use std::fs::File;
use std::path::Path;

use cabana_memory::{GuestAddress, GuestRam};

use crate::{BootError, read_into, read_up_to};

/// The first bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_W: u32 = 2;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen's `public/elfnote.h`): the 32-bit entry point of PVH.
const XEN_PHYS32_ENTRY: u32 = 18;
/// Longer notes are not looked at.
const NOTES_MAX: u64 = 64 << 10;
const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// The parts of an ELF file that matter for loading it.
#[derive(Debug)]
pub struct Elf {
    entry: u64,
    segments: Vec<Segment>,
    notes: Notes,
}

/// What the file's notes say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Notes {
    /// The 32-bit entry point of PVH.
    pvh_entry: Option<u32>,
    /// It is Linux, which signs its notes (`include/linux/elfnote-lto.h`, from 5.12 on).
    linux: bool,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
    writable: bool,
}

/// How the file wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, paging off (Xen's `docs/misc/pvh.pandoc`).
    Pvh(u32),
    /// 64-bit mode with the kernel's `boot_params` in RSI.
    Linux64(u64),
}

impl Elf {
    /// Reads the headers; `head` is the start of the file.
    pub(crate) fn parse(path: &Path, file: &File, head: &[u8]) -> Result<Self, BootError> {
        let truncated = |what| BootError::Truncated { path: path.to_owned(), what };
        let read = |source| BootError::Read { path: path.to_owned(), source };
        if head.len() < HEADER_LEN {
            return Err(truncated("its ELF header"));
        }
        let machine = u16_at(head, 18);
        if machine != MACHINE_X86_64 || head[4] != CLASS_64 || head[5] != LITTLE_ENDIAN {
            let (path, architecture) = (path.to_owned(), architecture(machine, head[4]));
            let machine = "x86-64";
            return Err(BootError::ForeignArchitecture { path, architecture, machine });
        }
        let file_len = file.metadata().map_err(read)?.len();
        let count = usize::from(u16_at(head, 56));
        let mut table = vec![0; count * PROGRAM_HEADER_LEN];
        if usize::from(u16_at(head, 54)) != PROGRAM_HEADER_LEN
            || read_up_to(file, &mut table, u64_at(head, 32)).map_err(read)? < table.len()
        {
            return Err(truncated("its program headers"));
        }
        let mut elf =
            Self { entry: u64_at(head, 24), segments: Vec::new(), notes: Notes::default() };
        for header in table.chunks_exact(PROGRAM_HEADER_LEN) {
            let segment = Segment {
                offset: u64_at(header, 8),
                address: u64_at(header, 24),
                in_file: u64_at(header, 32),
                in_memory: u64_at(header, 40),
                writable: u32_at(header, 4) & PF_W != 0,
            };
            let end = segment.offset.checked_add(segment.in_file);
            if end.is_none_or(|end| end > file_len) {
                return Err(truncated("the end of a segment"));
            }
            let segment = Segment { in_file: segment.in_file.min(segment.in_memory), ..segment };
            match u32_at(header, 0) {
                PT_LOAD if segment.in_memory > 0 => elf.segments.push(segment),
                PT_NOTE => {
                    let mut notes = vec![0; segment.in_file.min(NOTES_MAX) as usize];
                    let len = read_up_to(file, &mut notes, segment.offset).map_err(read)?;
                    elf.notes.read(&notes[..len]);
                }
                _ => {}
            }
        }
        if elf.segments.is_empty() {
            let why = "it has nothing to load";
            return Err(BootError::NotAKernel { path: path.to_owned(), why });
        }
        Ok(elf)
    }

    /// How it is entered: through PVH where it can be, but for Linux, which under PVH looks for Xen in
    /// 256 places of CPUID, each of them an exit.
    pub fn entry(&self) -> Entry {
        match self.notes {
            Notes { pvh_entry: Some(entry), linux: false } => Entry::Pvh(entry),
            _ => Entry::Linux64(self.entry),
        }
    }

    /// One past the last byte of RAM that it takes.
    pub(crate) fn end(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.address.saturating_add(segment.in_memory))
            .max()
            .unwrap_or(0)
    }

    /// The large pages of RAM that are mapped from the file as a whole.
    pub(crate) fn large_pages(&self) -> Vec<GuestAddress> {
        let of = |segment: &Segment| {
            let end = segment.address.saturating_add(self.mapped(segment));
            (segment.address..end & !(HUGE_PAGE - 1)).step_by(HUGE_PAGE as usize).map(GuestAddress)
        };
        self.segments.iter().flat_map(of).collect()
    }

    /// Puts the segments into RAM. What the kernel only reads is mapped from the file and shared with
    /// the host's page cache; what it writes, and the last part of a page, is copied, since a copy into
    /// one page of 2 MiB costs less than the faults of its small pages.
    pub(crate) fn load(&self, path: &Path, file: &File, ram: &GuestRam) -> Result<(), BootError> {
        for segment in &self.segments {
            let mapped = self.mapped(segment);
            if mapped > 0 {
                let at = GuestAddress(segment.address);
                ram.map_file(at, mapped as usize, file, segment.offset)?;
            }
            let (tail, len) = (segment.address + mapped, (segment.in_file - mapped) as usize);
            read_into(file, segment.offset + mapped, ram, GuestAddress(tail), len)
                .map_err(|error| error.of(path))?;
        }
        Ok(())
    }

    /// Bytes from a segment's begin that are mapped from the file. The last large page is not, if another segment begins in
    /// it: that one's is to be a large page as well.
    fn mapped(&self, segment: &Segment) -> u64 {
        let aligned =
            segment.offset.is_multiple_of(PAGE) && segment.address.is_multiple_of(HUGE_PAGE);
        if !aligned || segment.writable {
            return 0;
        }
        let last = segment.address.saturating_add(segment.in_file) & !(HUGE_PAGE - 1);
        let shared = self.segments.iter().any(|other| {
            other.address > segment.address && other.address & !(HUGE_PAGE - 1) == last
        });
        segment.in_file & !(if shared { HUGE_PAGE } else { PAGE } - 1)
    }
}

impl Notes {
    /// Walks a note segment: name length, descriptor length, type, then both padded to 4 bytes. One
    /// that is broken says no more.
    fn read(&mut self, mut notes: &[u8]) {
        while let Some((note, rest)) = split_note(notes) {
            match (note.name, note.kind) {
                (b"Xen\0", XEN_PHYS32_ENTRY) => {
                    let entry = note.descriptor.first_chunk().copied().map(u32::from_le_bytes);
                    self.pvh_entry = self.pvh_entry.or(entry);
                }
                (b"Linux\0", _) => self.linux = true,
                _ => {}
            }
            notes = rest;
        }
    }
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
}

/// The first note, and what follows it.
fn split_note(notes: &[u8]) -> Option<(Note<'_>, &[u8])> {
    const HEADER: usize = 12;
    let header = notes.get(..HEADER)?;
    let (name_len, len) = (u32_at(header, 0) as usize, u32_at(header, 4) as usize);
    let start = HEADER.checked_add(name_len.checked_next_multiple_of(4)?)?;
    let note = Note {
        name: notes.get(HEADER..HEADER.checked_add(name_len)?)?,
        kind: u32_at(header, 8),
        descriptor: notes.get(start..start.checked_add(len)?)?,
    };
    // The last note's padding may be missing.
    let rest = notes.get(start.checked_add(len.checked_next_multiple_of(4)?)?..);
    Some((note, rest.unwrap_or_default()))
}

fn architecture(machine: u16, class: u8) -> String {
    match (machine, class) {
        (3, _) => "32-bit x86".to_owned(),
        (40, _) => "32-bit Arm".to_owned(),
        (183, _) => "arm64".to_owned(),
        (243, _) => "RISC-V".to_owned(),
        (other, _) => format!("ELF machine {other}"),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((desc.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        for part in [name, desc] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn read(notes: &[u8]) -> Notes {
        let mut found = Notes::default();
        found.read(notes);
        found
    }

    #[test]
    fn the_pvh_note_is_found_among_others() {
        let mut notes = note(b"GNU\0", 3, &[1, 2, 3, 4, 5]);
        notes.extend(note(b"Xen\0", 18, &0x100_0000_u64.to_le_bytes()));
        let mut expected = Notes { pvh_entry: Some(0x100_0000), linux: false };
        assert_eq!(read(&notes), expected);
        notes.extend(note(b"Linux\0", 257, &[0]));
        expected.linux = true;
        assert_eq!(read(&notes), expected);
    }

    #[test]
    fn a_large_page_that_another_segment_needs_is_not_mapped() {
        let segment = |address, in_file, writable| Segment {
            offset: 0x1000,
            address,
            in_file,
            in_memory: in_file,
            writable,
        };
        let constants = segment(0x100_0000, 0x40_4800, false);
        let mapped = |others: &[Segment]| {
            let segments = [&[constants][..], others].concat();
            let elf = Elf { entry: 0, segments, notes: Notes::default() };
            assert_eq!(elf.large_pages(), [0x100_0000, 0x120_0000].map(GuestAddress));
            elf.mapped(&constants)
        };
        assert_eq!(mapped(&[]), 0x40_4000);
        assert_eq!(mapped(&[segment(0x140_5000, 0x1000, true)]), 0x40_0000);
        assert_eq!(mapped(&[segment(0x160_0000, 0x1000, true)]), 0x40_4000);
    }

    #[test]
    fn linux_is_entered_in_64_bit_mode_and_others_through_pvh() {
        let notes = Notes { pvh_entry: Some(0x100_0000), linux: false };
        let elf = |notes| Elf { entry: 0x100_0123, segments: Vec::new(), notes };
        assert_eq!(elf(notes).entry(), Entry::Pvh(0x100_0000));
        assert_eq!(elf(Notes { linux: true, ..notes }).entry(), Entry::Linux64(0x100_0123));
        assert_eq!(elf(Notes::default()).entry(), Entry::Linux64(0x100_0123));
    }

    #[test]
    fn broken_notes_end_the_search() {
        let mut notes = note(b"Xen\0", 18, &[0; 4]);
        notes[0] = 0xff;
        notes[3] = 0xff;
        assert_eq!(read(&notes), Notes::default());
        assert_eq!(read(&[0; 11]), Notes::default());
        assert_eq!(read(&note(b"Xen\0", 18, &[1, 2])), Notes::default());
    }
}
