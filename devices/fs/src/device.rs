//! The virtio-fs device (virtio 1.3 §5.11): a queue for forgetting and one or more for requests.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use cabana_bus::{Persist, SavedState, StateError};
use cabana_memory::MemoryError;
use cabana_os::LoopHandle;
use cabana_os::file::{read_pieces_at, write_pieces_at};
use cabana_virtio::{
    Chain, Identity, QueueContext, QueueState, Reader, ServedQueue, StartError, VirtioDevice,
    Writer,
};
use zerocopy::IntoBytes;

use crate::message::{self, Reply, Request};
use crate::wire::{Errno, InHeader, OutHeader, Result, opcode};
use crate::{FileServer, FsState};

/// The device type.
const DEVICE_TYPE: u32 = 26;
/// What the guest mounts: `mount -t virtiofs cabana /mnt`.
pub const TAG: &str = "cabana";
/// Bytes of the tag in the configuration; `num_request_queues` follows.
const TAG_LEN: usize = 36;
/// Bytes of the configuration without the notification queue's, which Linux does not know.
const CONFIG_LEN: u32 = 40;
/// Entries of a queue of requests: one of 1 MiB in pages takes 256 and some.
const QUEUE_SIZE: u16 = 1024;
/// Entries of queue 0: each of its requests is small and has no answer.
const FORGET_SIZE: u16 = 64;
/// How long the guest's forgetting may wait for more of it. It keeps files that are deleted from being
/// freed, and the guest's unmounting from its end.
const FORGET_PAUSE: Duration = Duration::from_millis(2);

/// A request that has more bytes than this, its reply's room included, is left to its queue's loop, which copies
/// while the guest goes on.
const QUICK_BYTES: usize = 64 << 10;

/// The device. Queue 0 is for FORGET and the like; the others are for requests. What is quick is served
/// in the thread of the vCPU that asks, the rest of each queue by a loop of its own.
#[derive(Debug)]
pub struct FsDevice {
    server: Arc<FileServer>,
    loops: Vec<LoopHandle>,
    queues: Vec<Option<ServedQueue>>,
}

impl FsDevice {
    /// A device with a request queue for each of `loops`. Their threads do the file I/O, so they
    /// should serve nothing that is in a hurry.
    ///
    /// # Panics
    /// If there are no loops.
    pub fn new(server: Arc<FileServer>, loops: Vec<LoopHandle>) -> Self {
        assert!(!loops.is_empty(), "a virtio-fs device needs a loop");
        let queues = (0..=loops.len()).map(|_| None).collect();
        Self { server, loops, queues }
    }
}

impl VirtioDevice for FsDevice {
    fn identity(&self) -> Identity {
        let mut queue_sizes = vec![QUEUE_SIZE; self.queues.len()];
        queue_sizes[0] = FORGET_SIZE;
        Identity { device_type: DEVICE_TYPE, features: 0, queue_sizes, config_len: CONFIG_LEN }
    }

    fn serves_directly(&self, index: u16) -> bool {
        index != 0
    }

    fn read_config(&self, config: &mut [u8]) {
        let mut bytes = [0; CONFIG_LEN as usize];
        let (tag, count) = bytes.split_at_mut(TAG_LEN);
        tag[..TAG.len()].copy_from_slice(TAG.as_bytes());
        count.copy_from_slice(&(self.loops.len() as u32).to_le_bytes());
        config.copy_from_slice(&bytes);
    }

    fn start_queue(
        &mut self,
        index: u16,
        context: QueueContext,
    ) -> std::result::Result<(), StartError> {
        // Queue 0 shares the loop of the first request queue.
        let events = self.loops.get(usize::from(index).saturating_sub(1));
        let slot = self.queues.get_mut(usize::from(index));
        let (Some(events), Some(slot)) = (events, slot) else {
            return Err(StartError::NoSuchQueue(index));
        };
        let server = Arc::clone(&self.server);
        let serve = move |chain: &Chain| serve(&server, chain);
        *slot = Some(match index {
            0 => ServedQueue::start_lazy(events, context, FORGET_PAUSE, serve)?,
            _ => ServedQueue::start_direct(events, context, is_quick, serve)?,
        });
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.queues.get_mut(usize::from(index))?.take().map(ServedQueue::stop)
    }

    fn reset(&mut self) {
        self.server.reset();
    }

    fn save(&self) -> SavedState {
        SavedState::of(self)
    }

    fn restore(&mut self, state: &SavedState) -> std::result::Result<(), StateError> {
        state.into_part(self)
    }
}

impl Persist for FsDevice {
    const VERSION: u16 = 1;
    type State = FsState;

    fn save(&self) -> FsState {
        FsState { mounted: self.server.is_mounted() }
    }

