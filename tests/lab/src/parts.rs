//! What a lab is made of: programs of the host, the outer kernel, and the init of this crate.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{env, io, thread};

use cabana_store::Store;

use crate::Error;
use crate::architecture::Architecture;
use crate::kernel::OuterKernel;

/// Where distributions put virtiofsd: Debian 12 (C, with QEMU 7.2), Debian 13 (Rust), others.
const VIRTIOFSD: [&str; 3] =
    ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];

/// What takes longer than this is told.
const QUIET: Duration = Duration::from_secs(1);

/// The parts, all there and ready for [`Lab::start`](crate::Lab::start).
#[derive(Clone, Debug)]
pub struct Parts {
    pub(crate) architecture: Architecture,
    pub(crate) qemu: PathBuf,
    pub(crate) virtiofsd: PathBuf,
    pub(crate) kernel: OuterKernel,
    pub(crate) init: PathBuf,
}

impl Parts {
    /// Finds, downloads and builds whatever is not there yet for the usual lab; an instant when everything is.
    /// `report` is told what takes long.
    pub fn prepare(report: &mut dyn FnMut(&str)) -> Result<Self, Error> {
        Self::prepare_for(Architecture::default(), report)
    }

    /// The same for a lab of any processor.
    pub fn prepare_for(
        architecture: Architecture,
        report: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        Ok(Self {
            architecture,
            qemu: find_qemu(architecture)?,
            virtiofsd: find_virtiofsd()?,
            kernel: OuterKernel::prepare(architecture, &cache_folder()?, report)?,
            init: build_init(architecture.target(), report)?,
        })
    }
}

/// Debian's cloud kernel as it is shipped, a bzImage or an `Image`; downloads it if it is not there yet.
/// `report` is told what takes long.
pub fn debian_kernel(
    architecture: Architecture,
    report: &mut dyn FnMut(&str),
) -> Result<PathBuf, Error> {
    Ok(OuterKernel::prepare(architecture, &cache_folder()?, report)?.vmlinuz)
}

/// The lab's folder in the user's store, the same for the host's processor and for those of labs.
fn cache_folder() -> Result<PathBuf, Error> {
    let store = Store::home().map_err(|error| Error::Missing {
        what: "a cache folder".into(),
        advice: error.to_string(),
    })?;
    Ok(store.path().join("lab"))
}

fn find_qemu(architecture: Architecture) -> Result<PathBuf, Error> {
    let (program, package) = architecture.qemu();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&path).map(|folder| folder.join(program));
    candidates.find(|file| file.is_file()).ok_or_else(|| Error::Missing {
        what: format!("the program {program}"),
        advice: format!("on Debian, `apt-get install {package}`"),
    })
}

fn find_virtiofsd() -> Result<PathBuf, Error> {
    VIRTIOFSD.iter().map(PathBuf::from).find(|file| file.is_file()).ok_or_else(|| Error::Missing {
        what: "the program virtiofsd".into(),
        advice: "on Debian 12, `apt-get install qemu-system-common`; on Debian 13, `apt-get \
                 install virtiofsd`"
            .into(),
    })
}

/// Builds the init with cargo, which knows by itself when there is nothing to do.
fn build_init(target: &str, report: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--profile", "agent", "--target", target])
        .args(["--package", "cabana-lab", "--bin", "cabana-lab-init"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace);
    let (done, finished) = mpsc::channel();
    let cargo = thread::spawn(move || {
        let output = command.output();
        let _ = done.send(());
        output
    });
    if finished.recv_timeout(QUIET) == Err(RecvTimeoutError::Timeout) {
        report("building its init");
    }
    let output = cargo.join().unwrap_or_else(|_| Err(io::Error::other("its thread died")));
    let output = output.map_err(Error::system("run cargo"))?;
    if !output.status.success() {
        return Err(Error::Tool {
            command: "cargo build --package cabana-lab --bin cabana-lab-init".into(),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().into(),
        });
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str(line).ok());
    let executable = |message: serde_json::Value| Some(message["executable"].as_str()?.into());
    messages.filter_map(executable).next_back().ok_or_else(|| Error::Missing {
        what: "the lab's init".into(),
        advice: "cargo built it but did not say where".into(),
    })
}
