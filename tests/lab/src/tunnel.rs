//! Byte-stream connections, one after another, over one stream that never closes.
//!
//! A virtio-serial port is one endless stream: neither end can close it and open it again without a
//! race. So each direction is cut into chunks: a little-endian `u32` length, then that many bytes.
//! Length 0 ends this direction of the current connection; when both directions have ended, the next
//! connection may begin. Both ends of the lab speak this; what travels inside is not its business.

use std::io::{self, Read, Write};

/// How many ports the outer machine has, each for one command at a time: `/dev/vport0p1` and on.
pub const PORTS: usize = 8;

/// The number of one more port, on which the host writes a byte now and then: an interrupt, and nothing else.
///
/// QEMU's software processor can lose an interrupt: it clears a bit of those that wait when a nested guest exits, without
/// the lock under which another thread sets one (`do_vmexit` in `target/i386/tcg`, up to 10.1). If that was the timer's and the
/// machine waits for nothing else, it waits for ever; at the next interrupt of any device QEMU finds both.
pub const BELL: usize = PORTS + 1;

/// The first byte on every port, from the init: it is ready for connections.
pub const READY: u8 = 0x06;

/// The largest chunk, in bytes.
pub const MAX_CHUNK: usize = 64 * 1024;

/// The sending direction of one connection: what is written goes out as chunks.
///
/// It must end with [`finish`](Self::finish); without it the other end waits for more.
#[derive(Debug)]
pub struct Sender<W> {
    port: W,
}

impl<W: Write> Sender<W> {
    /// A new connection's sending direction on `port`.
    pub fn new(port: W) -> Self {
        Self { port }
    }

    /// Ends this direction of the connection.
    pub fn finish(mut self) -> io::Result<()> {
        self.port.write_all(&0u32.to_le_bytes())
    }
}

impl<W: Write> Write for Sender<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(MAX_CHUNK)];
        if !bytes.is_empty() {
            let mut chunk = Vec::with_capacity(4 + bytes.len());
            chunk.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            chunk.extend_from_slice(bytes);
            self.port.write_all(&chunk)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.port.flush()
    }
}

/// The receiving direction of one connection: it is at its end when the other end has finished.
#[derive(Debug)]
pub struct Receiver<R> {
    port: R,
    /// Bytes of the current chunk that are still due.
    left: usize,
    finished: bool,
}

impl<R: Read> Receiver<R> {
    /// A new connection's receiving direction on `port`.
    pub fn new(port: R) -> Self {
        Self { port, left: 0, finished: false }
    }

    /// Reads to the end of the connection and forgets what it reads, so that the port is in step for
    /// the next one.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    /// Reads the length of the next chunk.
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.port.read_exact(&mut length)?;
        self.left = u32::from_le_bytes(length) as usize;
        self.finished = self.left == 0;
        if self.left > MAX_CHUNK {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk beyond the limit"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Receiver<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 && !self.finished {
            self.next_chunk()?;
        }
        if self.finished {
            return Ok(0);
        }
        let room = buffer.len().min(self.left);
        let read = self.port.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}

/// Copies until `from` is at its end or `to` takes no more, in pieces of up to [`MAX_CHUNK`].
pub fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; MAX_CHUNK];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&piece[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(port: &mut Vec<u8>, bytes: &[u8]) {
        let mut sender = Sender::new(port);
        sender.write_all(bytes).unwrap();
        sender.finish().unwrap();
    }

    #[test]
    fn connections_follow_each_other_on_one_port() {
        let mut port = Vec::new();
        let long = vec![7u8; 3 * MAX_CHUNK + 5];
        send(&mut port, &long);
        send(&mut port, b"second");

        let mut port = port.as_slice();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        Receiver::new(&mut port).read_to_end(&mut first).unwrap();
        Receiver::new(&mut port).read_to_end(&mut second).unwrap();
        assert_eq!(first, long);
        assert_eq!(second, b"second");
        assert!(port.is_empty());
    }

    #[test]
    fn draining_leaves_the_port_in_step() {
        let mut port = Vec::new();
        send(&mut port, b"nobody reads this to its end");
        send(&mut port, b"but this");

        let mut port = port.as_slice();
        let mut first = Receiver::new(&mut port);
        let mut some = [0; 6];
        first.read_exact(&mut some).unwrap();
        assert_eq!(&some, b"nobody");
        first.drain().unwrap();
        let mut second = Vec::new();
        Receiver::new(&mut port).read_to_end(&mut second).unwrap();
        assert_eq!(second, b"but this");
    }

    #[test]
    fn the_end_of_a_connection_stays_the_end() {
        let mut port = Vec::new();
        send(&mut port, b"");
        send(&mut port, b"next");
        let mut port = port.as_slice();
        let mut first = Receiver::new(&mut port);
        assert_eq!(first.read(&mut [0; 4]).unwrap(), 0);
        assert_eq!(first.read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        let error = Receiver::new([0xff; 8].as_slice()).read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_port_that_breaks_inside_a_chunk_is_an_error() {
        let error = Receiver::new([9, 0, 0, 0, 1].as_slice()).drain().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
