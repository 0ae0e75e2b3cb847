//! What cannot work: one sentence on standard error, status 125, at once, and nothing left behind.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cabana_store::{Kind, Store};
use cabana_test_guest::{Call, Host, host};
use tempfile::TempDir;

/// What is known before the machine starts is said within this time, even in the lab.
const AT_ONCE: Duration = Duration::from_secs(5);

/// `cabana run OPTIONS -- true`.
fn run<A: AsRef<OsStr>>(host: &Host, options: impl IntoIterator<Item = A>) -> Call {
    let options = options.into_iter().map(|option| option.as_ref().to_owned());
    let words = [OsStr::new("run").to_owned()].into_iter().chain(options);
    host.cabana(words.chain(["--", "true"].map(|word| OsStr::new(word).to_owned())))
}

fn refused_at_once(call: Call, words: &[&str]) {
    let ended = call.end();
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    ended.failed_with(125, words);
}

#[test]
fn a_kernel_that_is_none() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    let kernel = |option: &Path| {
        // Both commands read kernels.
        let boot = host.cabana([OsStr::new("boot"), OsStr::new("--kernel"), option.as_os_str()]);
        [run(host, [OsStr::new("--kernel"), option.as_os_str()]), boot]
    };
    for call in kernel(&path) {
        refused_at_once(call, &["cannot read", "kernel: No such file"]);
    }
    for call in kernel(folder.path()) {
        refused_at_once(call, &["it is not a file"]);
    }
    let whole = fs::read(&host.kernel).unwrap();
    let mut foreign = whole[..1 << 20].to_vec();
    foreign[18..20].copy_from_slice(&183u16.to_le_bytes());
    for (content, words) in [
        (&b""[..], "it is empty"),
        (b"#!/bin/sh\necho hello\n", "neither an ELF file nor a bzImage"),
        (&[0x1f, 0x8b, 8, 0, 0, 0], "compressed with gzip"),
        (&whole[..40], "truncated"),
        (&whole[..whole.len() / 2], "truncated"),
        (&foreign, "and this machine is x86-64"),
    ] {
        fs::write(&path, content).unwrap();
        for call in kernel(&path) {
            refused_at_once(call, &["kernel", words]);
        }
    }
}

#[test]
fn an_initramfs_or_a_disk_that_is_none() {
    let Some(host) = host() else { return };
    let kernel = host.kernel.to_str().unwrap();
    for option in ["--initrd", "--disk"] {
        let call = host.cabana(["boot", "--kernel", kernel, option, "/no/such/file"]);
        refused_at_once(call, &["/no/such/file", "No such file"]);
    }
}

/// A store with an image of two small files.
fn store(host: &Host) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_at(folder.path()).unwrap();
    for (kind, file, content) in [
        (Kind::Agent, "agent.cpio", fs::read(&host.agent).unwrap()),
        (Kind::Kernel, "vmlinux", fs::read(&host.kernel).unwrap()),
        (Kind::Image, cabana_builder::ROOT, vec![1; 2 << 20]),
    ] {
        let staging = store.stage(kind, "default").unwrap();
        fs::write(staging.path().join(file), content).unwrap();
        if kind == Kind::Image {
            fs::write(staging.path().join(cabana_builder::SCRATCH), []).unwrap();
        }
        staging.commit("of a test", std::collections::BTreeMap::new()).unwrap();
    }
    let root = store.find(Kind::Image, "default").unwrap().file(cabana_builder::ROOT).unwrap();
    (folder, root)
}

#[test]
fn an_image_that_was_changed_or_is_missing() {
    let Some(host) = host() else { return };
    let (folder, root) = store(host);
    let call = || run(host, &[] as &[&str]).env("CABANA_HOME", folder.path());
    // A byte in the middle.
    let mut bytes = fs::read(&root).unwrap();
    bytes[1 << 20] ^= 1;
    fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&root, &bytes).unwrap();
    refused_at_once(call(), &["image", "default", "root.erofs", "hash", "cabana image"]);
    fs::write(&root, &bytes[..1000]).unwrap();
    refused_at_once(call(), &["image", "default", "root.erofs"]);
    fs::remove_file(&root).unwrap();
    refused_at_once(call(), &["image", "default", "root.erofs", "missing"]);
    fs::remove_dir_all(root.parent().unwrap()).unwrap();
    refused_at_once(call(), &["image", "default", "cabana image build default"]);
    refused_at_once(run(host, ["--image", "no-such"]), &["no-such", "cabana image build no-such"]);
    refused_at_once(run(host, ["--image", "../x"]), &["../x"]);
}

#[test]
fn an_image_without_a_file_system() {
    let Some(host) = host() else { return };
    let (folder, root) = store(host);
    let scratch = root.with_file_name(cabana_builder::SCRATCH);
    assert!(scratch.exists());
    let call = run(host, &[] as &[&str]).env("CABANA_HOME", folder.path());
    // The disk beside it is empty, which is noticed first.
    refused_at_once(call, &["scratch.ext4", "0 bytes"]);
}

#[test]
fn a_share_that_cannot_be_one() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let share = |path: &Path| run(host, [OsStr::new("--share"), path.as_os_str()]);
    refused_at_once(share(&folder.path().join("none")), &["none: it does not exist"]);
    refused_at_once(share(&file), &["file: it is not a folder"]);
}

