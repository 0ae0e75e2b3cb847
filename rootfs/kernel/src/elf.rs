//! The check that a kernel can be mapped from its file, and its segments without the zeros that nobody has to copy.

/// Size of the ELF64 header and of a program header (System V ABI, ELF-64 object file format).
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_W: u32 = 2;
const PAGE: u64 = 4096;
/// Pages of zeros that cost as much to copy as another segment costs to load.
const ZEROS: usize = 3;

/// Checks that the file is an x86-64 ELF kernel with an entry for PVH (a note segment) whose
/// loadable segments lie in the file at the same offset within a page as in memory, inside the file.
pub(crate) fn check_mappable(file: &[u8]) -> Result<(), String> {
    if file.len() < HEADER_SIZE || !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is no 64-bit ELF file".to_owned());
    }
    if number::<2>(file, 18) != Some(u64::from(EM_X86_64)) {
        return Err("it is not for x86-64".to_owned());
    }
    let headers = headers(file).ok_or("its program headers are cut off")?;
    let (mut loads, mut notes) = (0, 0);
    for (index, header) in headers.iter().enumerate() {
        let Header { kind, offset, addresses: [_, address], in_file, .. } = *header;
        if kind == PT_NOTE {
            notes += 1;
        }
        if kind != PT_LOAD {
            continue;
        }
        loads += 1;
        if offset.checked_add(in_file).is_none_or(|end| end > file.len() as u64) {
            return Err(format!("segment {index} is cut off"));
        }
        if offset % PAGE != address % PAGE {
            return Err(format!("segment {index} cannot be mapped: {offset:#x} for {address:#x}"));
        }
    }
    match (loads, notes) {
        (0, _) => Err("it has no loadable segment".to_owned()),
        (_, 0) => Err("it has no note, so no PVH entry".to_owned()),
        _ => Ok(()),
    }
}

/// Where in the file `len` bytes at a virtual address stand, if a loadable segment has them.
pub(crate) fn file_offset(file: &[u8], address: u64, len: u64) -> Option<usize> {
    headers(file)?.iter().filter(|header| header.kind == PT_LOAD).find_map(|header| {
        let within = address.checked_sub(header.addresses[0])?;
        let fits = within.checked_add(len)? <= header.in_file;
        fits.then(|| header.offset.checked_add(within))?.map(|at| at as usize)
    })
}

/// Cuts what is written to into segments that hold no long runs of zeros, which memory has by itself; the file's other bytes
/// stay where they are. A table that has no room to grow stays as it is.
pub(crate) fn leave_zeros_out(file: &mut [u8]) {
    let Some(headers) = headers(file) else { return };
    let first = headers.iter().map(|header| header.offset).filter(|offset| *offset > 0).min();
    let cut: Vec<_> = headers.iter().flat_map(|header| header.without_zeros(file)).collect();
    let table = number::<8>(file, 32).unwrap_or_default() as usize;
    let end = table + cut.len() * PROGRAM_HEADER_SIZE;
    let grown = table + headers.len() * PROGRAM_HEADER_SIZE..end;
    let free = file.get(grown).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    let nothing = cut.len() == headers.len();
    if nothing || !free || first.is_some_and(|first| end as u64 > first) {
        return;
    }
    for (header, at) in cut.iter().zip((table..).step_by(PROGRAM_HEADER_SIZE)) {
        file[at..at + PROGRAM_HEADER_SIZE].copy_from_slice(&header.bytes());
    }
    file[56..58].copy_from_slice(&(cut.len() as u16).to_le_bytes());
}

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: u32,
    flags: u32,
    offset: u64,
    /// Virtual and physical.
    addresses: [u64; 2],
    in_file: u64,
    in_memory: u64,
    align: u64,
}

/// All program headers; none if some are cut off.
fn headers(file: &[u8]) -> Option<Vec<Header>> {
    let table = number::<8>(file, 32)? as usize;
    let count = number::<2>(file, 56)? as usize;
    let header = |index| {
        let start = table.checked_add(index * PROGRAM_HEADER_SIZE)?;
        let bytes = file.get(start..start.checked_add(PROGRAM_HEADER_SIZE)?)?;
        Some(Header {
            kind: number::<4>(bytes, 0)? as u32,
            flags: number::<4>(bytes, 4)? as u32,
            offset: number::<8>(bytes, 8)?,
            addresses: [number::<8>(bytes, 16)?, number::<8>(bytes, 24)?],
            in_file: number::<8>(bytes, 32)?,
            in_memory: number::<8>(bytes, 40)?,
            align: number::<8>(bytes, 48)?,
        })
    };
    (0..count).map(header).collect()
}

