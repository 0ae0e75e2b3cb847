//! What is said of inodes, the same on every system.

/// The parts of a file's mode.
pub mod mode {
    /// What it is.
    pub const TYPE: u32 = 0o170_000;
    /// A pipe with a name.
    pub const FIFO: u32 = 0o010_000;
    /// A folder.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A file.
    pub const REGULAR: u32 = 0o100_000;
    /// A symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
    /// A socket with a name.
    pub const SOCKET: u32 = 0o140_000;
    /// Permissions with the set-ID bits.
    pub const ALL: u32 = 0o7_777;
}

/// Flags of calls, as Linux numbers them.
pub mod flags {
    /// `renameat2(2)`: do not replace.
    pub const RENAME_NOREPLACE: u32 = 1;
    /// `renameat2(2)`: exchange both names.
    pub const RENAME_EXCHANGE: u32 = 2;
    /// `fallocate(2)`: the file keeps its size.
    pub const ALLOCATE_KEEP_SIZE: u32 = 1;
    /// `fallocate(2)`: make a hole.
    pub const ALLOCATE_PUNCH_HOLE: u32 = 2;
    /// `fallocate(2)`: make zeroes.
    pub const ALLOCATE_ZERO_RANGE: u32 = 16;
    /// `setxattr(2)`: it must be new.
    pub const XATTR_CREATE: u32 = 1;
    /// `setxattr(2)`: it must exist.
    pub const XATTR_REPLACE: u32 = 2;
}

/// What the file systems of a host make of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Any bytes, each name by its own spelling alone. Folders that ignore case find a name by any case themselves.
    Linux,
    /// Text that lacks some characters, found by any case.
    Windows,
    /// Text, found by any case and any normalization form.
    Macos,
}

/// A moment: seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds in the second.
    pub nsec: u32,
}

impl Moment {
    /// Nanoseconds since 1970.
    pub fn nanoseconds(self) -> i128 {
        i128::from(self.sec) * 1_000_000_000 + i128::from(self.nsec)
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum NewTime {
    /// The host's present.
    Now,
    /// This one.
    At(Moment),
}

/// What the host says of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    /// The file system.
    pub device: u64,
    /// Where that is mounted, on hosts that mount one in several places.
    pub mount: u64,
    /// The inode's number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Its names.
    pub links: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its length in bytes.
    pub size: u64,
    /// What it takes on the disk, in units of 512 bytes.
    pub blocks: u64,
    /// The bytes that are best read at once.
    pub block_size: u32,
    /// When it was last read.
    pub accessed: Moment,
    /// When its content last changed.
    pub modified: Moment,
    /// When anything of it last changed.
    pub changed: Moment,
    /// When it was made; `None` where the file system does not keep it.
    pub born: Option<Moment>,
}

impl Stat {
    /// What it is, as it stands in the top bits of a mode.
    pub fn kind(&self) -> u32 {
        self.mode & mode::TYPE
    }

    /// Is it said of the same inode, found through the same mount?
    pub fn is_of(&self, other: &Self) -> bool {
        (self.mount, self.device, self.ino) == (other.mount, other.device, other.ino)
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InodeKind {
    /// With content.
    Regular,
    /// With entries.
    Directory,
    /// With a target.
    Symlink,
    /// A fifo, a socket or a device.
    Special,
}

/// What tells inodes and their states apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeStat {
    /// The file system.
    pub device: u64,
    /// Where that is mounted.
    pub mount: u64,
    /// The inode's number.
    pub ino: u64,
    /// What it is.
    pub kind: InodeKind,
    /// Type and permissions (`st_mode`).
    pub mode: u32,
    /// Its names.
    pub links: u32,
    /// Its length in bytes.
    pub size: u64,
    /// The bytes that it takes on the disk.
    pub allocated: u64,
    /// When its content last changed, in nanoseconds since 1970.
    pub modified: i128,
    /// When it was made, in nanoseconds since 1970: tells inodes apart that had one number after
    /// another. Zero where the file system does not keep it.
    pub born: i128,
}

impl From<Stat> for InodeStat {
    fn from(stat: Stat) -> Self {
        let kind = match stat.kind() {
            mode::REGULAR => InodeKind::Regular,
            mode::DIRECTORY => InodeKind::Directory,
            mode::SYMLINK => InodeKind::Symlink,
            _ => InodeKind::Special,
        };
        Self {
            device: stat.device,
            mount: stat.mount,
            ino: stat.ino,
            kind,
            mode: stat.mode,
            links: stat.links,
            size: stat.size,
            allocated: stat.blocks * 512,
            modified: stat.modified.nanoseconds(),
            born: stat.born.map_or(0, Moment::nanoseconds),
        }
    }
}

/// What belongs to an inode beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, with the set-ID bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last read: seconds and nanoseconds since 1970.
    pub accessed: (i64, u32),
    /// When its content last changed.
    pub modified: (i64, u32),
    /// Extended attributes, by name.
    pub extended: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How to open a file for I/O.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// Writes go to the end, wherever that is by then.
    pub append: bool,
    /// Data reach the disk before a write returns.
    pub data_sync: bool,
    /// All reaches it.
    pub sync: bool,
}

impl Access {
    /// To read alone.
    pub const READ: Self =
        Self { read: true, write: false, append: false, data_sync: false, sync: false };
    /// To write alone.
    pub const WRITE: Self = Self { read: false, write: true, ..Self::READ };
    /// To read and write.
    pub const BOTH: Self = Self { write: true, ..Self::READ };
}

/// The room of a file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Bytes of a block.
    pub block: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub free: u64,
    /// Blocks that this user may take.
    pub available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes that are free.
    pub free_files: u64,
}

/// An entry of a folder, as a listing has it.
#[derive(Debug)]
pub struct Listed<'a> {
    /// Its name.
    pub name: &'a std::ffi::CStr,
    /// Its inode's number.
    pub ino: u64,
    /// The type, as it stands in the top bits of a mode; zero if the host does not say.
    pub kind: u32,
    /// Where the listing goes on behind it.
    pub next: u64,
}
