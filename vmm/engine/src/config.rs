//! What an engine is told, and how it finds its worker.

use std::path::PathBuf;
use std::process::Command;

use cabana_api::EngineSpec;
use cabana_os::process;

use crate::Error;

/// What an engine is told; everything has a default.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// The store of kernels, agents and images; absent: `$CABANA_HOME`, else `$XDG_CACHE_HOME/cabana`, else
    /// `~/.cache/cabana`, or on Windows `%LOCALAPPDATA%/cabana`.
    pub home: Option<PathBuf>,
    /// Where machines live.
    pub worker: WorkerKind,
    /// Where disks that vanish with their machine live; absent: the system's folder of temporary files.
    pub scratch: Option<PathBuf>,
}

impl From<EngineSpec> for EngineConfig {
    fn from(spec: EngineSpec) -> Self {
        let worker = match spec.worker {
            _ if spec.in_process => WorkerKind::InProcess,
            Some(program) => WorkerKind::Program(program),
            None => WorkerKind::Find,
        };
        Self { home: spec.home, worker, scratch: spec.scratch }
    }
}

/// Where machines live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WorkerKind {
    /// In a process each, of the program `$CABANA_WORKER`, else `cabana-worker` or `cabana` beside this
    /// library, beside this program, or on `$PATH`.
    #[default]
    Find,
    /// In a process each, of this program: `cabana-worker`, or `cabana` with its hidden verb.
    Program(PathBuf),
    /// In a process each, of this program itself, whose `main` calls [`cabana_worker::run`] when its
    /// first argument is `worker`.
    ThisProgram,
    /// On threads of this process, unconfined, and without an end to a start but the guest's own: for
    /// tests, and for those who accept that.
    InProcess,
}

impl WorkerKind {
    /// The command that starts a worker; `None`: none is to be started.
    pub(crate) fn command(&self) -> Result<Option<Command>, Error> {
        let program = match self {
            Self::InProcess => return Ok(None),
            Self::ThisProgram => {
                let own = process::own_program().map_err(Error::host("this program's path"))?;
                let mut command = Command::new(own);
                command.arg("worker");
                return Ok(Some(command));
            }
            Self::Program(program) => program.clone(),
            Self::Find => find()?,
        };
        let alone = program.file_stem().is_some_and(|name| name == "cabana-worker");
        let mut command = Command::new(program);
        if !alone {
            command.arg("worker");
        }
        Ok(Some(command))
    }
}

fn find() -> Result<PathBuf, Error> {
    process::find_program("CABANA_WORKER", &["cabana-worker", "cabana"]).ok_or_else(|| {
        Error::NoWorker(
            "there is no `cabana-worker` or `cabana` beside this program or on $PATH; install one, or \
             name it in $CABANA_WORKER"
                .to_owned(),
        )
    })
}