impl Header {
    fn bytes(&self) -> [u8; PROGRAM_HEADER_SIZE] {
        let mut bytes = [0; PROGRAM_HEADER_SIZE];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        let [virtual_address, physical] = self.addresses;
        let words =
            [self.offset, virtual_address, physical, self.in_file, self.in_memory, self.align];
        for (word, at) in words.iter().zip((8..).step_by(8)) {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The segments that hold the same without its long runs of zeros: each reaches in memory to where the next begins.
    fn without_zeros(&self, file: &[u8]) -> Vec<Self> {
        let content = usize::try_from(self.offset).ok().zip(usize::try_from(self.in_file).ok());
        let content = content.and_then(|(at, len)| file.get(at..at.checked_add(len)?));
        let aligned = self.offset.is_multiple_of(PAGE)
            && self.addresses.iter().all(|at| at.is_multiple_of(PAGE));
        let (Some(content), true, true) =
            (content, aligned, self.kind == PT_LOAD && self.flags & PF_W != 0)
        else {
            return vec![*self];
        };
        let zero: Vec<_> =
            content.chunks(PAGE as usize).map(|page| page.iter().all(|byte| *byte == 0)).collect();
        // A short run of zeros belongs to what is around it.
        let mut kept: Vec<(usize, usize)> = Vec::new();
        for (page, _) in zero.iter().enumerate().filter(|(_, zero)| !**zero) {
            match kept.last_mut() {
                Some((_, end)) if page - *end < ZEROS => *end = page + 1,
                _ => kept.push((page, page + 1)),
            }
        }
        let end =
            |index: usize| kept.get(index).map_or(self.in_memory, |(page, _)| *page as u64 * PAGE);
        let pieces = kept.iter().enumerate().map(|(index, (from, to))| {
            let (from, to) = (*from as u64 * PAGE, (*to as u64 * PAGE).min(self.in_file));
            Self {
                offset: self.offset + from,
                addresses: self.addresses.map(|address| address + from),
                in_file: to - from,
                in_memory: end(index + 1) - from,
                ..*self
            }
        });
        pieces.collect()
    }
}

/// A little-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(N)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of 16 KiB with a note and one segment.
    fn elf(offset: u64, address: u64, size: u64) -> Vec<u8> {
        let mut file = vec![0; 16 << 10];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(18, &EM_X86_64.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        put(64, &PT_NOTE.to_le_bytes());
        put(120, &PT_LOAD.to_le_bytes());
        put(128, &offset.to_le_bytes());
        put(144, &address.to_le_bytes());
        put(152, &size.to_le_bytes());
        file
    }

    #[test]
    fn a_kernel_that_can_be_mapped_passes() {
        check_mappable(&elf(0x1000, 0x100_0000, 0x3000)).unwrap();
        check_mappable(&elf(0x1200, 0x100_0200, 0x2000)).unwrap();
    }

    #[test]
    fn what_cannot_be_mapped_is_told() {
        let told = |file: &[u8]| check_mappable(file).unwrap_err();
        assert!(told(&elf(0x1200, 0x100_0000, 16)).contains("cannot be mapped"));
        assert!(told(&elf(0x1000, 0x100_0000, 0x3001)).contains("cut off"));
        assert!(told(&elf(u64::MAX - 0xfff, 0x1000, 0x2000)).contains("cut off"));
        assert!(told(&elf(0x1000, 0x100_0000, 16)[..128]).contains("cut off"));
        assert!(told(b"MZ").contains("no 64-bit ELF"));

        let mut arm = elf(0x1000, 0x100_0000, 16);
        arm[18] = 183;
        assert!(told(&arm).contains("x86-64"));
        let mut without_note = elf(0x1000, 0x100_0000, 16);
        without_note[64] = 0;
        assert!(told(&without_note).contains("PVH"));
        let mut without_load = elf(0x1000, 0x100_0000, 16);
        without_load[120] = 0;
        assert!(told(&without_load).contains("loadable"));
        let mut far_table = elf(0x1000, 0x100_0000, 16);
        far_table[32..40].fill(0xff);
        assert!(told(&far_table).contains("cut off"));
    }

    /// A segment that is written to, of ten pages and a half at 16 MiB, with content in some of them.
    fn written() -> Vec<u8> {
        let mut file = elf(0x1000, 0x100_0000, 0xa800);
        file.resize(64 << 10, 0);
        file[56] = 3;
        file[124] = 2;
        file[136..144].copy_from_slice(&0xffff_0000_0000_u64.to_le_bytes());
        file[160..168].copy_from_slice(&0x1_0000_u64.to_le_bytes());
        for page in [2, 4, 8, 10] {
            file[0x1000 + page * 0x1000] = page as u8;
        }
        file
    }

    #[test]
    fn long_runs_of_zeros_are_no_part_of_a_segment() {
        let mut file = written();
        let (before, last) = (file.clone(), headers(&file).unwrap()[2]);
        leave_zeros_out(&mut file);
        let found = headers(&file).unwrap();
        assert_eq!(found.len(), 4);
        let places: Vec<_> = found[1..3]
            .iter()
            .map(|header| (header.offset, header.addresses, header.in_file, header.in_memory))
            .collect();
        assert_eq!(
            places,
            [
                (0x3000, [0xffff_0000_2000, 0x100_2000], 0x3000, 0x6000),
                (0x9000, [0xffff_0000_8000, 0x100_8000], 0x2800, 0x8000),
            ]
        );
        assert_eq!(found[3], last);
        assert_eq!(file[0x1000..], before[0x1000..]);
    }

    #[test]
    fn what_is_only_read_or_has_no_room_stays_as_it_is() {
        let mut read_only = written();
        read_only[124] = 4;
        let mut crowded = written();
        crowded[64 + 3 * 56] = 1;
        let mut near = written();
        near[128..136].copy_from_slice(&0x100_u64.to_le_bytes());
        for mut file in [read_only, crowded, near, b"\x7fELF".to_vec()] {
            let before = file.clone();
            leave_zeros_out(&mut file);
            assert_eq!(file, before);
        }
    }
}
