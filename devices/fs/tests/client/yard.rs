//! A share with something beside it that no guest may reach.

use std::ffi::CString;
use std::path::Path;
use std::{fs, io};

use cabana_os::tree::{Handle, Stat, c_name};

/// What lies outside.
pub const SECRET: &[u8] = b"nobody's business";

/// `inside` is shared; `outside` lies beside it and must stay as it is.
pub struct Yard {
    dir: tempfile::TempDir,
}

impl Yard {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["inside", "outside", "outside/sub"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["outside/secret", "outside/sub/secret", "beside"] {
            fs::write(dir.path().join(name), SECRET).unwrap();
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub fn check(&self) {
        let mut names = Vec::new();
        for dir in [".", "outside", "outside/sub"] {
            for entry in fs::read_dir(self.path(dir)).unwrap() {
                names.push(format!("{dir}/{}", entry.unwrap().file_name().display()));
            }
        }
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "./beside",
                "./inside",
                "./outside",
                "outside/secret",
                "outside/sub",
                "outside/sub/secret"
            ]
        );
        for name in ["outside/secret", "outside/sub/secret", "beside"] {
            assert_eq!(fs::read(self.path(name)).unwrap(), SECRET);
        }
    }
}

/// Names, modes and times of change of all below `path`.
pub fn tree(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let stat = path.symlink_metadata().unwrap();
        let looked = look(&path);
        found.push(format!("{} {:o} {:?}", path.display(), looked.mode, looked.changed));
        if stat.is_dir() {
            found.extend(tree(&path));
        }
    }
    found.sort_unstable();
    found
}

/// What the host says of an inode, itself if it is a link.
pub fn look(path: &Path) -> Stat {
    handle(path).stat().unwrap()
}

/// Gives it just these permissions.
pub fn set_mode(path: &Path, mode: u32) {
    handle(path).set_mode(mode).unwrap();
}

/// Makes a link that says this.
pub fn symlink(target: impl AsRef<Path>, path: impl AsRef<Path>) -> io::Result<()> {
    let (target, path) = (target.as_ref(), path.as_ref());
    let target = CString::new(target.to_str().unwrap()).unwrap();
    Handle::of_directory(path.parent().unwrap())?.make_symlink(&c_name(path)?, &target)
}

fn handle(path: &Path) -> Handle {
    let folder = Handle::of_directory(path.parent().unwrap()).unwrap();
    folder.child(&c_name(path).unwrap()).unwrap()
}
