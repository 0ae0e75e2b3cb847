//! A share with something beside it that no guest may reach.

use std::fs;
use std::path::Path;

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
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let stat = path.symlink_metadata().unwrap();
        found.push(format!(
            "{} {:o} {} {}",
            path.display(),
            stat.mode(),
            stat.ctime(),
            stat.ctime_nsec()
        ));
        if stat.is_dir() {
            found.extend(tree(&path));
        }
    }
    found.sort_unstable();
    found
}
