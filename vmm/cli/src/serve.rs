//! `cabana serve`: the engine for programs, by newline-delimited JSON.

use std::io;

use cabana_engine::{Engine, EngineConfig, WorkerKind};
use cabana_os::{LocalListener, LocalStream};
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
            if LocalStream::connect(&path).is_ok() {
                return Err(Failure::new(format!("somebody listens on {place} already")));
            }
            // What a killed server left.
            let _ = LocalListener::remove(&path);
            let listener = LocalListener::bind(&path)
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
