//! What this process has open and another one can be given.

use std::io;
pub use std::os::windows::io::{AsHandle, BorrowedHandle, OwnedHandle};

/// What is made of such a handle by the process that got it.
pub trait FromHandle: Sized {
    /// Takes the handle, which has to be one of this kind.
    fn from_handle(handle: OwnedHandle) -> io::Result<Self>;
}
