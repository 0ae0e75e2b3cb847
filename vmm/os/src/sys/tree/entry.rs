//! Entries of folders, and copies of inodes with all that belongs to them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;

use super::host::clone_content;
use super::stat::{Access, Attributes, InodeKind, InodeStat, Moment, NewTime, flags, mode};
use super::{Handle, Listing};
use crate::sys::file::copy_sparse;

/// A directory and the name of an entry in it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The directory's handle.
    pub directory: &'a Handle,
    /// One component; `.` is the directory itself.
    pub name: &'a CStr,
}

/// Read and write for the owner alone.
const PRIVATE: u32 = 0o600;

impl Entry<'_> {
    /// A handle of the entry, itself if it is a link.
    pub fn handle(&self) -> io::Result<Handle> {
        if self.name == c"." { self.directory.try_clone() } else { self.directory.child(self.name) }
    }

    /// What is there; `None` for nothing.
    pub fn stat(&self) -> io::Result<Option<InodeStat>> {
        match self.directory.stat_child(self.name) {
            Ok(found) => Ok(Some(found.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an empty file for this user alone; the name must be free.
    pub fn create(&self) -> io::Result<File> {
        Ok(self.directory.create(self.name, PRIVATE, Access::BOTH)?.0)
    }

    /// Makes an empty folder; the name must be free.
    pub fn make_folder(&self, mode: u32) -> io::Result<()> {
        self.directory.make_directory(self.name, mode)
    }

    /// Makes a symbolic link that says this; the name must be free.
    pub fn make_link(&self, target: &CStr) -> io::Result<()> {
        self.directory.make_symlink(self.name, target)
    }

    /// Opens a regular file for reading; a link is not followed, and nothing is waited for.
    pub fn open(&self) -> io::Result<File> {
        let handle = self.handle()?;
        match handle.stat()?.kind() {
            mode::REGULAR => handle.open(Access::READ),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Sets the permissions of what is there, which is no link.
    pub fn set_mode(&self, permissions: u32) -> io::Result<()> {
        let handle = self.handle()?;
        if handle.stat()?.kind() == mode::SYMLINK {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        handle.set_mode(permissions)
    }

    /// Gives the inode of `handle` this name too.
    pub fn link(&self, handle: &Handle) -> io::Result<()> {
        self.directory.link(self.name, handle)
    }

    /// Moves the entry to a name that must be free.
    pub fn move_to(&self, to: &Entry) -> io::Result<()> {
        let no_replace = flags::RENAME_NOREPLACE;
        match self.directory.rename(self.name, to.directory, to.name, no_replace) {
            // A file system that does not know the flag.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && to.stat()?.is_none() => {
                self.replace(to)
            }
            result => result,
        }
    }

    /// Moves the entry over what has the name `to`.
    pub fn replace(&self, to: &Entry) -> io::Result<()> {
        self.directory.rename(self.name, to.directory, to.name, 0)
    }

    /// Removes the name, if it is there; a folder must be empty.
    pub fn remove(&self) -> io::Result<()> {
        match self.stat()? {
            None => Ok(()),
            Some(found) if found.kind == InodeKind::Directory => {
                self.directory.remove_directory(self.name)
            }
            Some(_) => self.directory.unlink(self.name),
        }
    }

    /// Makes the entry an inode like `handle`'s: content with its holes, sharing its blocks where the
    /// file system can, target and attributes; of a folder all but its entries. Returns
    /// the new inode if it is a file.
    pub fn copy_of(&self, handle: &Handle) -> io::Result<Option<File>> {
        let stat = handle.stat()?;
        let file = match stat.kind() {
            mode::REGULAR => {
                let copy = self.create()?;
                copy_content(&open_to_read(handle)?, &copy)?;
                Some(copy)
            }
            mode::DIRECTORY => {
                self.directory.make_directory(self.name, PRIVATE | 0o100)?;
                None
            }
            mode::SYMLINK => {
                let target = CString::new(handle.read_link()?)?;
                self.directory.make_symlink(self.name, &target)?;
                None
            }
            kind => {
                self.directory.make_special(self.name, kind, PRIVATE)?;
                None
            }
        };
        Attributes::of(handle)?.apply(&self.handle()?)?;
        Ok(file)
    }
}

/// Makes `to` what `from` is, sharing its blocks where the file system can, else with its holes.
pub fn copy_content(from: &File, to: &File) -> io::Result<()> {
    if clone_content(from, to) { Ok(()) } else { copy_sparse(from, to) }
}

/// Opens a regular file's content, by its handle, for a process that owns it whatever its mode.
pub fn open_to_read(handle: &Handle) -> io::Result<File> {
    for_owner(handle, Access::READ, 0o400)
}

/// As [`open_to_read`], to read and write.
pub fn open_to_write(handle: &Handle) -> io::Result<File> {
    for_owner(handle, Access::BOTH, PRIVATE)
}

fn for_owner(handle: &Handle, access: Access, need: u32) -> io::Result<File> {
    match handle.open(access) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mode = handle.stat()?.mode;
            handle.set_mode(mode | need)?;
            let opened = handle.open(access);
            handle.set_mode(mode)?;
            opened
        }
        opened => opened,
    }
}

/// The names in a folder.
pub fn names(handle: &Handle) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    let mut listing = Listing::open(handle)?;
    loop {
        let before = names.len();
        let mut any = false;
        listing.read(16 << 10, |entry| {
            any = true;
            if entry.name != c"." && entry.name != c".." {
                names.push(entry.name.to_owned());
            }
            true
        })?;
        if !any && names.len() == before {
            return Ok(names);
        }
    }
}

impl InodeStat {
    /// What the host says of a handle's inode.
    pub fn of(handle: &Handle) -> io::Result<Self> {
        Ok(handle.stat()?.into())
    }

    /// What it says of an open file's.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Ok(super::stat(file)?.into())
    }
}

impl Attributes {
    /// What belongs to a handle's inode.
    pub fn of(handle: &Handle) -> io::Result<Self> {
        let found = handle.stat()?;
        let time = |moment: Moment| (moment.sec, moment.nsec);
        // Links have no attributes of users.
        let extended = match found.kind() {
            mode::REGULAR | mode::DIRECTORY => extended(handle)?,
            _ => Vec::new(),
        };
        Ok(Self {
            mode: found.mode & mode::ALL,
            uid: found.uid,
            gid: found.gid,
            accessed: time(found.accessed),
            modified: time(found.modified),
            extended,
        })
    }

    /// Gives them to a handle's inode: owner and foreign attributes as far as this process may.
    pub fn apply(&self, handle: &Handle) -> io::Result<()> {
        let now = Self::of(handle)?;
        let kind = handle.stat()?.kind();
        if (self.uid, self.gid) != (now.uid, now.gid) {
            // Who may not give files away keeps them.
            let _ = handle.set_owner(self.uid, self.gid);
        }
        if kind != mode::SYMLINK {
            for (name, _) in &now.extended {
                if !self.extended.iter().any(|(wanted, _)| wanted == name) {
                    set_extended(handle, name, None)?;
                }
            }
            for (name, value) in &self.extended {
                if !now.extended.iter().any(|have| have.0 == *name && have.1 == *value) {
                    set_extended(handle, name, Some(value))?;
                }
            }
            handle.set_mode(self.mode)?;
        }
        let time = |(sec, nsec): (i64, u32)| Some(NewTime::At(Moment { sec, nsec }));
        handle.set_times(time(self.accessed), time(self.modified))
    }
}

fn extended(handle: &Handle) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    let names = match handle.xattr_names() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(found),
        names => names?,
    };
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let mut value = vec![0; 64 << 10];
        // Gone since, or for others only.
        if let Ok(len) = handle.xattr(name, &mut value) {
            value.truncate(len);
            found.push((name.to_bytes().to_vec(), value));
        }
    }
    Ok(found)
}

