//! `cabana serve`: the engine for programs, by newline-delimited JSON.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use cabana_engine::{Engine, EngineConfig, WorkerKind};
use cabana_serve::Server;

use crate::Failure;
use crate::args::ServeArgs;

pub(crate) fn serve(args: ServeArgs) -> Result<u8, Failure> {
    let server = Server::new(engine()?);
    match args.socket {
        None => {
            let served = server.serve(io::stdin(), io::stdout());
            // Disks that stay are flushed; a client that has gone hears of no failure.
            for machine in server.list() {
                let _ = server.remove(machine.name());
            }
            served?;
        }
        Some(path) => {
            let place = path.display().to_string();
            if UnixStream::connect(&path).is_ok() {
                return Err(Failure::new(format!("somebody listens on {place} already")));
            }
            // What a killed server left.
            if fs::symlink_metadata(&path).is_ok_and(|old| is_socket(&old)) {
                let _ = fs::remove_file(&path);
            }
            let listener = UnixListener::bind(&path)
                .and_then(|listener| {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
                    Ok(listener)
                })
                .map_err(|error| Failure::new(format!("cannot listen on {place}: {error}")))?;
            server.serve_socket(&listener)?;
        }
    }
    Ok(0)
}

/// An engine whose workers are this very program.
pub(crate) fn engine() -> Result<Engine, Failure> {
    Ok(Engine::new(EngineConfig { worker: WorkerKind::ThisProgram, ..EngineConfig::default() })?)
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
}
