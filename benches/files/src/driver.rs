//! A driver that keeps a queue of the virtio-fs device full and costs next to nothing itself: every
//! request is laid out in guest memory beforehand, as Linux does it, in an indirect table, and so are the rings
//! but for the index that says how much of them is offered.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cabana_fs::wire::{self, InHeader, OutHeader, opcode};
use cabana_fs::{FileServer, FsDevice, Limits, Share};
use cabana_memory::GuestAddress;
use cabana_os::EventLoop;
use cabana_virtio::testing::{INDIRECT, NEXT, RAM_SIZE, RawDescriptor, TestDriver, WRITE};
use zerocopy::{FromBytes, IntoBytes};

/// Where requests are laid out: behind what the test driver uses for its own.
const ARENA: u64 = 8 << 20;
const PAGE: u64 = 4096;
/// The name of the device's threads.
const THREAD: &str = "folders";
/// Between two looks at the queues: far less than a full queue takes.
const LOOK: Duration = Duration::from_micros(30);

/// A request in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    table: u64,
    table_len: u32,
    reply: u64,
}

/// The device and its driver.
#[derive(Debug)]
pub(crate) struct Rig {
    driver: TestDriver,
    next: u64,
    offered: Vec<u16>,
    share: u64,
    threads: Vec<PathBuf>,
    _loops: Vec<EventLoop>,
}

impl Rig {
    /// A device with so many request queues, each with a thread, that serves `folder`.
    pub(crate) fn new(folder: &std::path::Path, queues: usize) -> Self {
        let server = Arc::new(FileServer::with_limits(Limits { nodes: 100_000, open: 1000 }));
        let share = Share { name: "s".into(), path: folder.into(), read_only: false };
        server.attach(&share).expect("a folder to share");
        let loops: Vec<_> =
            (0..queues).map(|_| EventLoop::spawn(THREAD).expect("a thread")).collect();
        let handles = loops.iter().map(EventLoop::handle).collect();
        let driver = TestDriver::new(FsDevice::new(server, handles));
        let offered = vec![0; queues + 1];
        let threads = Vec::new();
        let mut rig = Self { driver, next: ARENA, offered, share: 0, threads, _loops: loops };
        let init = wire::InitIn { major: 7, minor: 41, ..<_>::default() };
        rig.ask(&message(opcode::INIT, 0, &[init.as_bytes()]), 64);
        rig.share = rig.lookup(wire::ROOT_ID, "s");
        rig.threads = device_threads();
        rig
    }

    /// The number of the shared folder.
    pub(crate) fn share(&self) -> u64 {
        self.share
    }

    /// Number of the entry `name`.
    pub(crate) fn lookup(&mut self, parent: u64, name: &str) -> u64 {
        let request = message(opcode::LOOKUP, parent, &[name.as_bytes(), b"\0"]);
        let reply = self.ask(&request, size_of::<wire::EntryOut>());
        wire::EntryOut::read_from_prefix(&reply).expect("an entry").0.nodeid
    }

    /// Opens a file for reading and writing.
    pub(crate) fn open(&mut self, node: u64) -> u64 {
        let open = wire::OpenIn { flags: wire::open::RDWR, open_flags: 0 };
        let reply = self.ask(&message(opcode::OPEN, node, &[open.as_bytes()]), 16);
        wire::OpenOut::read_from_prefix(&reply).expect("an open file").0.fh
    }

    /// Asks once and returns the body of the reply.
    fn ask(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let prepared = self.prepare(&[request], &[], &[room]);
        self.run(&[(1, &[prepared])], 1);
        self.body(prepared, room)
    }

    /// Lays a request out: readable pieces, `pages` of data to write, and room for the reply's header
    /// and its body in pieces.
    pub(crate) fn prepare(&mut self, readable: &[&[u8]], data: &[u64], body: &[usize]) -> Prepared {
        let mut pieces = Vec::new();
        for bytes in readable {
            let addr = self.allocate(bytes.len() as u64, 8);
            self.driver.ram().write_bytes(GuestAddress(addr), bytes).expect("RAM");
            pieces.push(RawDescriptor { addr, len: bytes.len() as u32, flags: 0, next: 0 });
        }
        for &addr in data {
            pieces.push(RawDescriptor { addr, len: PAGE as u32, flags: 0, next: 0 });
        }
        let reply = self.allocate(size_of::<OutHeader>() as u64, 8);
        let len = size_of::<OutHeader>() as u32;
        pieces.push(RawDescriptor { addr: reply, len, flags: WRITE, next: 0 });
        for &len in body {
            let align = if len as u64 == PAGE { PAGE } else { 8 };
            let addr = self.allocate(len as u64, align);
            pieces.push(RawDescriptor { addr, len: len as u32, flags: WRITE, next: 0 });
        }
        self.table(&pieces, reply)
    }

    /// Like [`Rig::prepare`] for a reply that lies in `pages`.
    pub(crate) fn prepare_into(&mut self, request: &[u8], pages: &[u64]) -> Prepared {
        let addr = self.allocate(request.len() as u64, 8);
        self.driver.ram().write_bytes(GuestAddress(addr), request).expect("RAM");
        let reply = self.allocate(size_of::<OutHeader>() as u64, 8);
        let piece = |addr, len, flags| RawDescriptor { addr, len, flags, next: 0 };
        let mut pieces = vec![
            piece(addr, request.len() as u32, 0),
            piece(reply, size_of::<OutHeader>() as u32, WRITE),
        ];
        pieces.extend(pages.iter().map(|&page| piece(page, PAGE as u32, WRITE)));
        self.table(&pieces, reply)
    }

