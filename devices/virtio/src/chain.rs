//! One buffer of a queue: what the driver wrote for the device, then room for the answer
//! (virtio 1.3 §2.7.4). Readers and writers hide where it is cut into pieces.

use cabana_memory::{ByteValued, GuestAddress, GuestRam, MemoryError};
use cabana_os::file::IoPiece;
use smallvec::SmallVec;

use crate::QueueError;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// `struct virtq_desc`, parsed.
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    pub(crate) fn parse(bytes: &[u8; 16]) -> Self {
        let word = u128::from_le_bytes(*bytes);
        Self {
            addr: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        }
    }

    pub(crate) fn has_next(&self) -> bool {
        self.flags & NEXT != 0
    }

    pub(crate) fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    addr: GuestAddress,
    len: u32,
}

/// The pieces of a buffer; most have few, and then nothing is allocated.
pub type Pieces = SmallVec<[IoPiece; 4]>;

/// A buffer taken from a queue, to be pushed back with [`crate::Queue::push`].
#[derive(Debug)]
pub struct Chain {
    ram: GuestRam,
    head: u16,
    readable: SmallVec<[Segment; 4]>,
    writable: SmallVec<[Segment; 4]>,
    /// Bytes in both, at most `u32::MAX`.
    total: u32,
}

impl Chain {
    pub(crate) fn new(ram: GuestRam, head: u16) -> Self {
        Self { ram, head, readable: SmallVec::new(), writable: SmallVec::new(), total: 0 }
    }

    /// Becomes a buffer without pieces again.
    pub(crate) fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.total = 0;
    }

    /// Takes one more descriptor; it must lie in RAM.
    pub(crate) fn add(&mut self, descriptor: &Descriptor) -> Result<(), QueueError> {
        let segment = Segment { addr: GuestAddress(descriptor.addr), len: descriptor.len };
        self.total = self.total.checked_add(descriptor.len).ok_or(QueueError::TooLong)?;
        if descriptor.len > 0 {
            self.ram.piece(segment.addr, segment.len as usize)?;
        }
        if descriptor.flags & WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(QueueError::Order);
        }
        Ok(())
    }

    /// The number by which the driver knows the buffer.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Reads what the driver wrote, from the start.
    pub fn reader(&self) -> Reader<'_> {
        Reader { cursor: Cursor::new(&self.ram, &self.readable) }
    }

    /// The memory that the buffer lies in.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Guest-physical start and length in bytes of each piece that the driver lends for writing: for a
    /// device that is told of memory and not of bytes in it.
    pub fn writable(&self) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.writable.iter().map(|segment| (segment.addr, segment.len as usize))
    }

    /// Writes the answer, from the start.
    pub fn writer(&self) -> Writer<'_> {
        Writer { cursor: Cursor::new(&self.ram, &self.writable), written: 0 }
    }
}

/// Walks over segments as if they were one.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    ram: &'a GuestRam,
    segments: &'a [Segment],
    /// Bytes of the first segment that are done.
    done: u32,
    left: usize,
}

impl<'a> Cursor<'a> {
    fn new(ram: &'a GuestRam, segments: &'a [Segment]) -> Self {
        let left = segments.iter().map(|segment| segment.len as usize).sum();
        Self { ram, segments, done: 0, left }
    }

    /// The next contiguous piece of at most `max` bytes, stepped over.
    fn step(&mut self, max: usize) -> Option<(GuestAddress, usize)> {
        while let Some((segment, rest)) = self.segments.split_first() {
            let len = ((segment.len - self.done) as usize).min(max);
            if len == 0 && self.done < segment.len {
                return None;
            }
            let at = GuestAddress(segment.addr.0 + u64::from(self.done));
            self.done += len as u32;
            self.left -= len;
            if self.done == segment.len {
                self.segments = rest;
                self.done = 0;
            }
            if len > 0 {
                return Some((at, len));
            }
        }
        None
    }

    /// The memory behind the next `len` bytes, stepped over.
    fn pieces(&mut self, len: usize) -> Result<Pieces, MemoryError> {
        let mut len = len.min(self.left);
        let mut pieces = Pieces::with_capacity(self.segments.len());
        while len > 0 {
            let Some((at, count)) = self.step(len) else { break };
            pieces.push(self.ram.piece(at, count)?);
            len -= count;
        }
        Ok(pieces)
    }
}

/// The driver's part of a buffer.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    cursor: Cursor<'a>,
}

