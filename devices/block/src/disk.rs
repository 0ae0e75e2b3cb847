//! A disk image: a raw file, as sparse as what was never written or was discarded.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use cabana_os::file::{self, IoPiece};

use crate::overlay::{BLOCK, Base};

/// Bytes of a sector, the unit of every address (virtio 1.3 §5.2.4).
pub(crate) const SECTOR: u64 = 512;
/// Bytes of the longest identification string (virtio 1.3 §5.2.6.1).
pub(crate) const ID_BYTES: usize = 20;

/// What is written where a host's file system cannot zero by itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Why a disk image cannot be used; one sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened, locked, or asked for its length.
    #[error("cannot open the disk {path}: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A folder, a device, a pipe.
    #[error("the disk {0} is not a file")]
    NotAFile(PathBuf),
    /// Not a whole number of sectors, or none.
    #[error(
        "the disk {path} has {len} bytes, which is not a positive multiple of 512; is it a raw disk image?"
    )]
    Length {
        /// The image.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// Another machine has it.
    #[error("the disk {0} is in use by another process; stop that one, or open both read-only")]
    InUse(PathBuf),
    /// There can be no file for what the machine changes.
    #[error("cannot make a disk in {dir}: {source}")]
    Make {
        /// The folder for it.
        dir: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// What the host could not do for a request of the guest's. The guest sees an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {len} bytes at {offset} of the disk {disk}: {source}")]
pub struct DiskError {
    /// The image.
    pub disk: PathBuf,
    /// What was to be done.
    pub operation: Operation,
    /// From which byte.
    pub offset: u64,
    /// How many bytes; 0 for all.
    pub len: u64,
    /// What the host said.
    pub source: io::Error,
}

impl DiskError {
    /// Is it that the host's disk is full, or its quota used up?
    pub fn host_is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// An operation on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making what was written last.
    Flush,
    /// Giving space back.
    Discard,
    /// Writing zeroes.
    Zero,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Zero => "zero",
        })
    }
}

/// An open disk image.
#[derive(Debug)]
pub struct Disk {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) sectors: u64,
    pub(crate) read_only: bool,
    /// The image outlives the machine, so flushes matter.
    pub(crate) durable: bool,
    /// The guest may ask for flushes.
    pub(crate) offers_flush: bool,
    /// What the disk began as, where its file has only what has changed since.
    pub(crate) base: Option<Base>,
    pub(crate) id: [u8; ID_BYTES],
}

