//! Builds the smallest image for real: needs root, the tools, and the host's Debian mirror.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cabana_builder::{
    BuildError, Flavour, Options, PACKAGES, ROOT, SCRATCH, Step, build_image, missing_tools,
};
use cabana_store::{Kind, Store};

/// Whether images can be built here; says why if not.
fn can_build() -> bool {
    let mut reasons: Vec<_> = missing_tools().iter().map(ToString::to_string).collect();
    if cabana_os::tree::owner().0 != 0 {
        reasons.push(BuildError::NeedsRoot.to_string());
    }
    for reason in &reasons {
        eprintln!("skipped: {reason}");
    }
    reasons.is_empty()
}

/// The names of a folder in an image, by a tool that reads EROFS.
fn dump(image: &std::path::Path, path: &str) -> String {
    let output = Command::new("dump.erofs").arg(format!("--path={path}")).arg(image).output();
    String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
}

#[test]
fn the_tiny_image_is_whole_and_always_the_same() {
    if !can_build() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_at(folder.path()).unwrap();
    let tiny = Flavour::find("tiny").unwrap();
    let mut steps = Vec::new();
    let options = Options::default();
    let first = build_image(&store, &tiny, &options, &mut |now| steps.push(now.step)).unwrap();
    assert_eq!((steps.first(), steps.last()), (Some(&Step::Lists), Some(&Step::Store)));
    assert!(steps.is_sorted(), "{steps:?}");

    let image = first.file(ROOT).unwrap();
    assert_eq!(fs::metadata(&image).unwrap().len() % (2 << 20), 0);
    assert!(Command::new("fsck.erofs").arg(&image).output().unwrap().status.success());
    for path in ["/dev", "/proc", "/sys", "/run", "/tmp", "/mnt", "/sessions", "/bin/sh"] {
        assert!(dump(&image, path).contains("NID:"), "{path} is missing");
    }
    // Layout 0 is the flat plain one, which DAX needs.
    let busybox = dump(&image, "/bin/busybox");
    assert!(busybox.contains("Layout: 0 ") && busybox.contains("Uid: 0 "), "{busybox}");
    let packages = fs::read_to_string(first.file(PACKAGES).unwrap()).unwrap();
    assert!(packages.contains("\nbusybox-static\t1:"), "{packages}");
    let scratch = fs::metadata(first.file(SCRATCH).unwrap()).unwrap();
    assert!(scratch.blocks() * 512 < 1 << 20);

    // There already: nothing is built.
    let nothing = &mut |now| panic!("{now:?}");
    let again = build_image(&store, &tiny, &options, nothing).unwrap();
    assert_eq!(again, first);

    let options = Options { rebuild: true, ..Options::default() };
    let second = build_image(&store, &tiny, &options, &mut |_| {}).unwrap();
    assert_eq!(second.manifest, first.manifest, "the same packages gave another image");
    assert_eq!(fs::read_dir(folder.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn an_image_for_another_processor_has_its_programs() {
    if !can_build() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_at(folder.path()).unwrap();
    let (processor, machine) = match std::env::consts::ARCH {
        "aarch64" => ("x86_64", 0x3e),
        _ => ("aarch64", 0xb7),
    };
    let tiny = Flavour::find("tiny").unwrap().for_processor(processor);
    let image = match build_image(&store, &tiny, &Options::default(), &mut |_| {}) {
        Err(error @ (BuildError::Foreign { .. } | BuildError::MissingTool { .. })) => {
            return eprintln!("skipped: {error}");
        }
        image => image.unwrap().file(ROOT).unwrap(),
    };
    let tree = folder.path().join("tree");
    let extract = format!("--extract={}", tree.display());
    assert!(Command::new("fsck.erofs").arg(extract).arg(&image).output().unwrap().status.success());
    let program = fs::read(tree.join("bin/busybox")).unwrap();
    assert_eq!(program.get(18), Some(&machine), "no ELF file of {processor}");
    // Its own program has made its links.
    assert!(dump(&image, "/bin/sh").contains("NID:"));
}

#[test]
fn mistakes_and_a_stop_leave_nothing() {
    if !can_build() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_at(folder.path().join("store")).unwrap();
    let fails = |flavour: &Flavour, options: &Options| {
        let error = build_image(&store, flavour, options, &mut |_| {}).unwrap_err();
        assert_eq!(fs::read_dir(store.path().join("staging")).unwrap().count(), 0);
        assert!(store.find(Kind::Image, &flavour.name).is_err());
        error
    };
    let text = "suite: bookworm\nbase: busybox\ncabana-no-such-package\n";
    let flavour = Flavour::parse("broken", text).unwrap();
    let error = fails(&flavour, &Options::default());
    assert!(
        matches!(&error, BuildError::NoPackage { package, .. } if package == "cabana-no-such-package"),
        "{error}"
    );

    let tiny = Flavour::find("tiny").unwrap();
    let cancel = Arc::new(AtomicBool::new(true));
    let error = fails(&tiny, &Options { cancel, ..Options::default() });
    assert!(matches!(error, BuildError::Cancelled), "{error}");

    let sources = folder.path().join("dead.list");
    fs::write(&sources, "deb http://127.0.0.1:9/debian bookworm main\n").unwrap();
    let options = Options { sources: Some(sources.clone()), ..Options::default() };
    let error = fails(&tiny, &options);
    assert!(matches!(error, BuildError::Network { .. }), "{error}");

    fs::write(&sources, "deb http://127.0.0.1:9/debian trixie main\n").unwrap();
    let error = fails(&tiny, &options);
    assert!(matches!(error, BuildError::NoSource { .. }), "{error}");
}
