//! What the driver may ask of a disk (virtio 1.3 §5.2.6).

use cabana_virtio::{Chain, Reader, Writer};

use crate::disk::{Disk, DiskError, SECTOR};
use crate::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_TRANSFER, MAX_ZERO_SECTORS};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`: the range may become a hole.
const UNMAP: u32 = 1;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE_BYTES: usize = 16;

/// Why a request was not done.
enum Failure {
    /// An unknown request or flag.
    Unsupported,
    /// A request that is not whole, or not on the disk.
    Invalid,
    /// The host.
    Disk(DiskError),
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Answers one request; returns the bytes written into its buffer, from its start.
pub(crate) fn serve(disk: &Disk, on_error: &dyn Fn(&DiskError), chain: &Chain) -> u32 {
    let mut status = chain.writer();
    // The last byte is the status; without one there is no way to answer.
    let Some(room) = status.left().checked_sub(1) else { return 0 };
    let Some(mut data) = status.split(room) else { return 0 };
    let answer = match request(disk, &mut chain.reader(), &mut data) {
        Ok(()) => STATUS_OK,
        Err(Failure::Unsupported) => STATUS_UNSUPPORTED,
        Err(Failure::Invalid) => STATUS_IO_ERROR,
        Err(Failure::Disk(error)) => {
            on_error(&error);
            STATUS_IO_ERROR
        }
    };
    let _never_short = status.write_all(&[answer]);
    let whole = data.written() as usize == room;
    data.written() + if whole { status.written() } else { 0 }
}

fn request(disk: &Disk, request: &mut Reader<'_>, data: &mut Writer<'_>) -> Result<(), Failure> {
    let kind: u32 = number(request)?;
    let _priority: u32 = number(request)?;
    let sector = u64::from(number(request)?) | u64::from(number(request)?) << 32;
    match kind {
        IN => {
            let len = data.left();
            let offset = locate_transfer(disk, sector, len)?;
            disk.read(&mut data.pieces(len).map_err(|_| Failure::Invalid)?, offset)?;
            data.advance(len as u32);
        }
        OUT | DISCARD | WRITE_ZEROES if disk.read_only => return Err(Failure::Invalid),
        OUT => {
            let len = request.left();
            let offset = locate_transfer(disk, sector, len)?;
            disk.write(&mut request.pieces(len).map_err(|_| Failure::Invalid)?, offset)?;
        }
        FLUSH => disk.flush()?,
        GET_ID => data.write_all(&disk.id).map_err(|_| Failure::Invalid)?,
        DISCARD => {
            let ranges = ranges(disk, request, MAX_DISCARD_SEGMENTS, MAX_DISCARD_SECTORS, 0)?;
            for range in ranges {
                disk.discard(range.offset, range.len)?;
            }
        }
        WRITE_ZEROES => {
            for range in ranges(disk, request, 1, MAX_ZERO_SECTORS, UNMAP)? {
                disk.zero(range.offset, range.len, range.flags & UNMAP != 0)?;
            }
        }
        _ => return Err(Failure::Unsupported),
    }
    Ok(())
}

fn number(request: &mut Reader<'_>) -> Result<u32, Failure> {
    request.read().map(u32::from_le).map_err(|_| Failure::Invalid)
}

fn locate_transfer(disk: &Disk, sector: u64, len: usize) -> Result<u64, Failure> {
    if len > MAX_TRANSFER {
        return Err(Failure::Invalid);
    }
    disk.locate(sector, len as u64).ok_or(Failure::Invalid)
}

/// A range to discard or to zero, in bytes.
struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}

/// Reads the ranges of a request and checks them all before anything is done.
fn ranges(
    disk: &Disk,
    request: &mut Reader<'_>,
    max_ranges: u32,
    max_sectors: u32,
    known_flags: u32,
) -> Result<Vec<Range>, Failure> {
    let count = request.left() / RANGE_BYTES;
    if !request.left().is_multiple_of(RANGE_BYTES) || count == 0 || count > max_ranges as usize {
        return Err(Failure::Invalid);
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let sector = u64::from(number(request)?) | u64::from(number(request)?) << 32;
        let (sectors, flags) = (number(request)?, number(request)?);
        if flags & !known_flags != 0 {
            return Err(Failure::Unsupported);
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = disk.locate(sector, len).filter(|_| sectors <= max_sectors);
        ranges.push(Range { offset: offset.ok_or(Failure::Invalid)?, len, flags });
    }
    Ok(ranges)
}
