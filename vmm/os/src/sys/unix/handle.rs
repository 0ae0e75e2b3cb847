//! What this process has open and another one can be given.

use std::io;
use std::os::fd::AsFd;
pub use std::os::fd::{BorrowedFd as BorrowedHandle, OwnedFd as OwnedHandle};

/// Whatever has such a handle.
pub trait AsHandle {
    /// The handle, for as long as its owner.
    fn as_handle(&self) -> BorrowedHandle<'_>;
}

impl<T: AsFd> AsHandle for T {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.as_fd()
    }
}

/// What is made of such a handle by the process that got it.
pub trait FromHandle: Sized {
    /// Takes the handle, which has to be one of this kind.
    fn from_handle(handle: OwnedHandle) -> io::Result<Self>;
}

impl<T: From<OwnedHandle>> FromHandle for T {
    fn from_handle(handle: OwnedHandle) -> io::Result<Self> {
        Ok(handle.into())
    }
}