    fn restore(&self, state: FsState) -> std::result::Result<(), StateError> {
        if state.mounted {
            let why = "the guest had shared folders mounted, which it has to let go of before";
            return Err(StateError::Differs(why.to_owned()));
        }
        Ok(())
    }
}

fn serve(server: &FileServer, chain: &Chain) -> u32 {
    let mut body = chain.writer();
    let header = body.split(size_of::<OutHeader>());
    server.handle(&mut ChainRequest(chain.reader()), ChainReply { header, body })
}

/// Small, and as a rule answered from what the host has in memory.
fn is_quick(chain: &Chain) -> bool {
    let mut request = ChainRequest(chain.reader());
    if request.left() + chain.writer().left() > QUICK_BYTES {
        return false;
    }
    let slow = [
        opcode::INIT,
        opcode::DESTROY,
        opcode::FSYNC,
        opcode::FSYNCDIR,
        opcode::SYNCFS,
        opcode::FALLOCATE,
        opcode::COPY_FILE_RANGE,
    ];
    message::read(&mut request).is_ok_and(|header: InHeader| !slow.contains(&header.opcode))
}

impl From<MemoryError> for Errno {
    fn from(_: MemoryError) -> Self {
        Self::EINVAL
    }
}

/// A request in guest memory.
struct ChainRequest<'a>(Reader<'a>);

impl Request for ChainRequest<'_> {
    fn left(&self) -> usize {
        self.0.left()
    }

    fn take(&mut self, bytes: &mut [u8]) -> Result<()> {
        Ok(self.0.read_exact(bytes)?)
    }

    fn write_file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let pieces = self.0.pieces(len)?;
        // SAFETY: the pieces are guest memory, which the chain keeps mapped; it has no references.
        Ok(unsafe { write_pieces_at(file, &pieces, offset) }?)
    }
}

/// A reply in guest memory.
struct ChainReply<'a> {
    /// `None` if there is no room for a header, and so for no reply at all.
    header: Option<Writer<'a>>,
    body: Writer<'a>,
}

