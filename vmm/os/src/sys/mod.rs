use std::ops::Range;

#[cfg(unix)]
mod unix;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::*;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub use macos::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::*;

/// The pages of `page` bytes that lie in `range` as a whole: what else is in its first and last page is not its own.
fn whole_pages(range: Range<usize>, page: usize) -> Range<usize> {
    range.start.next_multiple_of(page)..range.end / page * page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, Mapping};

    #[test]
    fn signals_are_merged_and_taken_once() {
        let event = Event::new().unwrap();
        assert!(!event.take());
        event.signal();
        event.try_clone().unwrap().signal();
        assert!(event.take());
        assert!(!event.take());
    }

    #[test]
    fn memory_is_zero_aligned_and_zero_again_when_it_was_given_back() {
        let mapping = Mapping::anonymous(5000).unwrap();
        assert!(mapping.len() >= 5000);
        assert_eq!(mapping.as_ptr() as usize % (2 << 20), 0);
        let last = mapping.as_ptr().wrapping_add(mapping.len() - 1);
        // SAFETY: within the mapping.
        unsafe {
            assert_eq!(last.read_volatile(), 0);
            last.write_volatile(7);
            // A part of a page takes nothing of the rest along.
            mapping.discard(0..mapping.len() - 1).unwrap();
            assert_eq!(last.read_volatile(), 7);
            mapping.discard(0..mapping.len()).unwrap();
            assert_eq!(last.read_volatile(), 0);
        }
        assert!(mapping.discard(0..mapping.len() + 1).is_err());
        assert!(Mapping::anonymous(0).is_err());
    }

    #[test]
    fn only_whole_pages_count() {
        assert_eq!(whole_pages(0..8192, 4096), 0..8192);
        assert_eq!(whole_pages(1..12287, 4096), 4096..8192);
        assert!(whole_pages(1..4096, 4096).is_empty());
    }
}
