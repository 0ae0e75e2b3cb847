//! Copies of files that keep their holes, on every system.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::file::{FileExt, copy_in_kernel, for_each_data};

/// Copies the data of `from` into `to` and leaves its holes as holes; `to` gets the same length.
pub fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    to.set_len(len)?;
    copy_sparse_range(from, 0..len, to, 0)
}

/// Copies the data of a range of `from` to `to` from `at` on; where the range has holes, `to` is left
/// alone.
pub fn copy_sparse_range(from: &File, range: Range<u64>, to: &File, at: u64) -> io::Result<()> {
    let mut buffer = Vec::new();
    for_each_data(from, range.clone(), |data| {
        let at = at + (data.start - range.start);
        copy_range(from, data, to, at, &mut buffer)
    })
}

/// `buffer` is empty until one is needed.
fn copy_range(
    from: &File,
    range: Range<u64>,
    to: &File,
    at: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let mut done = copy_in_kernel(from, range.clone(), to, at)?;
    while range.start + done < range.end {
        buffer.resize(64 << 10, 0);
        let left = range.end - range.start - done;
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = from.read_at(&mut buffer[..len], range.start + done)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all_at(&buffer[..count], at + done)?;
        done += count as u64;
    }
    Ok(())
}

/// Have two files the same first `len` bytes?
pub fn same_content(one: &File, other: &File, len: u64) -> io::Result<bool> {
    let (mut first, mut second) = (vec![0u8; 64 << 10], vec![0u8; 64 << 10]);
    let mut at = 0;
    while at < len {
        let count = first.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        one.read_exact_at(&mut first[..count], at)?;
        other.read_exact_at(&mut second[..count], at)?;
        if first[..count] != second[..count] {
            return Ok(false);
        }
        at += count as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{allocated, create_whole, punch_hole, try_lock, try_lock_shared, unnamed};

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"early", 0).unwrap();
        from.write_all_at(b"late", 48 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        let mut parts = 0;
        for_each_data(&from, 0..64 << 20, |_| {
            parts += 1;
            Ok(())
        })
        .unwrap();
        if parts > 1 {
            assert!(allocated(&to).unwrap() < 1 << 20);
        } else {
            eprintln!("skipped in part: this system does not tell of holes");
        }
        let mut bytes = [0; 4];
        to.read_exact_at(&mut bytes, 48 << 20).unwrap();
        assert_eq!(&bytes, b"late");
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let first = File::create(&path).unwrap();
        assert!(try_lock(&first).unwrap());
        let second = File::open(&path).unwrap();
        assert!(!try_lock(&second).unwrap());
        drop(first);
        assert!(try_lock_shared(&second).unwrap());
        let third = File::open(&path).unwrap();
        assert!(try_lock_shared(&third).unwrap());
        assert!(!try_lock(&third).unwrap());
    }

    #[test]
    fn an_unnamed_file_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = unnamed(dir.path()).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_hole_reads_as_zero_where_there_are_holes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8192], 0).unwrap();
        let punched = punch_hole(&file, 0, 4096).unwrap();
        let mut bytes = [9; 2];
        file.read_exact_at(&mut bytes, 4095).unwrap();
        assert_eq!(bytes, [u8::from(!punched), 1]);
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let failed = create_whole(&path, |_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        create_whole(&path, |file| file.write_all_at(b"x", 0)).unwrap();
        assert!(create_whole(&path, |_| Ok(())).is_err(), "the name is taken");
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
