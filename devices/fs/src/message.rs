//! A request and its reply, wherever their bytes lie: in guest memory or in a buffer.

use std::fs::File;

use cabana_os::file::FileExt;
use smallvec::SmallVec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::wire::{Errno, OutHeader, Result};

/// The bytes of a request, read from the front.
pub trait Request {
    /// Bytes left.
    fn left(&self) -> usize;

    /// Fills `bytes`; fails if fewer are left.
    fn take(&mut self, bytes: &mut [u8]) -> Result<()>;

    /// Writes the next `len` bytes to `file` at `offset`; returns how many the host took.
    fn write_file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize>;
}

/// The room for a reply: a header, written last, and a body.
pub trait Reply {
    /// Bytes of the body that there is still room for.
    fn room(&self) -> usize;

    /// Appends to the body; fails if there is no room.
    fn put(&mut self, bytes: &[u8]) -> Result<()>;

    /// Appends at most `len` bytes of `file` from `offset` to the body; returns how many.
    fn put_file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize>;

    /// Writes the header and says how long the reply is. A failed request has no body.
    fn finish(self, unique: u64, result: Result<()>) -> u32;
}

/// The header of a reply with a body of `body` bytes, or of an error.
pub(crate) fn header(unique: u64, body: u32, result: Result<()>) -> OutHeader {
    let (len, error) = match result {
        Ok(()) => (body, 0),
        Err(Errno(error)) => (0, -error),
    };
    OutHeader { len: len + size_of::<OutHeader>() as u32, error, unique }
}

/// Reads a structure.
pub(crate) fn read<T: FromBytes + IntoBytes>(request: &mut impl Request) -> Result<T> {
    let mut value = T::new_zeroed();
    request.take(value.as_mut_bytes())?;
    Ok(value)
}

/// Writes a structure.
pub(crate) fn write<T: IntoBytes + Immutable>(reply: &mut impl Reply, value: &T) -> Result<()> {
    reply.put(value.as_bytes())
}

/// Bytes of a request. One or two names of files are rarely longer, and then nothing is allocated.
pub(crate) type Bytes = SmallVec<[u8; 128]>;

/// Reads all that is left, at most `max` bytes.
pub(crate) fn read_rest(request: &mut impl Request, max: usize) -> Result<Bytes> {
    if request.left() > max {
        return Err(Errno::EINVAL);
    }
    let mut bytes = Bytes::new();
    bytes.resize(request.left(), 0);
    request.take(&mut bytes)?;
    Ok(bytes)
}

/// A request in a buffer: for tests, fuzzing and measuring without a guest.
impl Request for &[u8] {
    fn left(&self) -> usize {
        self.len()
    }

    fn take(&mut self, bytes: &mut [u8]) -> Result<()> {
        let (first, rest) = self.split_at_checked(bytes.len()).ok_or(Errno::EINVAL)?;
        bytes.copy_from_slice(first);
        *self = rest;
        Ok(())
    }

    fn write_file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let (data, rest) = self.split_at_checked(len).ok_or(Errno::EINVAL)?;
        *self = rest;
        Ok(file.write_at(data, offset)?)
    }
}

/// A reply in a buffer that is given; what is written of it stands at its front.
#[derive(Debug)]
pub struct ReplyBuffer<'a> {
    header: &'a mut [u8],
    body: &'a mut [u8],
    written: usize,
}

impl<'a> ReplyBuffer<'a> {
    /// A reply in `buffer`; one that is shorter than a header stays empty.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        let at = size_of::<OutHeader>().min(buffer.len());
        let (header, body) = buffer.split_at_mut(at);
        Self { header, body, written: 0 }
    }

    fn next(&mut self, len: usize) -> &mut [u8] {
        let end = self.written.saturating_add(len).min(self.body.len());
        self.body.get_mut(self.written..end).unwrap_or_default()
    }
}

impl Reply for ReplyBuffer<'_> {
    fn room(&self) -> usize {
        self.body.len() - self.written
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.room() < bytes.len() {
            return Err(Errno::EINVAL);
        }
        self.next(bytes.len()).copy_from_slice(bytes);
        self.written += bytes.len();
        Ok(())
    }

    fn put_file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let count = file.read_at(self.next(len), offset)?;
        self.written += count;
        Ok(count)
    }

    fn finish(self, unique: u64, result: Result<()>) -> u32 {
        let header = header(unique, self.written as u32, result);
        match header.write_to(self.header) {
            Ok(()) => header.len,
            Err(_) => 0,
        }
    }
}
