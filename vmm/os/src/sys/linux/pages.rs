//! Which pages of this process are its own (`/proc/self/pagemap`, the kernel's
//! `Documentation/admin-guide/mm/pagemap.rst`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Bytes that the file has for a page, and bits in them.
const ENTRY: usize = 8;
const IN_FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// Entries read at once.
const AT_ONCE: usize = 8192;

/// Opened once, since a process that has confined itself cannot.
static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();

pub(super) fn pagemap() -> io::Result<&'static File> {
    let file = PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok());
    file.as_ref().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Pages of this process that are in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentPages {
    /// Their addresses.
    pub range: Range<usize>,
    /// They are this process's alone: written to, and in no file that is mapped there.
    pub own: bool,
}

/// The pages in `range`, addresses of this process, that it has touched, or that came in beside such a page.
pub fn present_pages(range: Range<usize>) -> io::Result<Vec<PresentPages>> {
    let mut pages: Vec<PresentPages> = Vec::new();
    for_each_page(range, |page, entry| {
        if entry & (PRESENT | SWAPPED) == 0 {
            return;
        }
        let own = entry & IN_FILE == 0;
        match pages.last_mut() {
            Some(last) if last.range.end == page.start && last.own == own => {
                last.range.end = page.end;
            }
            _ => pages.push(PresentPages { range: page, own }),
        }
    })?;
    Ok(pages)
}

/// The blocks of `block` bytes (a power of two) in `range`, addresses of this process, that hold a page that is this
/// process's alone: written to, and in no file that is mapped there. Adjacent blocks are one.
pub fn own_blocks(range: Range<usize>, block: usize) -> io::Result<Vec<Range<usize>>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for_each_page(range.clone(), |page, entry| {
        if entry & (PRESENT | SWAPPED) == 0 || entry & IN_FILE != 0 {
            return;
        }
        let here = page.start & !(block - 1);
        let own = here.max(range.start)..(here + block).min(range.end);
        match blocks.last_mut() {
            Some(last) if own.start <= last.end => last.end = own.end,
            _ => blocks.push(own),
        }
    })?;
    Ok(blocks)
}

/// Calls `each` with every page in `range` and what the kernel says of it.
fn for_each_page(range: Range<usize>, mut each: impl FnMut(Range<usize>, u64)) -> io::Result<()> {
    let page = rustix::param::page_size();
    let mut at = range.start / page * page;
    let mut entries = vec![0; AT_ONCE.min(range.end.saturating_sub(at).div_ceil(page)) * ENTRY];
    while at < range.end {
        let count = AT_ONCE.min((range.end - at).div_ceil(page));
        let entries = &mut entries[..count * ENTRY];
        pagemap()?.read_exact_at(entries, (at / page * ENTRY) as u64)?;
        for (index, entry) in entries.chunks_exact(ENTRY).enumerate() {
            let mut bytes = [0; ENTRY];
            bytes.copy_from_slice(entry);
            let start = at + index * page;
            each(start..start + page, u64::from_ne_bytes(bytes));
        }
        at += count * page;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mapping;

    fn own(mapping: &Mapping, block: usize) -> Vec<Range<usize>> {
        let start = mapping.as_ptr() as usize;
        let found = own_blocks(start..start + mapping.len(), block).unwrap();
        found.into_iter().map(|run| run.start - start..run.end - start).collect()
    }

    fn write(mapping: &Mapping, page: usize) {
        // SAFETY: within the mapping, to which nobody has a reference.
        unsafe { mapping.as_ptr().wrapping_add(page * 4096).write_volatile(1) };
    }

    #[test]
    fn pages_that_were_written_to_are_found_and_those_of_files_are_not() {
        let mapping = Mapping::anonymous(64 * 4096).unwrap();
        assert_eq!(own(&mapping, 4096), []);
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * 4096).unwrap();
        mapping.overlay_file(0..8 * 4096, &file, 0).unwrap();
        for page in [3, 20, 21, 63] {
            write(&mapping, page);
        }
        // SAFETY: within the mapping, to which nobody has a reference.
        unsafe { mapping.as_ptr().wrapping_add(5 * 4096).read_volatile() };
        let pages = |first: usize, last: usize| first * 4096..(last + 1) * 4096;
        assert_eq!(own(&mapping, 4096), [pages(3, 3), pages(20, 21), pages(63, 63)]);
        assert_eq!(own(&mapping, 4 * 4096), [pages(0, 3), pages(20, 23), pages(60, 63)]);
        assert_eq!(own(&mapping, 16 * 4096), [pages(0, 31), pages(48, 63)]);
    }

    #[test]
    fn pages_that_were_touched_are_told_from_their_neighbours_and_from_those_that_were_written_to()
    {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![1; 64 * 4096], 0).unwrap();
        let mapping = Mapping::anonymous(64 * 4096).unwrap();
        mapping.overlay_file(0..64 * 4096, &file, 0).unwrap();
        mapping.bring_in_singly(0..64 * 4096).unwrap();
        for page in [5, 6, 40] {
            // SAFETY: within the mapping, to which nobody has a reference.
            unsafe { mapping.as_ptr().wrapping_add(page * 4096).read_volatile() };
        }
        write(&mapping, 6);
        let start = mapping.as_ptr() as usize;
        let present = || -> Vec<(usize, usize, bool)> {
            let pages = present_pages(start..start + mapping.len()).unwrap().into_iter();
            pages
                .map(|PresentPages { range, own }| {
                    ((range.start - start) / 4096, range.len() / 4096, own)
                })
                .collect()
        };
        assert_eq!(present(), [(5, 1, false), (6, 1, true), (40, 1, false)]);
        mapping.populate(41 * 4096..43 * 4096).unwrap();
        assert_eq!(present(), [(5, 1, false), (6, 1, true), (40, 1, false), (41, 2, true)]);
        mapping.bring_in_together(0..64 * 4096).unwrap();
        assert!(mapping.populate(63 * 4096..65 * 4096).is_err());
    }
    #[test]
    fn pages_that_are_large_already_are_so_for_a_process_that_never_touched_them() {
        const LARGE: usize = 2 << 20;
        const GIB: usize = 1 << 30;
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(&vec![1; LARGE], 0).unwrap();
        let enlarge = || {
            // A GiB of which nothing is there.
            let mapping = Mapping::anonymous(2 * GIB).unwrap();
            let at = GIB - mapping.as_ptr() as usize % GIB;
            mapping.overlay_file(at..at + LARGE, &file, 0).unwrap();
            mapping.enlarge(at..at + LARGE)
        };
        match enlarge() {
            Ok(()) => enlarge().unwrap(),
            Err(error) => eprintln!("skipped: no large pages of files here: {error}"),
        }
    }
}
