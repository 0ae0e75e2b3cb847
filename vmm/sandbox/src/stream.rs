//! A stream to the guest, wherever the machine is: vsock in this process, a socket to another.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use cabana_os::LocalStream;
use cabana_vsock::VsockStream;

/// What a [`Stream`] is made of: both directions through a shared reference, from any thread.
pub trait Duplex: fmt::Debug + Send + Sync {
    /// Waits for bytes; 0 is the end.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Waits for bytes and shows them to `take`, where they stand if this end can do so and in `scratch` otherwise; says
    /// how many, 0 at the end.
    fn pass_on(
        &self,
        scratch: &mut [u8],
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        let length = self.receive(scratch)?;
        take(&scratch[..length])?;
        Ok(length)
    }
    /// Waits until some of the bytes are taken.
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Ends one direction or both, for all clones.
    fn shut(&self, how: Shutdown);
}

/// One end of a stream of bytes to the guest. Clones are the same end; it closes with the last one.
#[derive(Clone, Debug)]
pub struct Stream(Arc<dyn Duplex>);

impl Stream {
    /// Waits for bytes and shows them to `take`, without a copy of its own if the machine is in this process and in
    /// `scratch` otherwise; says how many there were, 0 at the end.
    pub fn pass_on(
        &self,
        scratch: &mut [u8],
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        self.0.pass_on(scratch, &mut take)
    }

    /// Ends one direction or both.
    pub fn shutdown(&self, how: Shutdown) {
        self.0.shut(how);
    }
}

impl<D: Duplex + 'static> From<D> for Stream {
    fn from(end: D) -> Self {
        Self(Arc::new(end))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.receive(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.transmit(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex for VsockStream {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }

    fn pass_on(
        &self,
        _: &mut [u8],
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        VsockStream::receive(self, take)
    }

    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn shut(&self, how: Shutdown) {
        self.shutdown(how);
    }
}

impl Duplex for LocalStream {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }

    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn shut(&self, how: Shutdown) {
        // A peer that is gone has shut it already.
        let _ = LocalStream::shutdown(self, how);
    }
}
