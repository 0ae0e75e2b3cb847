//! Random operations on a few files, by a guest and by the host in turns, against a model of what is in
//! them. The guest is a kernel's cache in miniature: it keeps what it read of a file for as long as the
//! server lets it, so a page that should have been dropped is a wrong byte.

mod client;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cabana_fs::wire::{self, Errno, fattr, open};
use cabana_os::file::FileExt;
use client::{Guest, bytes, settle};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// No file grows beyond this.
const MAX: u64 = 200_000;
/// Once in so many operations all rests for a moment, and what is cached from then on may stay.
const REST: u64 = 400;

/// Xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % end
    }
}

/// A file as everybody should see it. Names are not shared: a file that is replaced or removed goes on
/// for whoever has it open.
#[derive(Clone, Default)]
struct Model {
    content: Vec<u8>,
}

impl Model {
    fn write(&mut self, at: u64, data: &[u8]) {
        let end = at as usize + data.len();
        if !data.is_empty() && self.content.len() < end {
            self.content.resize(end, 0);
        }
        if !data.is_empty() {
            self.content[at as usize..end].copy_from_slice(data);
        }
    }

    fn zero(&mut self, at: u64, len: u64) {
        let size = self.content.len() as u64;
        let (at, end) = (at.min(size), (at + len).min(size));
        self.content[at as usize..end as usize].fill(0);
    }
}

/// What the guest has open: a handle, and which file that is.
struct Opened {
    node: u64,
    fh: u64,
    file: usize,
}

struct World {
    watched: bool,
    guest: Guest,
    share: u64,
    folder: PathBuf,
    /// All files that ever were, and which of them has which name.
    files: Vec<Model>,
    named: HashMap<&'static str, usize>,
    open: Vec<Opened>,
    /// What the guest's kernel has cached of each node.
    cached: HashMap<u64, Vec<u8>>,
    /// Opens that kept their cached pages.
    kept: u64,
}

impl World {
    fn new(folder: &Path) -> Self {
        let (guest, share) = Guest::with_share(folder);
        // The host here is this process, of which the watch does not tell; but files are at rest sooner.
        let watched = guest.server.watch().is_ok();
        Self {
            watched,
            guest,
            share,
            folder: folder.to_owned(),
            files: Vec::new(),
            named: HashMap::new(),
            open: Vec::new(),
            cached: HashMap::new(),
            kept: 0,
        }
    }

