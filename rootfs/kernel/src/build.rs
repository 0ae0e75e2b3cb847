//! The build, from tarball to the folder with the finished kernel.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::compile::run;
use crate::fragment::{parse_config, unmet};
use crate::inputs::Inputs;
use crate::progress::{Estimate, Progress, Stage, stage_start};
use crate::{Architecture, Error, Options, edits, elf, image, left_out, order, source, toolchain};

/// A finished kernel: the files of the output folder.
#[derive(Clone, Debug)]
pub struct Built {
    /// The uncompressed kernel, without symbols: on x86-64 `vmlinux`, each loadable segment of which lies
    /// in the file as it lies in a page, so that it can be mapped; on arm64 `Image`.
    pub kernel: PathBuf,
    /// The compressed kernel, if it was asked for.
    pub bz_image: Option<PathBuf>,
    /// The final configuration.
    pub config: PathBuf,
    /// The symbols' addresses, to read a stack trace with.
    pub system_map: PathBuf,
    /// What is known of it, also in `facts.json` beside it: `release`, `source`, `toolchain`,
    /// `inputs` (the hash), `options` (how many are on), `steps`, `build_seconds`, and the kernel's size
    /// (`vmlinux_bytes`, `Image_bytes`).
    pub facts: BTreeMap<String, String>,
}

/// Builds the kernel and reports progress.
///
/// The output folder appears whole by one rename at the end. A build that fails leaves its logs in
/// the work folder; one that is killed also leaves its source and objects, which the next one
/// removes; neither leaves anything that looks like a result.
pub fn build(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Built, Error> {
    let started = Instant::now();
    source::find(&options.source)?;
    toolchain::check(options.architecture)?;
    let inputs = Inputs::gather(options)?;

    let lock = lock(&options.work, PATIENCE)?;
    let root = options.work.join("linux");
    let partial = sibling(&options.output, ".partial");
    remove(&root)?;
    remove(&partial)?;
    let done = stages(options, &root, &partial, &lock, progress).and_then(|mut facts| {
        facts.insert("source".to_owned(), inputs.source.clone());
        facts.insert("toolchain".to_owned(), inputs.toolchain.clone());
        facts.insert("inputs".to_owned(), inputs.hash());
        facts.insert("build_seconds".to_owned(), started.elapsed().as_secs().to_string());
        let text = serde_json::to_string_pretty(&facts).expect("a map of strings is JSON");
        write(&partial.join("facts.json"), &text)?;
        put_in_place(&partial, &options.output)?;
        Ok(facts)
    });
    let cleaned = remove(&root).and(remove(&partial));
    let facts = done?;
    cleaned?;

    let file = |name: &str| options.output.join(name);
    Ok(Built {
        kernel: file(options.architecture.file()),
        bz_image: options.bz_image.then(|| file("bzImage")),
        config: file("config"),
        system_map: file("System.map"),
        facts,
    })
}

/// From the tarball to the folder `partial` with the results; returns what is known of them.
fn stages(
    options: &Options,
    root: &Path,
    partial: &Path,
    lock: &File,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<String, String>, Error> {
    let report = |stage| Progress { stage, fraction: stage_start(stage), detail: String::new() };
    progress(report(Stage::Unpack));
    source::unpack(&options.source, root, lock, &options.work.join("unpack.log"))?;
    edits::apply(root)?;
    progress(report(Stage::Configure));
    configure(root, lock, options)?;
    progress(report(Stage::Compile));
    let steps = compile(root, lock, options, progress)?;
    progress(report(Stage::Install));
    let mut facts = install(root, partial, lock, options)?;
    facts.insert("steps".to_owned(), steps.to_string());
    Ok(facts)
}

/// How long a build waits for the compilers of one that was killed to notice it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the work folder for this process and the programs that it runs (see [`run`]).
fn lock(work: &Path, patience: Duration) -> Result<File, Error> {
    fs::create_dir_all(work).map_err(Error::io("create", work))?;
    let path = work.join("lock");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io("create", &path))?;
    let started = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if started.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy(work.to_path_buf())),
            Err(error) => return Err(Error::io("lock", &path)(error.into())),
        }
    }
}

/// Merges the fragments onto allnoconfig and checks that each request holds.
fn configure(root: &Path, lock: &File, options: &Options) -> Result<(), Error> {
    let mut merge = Command::new("sh");
    merge.current_dir(root).args(["scripts/kconfig/merge_config.sh", "-Q", "-n"]);
    options.architecture.choose(&mut merge);
    for (index, fragment) in options.fragments.iter().enumerate() {
        let file = format!("cabana-{index:02}.config");
        write(&root.join(&file), fragment.text())?;
        merge.arg(file);
    }
    let log = options.work.join("merge.log");
    run("merging the kernel's configuration", &mut merge, lock, &log, &mut |_| {})?;
    let config = read(&root.join(".config"))?;
    let unmet = unmet(&options.fragments, &config);
    if unmet.is_empty() { Ok(()) } else { Err(Error::OptionsDropped { unmet }) }
}

