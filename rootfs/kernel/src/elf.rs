//! The check that a kernel can be mapped from its file.

/// Size of the ELF64 header and of a program header (System V ABI, ELF-64 object file format).
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PAGE: u64 = 4096;

/// Checks that the file is an x86-64 ELF kernel with an entry for PVH (a note segment) whose
/// loadable segments lie in the file at the same offset within a page as in memory, inside the file.
pub(crate) fn check_mappable(file: &[u8]) -> Result<(), String> {
    if file.len() < HEADER_SIZE || !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is no 64-bit ELF file".to_owned());
    }
    if number::<2>(file, 18) != Some(u64::from(EM_X86_64)) {
        return Err("it is not for x86-64".to_owned());
    }
    let table = number::<8>(file, 32).unwrap_or_default() as usize;
    let count = number::<2>(file, 56).unwrap_or_default() as usize;
    let (mut loads, mut notes) = (0, 0);
    for index in 0..count {
        let header = table
            .checked_add(index * PROGRAM_HEADER_SIZE)
            .and_then(|start| file.get(start..start.checked_add(PROGRAM_HEADER_SIZE)?))
            .ok_or("its program headers are cut off")?;
        let kind = number::<4>(header, 0).unwrap_or_default() as u32;
        let offset = number::<8>(header, 8).unwrap_or_default();
        let address = number::<8>(header, 24).unwrap_or_default();
        let size = number::<8>(header, 32).unwrap_or_default();
        if kind == PT_NOTE {
            notes += 1;
        }
        if kind != PT_LOAD {
            continue;
        }
        loads += 1;
        if offset.checked_add(size).is_none_or(|end| end > file.len() as u64) {
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
    let table = number::<8>(file, 32)? as usize;
    let count = number::<2>(file, 56)? as usize;
    (0..count).find_map(|index| {
        let start = table.checked_add(index * PROGRAM_HEADER_SIZE)?;
        let header = file.get(start..start.checked_add(PROGRAM_HEADER_SIZE)?)?;
        let within = address.checked_sub(number::<8>(header, 16)?)?;
        let fits = within.checked_add(len)? <= number::<8>(header, 32)?;
        let loads = number::<4>(header, 0)? as u32 == PT_LOAD;
        (loads && fits).then(|| number::<8>(header, 8)?.checked_add(within))?.map(|at| at as usize)
    })
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
}