impl Reply for ChainReply<'_> {
    fn room(&self) -> usize {
        if self.header.is_some() { self.body.left() } else { 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.body.write_all(bytes)?)
    }

    fn put_file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let pieces = self.body.pieces(len.min(self.room()))?;
        // SAFETY: the pieces are guest memory, which the chain keeps mapped; it has no references.
        let count = unsafe { read_pieces_at(file, &pieces, offset) }?;
        self.body.advance(count as u32);
        Ok(count)
    }

    fn finish(self, unique: u64, result: Result<()>) -> u32 {
        let Some(mut writer) = self.header else { return 0 };
        let header = message::header(unique, self.body.written(), result);
        match writer.write_all(header.as_bytes()) {
            Ok(()) => header.len,
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;
    use crate::{Limits, Share};
    use cabana_os::EventLoop;
    use cabana_virtio::testing::TestDriver;
    use zerocopy::FromBytes;

    fn request(opcode: u32, nodeid: u64, body: &[u8]) -> Vec<u8> {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, unique: 9, nodeid, ..InHeader::default() };
        [header.as_bytes(), body].concat()
    }

    fn take<T: FromBytes>(bytes: &[u8]) -> T {
        T::read_from_prefix(bytes).unwrap().0
    }

    struct Setup {
        dir: tempfile::TempDir,
        server: Arc<FileServer>,
        driver: TestDriver,
        loops: Vec<EventLoop>,
    }

    fn setup() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let server = Arc::new(FileServer::with_limits(Limits { nodes: 100, open: 100 }));
        let share = Share { name: "s".into(), path: dir.path().into(), read_only: false };
        server.attach(&share).unwrap();
        let loops: Vec<_> = (0..2).map(|_| EventLoop::spawn("fs").unwrap()).collect();
        let handles = loops.iter().map(EventLoop::handle).collect();
        let driver = TestDriver::new(FsDevice::new(Arc::clone(&server), handles));
        Setup { dir, server, driver, loops }
    }

    impl Setup {
        fn mount(&mut self) {
            let init = wire::InitIn { major: 7, minor: 41, ..<_>::default() };
            let init = request(opcode::INIT, 0, init.as_bytes());
            let reply = self.driver.send(1, &[&init], &[16, 64]);
            assert_eq!(take::<OutHeader>(&reply).error, 0);
        }

        fn lookup(&mut self, parent: u64, name: &str) -> u64 {
            let lookup = request(opcode::LOOKUP, parent, format!("{name}\0").as_bytes());
            let reply = self.driver.send(1, &[&lookup], &[16, 128]);
            assert_eq!(take::<OutHeader>(&reply).error, 0);
            take::<wire::EntryOut>(&reply[16..]).nodeid
        }
    }

    #[test]
    fn the_configuration_names_the_tag_and_the_queues() {
        let setup = setup();
        let config = setup.driver.config(0, 40);
        assert_eq!(&config[..7], b"cabana\0");
        assert_eq!(config[36..], 2u32.to_le_bytes());
    }

    #[test]
    fn data_goes_between_the_file_and_any_pieces_of_memory() {
        let mut setup = setup();
        std::fs::write(setup.dir.path().join("file"), "").unwrap();
        setup.mount();
        let share = setup.lookup(1, "s");
        let node = setup.lookup(share, "file");
        let open = wire::OpenIn { flags: wire::open::RDWR, open_flags: 0 };
        let reply =
            setup.driver.send(2, &[&request(opcode::OPEN, node, open.as_bytes())], &[16, 16]);
        let fh = take::<wire::OpenOut>(&reply[16..]).fh;

        let data: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
        let write = wire::WriteIn { fh, size: data.len() as u32, ..<_>::default() };
        let mut head = request(opcode::WRITE, node, write.as_bytes());
        let whole = (head.len() + data.len()) as u32;
        head[..4].copy_from_slice(&whole.to_le_bytes());
        let pieces: Vec<&[u8]> = std::iter::once(&head[..]).chain(data.chunks(4097)).collect();
        let reply = setup.driver.send(1, &pieces, &[24]);
        assert_eq!(take::<wire::WriteOut>(&reply[16..]).size, 300_000);
        assert_eq!(std::fs::read(setup.dir.path().join("file")).unwrap(), data);

        // Odd pieces, the header cut in two, and more room than data.
        let read = wire::ReadIn { fh, offset: 1, size: 400_000, ..<_>::default() };
        let read = request(opcode::READ, node, read.as_bytes());
        let reply = setup.driver.send(2, &[&read], &[7, 9, 1, 100_000, 3, 250_000]);
        let header: OutHeader = take(&reply);
        assert_eq!((header.len, header.error, header.unique), (300_015, 0, 9));
        assert_eq!(reply[16..], data[1..]);
    }

    #[test]
    fn forgetting_has_no_reply_and_a_reset_forgets_all() {
        let mut setup = setup();
        setup.mount();
        let share = setup.lookup(1, "s");
        assert_eq!(setup.server.usage().nodes, 1);
        let forget = request(opcode::FORGET, share, wire::ForgetIn { nlookup: 1 }.as_bytes());
        assert!(setup.driver.send(0, &[&forget], &[]).is_empty());
        assert_eq!(setup.server.usage().nodes, 0);
        setup.lookup(1, "s");
        setup.driver.reset();
        assert_eq!(setup.server.usage().nodes, 0);
        setup.driver.start();
        setup.mount();
        setup.lookup(1, "s");
    }

    #[test]
    fn another_server_serves_a_guest_that_has_nothing_mounted() {
        let mut setup = setup();
        let other = Arc::new(FileServer::new());
        let share = Share { name: "t".into(), path: setup.dir.path().into(), read_only: false };
        other.attach(&share).unwrap();
        let handles: Vec<_> = setup.loops.iter().map(EventLoop::handle).collect();
        setup.driver.move_to(FsDevice::new(Arc::clone(&other), handles.clone())).unwrap();
        setup.mount();
        setup.lookup(1, "t");
        assert_eq!((setup.server.usage().nodes, other.usage().nodes), (0, 1));
        let refused = setup.driver.move_to(FsDevice::new(other, handles)).unwrap_err();
        assert!(refused.to_string().contains("shared folders mounted"), "{refused}");
    }

    #[test]
    fn buffers_of_any_shape_are_answered() {
        let mut setup = setup();
        setup.mount();
        let lookup = request(opcode::LOOKUP, 1, b"s\0");
        // No reply fits: not even its header.
        assert!(setup.driver.send(1, &[&lookup], &[15]).is_empty());
        assert!(setup.driver.send(1, &[&lookup], &[]).is_empty());
        // Only an error fits.
        let reply = setup.driver.send(1, &[&lookup], &[16, 127]);
        assert_eq!(take::<OutHeader>(&reply).error, -Errno::EINVAL.0);
        // No request at all.
        let reply = setup.driver.send(1, &[], &[100]);
        assert_eq!(take::<OutHeader>(&reply).error, -Errno::EINVAL.0);
        let reply = setup.driver.send(1, &[&lookup[..39]], &[100]);
        assert_eq!(take::<OutHeader>(&reply).error, -Errno::EINVAL.0);
        assert_eq!(setup.server.usage().nodes, 0);
        setup.lookup(1, "s");
        assert!(!setup.driver.needs_reset());
    }
}
