//! The device under a driver: what the guest asks is found in the file, and what it must not ask is
//! refused.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use cabana_memory::GuestAddress;
use cabana_os::EventLoop;
use cabana_os::file::{FileExt, allocated};
use cabana_virtio::testing::{Noise, Setup, TestDriver};

use super::*;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const DISK_BYTES: u64 = 1 << 20;

struct Guest {
    driver: TestDriver,
    file: File,
    errors: Arc<Mutex<Vec<String>>>,
    events: EventLoop,
}

fn guest_of(disk: Disk, setup: Setup) -> Guest {
    let events = EventLoop::spawn("test").unwrap();
    let file = disk.file.try_clone().unwrap();
    let errors = Arc::<Mutex<Vec<String>>>::default();
    let heard = Arc::clone(&errors);
    let block = Block::new(disk, events.handle())
        .on_error(move |error| heard.lock().unwrap().push(error.to_string()));
    Guest { driver: TestDriver::with(block, setup), file, errors, events }
}

fn image() -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(DISK_BYTES).unwrap();
    image
}

fn guest() -> Guest {
    guest_of(Disk::open(image().path()).unwrap(), Setup::default())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Guest {
    /// Sends a request; the status is the last byte of the room, whatever the device says it wrote.
    fn request(&mut self, request: &[&[u8]], room: &[usize]) -> (u8, Vec<u8>) {
        let head = self.driver.submit(0, request, &[room, &[1]].concat());
        let mut room = self.driver.wait_for(0, head).room;
        (room.pop().unwrap(), room)
    }

    fn status(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        self.request(&[&header(kind, sector), data], &[]).0
    }

    fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let answer = self.driver.send(0, &[&header(0, sector)], &[len, 1]);
        assert_eq!((answer.len(), answer[len]), (len + 1, OK));
        answer[..len].to_vec()
    }

    fn on_disk(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn disk_usage(&self) -> u64 {
        allocated(&self.file).unwrap()
    }

    fn config(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.driver.config(at, 4).try_into().unwrap())
    }
}

#[test]
fn what_is_written_is_in_the_file_and_comes_back() {
    let mut guest = guest();
    let data: Vec<u8> = (0..1024).map(|at| (at % 251) as u8).collect();
    // Header, data and status may be cut anywhere (virtio 1.3 §2.7.4).
    let whole = [header(1, 3), data.clone()].concat();
    assert_eq!(guest.request(&[&whole[..5], &whole[5..500], &whole[500..]], &[]).0, OK);
    assert_eq!(guest.on_disk(3 * 512, 1024), data);
    let (status, room) = guest.request(&[&header(0, 3)], &[100, 0, 900, 24]);
    assert_eq!((status, room), (OK, data));
    assert_eq!(guest.read(DISK_BYTES / 512 - 1, 512), [0; 512]);
    assert!(guest.errors.lock().unwrap().is_empty());
}

#[test]
fn random_reads_and_writes_agree_with_a_copy() {
    for indirect in [false, true] {
        let setup = Setup { indirect, ..Setup::default() };
        let mut guest = guest_of(Disk::open(image().path()).unwrap(), setup);
        let mut copy = vec![0; DISK_BYTES as usize];
        let mut noise = Noise::new(3);
        for round in 0..2000 {
            let count = 1 + noise.below(64);
            let sector = noise.below(DISK_BYTES / 512 - count + 1);
            let (start, len) = (sector as usize * 512, count as usize * 512);
            if noise.below(2) == 0 {
                let data: Vec<u8> = (0..len).map(|_| noise.next() as u8).collect();
                copy[start..start + len].copy_from_slice(&data);
                let (one, two) = data.split_at(noise.below(len as u64) as usize);
                let sent = guest.request(&[&header(1, sector), one, two], &[]);
                assert_eq!(sent.0, OK, "round {round}");
            } else {
                let cut = noise.below(len as u64) as usize;
                let (status, room) = guest.request(&[&header(0, sector)], &[cut, len - cut]);
                assert_eq!(status, OK, "round {round}");
                assert!(room == copy[start..start + len], "round {round}");
            }
        }
        assert!(guest.on_disk(0, copy.len()) == copy);
    }
}