    fn table(&mut self, pieces: &[RawDescriptor], reply: u64) -> Prepared {
        let table = self.allocate(16 * pieces.len() as u64, 16);
        for (index, piece) in (0u16..).zip(pieces) {
            let last = usize::from(index) + 1 == pieces.len();
            let flags = if last { piece.flags } else { piece.flags | NEXT };
            self.driver.write_table(
                table,
                index,
                RawDescriptor { flags, next: index + 1, ..*piece },
            );
        }
        Prepared { table, table_len: 16 * pieces.len() as u32, reply }
    }

    /// So many pages, none beside the next: what a guest's page cache looks like.
    pub(crate) fn pages(&mut self, count: usize) -> Vec<u64> {
        let mut pages: Vec<u64> = (0..count).map(|_| self.allocate(PAGE, PAGE)).collect();
        pages.reverse();
        pages
    }

    fn allocate(&mut self, len: u64, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + len;
        assert!(self.next <= RAM_SIZE as u64, "the arena is full");
        at
    }

    /// Forgets what was laid out since `mark`.
    pub(crate) fn release(&mut self, mark: u64) {
        self.next = mark;
    }

    /// What [`Rig::release`] takes.
    pub(crate) fn mark(&self) -> u64 {
        self.next
    }

    /// The body of a reply that directly follows its header.
    pub(crate) fn body(&self, prepared: Prepared, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<OutHeader>() + len];
        self.driver.ram().read_bytes(GuestAddress(prepared.reply), &mut bytes).expect("RAM");
        let header = OutHeader::read_from_prefix(&bytes).expect("a header").0;
        assert_eq!(header.error, 0, "the server refuses");
        bytes.split_off(size_of::<OutHeader>())
    }

    /// Like [`Rig::run`], but the processor time that the device's threads took.
    pub(crate) fn cost(&mut self, work: &[(u16, &[Prepared])], count: usize) -> Duration {
        let before = self.threads_time();
        self.run(work, count);
        self.threads_time().saturating_sub(before)
    }

    /// Processor time of the device's threads so far, exact once they wait.
    fn threads_time(&self) -> Duration {
        thread::sleep(Duration::from_millis(1));
        let nanoseconds = |task: &std::path::PathBuf| -> Option<u64> {
            let text = fs::read_to_string(task.join("schedstat")).ok()?;
            text.split(' ').next()?.parse().ok()
        };
        Duration::from_nanos(self.threads.iter().filter_map(nanoseconds).sum())
    }

    /// Sends `count` requests to each queue, from its list over and over, as many at once as the
    /// queue takes. From the first doorbell to the last reply.
    pub(crate) fn run(&mut self, work: &[(u16, &[Prepared])], count: usize) -> Duration {
        let mut states: Vec<State> = work
            .iter()
            .map(|&(queue, list)| {
                let size = self.driver.layout(queue).size.into();
                self.lay_out(queue, list.iter().cycle().take(size));
                State { queue, list, sent: 0, done: 0, used: self.used(queue) }
            })
            .collect();
        let start = Instant::now();
        loop {
            let mut idle = true;
            for state in &mut states {
                let used = self.used(state.queue);
                state.done += usize::from(used.wrapping_sub(state.used));
                state.used = used;
                if state.done < count {
                    idle = false;
                    self.fill(state, count);
                }
            }
            if idle {
                break;
            }
            thread::sleep(LOOK);
        }
        let time = start.elapsed();
        for state in &states {
            for prepared in &state.list[..count.min(state.list.len())] {
                self.body(*prepared, 0);
            }
        }
        time
    }

    /// Lays requests out in the rings, from the next that is offered on.
    fn lay_out<'a>(&self, queue: u16, requests: impl Iterator<Item = &'a Prepared>) {
        let (layout, ram) = (self.driver.layout(queue), self.driver.ram());
        for (at, &Prepared { table: addr, table_len: len, .. }) in (0..).zip(requests) {
            let slot = self.offered[usize::from(queue)].wrapping_add(at) % layout.size;
            let whole = RawDescriptor { addr, len, flags: INDIRECT, next: 0 };
            self.driver.write_descriptor(queue, slot, whole);
            let entry = GuestAddress(layout.avail + 4 + 2 * u64::from(slot));
            ram.store_u16(entry, slot).expect("RAM");
        }
    }

    /// Offers as many as there is room for; where the list fits into the rings they hold it already.
    fn fill(&mut self, state: &mut State, count: usize) {
        let State { queue, list, .. } = *state;
        let layout = self.driver.layout(queue);
        let size = usize::from(layout.size);
        let more = (size - (state.sent - state.done)).min(count - state.sent);
        if more == 0 {
            return;
        }
        if list.len() > size {
            self.lay_out(queue, list.iter().cycle().skip(state.sent % list.len()).take(more));
        }
        let offered = &mut self.offered[usize::from(queue)];
        *offered = offered.wrapping_add(more as u16);
        self.driver.ram().store_u16(GuestAddress(layout.avail + 2), *offered).expect("RAM");
        state.sent += more;
        self.driver.notify(queue);
    }

    fn used(&self, queue: u16) -> u16 {
        self.driver.ram().load_u16(GuestAddress(self.driver.layout(queue).used + 2)).expect("RAM")
    }
}

/// The bytes of a request.
pub(crate) fn message(opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let len = (size_of::<InHeader>() + body.len()) as u32;
    let header = InHeader { len, opcode, unique: 2, nodeid, ..InHeader::default() };
    [header.as_bytes(), &body].concat()
}

/// Where the kernel tells of the device's threads.
fn device_threads() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc");
    let is_ours = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == THREAD)
    };
    tasks.filter_map(|task| Some(task.ok()?.path())).filter(is_ours).collect()
}

/// What is on its way in one queue.
struct State<'a> {
    queue: u16,
    list: &'a [Prepared],
    sent: usize,
    done: usize,
    used: u16,
}
