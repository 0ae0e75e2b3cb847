//! The device under a driver that keeps no rule: buffers of any shape and overlap, and memory that
//! changes while it is read.

mod client;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cabana_fs::wire::{self, InHeader, opcode, open};
use cabana_fs::{FileServer, FsDevice, Limits, Share};
use cabana_memory::GuestAddress;
use cabana_os::EventLoop;
use cabana_virtio::testing::{INDIRECT, NEXT, Noise, RawDescriptor, TestDriver, WRITE};
use client::bytes;
use client::yard::{Yard, symlink, tree};

/// Where a request lies, and the room for its reply.
const REQUEST: u64 = 32 << 20;
const REPLY: u64 = 33 << 20;
const TABLE: u64 = 34 << 20;
/// Names to be exchanged for others at the wrong moment.
const NAMES: [&[u8]; 6] = [b"a\0", b"..\0", b"/\0\0", b"link\0", b"../x\0", b"sub\0"];
const LIMITS: Limits = Limits { nodes: 64, open: 32 };

struct Hostile {
    yard: Yard,
    server: Arc<FileServer>,
    driver: TestDriver,
    _events: EventLoop,
}

impl Hostile {
    fn new() -> Self {
        let yard = Yard::new();
        std::fs::write(yard.path("inside/a"), "content").unwrap();
        std::fs::create_dir(yard.path("inside/sub")).unwrap();
        // Where the host has links.
        let _ = symlink("../outside", yard.path("inside/link"));
        let server = Arc::new(FileServer::with_limits(LIMITS));
        for (name, folder, read_only) in [("s", "inside", false), ("ro", "outside", true)] {
            let share = Share { name: name.into(), path: yard.path(folder), read_only };
            server.attach(&share).unwrap();
        }
        let events = EventLoop::spawn("fs").unwrap();
        let device = FsDevice::new(Arc::clone(&server), vec![events.handle()]);
        let mut hostile = Self { yard, server, driver: TestDriver::new(device), _events: events };
        hostile.mount();
        hostile
    }

    fn mount(&mut self) {
        let init = wire::InitIn { major: 7, minor: 41, ..<_>::default() };
        self.driver.send(1, &[&request(opcode::INIT, 0, &[bytes(&init)])], &[16, 64]);
        for (parent, name) in [(1, "s\0"), (1, "ro\0"), (2, "a\0"), (2, "sub\0"), (2, "link\0")] {
            self.driver.send(
                1,
                &[&request(opcode::LOOKUP, parent, &[name.as_bytes()])],
                &[16, 128],
            );
        }
    }

    /// Offers the chain of an indirect table and waits until the device has used it, or has had enough.
    /// False in the latter case.
    fn offer(&mut self, pieces: &[RawDescriptor]) -> bool {
        for (index, piece) in (0u16..).zip(pieces) {
            let last = usize::from(index) + 1 == pieces.len();
            let flags = if last { piece.flags } else { piece.flags | NEXT };
            let next = index + 1;
            self.driver.write_table(TABLE, index, RawDescriptor { flags, next, ..*piece });
        }
        let len = 16 * pieces.len() as u32;
        let whole = RawDescriptor { addr: TABLE, len, flags: INDIRECT, next: 0 };
        self.driver.write_descriptor(1, 1023, whole);
        let used = GuestAddress(self.driver.layout(1).used + 2);
        let before = self.driver.ram().load_u16(used).unwrap();
        self.driver.offer(1, 1023);
        self.driver.notify(1);
        let end = Instant::now() + Duration::from_secs(20);
        while self.driver.ram().load_u16(used).unwrap() == before {
            if self.driver.needs_reset() {
                return false;
            }
            assert!(Instant::now() < end, "the device hangs");
            thread::yield_now();
        }
        true
    }

    fn check(&self) {
        let used = self.server.usage();
        assert!(used.nodes <= LIMITS.nodes && used.open <= LIMITS.open);
        self.yard.check();
    }
}

fn request(opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let len = (size_of::<InHeader>() + body.len()) as u32;
    let header = InHeader { len, opcode, nodeid, unique: 3, ..InHeader::default() };
    [bytes(&header), &body].concat()
}

