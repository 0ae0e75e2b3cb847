//! A guest that does random things to a folder, through a journal or without one, and a way to look
//! at a folder that shares no code with the journal, but for what asks the host.

// Each suite uses a part of it. A closure is general over lifetimes where a variant is not.
#![allow(dead_code, unreachable_pub, clippy::redundant_closure)]

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use cabana_journal::{Change, Home, Limits, Mark, Outcome, Recorder, Request, log, rollback};
use cabana_os::file::{FileExt, for_each_data};
use cabana_os::tree::{self, Access, Entry, Handle, Moment, NewTime, flags, mode};
use tempfile::TempDir;

/// A share with a journal.
pub struct Yard {
    pub dir: TempDir,
    pub home: Home,
}

impl Yard {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        let home = Home::make(&dir.path().join("journals"), &dir.path().join("share")).unwrap();
        Self { dir, home }
    }

    pub fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    pub fn recorder(&self) -> Recorder {
        Recorder::open(&self.home, Limits::default()).unwrap()
    }

    pub fn last(&self) -> u64 {
        log(&self.home).unwrap().last().map_or(0, |record| record.seq)
    }

    pub fn back_to(&self, to: u64) -> Outcome {
        let outcome = rollback(&self.home, &Request { to, ..Request::default() }).unwrap();
        let refused: Vec<_> =
            outcome.changed.iter().filter(|changed| changed.refused.is_some()).collect();
        assert!(
            refused.is_empty() && outcome.failed.is_empty(),
            "{refused:?} {:?}",
            outcome.failed
        );
        outcome
    }
}

/// Xorshift: the same numbers in every process.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// One thing to do. Paths count from the folder on.
#[derive(Clone, Debug)]
pub enum Op {
    Create(PathBuf),
    Mkdir(PathBuf),
    Symlink(PathBuf),
    Fifo(PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
    Times(PathBuf, i64),
    Xattr(PathBuf, Option<u8>),
    /// Opens a file in one of four slots, from which it is closed before.
    Open(usize, PathBuf),
    Close(usize),
    /// Bytes of one value at an offset.
    Write(usize, u64, usize, u8),
    Append(usize, usize, u8),
    Truncate(usize, u64),
    Punch(usize, u64, u64),
}

const SLOTS: u64 = 4;

impl Op {
    pub fn random(random: &mut Random) -> Self {
        let slot = random.below(SLOTS) as usize;
        let byte = random.below(255) as u8 + 1;
        match random.below(40) {
            0..=4 => Self::Create(path(random)),
            5..=7 => Self::Mkdir(path(random)),
            8 => Self::Symlink(path(random)),
            9 => Self::Fifo(path(random)),
            10..=11 => Self::Link(path(random), path(random)),
            12..=14 => Self::Unlink(path(random)),
            15 => Self::Rmdir(path(random)),
            16..=19 => Self::Rename(path(random), path(random)),
            20 => Self::Exchange(path(random), path(random)),
            21 => Self::Chmod(path(random), 0o600 | random.below(0o200) as u32),
            22 => Self::Times(path(random), random.below(1 << 30) as i64),
            23 => Self::Xattr(path(random), (!byte.is_multiple_of(3)).then_some(byte)),
            24..=28 => Self::Open(slot, path(random)),
            29..=30 => Self::Close(slot),
            31..=34 => Self::Write(slot, random.below(60_000), random.below(3000) as usize, byte),
            35..=36 => Self::Append(slot, random.below(3000) as usize, byte),
            37 => Self::Truncate(slot, random.below(40_000)),
            _ => Self::Punch(slot, random.below(10) * 4096, (1 + random.below(3)) * 4096),
        }
    }
}

/// Few enough paths that things happen to the same ones.
fn path(random: &mut Random) -> PathBuf {
    let depth = 1 + random.below(3);
    (0..depth).map(|_| ["a", "b", "c", "d", "e"][random.below(5) as usize]).collect()
}

/// Who does them.
pub struct Guest<'a> {
    root: PathBuf,
    journal: Option<&'a Recorder>,
    open: HashMap<usize, (File, Handle, Mark)>,
}

impl<'a> Guest<'a> {
    pub fn new(root: &Path, journal: Option<&'a Recorder>) -> Self {
        Self { root: root.to_owned(), journal, open: HashMap::new() }
    }

    pub fn close_all(&mut self) {
        for slot in 0..SLOTS as usize {
            self.close(slot);
        }
    }

    fn close(&mut self, slot: usize) {
        if let Some((_, handle, mark)) = self.open.remove(&slot)
            && let Some(journal) = self.journal
        {
            journal.closed(&handle, &mark);
        }
    }

