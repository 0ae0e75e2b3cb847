//! virtio-pmem (virtio 1.3 §5.19): an image file as guest memory. With DAX the guest uses the host's
//! page cache in place: all machines share one copy, and no guest RAM holds another.
//!
//! The image is read-only. The machine maps [`Image::host`] as a read-only slot; and should a
//! hypervisor let the guest write all the same, what it writes is private to this machine.

mod state;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cabana_bus::{Persist, SavedState, StateError};
use cabana_os::{LoopHandle, Mapping};
use cabana_virtio::{
    Chain, Identity, QueueContext, QueueState, ServedQueue, StartError, VirtioDevice,
};

pub use state::PmemState;

/// The guest range is a multiple of this: what Linux can give page structures to, and huge pages.
pub const ALIGNMENT: u64 = 2 << 20;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`.
const REQUEST_FLUSH: u32 = 0;
/// The answer to a flush that succeeded, and to one that did not.
const SUCCESS: u32 = 0;
const FAILURE: u32 = u32::MAX;

/// Why an image cannot be used; one sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened, mapped or asked for its length.
    #[error("cannot use the image {path}: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A folder or a device.
    #[error("the image {0} is not a file")]
    NotAFile(PathBuf),
    /// Nothing in it.
    #[error("the image {0} is empty; it was probably not written to the end")]
    Empty(PathBuf),
}

/// An image file, mapped, and padded with zeroes to [`ALIGNMENT`].
///
/// The file must keep its length while it is mapped; who replaces an image writes a new file and
/// renames it.
#[derive(Debug)]
pub struct Image {
    mapping: Mapping,
}

impl Image {
    /// Maps the file at `path`. Nothing is read before the guest asks for it.
    pub fn open(path: &Path) -> Result<Arc<Self>, ImageError> {
        let failed = |source| ImageError::Io { path: path.to_owned(), source };
        // Asked before it is opened: opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(ImageError::NotAFile(path.to_owned()));
        }
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.len() == 0 {
            return Err(ImageError::Empty(path.to_owned()));
        }
        let len = usize::try_from(metadata.len())
            .ok()
            .and_then(|len| Some((len, len.checked_next_multiple_of(ALIGNMENT as usize)?)));
        let (len, padded) = len.ok_or_else(|| failed(io::ErrorKind::FileTooLarge.into()))?;
        let mapping = Mapping::anonymous(padded).map_err(failed)?;
        // The system rounds up to whole pages, whose rest reads as zeroes.
        mapping.overlay_file(0..len, &file, 0).map_err(failed)?;
        Ok(Arc::new(Self { mapping }))
    }

    /// The first byte in this process, aligned to 2 MiB.
    pub fn host(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Begins to read `len` bytes at `start`, and does not wait for them.
    pub fn will_need(&self, start: usize, len: usize) {
        let _ = self.mapping.will_need(start..start.saturating_add(len));
    }

    /// Puts `len` bytes at `start`, multiples of 2 MiB, into pages of that size. False where the host cannot.
    pub fn enlarge(&self, start: usize, len: usize) -> bool {
        self.mapping.enlarge(start..start.saturating_add(len)).is_ok()
    }

    /// Lets pages of `len` bytes at `start` come in without their neighbours, so that the host can tell which were touched.
    pub fn bring_in_singly(&self, start: usize, len: usize) {
        let _ = self.mapping.bring_in_singly(start..start.saturating_add(len));
    }

    /// Ends what [`Image::bring_in_singly`] began.
    pub fn bring_in_together(&self) {
        let _ = self.mapping.bring_in_together(0..self.mapping.len());
    }

    /// Length in bytes, a multiple of [`ALIGNMENT`].
    #[allow(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }
}

/// The device.
#[derive(Debug)]
pub struct Pmem {
    image: Arc<Image>,
    guest: u64,
    events: LoopHandle,
    queue: Option<ServedQueue>,
}

impl Pmem {
    /// Announces `image`, which the machine maps at the guest-physical address `guest` (a multiple
    /// of [`ALIGNMENT`]) and unmaps before the device is dropped.
    pub fn new(image: Arc<Image>, guest: u64, events: LoopHandle) -> Self {
        Self { image, guest, events, queue: None }
    }
}

impl VirtioDevice for Pmem {
    fn identity(&self) -> Identity {
        Identity { device_type: 27, features: 0, queue_sizes: vec![64], config_len: 16 }
    }

    /// `struct virtio_pmem_config`: start and size.
    fn read_config(&self, config: &mut [u8]) {
        config[..8].copy_from_slice(&self.guest.to_le_bytes());
        config[8..].copy_from_slice(&(self.image.len() as u64).to_le_bytes());
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        if index != 0 {
            return Err(StartError::NoSuchQueue(index));
        }
        self.queue = Some(ServedQueue::start(&self.events, context, flush)?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(ServedQueue::stop)
    }

    fn save(&self) -> SavedState {
        SavedState::of(self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.into_part(self)
    }
}

impl Persist for Pmem {
    const VERSION: u16 = 1;
    type State = PmemState;

    fn save(&self) -> PmemState {
        PmemState { guest: self.guest, len: self.image.len() as u64 }
    }

    fn restore(&self, state: PmemState) -> Result<(), StateError> {
        StateError::unless_same("the root image's place and length", &state, &Persist::save(self))
    }
}

/// Answers a flush: nothing was written, so nothing is left to flush.
fn flush(chain: &Chain) -> u32 {
    let answer = match chain.reader().read::<u32>().map(u32::from_le) {
        Ok(REQUEST_FLUSH) => SUCCESS,
        _ => FAILURE,
    };
    let mut writer = chain.writer();
    let _no_room = writer.write_all(&answer.to_le_bytes());
    writer.written()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabana_os::EventLoop;
    use cabana_virtio::testing::TestDriver;
    use std::io::Write;

    fn image(bytes: &[u8]) -> (tempfile::NamedTempFile, Arc<Image>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let image = Image::open(file.path()).unwrap();
        (file, image)
    }

    #[allow(unsafe_code, reason = "the mapping is looked at as a guest would")]
    fn byte(image: &Image, at: usize) -> u8 {
        assert!(at < image.len());
        // SAFETY: within the mapping, which `image` keeps.
        unsafe { image.host().wrapping_add(at).read_volatile() }
    }

    #[test]
    fn the_image_lies_in_memory_and_zeroes_follow() {
        let (_file, image) = image(&[7; 5000]);
        assert_eq!(image.len() as u64, ALIGNMENT);
        assert_eq!(image.host() as u64 % ALIGNMENT, 0);
        let seen = [0, 4999, 5000, 8191, 8192, image.len() - 1].map(|at| byte(&image, at));
        assert_eq!(seen, [7, 7, 0, 0, 0, 0]);
    }

    #[test]
    fn an_image_of_exact_length_gets_no_padding() {
        let (_file, image) = image(&vec![1; ALIGNMENT as usize]);
        assert_eq!(image.len() as u64, ALIGNMENT);
        assert_eq!(byte(&image, image.len() - 1), 1);
    }

    #[test]
    fn a_stray_write_does_not_reach_the_file() {
        let (file, image) = image(b"base");
        #[allow(unsafe_code, reason = "as a hypervisor without read-only memory would")]
        // SAFETY: within the mapping, which `image` keeps.
        unsafe {
            image.host().write_volatile(b'X');
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), b"base");
    }

    #[test]
    fn what_is_no_image_is_said_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing");
        let (missing, why) = (Image::open(&path).unwrap_err(), File::open(&path).unwrap_err());
        assert!(missing.to_string().ends_with(&format!("missing: {why}")), "{missing}");
        assert!(matches!(Image::open(dir.path()), Err(ImageError::NotAFile(_))));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Image::open(empty.path()), Err(ImageError::Empty(_))));
    }

    #[test]
    fn the_driver_finds_the_range_and_flushes_succeed() {
        let (_file, image) = image(b"x");
        let events = EventLoop::spawn("test").unwrap();
        let mut driver = TestDriver::new(Pmem::new(image, 0x1_4000_0000, events.handle()));
        assert_eq!(driver.config(0, 8), 0x1_4000_0000_u64.to_le_bytes());
        assert_eq!(driver.config(8, 8), ALIGNMENT.to_le_bytes());
        assert_eq!(driver.send(0, &[&[0; 4]], &[4]), [0; 4]);
        assert_eq!(driver.send(0, &[&[0, 0], &[0, 0]], &[1, 3]), [0; 4]);
    }

    #[test]
    fn a_snapshot_wants_its_image_in_its_place() {
        let (_file, image) = image(b"x");
        let events = EventLoop::spawn("test").unwrap();
        let pmem = |guest| Pmem::new(Arc::clone(&image), guest, events.handle());
        let mut driver = TestDriver::new(pmem(0x1_4000_0000));
        assert_eq!(driver.send(0, &[&[0; 4]], &[4]), [0; 4]);
        driver.move_to(pmem(0x1_4000_0000)).unwrap();
        assert_eq!(driver.send(0, &[&[0; 4]], &[4]), [0; 4]);
        assert!(driver.move_to(pmem(0x1_8000_0000)).unwrap_err().to_string().contains("image"));
    }

    #[test]
    fn bad_requests_fail_and_the_next_one_works() {
        let (_file, image) = image(b"x");
        let events = EventLoop::spawn("test").unwrap();
        let mut driver = TestDriver::new(Pmem::new(image, 0, events.handle()));
        assert_eq!(driver.send(0, &[&[1, 0, 0, 0]], &[4]), [0xff; 4], "an unknown request");
        assert_eq!(driver.send(0, &[&[0; 3]], &[4]), [0xff; 4], "a truncated request");
        assert_eq!(driver.send(0, &[], &[4]), [0xff; 4], "no request");
        assert_eq!(driver.send(0, &[&[0; 4]], &[3]), b"", "no room for the answer");
        assert_eq!(driver.send(0, &[&[0; 4]], &[4]), [0; 4]);
        assert!(!driver.needs_reset());
    }
}