/// Runs `make`; returns the number of its steps.
fn compile(
    root: &Path,
    lock: &File,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<usize, Error> {
    let mut make = Command::new("make");
    make.current_dir(root)
        .arg(format!("-j{}", options.jobs.max(1)))
        .arg(options.architecture.file());
    options.architecture.choose(&mut make);
    if options.bz_image {
        make.arg("bzImage");
    }
    // Neither the hour, the user, the machine nor a repository around the work folder shows in the
    // result.
    make.env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("KBUILD_BUILD_USER", "cabana")
        .env("KBUILD_BUILD_HOST", "cabana")
        .env("LOCALVERSION", "");
    let mut estimate = Estimate::new(options.architecture.expected_steps());
    let log = options.work.join("make.log");
    run("compiling the kernel", &mut make, lock, &log, &mut |line| {
        if let Some(report) = estimate.line(line) {
            progress(report);
        }
    })?;
    Ok(estimate.steps())
}

/// Puts the results into a folder and describes them.
fn install(
    root: &Path,
    folder: &Path,
    lock: &File,
    options: &Options,
) -> Result<BTreeMap<String, String>, Error> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let architecture = options.architecture;
    let (built, kernel) = (root.join(architecture.built()), folder.join(architecture.file()));
    if architecture == Architecture::X86_64 {
        let mut strip = Command::new(format!("{}strip", architecture.prefix()));
        strip.arg("--strip-all").arg("-o").arg(&kernel).arg(built);
        let log = options.work.join("strip.log");
        run("stripping the kernel", &mut strip, lock, &log, &mut |_| {})?;
    } else {
        copy(&built, &kernel)?;
    }
    let mut bytes = fs::read(&kernel).map_err(Error::io("read", &kernel))?;
    let system_map = read(&root.join("System.map"))?;
    left_out::leave_out(architecture, &options.left_out, &mut bytes, &system_map)
        .and_then(|()| match architecture {
            Architecture::X86_64 => elf::check_mappable(&bytes)
                .and_then(|()| order::check(&system_map))
                .map(|()| elf::leave_zeros_out(&mut bytes)),
            Architecture::Aarch64 => image::check(&bytes),
        })
        .map_err(|reason| Error::BadResult { path: kernel.clone(), reason })?;
    fs::write(&kernel, &bytes).map_err(Error::io("write", &kernel))?;

    copy(&root.join(".config"), &folder.join("config"))?;
    write(&folder.join("System.map"), &system_map)?;
    if options.bz_image {
        copy(&root.join("arch/x86/boot/bzImage"), &folder.join("bzImage"))?;
    }
    let release = read(&root.join("include/config/kernel.release"))?;
    let config = read(&root.join(".config"))?;
    let on = parse_config(&config).len();
    Ok([
        ("release".to_owned(), release.trim().to_owned()),
        ("options".to_owned(), on.to_string()),
        (format!("{}_bytes", architecture.file()), bytes.len().to_string()),
    ]
    .into())
}

/// Moves a finished folder to its name, in the place of an older one.
fn put_in_place(partial: &Path, output: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(partial).map_err(Error::io("read", partial))? {
        let path = entry.map_err(Error::io("read", partial))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?;
    }
    let old = sibling(output, ".old");
    remove(&old)?;
    if output.exists() {
        fs::rename(output, &old).map_err(Error::io("replace", output))?;
    }
    fs::rename(partial, output).map_err(Error::io("create", output))?;
    remove(&old)
}

/// A path beside `path`, on the same file system.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io("write", path))
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map(drop).map_err(Error::io("copy", from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path) -> Options {
        Options {
            source: folder.join("linux.tar"),
            ..Options::new(Architecture::X86_64, folder.join("work"), folder.join("out"))
        }
    }

    #[test]
    fn a_missing_tarball_fails_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let error = build(&options(folder.path()), &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::SourceMissing { .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_build_waits_for_the_first_and_for_its_orphans() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path(), PATIENCE).unwrap();
        assert!(matches!(lock(folder.path(), Duration::ZERO), Err(Error::Busy(_))));
        // What `run` gives to a program, which outlives its killed parent for a while.
        let mut orphan =
            Command::new("sleep").arg("0.5").stdin(first.try_clone().unwrap()).spawn().unwrap();
        drop(first);
        lock(folder.path(), PATIENCE).unwrap();
        assert!(orphan.try_wait().unwrap().is_some(), "the folder was free too early");
    }

    #[test]
    fn a_failed_build_leaves_no_result_and_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        fs::write(&options.source, "not a tarball").unwrap();
        fs::create_dir_all(&options.output).unwrap();
        fs::write(options.output.join("vmlinux"), "old").unwrap();
        build(&options, &mut |_| {}).unwrap_err();
        assert_eq!(read(&options.output.join("vmlinux")).unwrap(), "old");
        assert!(!options.work.join("linux").exists());
        assert!(!sibling(&options.output, ".partial").exists());
        assert!(!sibling(&options.output, ".old").exists());
    }

    #[test]
    fn a_result_takes_the_place_of_an_older_one_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (output, partial) = (folder.path().join("out"), folder.path().join("out.partial"));
        for text in ["first", "second"] {
            fs::create_dir(&partial).unwrap();
            write(&partial.join("vmlinux"), text).unwrap();
            write(&partial.join(text), "").unwrap();
            put_in_place(&partial, &output).unwrap();
        }
        assert_eq!(read(&output.join("vmlinux")).unwrap(), "second");
        assert!(output.join("second").exists() && !output.join("first").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