#[test]
fn what_is_not_on_the_disk_is_refused() {
    let mut guest = guest();
    let end = DISK_BYTES / 512;
    for sector in [end, end - 1, u64::MAX, u64::MAX / 512, u64::MAX - 1] {
        assert_eq!(guest.status(1, sector, &[7; 1024]), IO_ERROR, "{sector}");
        let (status, room) = guest.request(&[&header(0, sector)], &[1024]);
        assert_eq!((status, room), (IO_ERROR, vec![0xa5; 1024]), "{sector}");
        for kind in [11, 13] {
            assert_eq!(guest.status(kind, 0, &range(sector, 2, 0)), IO_ERROR, "{sector}");
        }
    }
    assert_eq!(guest.status(1, 0, &[7; 511]), IO_ERROR);
    assert_eq!(guest.request(&[&header(0, 0)], &[513]).0, IO_ERROR);
    assert_eq!(guest.file.metadata().unwrap().len(), DISK_BYTES);
    assert!(guest.on_disk(0, DISK_BYTES as usize).iter().all(|byte| *byte == 0));
    assert!(guest.errors.lock().unwrap().is_empty(), "the guest's mistakes are not the host's");
}

#[test]
fn requests_that_are_not_whole_are_refused() {
    let mut guest = guest();
    assert_eq!(guest.request(&[&header(0, 0)[..15]], &[512]).0, IO_ERROR);
    assert_eq!(guest.request(&[], &[512]).0, IO_ERROR);
    assert_eq!(guest.driver.send(0, &[&header(4, 0)], &[]), b"", "no room for a status");
    assert_eq!(guest.driver.send(0, &[&header(4, 0)], &[0]), b"");
    for kind in [11, 13] {
        assert_eq!(guest.status(kind, 0, &[]), IO_ERROR);
        assert_eq!(guest.status(kind, 0, &[0; 15]), IO_ERROR);
        assert_eq!(guest.status(kind, 0, &range(0, 1, 0).repeat(33)), IO_ERROR);
    }
    for kind in [2, 3, 5, 14, 15, 24, 0x8000_0001, u32::MAX] {
        assert_eq!(guest.status(kind, 0, &[0; 512]), UNSUPPORTED, "{kind}");
    }
    // A read or a write of nothing moves nothing.
    assert_eq!(guest.status(1, 0, &[]), OK);
    assert_eq!(guest.read(0, 512), [0; 512]);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn one_request_moves_no_more_than_the_configuration_says() {
    let image = image();
    image.as_file().set_len(2 << 30).unwrap();
    let mut guest = guest_of(Disk::open(image.path()).unwrap(), Setup::default());
    let most = guest.config(8) as usize * guest.config(12) as usize;
    assert_eq!(most, MAX_TRANSFER);
    // The same guest memory may stand in a chain many times over: no more room is needed.
    let addr = 0x100_0000;
    for (len, expected) in [(most, OK), (most + 512, IO_ERROR)] {
        use cabana_virtio::testing::{NEXT, RawDescriptor, WRITE};
        let driver = &mut guest.driver;
        driver.ram().write_bytes(GuestAddress(addr), &header(0, 0)).unwrap();
        let half = len / 2;
        let table = [
            RawDescriptor { addr, len: 16, flags: NEXT, next: 1 },
            RawDescriptor { addr, len: half as u32, flags: NEXT | WRITE, next: 2 },
            RawDescriptor { addr, len: (len - half) as u32, flags: NEXT | WRITE, next: 3 },
            RawDescriptor { addr: 0x60_0000, len: 1, flags: WRITE, next: 0 },
        ];
        for (index, descriptor) in (0..).zip(table) {
            driver.write_descriptor(0, index, descriptor);
        }
        let used = driver.layout(0).used + 2;
        let before = driver.ram().load_u16(GuestAddress(used)).unwrap();
        driver.offer(0, 0);
        driver.notify(0);
        while driver.ram().load_u16(GuestAddress(used)).unwrap() == before {
            std::thread::yield_now();
        }
        let status: u8 = driver.ram().read(GuestAddress(0x60_0000)).unwrap();
        assert_eq!(status, expected, "{len}");
    }
    guest.driver.start();
    for (kind, most) in [(11, guest.config(36)), (13, guest.config(48))] {
        assert_eq!(guest.status(kind, 0, &range(8, most, 0)), OK, "{kind}");
        assert_eq!(guest.status(kind, 0, &range(8, most + 1, 0)), IO_ERROR, "{kind}");
    }
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zero_and_cost_no_space() {
    let mut guest = guest();
    let full = vec![9; 64 << 10];
    for at in 0..4 {
        assert_eq!(guest.status(1, at * 128, &full), OK);
    }
    let before = guest.disk_usage();
    assert!(before >= 256 << 10, "{before}");
    let two = [range(0, 64, 0), range(64, 64, 0)].concat();
    assert_eq!(guest.status(11, 0, &two), OK);
    assert_eq!(guest.disk_usage(), before - (64 << 10));
    assert_eq!(guest.read(0, 64 << 10), vec![0; 64 << 10]);
    assert_eq!(guest.status(13, 0, &range(128, 128, 1)), OK);
    assert_eq!(guest.disk_usage(), before - (128 << 10), "unmapped");
    assert_eq!(guest.status(13, 0, &range(256, 128, 0)), OK);
    assert_eq!(guest.read(256, 64 << 10), vec![0; 64 << 10]);
    assert_eq!(guest.disk_usage(), before - (128 << 10), "not asked to be unmapped");
    assert_eq!(guest.read(384, 64 << 10), full, "nothing else has changed");
    // Parts of a file system block too.
    assert_eq!(guest.status(13, 0, &range(385, 3, 1)), OK);
    assert_eq!(guest.read(384, 2560), [vec![9; 512], vec![0; 1536], vec![9; 512]].concat());
    assert_eq!(guest.status(11, 0, &range(5, 0, 0)), OK);
}

#[test]
fn unknown_flags_are_not_supported_and_nothing_is_done_by_halves() {
    let mut guest = guest();
    assert_eq!(guest.status(1, 0, &[9; 512]), OK);
    assert_eq!(guest.status(11, 0, &range(0, 1, 1)), UNSUPPORTED);
    assert_eq!(guest.status(13, 0, &range(0, 1, 2)), UNSUPPORTED);
    let second_is_bad = [range(0, 1, 0), range(u64::MAX, 1, 0)].concat();
    assert_eq!(guest.status(11, 0, &second_is_bad), IO_ERROR);
    assert_eq!(guest.read(0, 512), [9; 512]);
}

#[test]
fn a_flush_succeeds_and_the_disk_has_a_name() {
    let disk = Disk::open(image().path()).unwrap().with_id("a name that is far too long");
    let mut guest = guest_of(disk, Setup::default());
    assert_eq!(guest.status(4, 0, &[]), OK);
    let (status, room) = guest.request(&[&header(8, 0)], &[20]);
    assert_eq!((status, &room[..]), (OK, &b"a name that is far t"[..]));
    assert_eq!(guest.request(&[&header(8, 0)], &[19]).0, IO_ERROR);
    let longer = guest.driver.send(0, &[&header(8, 0)], &[64, 1]);
    assert_eq!(longer, b"a name that is far t", "the status does not follow what was written");
}

#[test]
fn a_read_only_disk_is_not_written() {
    let image = image();
    image.as_file().write_all_at(&[9; 512], 0).unwrap();
    let mut guest = guest_of(Disk::open_read_only(image.path()).unwrap(), Setup::default());
    let features = guest.driver.offered_features();
    assert_eq!(features & (F_RO | F_FLUSH | F_DISCARD | F_WRITE_ZEROES), F_RO);
    assert_eq!(guest.status(1, 0, &[7; 512]), IO_ERROR);
    assert_eq!(guest.status(11, 0, &range(0, 1, 0)), IO_ERROR);
    assert_eq!(guest.status(13, 0, &range(0, 1, 0)), IO_ERROR);
    assert_eq!(guest.status(4, 0, &[]), OK);
    assert_eq!(guest.read(0, 512), [9; 512]);
    assert!(guest.errors.lock().unwrap().is_empty());
}

#[test]
fn the_configuration_describes_the_disk() {
    let guest = guest();
    assert_eq!(guest.driver.config(0, 8), (DISK_BYTES / 512).to_le_bytes());
    assert_eq!((guest.config(12), guest.config(20)), (254, 512));
    let features = guest.driver.offered_features();
    let writable = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
    assert_eq!(features & (writable | F_RO), writable);
    let dir = tempfile::tempdir().unwrap();
    let scratch = Disk::scratch(image().path(), dir.path()).unwrap();
    let guest = guest_of(scratch, Setup::default());
    assert_eq!(guest.driver.offered_features() & writable, F_DISCARD | F_WRITE_ZEROES);
}

#[test]
fn a_full_host_is_told_to_the_embedder() {
    let file = File::options().read(true).write(true).open("/dev/full").unwrap();
    let disk = Disk { file, ..Disk::open(image().path()).unwrap() };
    let full = Arc::new(Mutex::new(0));
    let count = Arc::clone(&full);
    let events = EventLoop::spawn("test").unwrap();
    let block = Block::new(disk, events.handle()).on_error(move |error| {
        assert_eq!((error.operation, error.offset, error.len), (Operation::Write, 512, 1024));
        *count.lock().unwrap() += u32::from(error.host_is_full());
    });
    let mut driver = TestDriver::new(block);
    let answer = driver.send(0, &[&header(1, 1), &[1; 1024]], &[1]);
    assert_eq!((answer, *full.lock().unwrap()), (vec![IO_ERROR], 1));
    assert_eq!(driver.send(0, &[&header(0, 0)], &[512, 1])[512], OK, "the device goes on");
}

#[test]
fn a_file_that_shrinks_gives_errors_and_says_so() {
    let mut guest = guest();
    guest.file.set_len(512).unwrap();
    let (status, _) = guest.request(&[&header(0, 0)], &[1024]);
    assert_eq!(status, IO_ERROR);
    let errors = guest.errors.lock().unwrap().clone();
    assert!(
        errors.len() == 1 && errors[0].starts_with("cannot read 1024 bytes at 0"),
        "{errors:?}"
    );
    assert_eq!(guest.read(0, 512), [0; 512]);
}

#[test]
fn requests_in_flight_survive_a_reset() {
    let mut guest = guest();
    for round in 1..50 {
        for at in 0..8 {
            guest.driver.submit(0, &[&header(1, at), &[round; 512]], &[1]);
        }
        guest.driver.start();
        assert_eq!(guest.status(1, 9, &[round; 512]), OK);
        assert_eq!(guest.read(9, 512), [round; 512]);
    }
    assert!(guest.errors.lock().unwrap().is_empty());
}

#[test]
fn the_disk_is_free_when_the_device_is_gone() {
    let image = image();
    let open = |path: &Path| Disk::open(path).map(drop).is_ok();
    let Guest { driver, file, events: _events, .. } =
        guest_of(Disk::open(image.path()).unwrap(), Setup::default());
    drop(file);
    assert!(!open(image.path()));
    drop(driver);
    assert!(open(image.path()));
}

/// Every operation on a disk over a base has the effect that it has on a plain copy of that base.
#[test]
fn a_disk_over_a_base_is_one_with_a_copy_of_it() {
    const START: u64 = 12_288;
    let mut noise = Noise::new(7);
    let content: Vec<u8> = (0..DISK_BYTES / 8).flat_map(|_| noise.next().to_le_bytes()).collect();
    let base = tempfile::NamedTempFile::new().unwrap();
    base.as_file().set_len(START + DISK_BYTES + 4096).unwrap();
    base.as_file().write_all_at(&content, START).unwrap();
    let before = std::fs::read(base.path()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let disk =
        Disk::overlay(File::open(base.path()).unwrap(), START, DISK_BYTES, folder.path()).unwrap();
    let mut over = guest_of(disk.offering_flush(true), Setup::default());
    let plain = image();
    plain.as_file().write_all_at(&content, 0).unwrap();
    let mut plain = guest_of(Disk::open(plain.path()).unwrap(), Setup::default());
    for round in 0..600 {
        let sector = noise.below(DISK_BYTES / 512 - 40);
        let sectors = 1 + noise.below(40);
        let bytes = vec![round as u8; (sectors * 512) as usize];
        let (kind, payload, room) = match noise.below(8) {
            0..3 => (1, bytes, 0),
            3 => (13, range(sector, sectors as u32, noise.below(2) as u32), 0),
            4 => (4, Vec::new(), 0),
            _ => (0, Vec::new(), bytes.len()),
        };
        let rooms = if room > 0 { vec![room / 2, room / 2] } else { Vec::new() };
        let ask = |guest: &mut Guest| guest.request(&[&header(kind, sector), &payload], &rooms);
        assert_eq!(
            ask(&mut over),
            ask(&mut plain),
            "round {round}: {kind} at {sector} of {sectors}"
        );
    }
    // What is discarded reads as anything, of whole blocks as zeroes.
    assert_eq!(over.request(&[&header(11, 0), &range(1, 20, 0)], &[]).0, OK);
    let (_, read) = over.request(&[&header(0, 0)], &[24 * 512]);
    let (_, kept) = plain.request(&[&header(0, 0)], &[24 * 512]);
    assert!(read[..4096] == kept[..4096] && read[20 * 512..] == kept[20 * 512..]);
    assert!(read[4096..16 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(std::fs::read(base.path()).unwrap(), before, "the base has changed");
}

#[test]
fn a_copy_of_a_disk_over_a_base_has_all_of_both() {
    let base = image();
    base.as_file().write_all_at(&[1; 8192], 4096).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = File::open(base.path()).unwrap();
    let disk = Disk::overlay(file, 0, DISK_BYTES, folder.path()).unwrap();
    let mut guest = guest_of(disk, Setup::default());
    assert_eq!(guest.request(&[&header(1, 16), &[2; 512]], &[]).0, OK);
    let file = File::open(base.path()).unwrap();
    let disk = Disk::overlay(file, 0, DISK_BYTES, folder.path()).unwrap();
    let block = Block::new(disk, guest.events.handle());
    let disk = block.disk();
    guest.driver.move_to(block).unwrap();
    assert_eq!(guest.request(&[&header(1, 16), &[3; 512]], &[]).0, OK);
    guest.driver.pause_and_resume();
    let copy = tempfile::tempfile().unwrap();
    copy.set_len(4096 + DISK_BYTES).unwrap();
    disk.copy_to(&copy, 4096).unwrap();
    let mut bytes = vec![0; DISK_BYTES as usize];
    copy.read_exact_at(&mut bytes, 4096).unwrap();
    let expected = [[0u8; 4096].as_slice(), &[1; 4096], &[3; 512], &[1; 3584]].concat();
    assert!(bytes[..expected.len()] == expected);
    assert!(allocated(&copy).unwrap() <= 512 * 8 * 4, "holes were filled");
    let short = image();
    short.as_file().set_len(DISK_BYTES / 2).unwrap();
    let short = Block::new(Disk::open(short.path()).unwrap().vanishing(), guest.events.handle());
    assert!(guest.driver.move_to(short).unwrap_err().to_string().contains("length"));
}