#[test]
fn a_share_on_a_file_of_the_guest() {
    let Some(host) = host() else { return };
    let folder = tempfile::tempdir().unwrap();
    let share = format!("{}:/etc/passwd", folder.path().display());
    run(host, ["--share", &share]).end().failed_with(125, &["/etc/passwd", "file"]);
}

#[test]
fn a_share_that_may_not_be_read() {
    let Some(host) = host() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can run cabana as nobody");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    // The group of /dev/kvm, whatever it is, stays; the binary and the store are copied to where
    // nobody may read them.
    let nobody = NobodysWorld::new(host);
    let words = [OsStr::new("run"), OsStr::new("--share"), folder.path().as_os_str()];
    let words = words.into_iter().chain(["--", "true"].map(OsStr::new));
    let call = nobody.call(words);
    refused_at_once(call, &["you may not read it"]);
}

#[test]
fn no_permission_for_the_hypervisor() {
    let Some(host) = host() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can run cabana as nobody");
    }
    let nobody = NobodysWorld::new(host);
    // Nobody sees a device of root's alone.
    let script = "mknod -m 600 /run/kvm c 10 232; mount --bind /run/kvm /dev/kvm; rm -f /run/kvm; exec \"$@\"";
    let call = nobody.call(["run", "--", "true"]);
    let call = call.through(["unshare", "--mount", "sh", "-ec", script, "sh"]);
    refused_at_once(call, &["cannot run virtual machines", "/dev/kvm"]);
}

/// What a user without any rights needs to call `cabana`: the binary and a store that are readable.
struct NobodysWorld {
    folder: TempDir,
    store: TempDir,
}

impl NobodysWorld {
    fn new(host: &Host) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = store(host);
        for path in [folder.path(), store.path()] {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        fs::copy(&host.binary, folder.path().join("cabana")).unwrap();
        Self { folder, store }
    }

    fn call<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Call {
        let binary = self.folder.path().join("cabana");
        Call::of_program(&binary, words).env("CABANA_HOME", self.store.path()).through([
            "setpriv",
            "--reuid",
            "65534",
            "--clear-groups",
        ])
    }
}

#[test]
fn too_little_memory() {
    let Some(host) = host() else { return };
    for size in ["0", "4K", "16M"] {
        refused_at_once(run(host, ["--memory", size]), &["memory"]);
    }
    refused_at_once(run(host, ["--memory", "100000001"]), &["100000001 bytes"]);
    // About enough to load: it runs, or says why not, but does not hang.
    for size in ["29M", "30M", "32M"] {
        let ended = run(host, ["--memory", size]).end();
        if ended.status() != 0 {
            ended.failed_with(125, &[]);
        }
    }
}

#[test]
fn more_memory_than_the_host_can_ever_give() {
    let Some(host) = host() else { return };
    refused_at_once(run(host, ["--memory", "1000T"]), &["cannot map", "guest RAM"]);
}

#[test]
fn vcpus_that_no_machine_has() {
    let Some(host) = host() else { return };
    for count in ["0", "100000"] {
        refused_at_once(run(host, ["--cpus", count]), &[count, "vCPUs are not possible", "1 to "]);
        let boot = ["boot", "--cpus", count, "--kernel", host.kernel.to_str().unwrap()];
        refused_at_once(host.cabana(boot), &[count, "vCPUs are not possible", "1 to "]);
    }
}

#[test]
fn no_hypervisor() {
    let Some(host) = host() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can hide /dev/kvm");
    }
    for (hide, words) in [
        ("mount -t tmpfs none /dev", "there is no /dev/kvm"),
        ("mount --bind /dev/null /dev/kvm", "/dev/kvm is not KVM"),
    ] {
        let script = format!("{hide}; exec \"$@\"");
        let hidden = ["unshare", "--mount", "sh", "-ec", &script, "sh"];
        refused_at_once(
            run(host, &[] as &[&str]).through(hidden),
            &["cannot run virtual machines", words],
        );
        let doctor = host.cabana(["doctor"]).through(hidden).end();
        assert_eq!(doctor.status(), 1, "{doctor:?}");
        assert!(doctor.text().starts_with("NO  KVM"), "{doctor:?}");
    }
}

#[test]
fn options_that_make_no_sense() {
    let Some(host) = host() else { return };
    for (words, complaint) in [
        (&["run", "--memory", "much", "--", "true"][..], "is no unit"),
        (&["run", "--timeout", "soon", "--", "true"], "is no unit"),
        (&["run", "--memory", "99999999999T", "--", "true"], "too much"),
        (&["run", "--share", "/tmp:relative", "--", "true"], "not an absolute path"),
        (&["run", "--no-such-option", "--", "true"], "--no-such-option"),
        (&["run"], "COMMAND"),
        (&["boot"], "--kernel"),
        (&["no-such-verb"], "no-such-verb"),
    ] {
        let ended = host.cabana(words).end();
        assert_eq!(ended.status(), 125, "{ended:?}");
        assert!(ended.stderr.contains(complaint), "{ended:?}");
    }
    refused_at_once(run(host, ["--env", "=x"]), &["--env wants a name"]);
}
