//! Memory of this process that it can do without for a while: pages of its program, and what its heap holds free.

use std::io;
use std::ops::Range;

use super::memory::discard;
use super::pages::present_pages;
use crate::sys::whole_pages;

/// Gives back what a process that has nothing to do does not need: pages of its program and libraries that are as in
/// their files, and memory that its heap holds free. Pages come back from the page cache, or from the disk, when they are
/// touched; the first work afterwards pays for that. A process that has confined itself has to have
/// [learned](super::process::learn) before.
pub fn release_spare() -> io::Result<()> {
    // SAFETY: the allocator gives back what nobody has.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
    let page = rustix::param::page_size();
    for segment in fixed_segments() {
        for pages in present_pages(whole_pages(segment, page))? {
            // Relocations and breakpoints are in no file.
            if !pages.own {
                // SAFETY: nobody can write there, so that the file has the same bytes; who reads or runs them meanwhile
                // finds them.
                unsafe { discard(pages.range.start as *mut u8, pages.range.len()) }?;
            }
        }
    }
    Ok(())
}

/// What of this program and its libraries is mapped from their files, and written by nobody.
fn fixed_segments() -> Vec<Range<usize>> {
    let mut segments: Vec<Range<usize>> = Vec::new();
    // SAFETY: the function is called before this returns, with what stands beside it.
    unsafe { libc::dl_iterate_phdr(Some(add_segments), (&raw mut segments).cast()) };
    segments
}

/// Adds those of one file.
///
/// # Safety
/// `info` is the loader's; `segments` are a `Vec<Range<usize>>` that nobody else has.
unsafe extern "C" fn add_segments(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    segments: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the caller's promise; the loader's headers stay for as long as the file is loaded.
    let (info, segments, headers) = unsafe {
        let info = &*info;
        let segments = &mut *segments.cast::<Vec<Range<usize>>>();
        (info, segments, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let fixed = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    segments.extend(headers.iter().filter(fixed).map(|header| {
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        start..start + header.p_memsz as usize
    }));
    0
}
