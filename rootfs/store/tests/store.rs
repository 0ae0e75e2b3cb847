//! The store as its users see it: on real folders, with real processes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use cabana_os::file::{FileExt as _, allocated, unnamed};
use cabana_os::tree::{look, stat};
use cabana_store::{Artifact, Kind, Run, Store, StoreError};
use tempfile::TempDir;

fn new_store() -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = Store::open_at(folder.path().join("store")).unwrap();
    (folder, store)
}

fn put(store: &Store, name: &str, content: &[u8]) -> Artifact {
    let staging = store.stage(Kind::Image, name).unwrap();
    fs::write(staging.path().join("root.erofs"), content).unwrap();
    fs::write(staging.path().join("packages.tsv"), "bash\t5.2\n").unwrap();
    staging.commit("00ff", BTreeMap::from([("summary".into(), "a test".into())])).unwrap()
}

fn make_writable(path: &Path) {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false, reason = "it is this test's own")]
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions).unwrap();
}

/// Everything in a folder, as paths relative to it.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(folder_now) = pending.pop() {
        for entry in fs::read_dir(folder_now).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path.clone());
            }
            paths.push(path.strip_prefix(folder).unwrap().to_path_buf());
        }
    }
    paths.sort();
    paths
}

#[test]
fn what_was_committed_is_found_listed_and_removed() {
    let (_folder, store) = new_store();
    assert!(matches!(
        store.find(Kind::Image, "default").unwrap_err(),
        StoreError::NotFound { kind: Kind::Image, .. }
    ));
    assert!(store.list().unwrap().is_empty());

    let committed = put(&store, "default", b"content");
    let found = store.find(Kind::Image, "default").unwrap();
    assert_eq!(found, committed);
    assert_eq!(found.manifest.inputs, "00ff");
    assert_eq!(found.size().0, 7 + 9);
    assert_eq!(fs::read(found.file("root.erofs").unwrap()).unwrap(), b"content");
    assert!(matches!(found.file("vmlinux").unwrap_err(), StoreError::NoFile { .. }));
    let mode = look(&found.file("root.erofs").unwrap()).unwrap().mode;
    assert_eq!(mode & 0o222, 0, "an artifact's files are read-only");

    let list = store.list().unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].kind, list[0].name.as_str()), (Kind::Image, "default"));
    assert!(list[0].to_string().ends_with("a test"), "{}", list[0]);
    assert!(store.find(Kind::Kernel, "default").is_err());

    assert!(store.remove(Kind::Image, "default").unwrap().0 >= 16);
    assert!(matches!(store.find(Kind::Image, "default"), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.remove(Kind::Image, "default"), Err(StoreError::NotFound { .. })));
    assert_eq!(tree(store.path()), [Path::new("image"), Path::new("staging")]);
}

#[test]
fn every_kind_of_damage_is_named() {
    let (_folder, store) = new_store();
    let dir = put(&store, "default", b"content").dir;
    let root = dir.join("root.erofs");
    let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap();
    let problem = |file: &str, words: &str| {
        let error = store.find(Kind::Image, "default").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{text}");
        assert!(text.starts_with(&format!("{file} of the image 'default'")), "{text}");
        assert!(text.contains(words), "{text}");
        assert!(text.contains("cabana image build default"), "{text}");
    };

    make_writable(&root);
    fs::write(&root, b"CONTENT").unwrap();
    problem("root.erofs", "hash is wrong");
    problem("root.erofs", "hash is wrong");
    fs::write(&root, b"content and more").unwrap();
    problem("root.erofs", "hash is wrong");
    fs::write(&root, b"content").unwrap();
    store.find(Kind::Image, "default").unwrap();

    fs::remove_file(&root).unwrap();
    problem("root.erofs", "is missing");
    fs::create_dir(&root).unwrap();
    problem("root.erofs", "not a regular file");
    fs::remove_dir(&root).unwrap();
    fs::write(&root, b"content").unwrap();

    // A manifest changed under an unchanged stamp.
    let other = manifest.replacen("\"sha256\": \"", "\"sha256\": \"0", 1);
    fs::write(dir.join("manifest.json"), other).unwrap();
    problem("packages.tsv", "hash is wrong");
    fs::write(dir.join("manifest.json"), &manifest[..manifest.len() / 2]).unwrap();
    problem("manifest.json", "cannot be read");
    fs::write(dir.join("manifest.json"), manifest.replace("root.erofs", "../../x")).unwrap();
    problem("manifest.json", "../../x");
    fs::write(dir.join("manifest.json"), manifest.replace("\"default\"", "\"other\"")).unwrap();
    problem("manifest.json", "belongs to the image 'other'");
    fs::remove_file(dir.join("manifest.json")).unwrap();
    problem("manifest.json", "is missing");
    assert!(store.list().unwrap()[0].artifact.is_err());

    let newer = manifest.replace("\"version\": 1", "\"version\": 2");
    for text in [newer.as_str(), "{\"version\": 2, \"something\": \"else\"}"] {
        fs::write(dir.join("manifest.json"), text).unwrap();
        let error = store.find(Kind::Image, "default").unwrap_err();
        assert!(matches!(error, StoreError::TooNew { version: 2, .. }), "{error}");
    }
    store.remove(Kind::Image, "default").unwrap();
}

