//! Files: positional vectored I/O on raw memory.

pub use crate::sys::unix::pieces::{IoPiece, read_pieces_at, write_pieces_at};
