//! What Linux does to the space of files, by what other systems have.

use std::fs::File;
use std::io::{ErrorKind, Result};

use crate::sys::file::{FileExt, allocated, punch_hole, zero_range};
use crate::sys::tree::{flags, reserve};

/// Blocks of the host's file systems, as far as holes go.
const BLOCK: u64 = 4096;
/// Bytes that are copied at once.
const PIECE: usize = 128 << 10;

/// Allocates, zeroes or punches; [`flags`] say what, as `fallocate(2)` has them. What the host cannot punch is zeroed.
pub fn allocate(file: &File, mode: u32, offset: u64, len: u64) -> Result<()> {
    let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
    let end = end.ok_or(ErrorKind::FileTooLarge)?;
    if len == 0 {
        return Err(ErrorKind::InvalidInput.into());
    }
    let (keep, punch) = (flags::ALLOCATE_KEEP_SIZE, flags::ALLOCATE_PUNCH_HOLE);
    let size = file.metadata()?.len();
    match mode & !keep {
        0 => reserve(file, end, allocated(file)?)?,
        flags::ALLOCATE_ZERO_RANGE => clear(file, offset, end.min(size))?,
        flags::ALLOCATE_PUNCH_HOLE if mode & keep != 0 => clear(file, offset, end.min(size))?,
        _ => return Err(ErrorKind::Unsupported.into()),
    }
    if mode & (keep | punch) == 0 && end > size {
        file.set_len(end)?;
    }
    Ok(())
}

/// Makes a range read as zeroes, as a hole where that can be.
fn clear(file: &File, start: u64, end: u64) -> Result<()> {
    let (first, last) = (start.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
    if first < last && punch_hole(file, first, last - first)? {
        write_zeroes(file, start, first)?;
        return write_zeroes(file, last.max(start), end);
    }
    if start < end && !zero_range(file, start, end - start)? {
        write_zeroes(file, start, end)?;
    }
    Ok(())
}

fn write_zeroes(file: &File, mut start: u64, end: u64) -> Result<()> {
    let zeroes = [0; BLOCK as usize];
    while start < end {
        let len = (end - start).min(BLOCK);
        file.write_all_at(&zeroes[..len as usize], start)?;
        start += len;
    }
    Ok(())
}

/// Copies between two open files; returns the bytes copied.
pub fn copy_range(from: &File, from_at: u64, to: &File, to_at: u64, len: usize) -> Result<usize> {
    let mut buffer = vec![0; PIECE.min(len)];
    let mut done = 0;
    while done < len {
        let want = buffer.len().min(len - done);
        let count = from.read_at(&mut buffer[..want], from_at + done as u64)?;
        if count == 0 {
            break;
        }
        to.write_all_at(&buffer[..count], to_at + done as u64)?;
        done += count;
    }
    Ok(done)
}