    fn settle(&self) {
        if self.watched { std::thread::sleep(Duration::from_millis(60)) } else { settle() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn new_file(&mut self, name: &'static str, content: Vec<u8>) -> usize {
        self.files.push(Model { content });
        self.named.insert(name, self.files.len() - 1);
        self.files.len() - 1
    }

    /// Opens as Linux does: sent back, it resolves the name anew.
    fn open(&mut self, name: &str, flags: u32) -> Option<Opened> {
        let file = self.named.get(name).copied();
        for _ in 0..3 {
            let entry = match self.guest.lookup(self.share, name) {
                Ok(entry) => entry,
                Err(Errno::ENOENT) => {
                    assert_eq!(file, None, "{name} is there");
                    return None;
                }
                Err(error) => panic!("lookup of {name}: {error:?}"),
            };
            match self.guest.open(entry.nodeid, flags) {
                Ok((fh, reply)) => {
                    let file = file.unwrap_or_else(|| panic!("{name} is gone"));
                    if reply & open::KEEP_CACHE == 0 {
                        self.cached.remove(&entry.nodeid);
                    } else if let Some(cached) = self.cached.get(&entry.nodeid) {
                        self.kept += 1;
                        assert_eq!(*cached, self.files[file].content, "stale pages of {name}");
                    }
                    return Some(Opened { node: entry.nodeid, fh, file });
                }
                Err(Errno::ESTALE) => {}
                Err(error) => panic!("open of {name}: {error:?}"),
            }
        }
        panic!("{name} never opens");
    }

    fn close(&mut self, at: usize) {
        let opened = self.open.remove(at);
        self.guest.release(opened.node, opened.fh).unwrap();
    }

    fn guest_step(&mut self, random: &mut Random) {
        let name = NAMES[random.below(3) as usize];
        match random.below(12) {
            0..=2 => {
                if self.open.len() > 5 {
                    self.close(random.below(6) as usize);
                }
                let truncate = random.below(8) == 0;
                if let Some(opened) = self.open(name, open::RDWR) {
                    if truncate {
                        let empty = wire::SetattrIn { valid: fattr::SIZE, ..<_>::default() };
                        self.guest.setattr(opened.node, empty).unwrap();
                        self.files[opened.file].content.clear();
                        self.cached.remove(&opened.node);
                    }
                    self.open.push(opened);
                }
            }
            3 if !self.named.contains_key(name) => {
                let (node, fh) = self.guest.create(self.share, name, 0o644).unwrap();
                let file = self.new_file(name, Vec::new());
                self.cached.remove(&node);
                self.open.push(Opened { node, fh, file });
            }
            3 => {
                self.guest.unlink(self.share, name).unwrap();
                self.named.remove(name);
            }
            4 => {
                let to = NAMES[random.below(3) as usize];
                if let Some(file) = self.named.get(name).copied() {
                    self.guest.rename((self.share, name), (self.share, to), 0).unwrap();
                    self.named.remove(name);
                    self.named.insert(to, file);
                }
            }
            _ if self.open.is_empty() => {}
            5 => self.close(random.below(self.open.len() as u64) as usize),
            step => self.open_file_step(step, random),
        }
    }

    fn open_file_step(&mut self, step: u64, random: &mut Random) {
        let which = random.below(self.open.len() as u64) as usize;
        let Opened { node, fh, file } = self.open[which];
        let at = random.below(MAX / 2);
        let data = vec![random.below(255) as u8 + 1; random.below(9000) as usize];
        match step {
            6..=7 => {
                assert_eq!(self.guest.write(node, fh, at, &data), Ok(data.len() as u32));
                self.files[file].write(at, &data);
            }
            8 => {
                let len = random.below(MAX);
                let valid = fattr::SIZE | if random.below(2) == 0 { fattr::FH } else { 0 };
                let input = wire::SetattrIn { valid, fh, size: len, ..<_>::default() };
                // Without the handle it is a file that may have lost its last name.
                let attr = self.guest.setattr(node, input).unwrap();
                assert_eq!(attr.size, len);
                self.files[file].content.resize(len as usize, 0);
            }
            9 => {
                let flags = wire::FALLOC_PUNCH_HOLE | wire::FALLOC_KEEP_SIZE;
                let len = 1 + random.below(20_000);
                let input =
                    wire::FallocateIn { fh, offset: at, length: len, mode: flags, padding: 0 };
                self.guest.ask(wire::opcode::FALLOCATE, node, &[bytes(&input)]).unwrap();
                self.files[file].zero(at, len);
            }
            10 => {
                let from = &self.open[random.below(self.open.len() as u64) as usize];
                if from.file == file {
                    return;
                }
                let input = wire::CopyFileRangeIn {
                    fh_in: from.fh,
                    off_in: at,
                    nodeid_out: node,
                    fh_out: fh,
                    off_out: at / 2,
                    len: 5000,
                    flags: 0,
                };
                let body =
                    self.guest.ask(wire::opcode::COPY_FILE_RANGE, from.node, &[bytes(&input)]);
                let count = client::take::<wire::WriteOut>(&body.unwrap()).0.size as usize;
                let source = &self.files[from.file].content;
                let end = source.len().min(at as usize + 5000);
                let copied = source.get(at as usize..end).unwrap_or_default().to_vec();
                assert_eq!(count, copied.len());
                self.files[file].write(at / 2, &copied);
            }
            _ => {
                let read = self.guest.read(node, fh, 0, 1 << 20).unwrap();
                assert!(read == self.files[file].content, "the guest reads something else");
                self.cached.insert(node, read);
                return;
            }
        }
        // What the guest itself changes, its kernel has in its pages.
        if let Some(cached) = self.cached.get_mut(&node) {
            cached.clone_from(&self.files[file].content);
        }
    }

    fn host_step(&mut self, random: &mut Random) {
        let name = NAMES[random.below(3) as usize];
        let path = self.path(name);
        let file = self.named.get(name).copied();
        let data = vec![random.below(255) as u8 + 1; random.below(30_000) as usize];
        match (random.below(8), file) {
            (0, _) => {
                fs::write(self.path("new"), &data).unwrap();
                fs::rename(self.path("new"), &path).unwrap();
                self.new_file(name, data);
            }
            (1, Some(_)) => {
                fs::remove_file(&path).unwrap();
                self.named.remove(name);
            }
            (_, None) => {
                fs::write(&path, &data).unwrap();
                self.new_file(name, data);
            }
            (2, Some(file)) => {
                fs::write(&path, &data).unwrap();
                self.files[file].content = data;
            }
            (3, Some(file)) => {
                let len = random.below(MAX);
                File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
                self.files[file].content.resize(len as usize, 0);
            }
            (4..=5, Some(file)) => {
                let at = random.below(MAX / 2);
                let opened = File::options().write(true).open(&path).unwrap();
                opened.write_all_at(&data, at).unwrap();
                self.files[file].write(at, &data);
            }
            (_, Some(file)) => {
                assert!(
                    fs::read(&path).unwrap() == self.files[file].content,
                    "the host reads else"
                );
            }
        }
    }

    fn check(&mut self) {
        for name in NAMES {
            let Some(opened) = self.open(name, open::RDONLY) else { continue };
            let read = self.guest.read(opened.node, opened.fh, 0, 1 << 20).unwrap();
            assert!(read == self.files[opened.file].content, "{name} at the end");
            assert!(fs::read(self.path(name)).unwrap() == read, "{name} on the host");
            self.guest.release(opened.node, opened.fh).unwrap();
        }
    }
}

fn play(seed: u64, operations: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path());
    let mut random = Random(seed);
    for operation in 0..operations {
        if random.below(3) == 0 {
            world.host_step(&mut random);
        } else {
            world.guest_step(&mut random);
        }
        if operation % REST == 0 {
            world.settle();
            // Opened twice in peace, a file's pages may stay.
            world.check();
            for name in NAMES {
                if let Some(opened) = world.open(name, open::RDONLY) {
                    let read = world.guest.read(opened.node, opened.fh, 0, 1 << 20).unwrap();
                    world.cached.insert(opened.node, read);
                    world.guest.release(opened.node, opened.fh).unwrap();
                }
            }
        }
    }
    world.check();
    println!("{operations} operations, {} opens kept their pages", world.kept);
    assert!(world.kept > operations / REST / 4, "hardly ever a cache was kept: nothing was tested");
}

#[test]
fn guest_and_host_write_in_turns() {
    play(0x5eed, 20_000);
}

#[test]
#[ignore = "takes minutes: runs with --long"]
fn guest_and_host_write_in_turns_a_million_times() {
    for seed in 1..=10 {
        play(seed, 100_000);
    }
}