impl Disk {
    /// Opens the image at `path` for this machine alone.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = open_file(path, true)?;
        Self::new(file, path, false)
    }

    /// Opens the image at `path` for reading, together with others that only read.
    pub fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        let file = open_file(path, false)?;
        Self::new(file, path, true)
    }

    /// A disk that begins as `template`, which stays as it is; what changes goes into a file without a name in `dir`. It
    /// vanishes with the machine, however that ends.
    pub fn scratch(template: &Path, dir: &Path) -> Result<Self, OpenError> {
        let base = open_file(template, false)?;
        let sizes = base.metadata().and_then(|found| Ok((found.len(), file::allocated(&base)?)));
        let (len, used) =
            sizes.map_err(|source| OpenError::Io { path: template.to_owned(), source })?;
        let disk = Self::beginning_as(Base::new(base, 0, len), len, template, dir)?;
        // Said now, not by the first write that fails: who has no room for this much has none for a file system's changes.
        match file::room(&disk.file) {
            Ok(room) if room < used => {
                let source = io::Error::new(io::ErrorKind::StorageFull, "No space left on device");
                Err(OpenError::Make { dir: dir.to_owned(), source })
            }
            _ => Ok(disk),
        }
    }

    /// A disk of `len` bytes that begins as the bytes of `base` from `start` on, which stay as they are;
    /// what changes goes into a file without a name in `dir`. It vanishes with the machine.
    pub fn overlay(base: File, start: u64, len: u64, dir: &Path) -> Result<Self, OpenError> {
        let base = Base::new(base, start, len);
        Self::beginning_as(base, len, &dir.join("(disk of a snapshot)"), dir)
    }

    fn beginning_as(base: Base, len: u64, path: &Path, dir: &Path) -> Result<Self, OpenError> {
        let own = file::unnamed(dir).and_then(|own| {
            own.set_len(len)?;
            Ok(own)
        });
        let own = own.map_err(|source| OpenError::Make { dir: dir.to_owned(), source })?;
        let disk = Self::new(own, path, false)?;
        Ok(Self { base: Some(base), ..disk.vanishing() })
    }

    /// A disk that nobody keeps: what is flushed to it is lost with the machine, so it is not flushed.
    #[must_use]
    pub fn vanishing(self) -> Self {
        Self { durable: false, offers_flush: false, ..self }
    }

    /// Lets the guest ask for flushes, as it knows the disk; of one that nobody keeps they do nothing.
    #[must_use]
    pub fn offering_flush(self, offers_flush: bool) -> Self {
        Self { offers_flush, ..self }
    }

    /// May the guest ask for flushes?
    pub fn offers_flush(&self) -> bool {
        self.offers_flush
    }

    /// Writes all of the disk to `to` from `at` on, where there are only holes yet; its holes stay
    /// holes. Of a disk that no machine changes meanwhile.
    pub fn copy_to(&self, to: &File, at: u64) -> io::Result<()> {
        match &self.base {
            Some(base) => base.copy_to(&self.file, to, at),
            None => file::copy_sparse_range(&self.file, 0..self.len(), to, at),
        }
    }

    /// Sets the name by which the guest finds the disk (`/dev/disk/by-id`), cut to 20 bytes; at
    /// first it is the file's name.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = [0; ID_BYTES];
        for (to, from) in self.id.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        self
    }

    /// Bytes that the guest sees.
    pub fn len(&self) -> u64 {
        self.sectors * SECTOR
    }

    /// Never: an image without sectors is refused.
    pub fn is_empty(&self) -> bool {
        self.sectors == 0
    }

    fn new(file: File, path: &Path, read_only: bool) -> Result<Self, OpenError> {
        let path = path.to_owned();
        let len = match file.metadata() {
            Ok(metadata) => metadata.len(),
            Err(source) => return Err(OpenError::Io { path, source }),
        };
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(OpenError::Length { path, len });
        }
        let locked = if read_only { file::try_lock_shared(&file) } else { file::try_lock(&file) };
        match locked {
            Ok(true) => {}
            Ok(false) => return Err(OpenError::InUse(path)),
            Err(source) => return Err(OpenError::Io { path, source }),
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sectors = len / SECTOR;
        let disk = Self {
            file,
            path,
            sectors,
            read_only,
            durable: true,
            offers_flush: !read_only,
            base: None,
            id: [0; ID_BYTES],
        };
        Ok(disk.with_id(&name))
    }

    /// Where `bytes` bytes from `sector` begin in the file; `None` if they are not whole sectors or
    /// not all on the disk.
    pub(crate) fn locate(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes / SECTOR)?;
        (bytes.is_multiple_of(SECTOR) && end <= self.sectors).then(|| sector * SECTOR)
    }

    /// Reads into guest memory.
    pub(crate) fn read(&self, pieces: &mut [IoPiece], offset: u64) -> Result<(), DiskError> {
        let Some(base) = &self.base else {
            return self.transfer(Operation::Read, pieces, offset);
        };
        let mut left = pieces;
        let len: u64 = left.iter().map(|piece| piece.len as u64).sum();
        for (run, own) in base.runs(offset..offset + len) {
            let count = (run.end - run.start) as usize;
            let mut now = first(left, count);
            if own {
                self.transfer(Operation::Read, &mut now, run.start)?;
            } else {
                self.transfer_from(Some(base), Operation::Read, &mut now, run.start)?;
            }
            left = skip(left, count);
        }
        Ok(())
    }

    /// Writes from guest memory.
    pub(crate) fn write(&self, pieces: &mut [IoPiece], offset: u64) -> Result<(), DiskError> {
        let len = pieces.iter().map(|piece| piece.len as u64).sum();
        self.own(Operation::Write, offset, len)?;
        self.transfer(Operation::Write, pieces, offset)
    }

    /// Makes a range this disk's own that is about to be written.
    fn own(&self, operation: Operation, offset: u64, len: u64) -> Result<(), DiskError> {
        let Some(base) = &self.base else { return Ok(()) };
        let range = offset..offset + len;
        base.bring_ends(&self.file, &range)
            .map_err(|error| self.fail(operation, offset, len, error))?;
        base.mark(range);
        Ok(())
    }

    /// Waits until what was written is on the host's disk.
    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        if self.read_only || !self.durable {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| self.fail(Operation::Flush, 0, 0, error))
    }

    /// Gives space back to the host where it can take it.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let mut range = offset..offset + len;
        if self.base.is_some() {
            // A part of a block says nothing of the rest of it.
            range = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
        }
        if !range.is_empty() {
            let (offset, len) = (range.start, range.end - range.start);
            self.own(Operation::Discard, offset, len)?;
            file::punch_hole(&self.file, offset, len)
                .map_err(|error| self.fail(Operation::Discard, offset, len, error))?;
        }
        Ok(())
    }

    /// Makes a range read as zeroes; with `unmap` it may become a hole.
    pub(crate) fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        if len == 0 {
            return Ok(());
        }
        self.own(Operation::Zero, offset, len)?;
        let fail = |error| self.fail(Operation::Zero, offset, len, error);
        let done = unmap && file::punch_hole(&self.file, offset, len).map_err(fail)?;
        if done || file::zero_range(&self.file, offset, len).map_err(fail)? {
            return Ok(());
        }
        // A host file system with neither: the zeroes are written, all out of one block.
        let mut pieces = Vec::new();
        let mut left = len as usize;
        while left > 0 {
            let len = left.min(ZEROES.len());
            pieces.push(IoPiece { addr: ZEROES.as_ptr().cast_mut(), len });
            left -= len;
        }
        self.transfer(Operation::Zero, &mut pieces, offset)
    }

    /// Moves all pieces; the host may do it in several steps.
    fn transfer(
        &self,
        operation: Operation,
        pieces: &mut [IoPiece],
        offset: u64,
    ) -> Result<(), DiskError> {
        self.transfer_from(None, operation, pieces, offset)
    }

    /// As [`Disk::transfer`], of the disk's own file or of what it began as.
    fn transfer_from(
        &self,
        base: Option<&Base>,
        operation: Operation,
        pieces: &mut [IoPiece],
        offset: u64,
    ) -> Result<(), DiskError> {
        let len = pieces.iter().map(|piece| piece.len as u64).sum();
        let mut left = pieces;
        let mut at = offset;
        while !left.is_empty() {
            // SAFETY: the pieces are guest memory, which lives as long as the chain that they come
            // from, and to which Rust has no references; or zeroes, which are only read.
            let result = unsafe {
                match (operation, base) {
                    (Operation::Read, Some(base)) => base.read(left, at),
                    (Operation::Read, None) => file::read_pieces_at(&self.file, left, at),
                    _ => file::write_pieces_at(&self.file, left, at),
                }
            };
            match result {
                Ok(0) => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return Err(self.fail(operation, offset, len, error));
                }
                Ok(count) => {
                    at += count as u64;
                    left = skip(left, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(operation, offset, len, error)),
            }
        }
        Ok(())
    }

    fn fail(&self, operation: Operation, offset: u64, len: u64, source: io::Error) -> DiskError {
        DiskError { disk: self.path.clone(), operation, offset, len, source }
    }
}

