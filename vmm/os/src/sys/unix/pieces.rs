//! Positional vectored I/O on raw memory (`preadv(2)`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The most pieces that the kernel takes at once (`limits.h`), the same on Linux and macOS.
const IOV_MAX: usize = 1024;

/// A piece of memory to read into or write from: address and length in bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IoPiece {
    /// The first byte.
    pub addr: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// Reads at `offset` into the pieces in order (`preadv(2)`); returns the bytes read, fewer at the
/// file's end.
///
/// # Safety
/// Each piece is memory that is valid for writes for the whole call and that no Rust reference
/// points to (guest memory).
pub unsafe fn read_pieces_at(file: &File, pieces: &[IoPiece], offset: u64) -> io::Result<usize> {
    // SAFETY: the caller vouches for the pieces; the kernel writes nothing beyond them.
    unsafe { transfer(file, pieces, offset, libc::preadv) }
}

/// Writes the pieces in order at `offset` (`pwritev(2)`); returns the bytes written.
///
/// # Safety
/// Each piece is memory that is valid for reads for the whole call.
pub unsafe fn write_pieces_at(file: &File, pieces: &[IoPiece], offset: u64) -> io::Result<usize> {
    // SAFETY: the caller vouches for the pieces; the kernel only reads them.
    unsafe { transfer(file, pieces, offset, libc::pwritev) }
}

// A piece is passed to the kernel as what it is.
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<IoPiece>() == size_of::<libc::iovec>());
    assert!(offset_of!(IoPiece, addr) == offset_of!(libc::iovec, iov_base));
    assert!(offset_of!(IoPiece, len) == offset_of!(libc::iovec, iov_len));
};

type VectoredCall = unsafe extern "C" fn(i32, *const libc::iovec, i32, i64) -> isize;

unsafe fn transfer(
    file: &File,
    pieces: &[IoPiece],
    offset: u64,
    call: VectoredCall,
) -> io::Result<usize> {
    let mut moved = 0;
    let mut at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    for batch in pieces.chunks(IOV_MAX) {
        let wanted: usize = batch.iter().map(|piece| piece.len).sum();
        let vectors = batch.as_ptr().cast::<libc::iovec>();
        // SAFETY: a piece has the fields of `struct iovec`, see below; the batch lives through the
        // call; the caller vouches for what it points to.
        let count = unsafe { call(file.as_raw_fd(), vectors, batch.len() as i32, at) };
        match usize::try_from(count) {
            Ok(count) => {
                moved += count;
                at += count as i64;
                if count < wanted {
                    break;
                }
            }
            Err(_) if moved > 0 => break,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn pieces_are_filled_in_order() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abcdef", 0).unwrap();
        let (mut one, mut two) = ([0u8; 2], [0u8; 8]);
        let pieces = [
            IoPiece { addr: one.as_mut_ptr(), len: one.len() },
            IoPiece { addr: two.as_mut_ptr(), len: two.len() },
        ];
        // SAFETY: the arrays outlive the call.
        let count = unsafe { read_pieces_at(&file, &pieces, 1) }.unwrap();
        assert_eq!((count, &one, &two[..3]), (5, b"bc", &b"def"[..]));
    }
}