fn set_extended(handle: &Handle, name: &[u8], value: Option<&[u8]>) -> io::Result<()> {
    let Ok(c_name) = CString::new(name) else { return Ok(()) };
    let result = match value {
        Some(value) => handle.set_xattr(&c_name, value, 0),
        None => handle.remove_xattr(&c_name),
    };
    match result {
        // Capabilities, labels and the like belong to whoever may set them.
        Err(_) if !name.starts_with(b"user.") => Ok(()),
        // Gone already.
        Err(_) if value.is_none() => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{FileExt, for_each_data};
    use std::fs;
    use std::path::Path;

    fn entry<'a>(directory: &'a Handle, name: &'a CStr) -> Entry<'a> {
        Entry { directory, name }
    }

    #[test]
    fn a_copy_has_all_that_the_original_has() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Handle::of_directory(dir.path()).unwrap();
        let file = entry(&folder, c"file").create().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"late", 4 << 20).unwrap();
        let original = entry(&folder, c"file").handle().unwrap();
        let has_xattrs = original.set_xattr(c"user.x", b"value", 0).is_ok();
        entry(&folder, c"file").set_mode(0o4051).unwrap();
        drop(file);
        entry(&folder, c"copy").copy_of(&original).unwrap();
        let copy = entry(&folder, c"copy").handle().unwrap();
        let (mut one, mut two) =
            (Attributes::of(&original).unwrap(), Attributes::of(&copy).unwrap());
        // Reading it may have changed that.
        one.accessed = (0, 0);
        two.accessed = (0, 0);
        assert_eq!(one, two);
        assert_eq!(two.extended.len(), usize::from(has_xattrs));
        let stat = InodeStat::of(&copy).unwrap();
        assert_eq!(stat.size, 8 << 20);
        let mut parts = 0;
        let counted = for_each_data(&open_to_read(&original).unwrap(), 0..8 << 20, |_| {
            parts += 1;
            Ok(())
        });
        counted.unwrap();
        assert!(stat.allocated < 1 << 20 || parts == 1, "holes stay holes where there are any");
        let same = crate::file::same_content(
            &open_to_read(&original).unwrap(),
            &open_to_read(&copy).unwrap(),
            8 << 20,
        );
        assert!(same.unwrap());
        assert_eq!(Attributes::of(&copy).unwrap().mode, two.mode, "as before");
    }

    #[test]
    fn links_fifos_and_folders_are_copied_as_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Handle::of_directory(dir.path()).unwrap();
        entry(&folder, c"folder").make_folder(0o1751).unwrap();
        let mut made = vec![(c"folder", c"folder2")];
        match entry(&folder, c"link").make_link(c"some/where") {
            Ok(()) => made.push((c"link", c"link2")),
            Err(error) => eprintln!("skipped: no links here: {error}"),
        }
        match folder.make_special(c"fifo", mode::FIFO, 0o400) {
            Ok(()) => made.push((c"fifo", c"fifo2")),
            Err(error) => eprintln!("skipped: no fifos here: {error}"),
        }
        for (name, copy) in &made {
            let original = entry(&folder, name).handle().unwrap();
            entry(&folder, copy).copy_of(&original).unwrap();
            let copied = entry(&folder, copy).stat().unwrap().unwrap();
            assert_eq!(copied.mode, original.stat().unwrap().mode);
        }
        if made.iter().any(|(name, _)| *name == c"link") {
            let link = entry(&folder, c"link2").handle().unwrap();
            assert_eq!(link.read_link().unwrap(), b"some/where");
        }
        assert_eq!(names(&folder).unwrap().len(), 2 * made.len());
    }

    #[test]
    fn no_link_leads_out_and_no_name_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("in/deep/er")).unwrap();
        fs::write(dir.path().join("in/a"), "a").unwrap();
        fs::write(dir.path().join("in/b"), "b").unwrap();
        let root = Handle::of_directory(&dir.path().join("in")).unwrap();
        match root.make_symlink(c"out", c"/") {
            Ok(()) => {
                let told = root.beneath(Path::new("out")).unwrap_err();
                assert_eq!(told.kind(), io::ErrorKind::NotADirectory);
            }
            Err(error) => eprintln!("skipped: no links here: {error}"),
        }
        assert!(root.beneath(Path::new("..")).is_err());
        assert!(root.beneath(Path::new("")).is_ok());
        let deep = root.beneath(Path::new("deep/er")).unwrap();
        assert_eq!(deep.path_from(&root).unwrap(), Path::new("deep/er"));
        let moved = entry(&root, c"a").move_to(&entry(&root, c"b"));
        assert_eq!(moved.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(dir.path().join("in/b")).unwrap(), b"b");
        entry(&root, c"a").replace(&entry(&root, c"b")).unwrap();
        assert_eq!(fs::read(dir.path().join("in/b")).unwrap(), b"a");
        assert_eq!(entry(&root, c"a").stat().unwrap(), None);
        entry(&root, c"b").remove().unwrap();
        entry(&root, c"b").remove().unwrap();
    }

    #[test]
    fn a_listing_names_everything_once_and_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..300 {
            fs::write(dir.path().join(format!("file-{number:03}")), "").unwrap();
        }
        let folder = Handle::of_directory(dir.path()).unwrap();
        let mut all = names(&folder).unwrap();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 300);
        let mut listing = Listing::open(&folder).unwrap();
        let (mut seen, mut at, mut more) = (Vec::new(), 0, true);
        while more {
            more = false;
            listing.seek(at).unwrap();
            // One at a time, the rest of what was read is dropped.
            let read = listing.read(4096, |entry| {
                let is_first = !more;
                if is_first {
                    seen.push(entry.name.to_owned());
                    at = entry.next;
                    more = true;
                }
                is_first
            });
            read.unwrap();
        }
        seen.retain(|name| name.as_c_str() != c"." && name.as_c_str() != c"..");
        seen.sort();
        assert_eq!(seen, all);
    }
}
