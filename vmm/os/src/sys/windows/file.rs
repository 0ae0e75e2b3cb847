//! Files: positional I/O on raw memory (`ReadFile` and `WriteFile` with an offset).

use std::fs::File;
use std::io;
use std::os::windows::io::AsRawHandle;

use windows_sys::Win32::Foundation::{ERROR_HANDLE_EOF, HANDLE};
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{OVERLAPPED, OVERLAPPED_0, OVERLAPPED_0_0};

/// A piece of memory to read into or write from: address and length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct IoPiece {
    /// The first byte.
    pub addr: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// Reads at `offset` into the pieces in order; returns the bytes read, fewer at the file's end.
///
/// # Safety
/// Each piece is memory that is valid for writes for the whole call and that no Rust reference
/// points to (guest memory).
pub unsafe fn read_pieces_at(file: &File, pieces: &[IoPiece], offset: u64) -> io::Result<usize> {
    transfer(pieces, offset, |piece, len, place, moved| {
        // SAFETY: the caller vouches for the piece; no more than its length is written.
        unsafe { ReadFile(handle(file), piece, len, moved, place) }
    })
}

/// Writes the pieces in order at `offset`; returns the bytes written.
///
/// # Safety
/// Each piece is memory that is valid for reads for the whole call.
pub unsafe fn write_pieces_at(file: &File, pieces: &[IoPiece], offset: u64) -> io::Result<usize> {
    transfer(pieces, offset, |piece, len, place, moved| {
        // SAFETY: the caller vouches for the piece; no more than its length is read.
        unsafe { WriteFile(handle(file), piece, len, moved, place) }
    })
}

fn handle(file: &File) -> HANDLE {
    file.as_raw_handle()
}

/// Piece after piece, each in calls of at most 1 GiB, until one moves less than it was asked to.
fn transfer(
    pieces: &[IoPiece],
    offset: u64,
    call: impl Fn(*mut u8, u32, *mut OVERLAPPED, *mut u32) -> i32,
) -> io::Result<usize> {
    const MOST: usize = 1 << 30;
    let mut total = 0;
    for piece in pieces {
        let mut done = 0;
        while done < piece.len {
            let len = (piece.len - done).min(MOST) as u32;
            let at = offset + total as u64;
            let place = OVERLAPPED_0_0 { Offset: at as u32, OffsetHigh: (at >> 32) as u32 };
            let mut place = OVERLAPPED {
                Anonymous: OVERLAPPED_0 { Anonymous: place },
                ..OVERLAPPED::default()
            };
            let mut moved = 0;
            let fine =
                call(piece.addr.wrapping_add(done), len, &raw mut place, &raw mut moved) != 0;
            if !fine {
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(ERROR_HANDLE_EOF as i32) || total > 0 {
                    return Ok(total);
                }
                return Err(error);
            }
            done += moved as usize;
            total += moved as usize;
            if moved < len {
                return Ok(total);
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_filled_in_order_up_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = File::open(&path).unwrap();
        let mut bytes = [0u8; 8];
        let base = bytes.as_mut_ptr();
        let pieces =
            [IoPiece { addr: base, len: 3 }, IoPiece { addr: base.wrapping_add(4), len: 4 }];
        // SAFETY: both pieces lie in `bytes`, which is not looked at meanwhile.
        assert_eq!(unsafe { read_pieces_at(&file, &pieces, 5) }.unwrap(), 5);
        assert_eq!(&bytes, b"567\x0089\0\0");
    }
}
