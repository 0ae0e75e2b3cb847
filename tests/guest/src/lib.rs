//! Real Linux guests under the engine and under the `cabana` command. The cases stand in `tests/`, one
//! file per subject.
//!
//! A case begins with [`host`]. Where guests cannot run, it prints `skipped: WHY` and passes.

pub mod archive;
mod cabana;
pub mod elsewhere;
mod engine;
pub mod namespaces;
mod terminal;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cabana_sandbox::{KERNEL_FILE, MachineConfig, Share};
use cabana_store::{Kind, Store};

pub use cabana::{Call, Ended, Running};
pub use engine::{Ran, exec, exec_with, finish, run, sh};
pub use terminal::Terminal;

/// Longer than anything takes in the lab on a busy machine: who waits this long hangs.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A host that runs guests, with everything that this takes.
#[derive(Debug)]
pub struct Host {
    /// The `cabana` binary.
    pub binary: PathBuf,
    /// The default kernel.
    pub kernel: PathBuf,
    /// The default agent's initramfs.
    pub agent: PathBuf,
    /// The root image: the default one, but of [`tiny_host`].
    pub image: PathBuf,
    /// An empty writable disk.
    pub scratch: PathBuf,
    /// Where Debian's own kernel is, if the lab has brought it.
    pub debian_kernel: PathBuf,
    boot_time: OnceLock<Duration>,
}

/// This host, or `None` after having said why no guest runs here.
pub fn host() -> Option<&'static Host> {
    static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
    told(HOST.get_or_init(|| Host::find("default")))
}

/// The same with the image `tiny`, busybox alone, in place of the default one.
pub fn tiny_host() -> Option<&'static Host> {
    static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
    told(HOST.get_or_init(|| Host::find("tiny")))
}

fn told(found: &'static Result<Host, String>) -> Option<&'static Host> {
    match found {
        Ok(host) => Some(host),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

/// A folder of this host's in a guest, without a journal.
pub fn share(host: &Path, guest: &str, read_only: bool) -> Share {
    Share { host: host.to_owned(), guest: guest.to_owned(), read_only, journal: None }
}

impl Host {
    fn find(image: &str) -> Result<Self, String> {
        if let Some(why) = cabana_sandbox::probe().verdict.why() {
            return Err(why.to_owned());
        }
        let store = Store::open().map_err(|error| error.to_string())?;
        let file = |kind, name| {
            let artifact = if kind == Kind::Image { image } else { "default" };
            let artifact = store.find(kind, artifact).map_err(|error| error.to_string())?;
            artifact.file(name).map_err(|error| error.to_string())
        };
        Ok(Self {
            binary: binary()?,
            kernel: file(Kind::Kernel, KERNEL_FILE)?,
            agent: file(Kind::Agent, "agent.cpio")?,
            image: file(Kind::Image, cabana_builder::ROOT)?,
            scratch: file(Kind::Image, cabana_builder::SCRATCH)?,
            debian_kernel: store.path().join("lab/outer-kernel/vmlinuz"),
            boot_time: OnceLock::new(),
        })
    }

    /// A call of `cabana`.
    pub fn cabana<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Call {
        Call::of_program(&self.binary, arguments)
    }

    /// `cabana up`, which leaves a process behind, as other calls must not; what it says.
    pub fn up<'a>(
        &self,
        words: &[&str],
        variables: impl IntoIterator<Item = (&'a str, &'a Path)>,
    ) -> String {
        let mut command = Command::new(&self.binary);
        let up = command.arg("up").args(words).envs(variables).output().expect("it runs");
        assert!(up.status.success(), "{up:?}");
        String::from_utf8(up.stdout).expect("UTF-8")
    }

    /// A machine of this host's own artifacts, with everything else as it is by default.
    pub fn machine(&self) -> MachineConfig {
        MachineConfig {
            kernel: self.kernel.clone(),
            agent: self.agent.clone(),
            image: self.image.clone(),
            ..MachineConfig::default()
        }
    }

    /// How long a machine takes here from its start to the end of a first command, measured once.
    pub fn boot_time(&self) -> Duration {
        *self.boot_time.get_or_init(|| {
            let start = Instant::now();
            self.cabana(["run", "--", "true"]).end().succeeded();
            start.elapsed()
        })
    }
}

/// `$CABANA_BIN`, or what cargo built last beside the running test.
fn binary() -> Result<PathBuf, String> {
    if let Some(binary) = env::var_os("CABANA_BIN") {
        return Ok(binary.into());
    }
    let test =
        env::current_exe().map_err(|error| format!("the test does not know itself: {error}"))?;
    let target = test.ancestors().nth(3).unwrap_or(Path::new("target"));
    let built = ["release", "debug"].map(|profile| target.join(profile).join("cabana"));
    let modified = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let newest = built.into_iter().filter(|path| path.is_file()).max_by_key(modified);
    newest.ok_or_else(|| {
        format!("there is no cabana in {}; `cargo build -p cabana-cli` makes it", target.display())
    })
}