impl Reader<'_> {
    /// Bytes left.
    pub fn left(&self) -> usize {
        self.cursor.left
    }

    /// Fills `bytes`, or fails if fewer are left.
    pub fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), MemoryError> {
        if self.left() < bytes.len() {
            return Err(too_short(bytes.len()));
        }
        let mut rest = bytes;
        while let Some((at, count)) = self.cursor.step(rest.len()) {
            let (now, later) = rest.split_at_mut(count);
            self.cursor.ram.read_bytes(at, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Reads a plain structure.
    pub fn read<T: ByteValued>(&mut self) -> Result<T, MemoryError> {
        let mut value = T::zeroed();
        self.read_exact(value.as_mut_slice())?;
        Ok(value)
    }

    /// The memory behind the next `len` bytes (fewer at the end), for vectored file I/O.
    pub fn pieces(&mut self, len: usize) -> Result<Pieces, MemoryError> {
        self.cursor.pieces(len)
    }
}

/// The device's part of a buffer.
#[derive(Clone, Debug)]
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    written: u32,
}

impl<'a> Writer<'a> {
    /// Bytes left.
    pub fn left(&self) -> usize {
        self.cursor.left
    }

    /// Bytes written so far: what [`crate::Queue::push`] wants to know.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Writes all of `bytes`, or fails if there is no room.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), MemoryError> {
        if self.left() < bytes.len() {
            return Err(too_short(bytes.len()));
        }
        let mut rest = bytes;
        while let Some((at, count)) = self.cursor.step(rest.len()) {
            let (now, later) = rest.split_at(count);
            self.cursor.ram.write_bytes(at, now)?;
            rest = later;
        }
        self.written += bytes.len() as u32;
        Ok(())
    }

    /// Writes a plain structure.
    pub fn write<T: ByteValued>(&mut self, value: &T) -> Result<(), MemoryError> {
        self.write_all(value.as_slice())
    }

    /// The memory behind the next `len` bytes (fewer at the end), for vectored file I/O. They count
    /// as written only through [`Writer::advance`].
    pub fn pieces(&mut self, len: usize) -> Result<Pieces, MemoryError> {
        self.cursor.pieces(len)
    }

    /// Counts `len` bytes that went into [`Writer::pieces`] as written.
    pub fn advance(&mut self, len: u32) {
        self.written += len;
    }

    /// Cuts the first `len` bytes off as a writer of their own; `self` goes on behind them. For
    /// headers that are known only after the data. `None` if there is no such room.
    pub fn split(&mut self, len: usize) -> Option<Writer<'a>> {
        if self.left() < len {
            return None;
        }
        let mut first = Writer { cursor: self.cursor.clone(), written: 0 };
        first.cursor.left = len;
        let mut skip = len;
        while skip > 0 {
            let (_, count) = self.cursor.step(skip)?;
            skip -= count;
        }
        Some(first)
    }
}

fn too_short(len: usize) -> MemoryError {
    MemoryError::OutOfRange { addr: 0, len }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Setup, TestDriver, bare_queue};
    use crate::{Queue, QueueContext};

    fn queue() -> (TestDriver, Queue) {
        let (driver, QueueContext { queue, .. }) = bare_queue(16, Setup::default());
        (driver, queue)
    }

    #[test]
    fn a_reader_joins_the_pieces_and_stops_at_the_end() {
        let (mut driver, mut queue) = queue();
        driver.submit(0, &[&[1], &[2, 0, 3], &[0, 0, 0, 9]], &[]);
        let chain = queue.pop().unwrap().unwrap();
        let mut reader = chain.reader();
        assert_eq!(reader.read::<u8>().unwrap(), 1);
        let again = reader.clone();
        assert_eq!(reader.read::<u16>().unwrap().to_le(), 2);
        assert_eq!(reader.read::<u32>().unwrap().to_le(), 3);
        assert_eq!((reader.left(), again.left()), (1, 7));
        assert!(reader.read::<u16>().is_err());
        assert_eq!(reader.read::<u8>().unwrap(), 9, "a failed read takes nothing");
        assert!(reader.read::<u8>().is_err());
        assert!(chain.writer().write_all(&[0]).is_err());
    }

    #[test]
    fn a_header_is_written_after_the_data() {
        let (mut driver, mut queue) = queue();
        driver.submit(0, &[], &[3, 2, 4]);
        let chain = queue.pop().unwrap().unwrap();
        let mut data = chain.writer();
        assert!(chain.writer().split(10).is_none());
        let mut header = data.split(4).unwrap();
        assert_eq!((header.left(), data.left()), (4, 5));
        data.write_all(b"data").unwrap();
        assert!(header.write_all(b"heads").is_err());
        header.write_all(b"head").unwrap();
        assert!(header.write_all(b"s").is_err(), "a part ends where it was cut");
        queue.push(&chain, header.written() + data.written()).unwrap();
        assert_eq!(driver.poll(0).unwrap().written, b"headdata");
    }

    #[test]
    fn pieces_follow_the_segments_and_the_length_asked_for() {
        let (mut driver, mut queue) = queue();
        driver.submit(0, &[b"ab", b"cdef"], &[5, 5]);
        let chain = queue.pop().unwrap().unwrap();
        let mut reader = chain.reader();
        reader.read::<u8>().unwrap();
        let lens: Vec<usize> = reader.pieces(3).unwrap().iter().map(|piece| piece.len).collect();
        assert_eq!((lens, reader.left()), (vec![1, 2], 2));
        let rest = reader.pieces(100).unwrap();
        assert_eq!((rest.len(), rest[0].len, reader.left()), (1, 2, 0));
        assert!(reader.pieces(1).unwrap().is_empty());
        let mut writer = chain.writer();
        assert!(writer.pieces(0).unwrap().is_empty());
        let room: usize = writer.pieces(7).unwrap().iter().map(|piece| piece.len).sum();
        assert_eq!((room, writer.left(), writer.written()), (7, 3, 0));
        writer.advance(7);
        writer.write_all(b"end").unwrap();
        assert_eq!(writer.written(), 10);
    }

    #[test]
    fn empty_descriptors_are_stepped_over() {
        let (mut driver, mut queue) = queue();
        driver.submit(0, &[b"", b"a", b"", b"b", b""], &[0, 1, 0]);
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!(chain.reader().read::<[u8; 2]>().unwrap(), *b"ab");
        chain.writer().write_all(b"c").unwrap();
        assert_eq!(chain.reader().pieces(2).unwrap().len(), 2);
    }
}