    /// A write in the parts in which the host's kernel makes it: page by page.
    pub fn at_pages(&self, op: &Op) -> Vec<Op> {
        let size = |slot| {
            let open = self.open.get(slot);
            open.map_or(0, |(file, ..)| file.metadata().expect("its length").len())
        };
        let first = |at: u64, len: usize| len.min((4096 - at % 4096) as usize);
        match *op {
            Op::Write(slot, at, len, byte) => {
                let part = first(at, len);
                let rest = Op::Write(slot, at + part as u64, len - part, byte);
                vec![Op::Write(slot, at, part, byte), rest]
            }
            Op::Append(slot, len, byte) => {
                let part = first(size(&slot), len);
                vec![Op::Append(slot, part, byte), Op::Append(slot, len - part, byte)]
            }
            _ => vec![op.clone()],
        }
    }

    /// Does it. That the host refuses is part of the game.
    pub fn act(&mut self, op: &Op) -> io::Result<()> {
        match op {
            Op::Create(path) => {
                self.make(path, |at| at.directory.create(at.name, 0o644, Access::WRITE).map(drop))
            }
            Op::Mkdir(path) => self.make(path, |at| at.directory.make_directory(at.name, 0o755)),
            Op::Symlink(path) => {
                self.make(path, |at| at.directory.make_symlink(at.name, c"../somewhere"))
            }
            Op::Fifo(path) => {
                self.make(path, |at| at.directory.make_special(at.name, mode::FIFO, 0o640))
            }
            Op::Link(from, to) => {
                let handle = self.handle(from)?;
                if handle.stat()?.kind() == mode::DIRECTORY {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                let (folder, name) = self.entry(to)?;
                let at = Entry { directory: &folder, name: &name };
                let act = || at.link(&handle);
                let change = Change::Link(at, &handle);
                self.journal.map_or_else(act, |journal| journal.change(&change, act))
            }
            Op::Unlink(path) => {
                self.change(path, |at| Change::Unlink(at), |at| at.directory.unlink(at.name))
            }
            Op::Rmdir(path) => self.change(
                path,
                |at| Change::Rmdir(at),
                |at| at.directory.remove_directory(at.name),
            ),
            Op::Rename(from, to) => self.rename(from, to, 0),
            Op::Exchange(from, to) => self.rename(from, to, flags::RENAME_EXCHANGE),
            Op::Chmod(path, mode) => self.attributes(path, |at| at.set_mode(*mode)),
            Op::Times(path, sec) => self.attributes(path, |at| {
                let time = Some(NewTime::At(Moment { sec: *sec, nsec: 500 }));
                at.set_times(time, time)
            }),
            Op::Xattr(path, value) => self.attributes(path, |at| match value {
                Some(byte) => at.set_xattr(c"user.x", &[*byte], 0),
                None => at.remove_xattr(c"user.x"),
            }),
            Op::Open(slot, path) => {
                self.close(*slot);
                let handle = self.handle(path)?;
                let path = self.root.join(path);
                if !path.symlink_metadata()?.is_file() {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let file = File::options().read(true).write(true).open(path)?;
                self.open.insert(*slot, (file, handle, Mark::default()));
                Ok(())
            }
            Op::Close(slot) => {
                self.close(*slot);
                Ok(())
            }
            Op::Write(slot, at, len, byte) => {
                self.content(*slot, *at, |file| file.write_all_at(&vec![*byte; *len], *at))
            }
            Op::Append(slot, len, byte) => {
                let Some((file, ..)) = self.open.get(slot) else { return Ok(()) };
                let end = file.metadata()?.len();
                self.content(*slot, end, |file| file.write_all_at(&vec![*byte; *len], end))
            }
            Op::Truncate(slot, len) => self.content(*slot, *len, |file| file.set_len(*len)),
            Op::Punch(slot, at, len) => self.content(*slot, *at, |file| {
                let hole = flags::ALLOCATE_PUNCH_HOLE | flags::ALLOCATE_KEEP_SIZE;
                tree::allocate(file, hole, *at, *len)
            }),
        }
    }

    fn make(&self, path: &Path, act: impl Fn(&Entry) -> io::Result<()>) -> io::Result<()> {
        self.change(path, |at| Change::Make(at), act)
    }

    fn change(
        &self,
        path: &Path,
        change: impl for<'b> Fn(Entry<'b>) -> Change<'b>,
        act: impl Fn(&Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        let (folder, name) = self.entry(path)?;
        let at = Entry { directory: &folder, name: &name };
        match self.journal {
            Some(journal) => journal.change(&change(at), || act(&at)),
            None => act(&at),
        }
    }

    fn rename(&self, from: &Path, to: &Path, how: u32) -> io::Result<()> {
        let ((one, name), (other, to_name)) = (self.entry(from)?, self.entry(to)?);
        let from = Entry { directory: &one, name: &name };
        let to = Entry { directory: &other, name: &to_name };
        let act = || from.directory.rename(from.name, to.directory, to.name, how);
        let change = if how & flags::RENAME_EXCHANGE != 0 {
            Change::Exchange(from, to)
        } else {
            Change::Rename { from, to, replace: true }
        };
        self.journal.map_or_else(act, |journal| journal.change(&change, act))
    }

    fn attributes(&self, path: &Path, act: impl Fn(&Handle) -> io::Result<()>) -> io::Result<()> {
        let handle = self.handle(path)?;
        if handle.stat()?.kind() == mode::SYMLINK {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match self.journal {
            Some(journal) => journal.change(&Change::Attributes(&handle), || act(&handle)),
            None => act(&handle),
        }
    }

    fn content(
        &self,
        slot: usize,
        from: u64,
        act: impl Fn(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some((file, handle, mark)) = self.open.get(&slot) else { return Ok(()) };
        if let Some(journal) = self.journal {
            journal.before_content(handle, from, mark)?;
        }
        act(file)
    }

    fn entry(&self, path: &Path) -> io::Result<(Handle, CString)> {
        let parent = path.parent().expect("a parent");
        let folder = Handle::of_directory(&self.root)?.beneath(parent)?;
        Ok((folder, tree::c_name(path)?))
    }

    fn handle(&self, path: &Path) -> io::Result<Handle> {
        let (folder, name) = self.entry(path)?;
        folder.child(&name)
    }
}

/// Something in a folder, as the host's user sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    mode: u32,
    content: Vec<u8>,
    /// Where there are data in it.
    data: Vec<(u64, u64)>,
    target: PathBuf,
    xattr: Option<u8>,
    /// The first path of the same inode.
    same_as: PathBuf,
    /// Of folders it follows from what happens in them.
    modified: Option<Moment>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, content, data, target, xattr, same_as, modified } = self;
        let sum = content.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
        write!(
            f,
            "{mode:o} {} bytes ({sum:x}) {data:?} {} {xattr:?} {} {modified:?}",
            content.len(),
            target.display(),
            same_as.display()
        )
    }
}

pub type Snapshot = BTreeMap<PathBuf, Seen>;

/// All of a folder, with its times or without.
pub fn snapshot(root: &Path, times: bool) -> Snapshot {
    let mut inodes = HashMap::new();
    let mut found = Snapshot::new();
    let mut paths = Vec::new();
    walk(root, Path::new(""), &mut paths);
    paths.sort();
    let handle = Handle::of_directory(root).unwrap();
    for path in paths {
        let full = root.join(&path);
        let metadata = full.symlink_metadata().unwrap();
        let is_link = metadata.is_symlink();
        let content = if metadata.is_file() { fs::read(&full).unwrap() } else { Vec::new() };
        let parent = path.parent().map(|parent| handle.beneath(parent).unwrap());
        let inode = parent.map_or_else(
            || handle.try_clone().unwrap(),
            |parent| parent.child(&tree::c_name(&path).unwrap()).unwrap(),
        );
        let stat = inode.stat().unwrap();
        let mut value = [0u8; 8];
        let xattr = (!is_link && !path.as_os_str().is_empty())
            .then(|| inode.xattr(c"user.x", &mut value).ok())
            .flatten();
        let same_as = inodes.entry(stat.ino).or_insert_with(|| path.clone()).clone();
        let timed = times && !metadata.is_dir();
        let seen = Seen {
            mode: stat.mode,
            data: if metadata.is_file() { data(&full) } else { Vec::new() },
            content,
            target: if is_link { fs::read_link(&full).unwrap() } else { PathBuf::new() },
            xattr: xattr.map(|_| value[0]),
            same_as,
            modified: timed.then_some(stat.modified),
        };
        found.insert(path, seen);
    }
    found
}

fn walk(root: &Path, at: &Path, paths: &mut Vec<PathBuf>) {
    paths.push(at.to_owned());
    for entry in fs::read_dir(root.join(at)).unwrap() {
        let entry = entry.unwrap();
        let path = at.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            walk(root, &path, paths);
        } else {
            paths.push(path);
        }
    }
}

/// The ranges of a file that are no holes, in whole pages: what was cut off leaves its last page.
fn data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let whole = file.metadata().unwrap().len() / 4096 * 4096;
    let mut ranges = Vec::new();
    for_each_data(&file, 0..whole, |data| {
        ranges.push((data.start, data.end));
        Ok(())
    })
    .unwrap();
    ranges.retain(|(start, end)| start < end);
    ranges
}

/// Panics with what differs.
pub fn assert_same(what: &str, is: &Snapshot, should: &Snapshot) {
    let paths: std::collections::BTreeSet<_> = is.keys().chain(should.keys()).collect();
    let differ: Vec<String> = paths
        .into_iter()
        .filter(|path| is.get(*path) != should.get(*path))
        .map(|path| {
            format!("{}\n   is {:?}\n  was {:?}", path.display(), is.get(path), should.get(path))
        })
        .collect();
    assert!(differ.is_empty(), "{what}:\n{}", differ.join("\n"));
}
