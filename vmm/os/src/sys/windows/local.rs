//! Streams of bytes between processes of this host: pipes of messages whose bounds nobody sees, but for an empty one, which
//! is the end of one direction.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::windows::io::{AsHandle, BorrowedHandle, OwnedHandle};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use windows_sys::Win32::Foundation::ERROR_PIPE_BUSY;
use windows_sys::Win32::Security::SECURITY_ATTRIBUTES;
use windows_sys::Win32::System::Pipes::WaitNamedPipeW;

use super::handle::FromHandle;
use super::pipe::{self, Transfers};
use super::user::Only;

/// Bytes under way in each direction.
const UNDER_WAY: u32 = 256 << 10;
/// What is written at once.
const CHUNK: usize = 64 << 10;
/// How long the end of a direction waits for room.
const FAREWELL: Duration = Duration::from_millis(100);
/// How long somebody waits for a listener that is busy, in milliseconds.
const BUSY: u32 = 1000;

/// One end of a stream. Clones are the same end; it closes with the last one.
#[derive(Debug)]
pub struct LocalStream(Transfers);

impl LocalStream {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = pipe::pair(UNDER_WAY)?;
        Ok((Self(Transfers::new(one)?), Self(Transfers::new(other)?)))
    }

    /// Opens a stream to who listens at a path.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let name = pipe::name(path.as_ref())?;
        loop {
            match pipe::open(&name) {
                Err(error) if error.raw_os_error() == Some(ERROR_PIPE_BUSY as i32) => {
                    // SAFETY: the name ends with a zero.
                    if unsafe { WaitNamedPipeW(name.as_ptr(), BUSY) } == 0 {
                        return Err(error);
                    }
                }
                opened => return Ok(Self(Transfers::new(opened?)?)),
            }
        }
    }

    /// Another handle to the same end.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Ends one direction or both, for all clones in this process. Who writes to an end that reads no more fails once it has
    /// closed.
    #[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.0.finish(Some(FAREWELL));
        }
        if how != Shutdown::Write {
            self.0.end();
        }
        Ok(())
    }
}

impl Read for &LocalStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() { Ok(0) } else { Ok(self.0.read(buffer, None)?.len) }
    }
}

impl Write for &LocalStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK)];
        if !part.is_empty() {
            self.0.write(part, None)?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for LocalStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for LocalStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsHandle for LocalStream {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.0.handle().as_handle()
    }
}

impl From<LocalStream> for OwnedHandle {
    fn from(stream: LocalStream) -> Self {
        stream.0.into_handle()
    }
}

impl FromHandle for LocalStream {
    fn from_handle(handle: OwnedHandle) -> io::Result<Self> {
        Transfers::new(handle).map(Self)
    }
}

/// Waits for streams at a path, which names a pipe: nothing stands in the folder.
#[derive(Debug)]
pub struct LocalListener {
    name: Vec<u16>,
    only: Only,
    /// What the next one connects to, so that there always is something.
    next: Mutex<OwnedHandle>,
}

impl LocalListener {
    /// Stands at a path that is free, for this user alone.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (name, only) = (pipe::name(path)?, Only::this_user()?);
        let next = Mutex::new(instance(&name, true, &only.attributes())?);
        Ok(Self { name, only, next })
    }

    /// Waits for the next stream that a process of this user's opens: to others the pipe is closed.
    pub fn accept(&self) -> io::Result<LocalStream> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        Transfers::new(next.try_clone()?)?.connect()?;
        let following = instance(&self.name, false, &self.only.attributes())?;
        Transfers::new(std::mem::replace(&mut *next, following)).map(LocalStream)
    }

    /// Nothing stays of somebody who was killed.
    pub fn remove(_path: &Path) -> io::Result<()> {
        Ok(())
    }
}

fn instance(
    name: &[u16],
    first: bool,
    attributes: &SECURITY_ATTRIBUTES,
) -> io::Result<OwnedHandle> {
    pipe::serve(name, first, None, UNDER_WAY, Some(attributes))
}