/// Requests that do something, if they are let.
fn requests() -> Vec<Vec<u8>> {
    let open = wire::OpenIn { flags: open::RDWR, open_flags: 0 };
    let write = wire::WriteIn { fh: 1, size: 5, ..<_>::default() };
    let read = wire::ReadIn { fh: 1, size: 4096, ..<_>::default() };
    let create = wire::CreateIn { flags: open::RDWR, mode: 0o100_644, ..<_>::default() };
    let to = wire::RenameIn { newdir: 2 };
    let forget = wire::BatchForgetIn { count: u32::MAX, dummy: 0 };
    vec![
        request(opcode::LOOKUP, 2, &[b"a\0"]),
        request(opcode::LOOKUP, 2, &[b"link\0"]),
        request(opcode::OPEN, 4, &[bytes(&open)]),
        request(opcode::READ, 4, &[bytes(&read)]),
        request(opcode::WRITE, 4, &[bytes(&write), b"words"]),
        request(opcode::CREATE, 2, &[bytes(&create), b"new\0"]),
        request(opcode::RENAME, 2, &[bytes(&to), b"new\0newer\0"]),
        request(opcode::UNLINK, 2, &[b"newer\0"]),
        request(opcode::SYMLINK, 2, &[b"l\0/etc/passwd\0"]),
        request(opcode::UNLINK, 2, &[b"l\0"]),
        request(opcode::READDIRPLUS, 2, &[bytes(&read)]),
        request(opcode::BATCH_FORGET, 0, &[bytes(&forget), &[2; 64]]),
    ]
}

#[test]
fn buffers_of_any_shape_and_overlap_do_no_harm() {
    let mut hostile = Hostile::new();
    let outside = tree(&hostile.yard.path("outside"));
    let mut noise = Noise::new(0xbad);
    let requests = requests();
    for _ in 0..4000 {
        let bytes = &requests[noise.below(requests.len() as u64) as usize];
        hostile.driver.ram().write_bytes(GuestAddress(REQUEST), bytes).unwrap();
        let mut pieces = Vec::new();
        let (mut at, mut left) = (REQUEST, bytes.len() as u64);
        while left > 0 && pieces.len() < 40 {
            let len = noise.below(left.min(64) + 1);
            // Now and then it goes on somewhere else, or lies about how much there is.
            let addr = if noise.below(40) == 0 { noise.below(70 << 20) } else { at };
            let lie = if noise.below(100) == 0 { noise.next() as u32 } else { len as u32 };
            pieces.push(RawDescriptor { addr, len: lie, flags: 0, next: 0 });
            (at, left) = (at + len, left - len);
        }
        for _ in 0..noise.below(5) {
            // The reply may lie over the request, over the table, or over the rings.
            let addr = [REPLY, REPLY, REPLY, REQUEST, REQUEST + 8, TABLE, 0x1000 + (1 << 20)]
                [noise.below(7) as usize];
            let len = [0, 1, 15, 16, 100, 4096, 70_000][noise.below(7) as usize];
            pieces.push(RawDescriptor { addr, len, flags: WRITE, next: 0 });
        }
        if pieces.is_empty() || !hostile.offer(&pieces) {
            hostile.driver.start();
            hostile.mount();
        }
        hostile.check();
    }
    assert_eq!(tree(&hostile.yard.path("outside")), outside);
    // After all that an honest driver is served.
    hostile.driver.start();
    hostile.mount();
    let reply = hostile.driver.send(1, &[&request(opcode::GETATTR, 1, &[&[0; 16]])], &[16, 104]);
    assert_eq!(reply[4..8], [0; 4]);
}

#[test]
fn a_request_that_changes_while_it_is_read_does_no_harm() {
    let mut hostile = Hostile::new();
    let outside = tree(&hostile.yard.path("outside"));
    let stop = Arc::new(AtomicBool::new(false));
    let changing = {
        let (ram, stop) = (hostile.driver.ram().clone(), Arc::clone(&stop));
        thread::spawn(move || {
            let mut noise = Noise::new(0xf11b);
            while !stop.load(Ordering::Relaxed) {
                let name = NAMES[noise.below(6) as usize];
                let (at, bytes): (u64, &[u8]) = match noise.below(4) {
                    0 => (4, &[[1, 3, 9, 10, 14, 16, 35][noise.below(7) as usize]]),
                    1 => (16, &[noise.below(9) as u8]),
                    2 => (0, &[noise.below(120) as u8]),
                    _ => (40 + noise.below(40), name),
                };
                let _ = ram.write_bytes(GuestAddress(REQUEST + at), bytes);
            }
        })
    };
    let requests = requests();
    for round in 0..6000 {
        let bytes = &requests[round % requests.len()];
        hostile.driver.ram().write_bytes(GuestAddress(REQUEST), bytes).unwrap();
        let piece = |addr, len, flags| RawDescriptor { addr, len, flags, next: 0 };
        let pieces = [piece(REQUEST, bytes.len() as u32, 0), piece(REPLY, 8192, WRITE)];
        assert!(hostile.offer(&pieces), "the ring is fine");
        hostile.check();
    }
    stop.store(true, Ordering::Relaxed);
    changing.join().unwrap();
    assert_eq!(tree(&hostile.yard.path("outside")), outside);
}