#[test]
fn a_matching_stamp_spares_the_hash() {
    let (_folder, store) = new_store();
    let dir = put(&store, "default", b"content").dir;
    let root = dir.join("root.erofs");
    make_writable(&root);
    fs::write(&root, b"damaged").unwrap();
    store.find(Kind::Image, "default").unwrap_err();

    // Forge a stamp of the damaged file: if it is believed, nothing was hashed.
    let looked = look(&root).unwrap();
    let path = dir.join("stamp.json");
    let mut stamp: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    stamp["root.erofs"]["mtime"] = (looked.modified.nanoseconds() as i64).into();
    stamp["root.erofs"]["ctime"] = (looked.changed.nanoseconds() as i64).into();
    fs::write(&path, stamp.to_string()).unwrap();
    store.find(Kind::Image, "default").unwrap();

    // Setting the modification time back does not hide a write.
    let earlier = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(&root).unwrap().set_modified(earlier).unwrap();
    store.find(Kind::Image, "default").unwrap_err();
}

#[test]
fn a_lost_stamp_is_written_again_and_its_absence_does_no_harm() {
    let (_folder, store) = new_store();
    let dir = put(&store, "default", b"content").dir;
    let stamp = dir.join("stamp.json");
    let text = fs::read(&stamp).unwrap();
    fs::remove_file(&stamp).unwrap();
    store.find(Kind::Image, "default").unwrap();
    assert_eq!(fs::read(&stamp).unwrap(), text);

    fs::write(&stamp, "nonsense").unwrap();
    store.find(Kind::Image, "default").unwrap();
    assert_eq!(fs::read(&stamp).unwrap(), text);

    // A stamp that cannot be written, even by root: its place is taken by a folder.
    fs::remove_file(&stamp).unwrap();
    fs::create_dir(&stamp).unwrap();
    store.find(Kind::Image, "default").unwrap();
    assert_eq!(tree(&dir).len(), 4, "no temporary file stays: {:?}", tree(&dir));
}

#[test]
fn sparse_files_stay_sparse_and_are_verified_by_their_data() {
    let (_folder, store) = new_store();
    let staging = store.stage(Kind::Image, "sparse").unwrap();
    let file = File::create(staging.path().join("scratch.ext4")).unwrap();
    file.set_len(16 << 30).unwrap();
    file.write_all_at(b"superblock", 1024).unwrap();
    let start = Instant::now();
    let artifact = staging.commit("", BTreeMap::new()).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "the hole was read");
    let path = artifact.file("scratch.ext4").unwrap();
    assert_eq!(artifact.manifest.files["scratch.ext4"].data, Some(vec![Run(0, 4096)]));
    assert!(look(&path).unwrap().blocks * 512 < 1 << 20);

    let start = Instant::now();
    let copy = unnamed(&std::env::temp_dir()).unwrap();
    artifact.copy_to("scratch.ext4", &copy).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "the hole was copied");
    assert_eq!(stat(&copy).unwrap().size, 16 << 30);
    assert!(allocated(&copy).unwrap() < 1 << 20);
    let mut content = [0; 10];
    copy.read_exact_at(&mut content, 1024).unwrap();
    assert_eq!(&content, b"superblock");

    make_writable(&path);
    File::options().write(true).open(&path).unwrap().write_all_at(b"!", 8 << 30).unwrap();
    let error = store.find(Kind::Image, "sparse").unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

/// Not a measurement, but far from the milliseconds that a hash or a slow parser would take.
#[test]
fn finding_costs_next_to_nothing() {
    let (_folder, store) = new_store();
    put(&store, "default", &vec![7; 50 << 20]);
    let start = Instant::now();
    for _ in 0..100 {
        store.find(Kind::Image, "default").unwrap();
    }
    let each = start.elapsed() / 100;
    eprintln!("{each:?} per find");
    assert!(each < Duration::from_millis(5), "{each:?}");
}

#[test]
fn an_abandoned_staging_leaves_nothing() {
    let (_folder, store) = new_store();
    let staging = store.stage(Kind::Agent, "x86_64").unwrap();
    fs::write(staging.path().join("agent"), b"half").unwrap();
    fs::write(staging.work().join("object"), b"half").unwrap();
    assert!(matches!(store.find(Kind::Agent, "x86_64"), Err(StoreError::NotFound { .. })));
    drop(staging);
    assert_eq!(tree(store.path()), [Path::new("staging")]);
}