/// The first `count` bytes of `pieces`.
fn first(pieces: &[IoPiece], mut count: usize) -> Vec<IoPiece> {
    let mut taken = Vec::new();
    for piece in pieces {
        if count == 0 {
            break;
        }
        let len = piece.len.min(count);
        taken.push(IoPiece { addr: piece.addr, len });
        count -= len;
    }
    taken
}

/// What is left of `pieces` behind the first `count` bytes.
fn skip(pieces: &mut [IoPiece], mut count: usize) -> &mut [IoPiece] {
    let mut done = 0;
    while let Some(len) = pieces.get(done).map(|piece| piece.len).filter(|len| *len <= count) {
        count -= len;
        done += 1;
    }
    let left = &mut pieces[done..];
    if let Some(first) = left.first_mut() {
        first.addr = first.addr.wrapping_add(count);
        first.len -= count;
    }
    left
}

fn open_file(path: &Path, write: bool) -> Result<File, OpenError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    // Asked before it is opened: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(OpenError::NotAFile(path.to_owned()));
    }
    File::options().read(true).write(write).open(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use cabana_os::file::FileExt;

    fn raw(len: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        file
    }

    #[test]
    fn what_is_no_disk_is_said_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing");
        let (missing, why) = (Disk::open(&path).unwrap_err(), File::open(&path).unwrap_err());
        assert!(missing.to_string().contains(&format!("missing: {why}")), "{missing}");
        assert!(matches!(Disk::open(dir.path()), Err(OpenError::NotAFile(_))));
        let null = Path::new("/dev/null");
        if null.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            assert!(matches!(Disk::open(null), Err(OpenError::NotAFile(_))));
        }
        for len in [0, 511, 1025] {
            let error = Disk::open(raw(len).path()).unwrap_err();
            assert!(error.to_string().contains(&format!("has {len} bytes")), "{error}");
        }
        assert_eq!(Disk::open(raw(1024).path()).unwrap().len(), 1024);
    }

    #[test]
    fn one_machine_writes_or_several_read() {
        let file = raw(512);
        let writer = Disk::open(file.path()).unwrap();
        assert!(matches!(Disk::open(file.path()), Err(OpenError::InUse(_))));
        assert!(matches!(Disk::open_read_only(file.path()), Err(OpenError::InUse(_))));
        drop(writer);
        let _readers = [(); 2].map(|()| Disk::open_read_only(file.path()).unwrap());
        assert!(matches!(Disk::open(file.path()), Err(OpenError::InUse(_))));
    }

    #[test]
    fn a_scratch_disk_begins_as_its_template_and_leaves_no_name() {
        let mut template = raw(8 << 20);
        template.write_all(b"template").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::scratch(template.path(), dir.path()).unwrap();
        assert_eq!(disk.len(), 8 << 20);
        let mut bytes = [7; 4096];
        let mut piece = || [IoPiece { addr: bytes.as_mut_ptr(), len: 4096 }];
        disk.write(&mut piece(), 4096).unwrap();
        disk.read(&mut piece(), 0).unwrap();
        assert!(bytes.starts_with(b"template\0"));
        disk.read(&mut [IoPiece { addr: bytes.as_mut_ptr(), len: 4096 }], 4096).unwrap();
        assert_eq!(bytes, [7; 4096]);
        let kept = std::fs::read(template.path()).unwrap();
        assert!(kept.starts_with(b"template") && kept[8..].iter().all(|byte| *byte == 0));
        disk.file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 4096], "the template was copied");
        // Two machines may start from one template at once.
        Disk::scratch(template.path(), dir.path()).unwrap();
        let nowhere = Disk::scratch(template.path(), &dir.path().join("nowhere"));
        assert!(matches!(nowhere, Err(OpenError::Make { .. })));
        drop(disk);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn addresses_are_checked_without_overflow() {
        let file = raw(4096);
        let disk = Disk::open(file.path()).unwrap();
        assert_eq!(disk.locate(0, 4096), Some(0));
        assert_eq!(disk.locate(7, 512), Some(3584));
        assert_eq!(disk.locate(8, 0), Some(4096));
        for (sector, bytes) in [
            (0, 4608),
            (8, 512),
            (0, 100),
            (9, 0),
            (u64::MAX, 512),
            (u64::MAX, 0),
            (u64::MAX / 512, 512),
            (1, u64::MAX - 511),
        ] {
            assert_eq!(disk.locate(sector, bytes), None, "{sector} {bytes}");
        }
    }

    /// tmpfs punches holes but has no other way to zero a range.
    #[test]
    fn zeroes_are_written_where_the_host_cannot_do_better() {
        let Ok(mut file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
            eprintln!("skipped: this host has no tmpfs at /dev/shm");
            return;
        };
        file.write_all(&vec![9; 1 << 20]).unwrap();
        let disk = Disk::open(file.path()).unwrap();
        assert!(!file::zero_range(&disk.file, 0, 512).unwrap(), "the host can do better");
        disk.zero(512, 200 << 10, false).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        let expected =
            [vec![9; 512], vec![0; 200 << 10], vec![9; (1 << 20) - 512 - (200 << 10)]].concat();
        assert!(bytes == expected);
    }

    #[test]
    fn a_transfer_goes_on_in_the_middle_of_a_piece() {
        let base = 0x1000 as *mut u8;
        let mut pieces = [3, 4, 5].map(|len| IoPiece { addr: base.wrapping_add(100 * len), len });
        let left = skip(&mut pieces, 5);
        assert_eq!((left.len(), left[0].len, left[0].addr), (2, 2, base.wrapping_add(402)));
        let left = skip(left, 2);
        assert_eq!((left.len(), left[0].len), (1, 5));
        assert!(skip(left, 5).is_empty());
    }
}