#[test]
fn what_cannot_be_an_artifact_is_refused() {
    let (_folder, store) = new_store();
    let unfit = |prepare: &dyn Fn(&Path)| {
        let staging = store.stage(Kind::Kernel, "x").unwrap();
        prepare(&staging.path());
        let error = staging.commit("", BTreeMap::new()).unwrap_err();
        assert!(matches!(error, StoreError::Unfit { .. }), "{error}");
    };
    unfit(&|_| {});
    unfit(&|path| fs::create_dir(path.join("folder")).unwrap());
    unfit(&|path| fs::write(path.join("manifest.json"), "{}").unwrap());
    unfit(&|path| fs::write(path.join(".hidden"), "").unwrap());
    assert!(matches!(store.stage(Kind::Kernel, "../x"), Err(StoreError::BadName { .. })));
    assert!(matches!(store.remove(Kind::Kernel, ".."), Err(StoreError::BadName { .. })));
    assert!(matches!(store.find(Kind::Kernel, ""), Err(StoreError::BadName { .. })));
}

#[test]
fn readers_see_the_old_artifact_or_the_new_one() {
    let (_folder, store) = new_store();
    let first = put(&store, "default", &vec![b'a'; 100_000]);
    let mut open = File::open(first.file("root.erofs").unwrap()).unwrap();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let end = Instant::now() + Duration::from_millis(700);
                    let mut finds = 0;
                    while Instant::now() < end {
                        store.find(Kind::Image, "default").expect("never missing, never corrupt");
                        finds += 1;
                    }
                    finds
                })
            })
            .collect();
        let mut letter = b'b';
        while readers.iter().any(|reader| !reader.is_finished()) {
            put(&store, "default", &vec![letter; 100_000]);
            letter = letter.wrapping_add(1);
        }
        for reader in readers {
            assert!(reader.join().unwrap() > 10);
        }
    });
    let mut content = Vec::new();
    open.read_to_end(&mut content).unwrap();
    assert_eq!(content, vec![b'a'; 100_000], "an open file outlives its artifact");
}

#[test]
fn two_builders_of_one_artifact_take_turns() {
    let (_folder, store) = new_store();
    thread::scope(|scope| {
        for content in ["one", "two", "three", "four"] {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..5 {
                    let staging = store.stage(Kind::Image, "default").unwrap();
                    assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0);
                    assert!(store.try_stage(Kind::Image, "default").unwrap().is_none());
                    assert!(store.try_stage(Kind::Image, content).unwrap().is_some());
                    fs::write(staging.path().join("root.erofs"), content).unwrap();
                    staging.commit("", BTreeMap::new()).unwrap();
                }
            });
        }
    });
    store.find(Kind::Image, "default").unwrap();
    assert_eq!(fs::read_dir(store.path().join("staging")).unwrap().count(), 0);
}

/// Not a test of its own: the builder process of the tests below, which run it by name.
#[test]
fn builder_process() {
    let Some(root) = std::env::var_os("CABANA_TEST_BUILDER") else { return };
    let store = Store::open_at(root).unwrap();
    let staging = store.stage(Kind::Image, "default").unwrap();
    fs::write(staging.path().join("root.erofs"), b"half").unwrap();
    println!("\nstaged");
    std::io::stdout().flush().unwrap();
    thread::sleep(Duration::from_secs(60));
}

fn spawn_builder(store: &Store) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "builder_process", "--nocapture"])
        .env("CABANA_TEST_BUILDER", store.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "staged"));
    child
}

#[test]
fn a_killed_builder_leaves_nothing_that_stays() {
    let (_folder, store) = new_store();
    let mut child = spawn_builder(&store);
    let error = store.remove(Kind::Image, "default").unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    assert!(store.try_stage(Kind::Image, "default").unwrap().is_none());
    assert!(store.list().unwrap().is_empty(), "a list does not disturb a living builder");
    assert!(store.path().join("staging/image-default/files/root.erofs").exists());
    child.kill().unwrap();
    child.wait().unwrap();

    assert!(matches!(store.find(Kind::Image, "default"), Err(StoreError::NotFound { .. })));
    assert!(store.list().unwrap().is_empty());
    assert_eq!(tree(store.path()), [Path::new("staging")]);
}

#[test]
fn an_artifact_is_not_removed_under_its_builder() {
    let (_folder, store) = new_store();
    put(&store, "default", b"old");
    let mut child = spawn_builder(&store);
    let error = store.remove(Kind::Image, "default").unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    store.find(Kind::Image, "default").unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    put(&store, "default", b"new");
    let root = store.find(Kind::Image, "default").unwrap().file("root.erofs").unwrap();
    assert_eq!(fs::read(root).unwrap(), b"new");
}

/// Links, owners and mounts, as Unix has them.
#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_link_in_an_artifacts_place_is_not_followed() {
        let (folder, store) = new_store();
        put(&store, "default", b"content");
        let outside = folder.path().join("outside");
        fs::rename(store.path().join("image/default"), &outside).unwrap();
        symlink(&outside, store.path().join("image/default")).unwrap();
        assert!(store.find(Kind::Image, "default").is_err());
        assert!(store.remove(Kind::Image, "default").is_err());
        assert!(outside.join("root.erofs").exists());
        put(&store, "default", b"new");
        store.find(Kind::Image, "default").unwrap();
        assert_eq!(fs::read(outside.join("root.erofs")).unwrap(), b"content");
    }

    #[test]
    fn a_link_among_the_files_is_refused() {
        let (_folder, store) = new_store();
        let staging = store.stage(Kind::Kernel, "x").unwrap();
        symlink("/etc/passwd", staging.path().join("link")).unwrap();
        let error = staging.commit("", BTreeMap::new()).unwrap_err();
        assert!(matches!(error, StoreError::Unfit { .. }), "{error}");
        let root = put(&store, "default", b"content").file("root.erofs").unwrap();
        fs::remove_file(&root).unwrap();
        symlink("/etc/passwd", &root).unwrap();
        let error = store.find(Kind::Image, "default").unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn what_root_builds_for_a_user_belongs_to_the_user() {
        let folder = TempDir::new().unwrap();
        if std::os::unix::fs::chown(folder.path(), Some(4321), Some(4321)).is_err() {
            eprintln!("skipped: giving files away needs root");
            return;
        }
        let store = Store::open_at(folder.path().join("cache/cabana")).unwrap();
        put(&store, "default", b"content");
        let staging = store.stage(Kind::Image, "other").unwrap();
        for path in tree(folder.path()) {
            let metadata = fs::symlink_metadata(folder.path().join(&path)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (4321, 4321), "{}", path.display());
        }
        drop(staging);
    }

    /// A small tmpfs that is unmounted on drop.
    struct Tmpfs(TempDir);

    impl Tmpfs {
        fn mount(options: &str) -> Option<Self> {
            let folder = TempDir::new().unwrap();
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "cabana-test"])
                .arg(folder.path())
                .output()
                .is_ok_and(|output| output.status.success());
            mounted.then(|| Self(folder))
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_full_disk_is_said_and_does_no_harm() {
        let Some(disk) = Tmpfs::mount("size=64k") else {
            eprintln!("skipped: mounting a small tmpfs needs root");
            return;
        };
        let store = Store::open_at(disk.0.path().join("store")).unwrap();
        put(&store, "default", b"old");
        let staging = store.stage(Kind::Image, "default").unwrap();
        let mut file = File::create(staging.path().join("root.erofs")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let error = staging.commit("", BTreeMap::new()).unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        assert!(error.to_string().starts_with("the disk is full"), "{error}");
        let artifact = store.find(Kind::Image, "default").unwrap();
        assert_eq!(fs::read(artifact.file("root.erofs").unwrap()).unwrap(), b"old");
    }

    #[test]
    fn a_read_only_store_is_read() {
        let Some(disk) = Tmpfs::mount("size=1m") else {
            eprintln!("skipped: mounting a small tmpfs needs root");
            return;
        };
        let store = Store::open_at(disk.0.path().join("store")).unwrap();
        let dir = put(&store, "default", b"content").dir;
        fs::remove_file(dir.join("stamp.json")).unwrap();
        let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(disk.0.path()).status();
        assert!(remount.unwrap().success());

        store.find(Kind::Image, "default").unwrap();
        assert!(!dir.join("stamp.json").exists());
        assert_eq!(store.list().unwrap().len(), 1);
        let error = store.stage(Kind::Image, "default").unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly(_)), "{error}");
        let error = store.remove(Kind::Image, "default").unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly(_)), "{error}");
    }

    #[test]
    fn nothing_is_removed_through_a_mount() {
        let (_folder, store) = new_store();
        let stale = store.path().join("staging/image-default/work/root/dev");
        fs::create_dir_all(&stale).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "cabana-test"])
            .arg(&stale)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: mounting a tmpfs needs root");
            return;
        }
        fs::write(stale.join("precious"), "").unwrap();
        store.list().unwrap();
        let error = store.stage(Kind::Image, "default").unwrap_err();
        let kept = stale.join("precious").exists();
        Command::new("umount").arg(&stale).status().unwrap();
        assert!(kept);
        assert!(
            matches!(&error, StoreError::Mounted(path) if path.ends_with("root/dev")),
            "{error}"
        );
        store.stage(Kind::Image, "default").unwrap();
    }
}
