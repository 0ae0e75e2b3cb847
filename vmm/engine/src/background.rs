//! Commands that outlive whoever started them.

use cabana_api::BackgroundStatus;
use cabana_protocol::ProcessInfo;

use crate::process::{self, Process};
use crate::{Error, Machine};

impl Machine {
    /// All commands in the background, in the order of their start. One that has ended stays until somebody has
    /// attached to it and heard of its end, or its session is gone.
    pub fn background_commands(&self) -> Result<Vec<BackgroundStatus>, Error> {
        let Some(running) = self.if_running()? else { return Ok(Vec::new()) };
        Ok(running.guest().processes()?.into_iter().map(status).collect())
    }

    /// Goes on with a command in the background: what it has written meanwhile comes first, at most 1 MiB,
    /// beyond which it has waited. Whoever has been attached to it before is told that it is detached.
    pub fn attach(&self, background: u64) -> Result<Process, Error> {
        let is_it = |command: &BackgroundStatus| command.background == background;
        if !self.background_commands()?.iter().any(is_it) {
            let what = "command in the background";
            return Err(Error::NotFound { what, name: background.to_string() });
        }
        Process::attach(self.in_use()?.running_machine(), background)
    }
}

fn status(info: ProcessInfo) -> BackgroundStatus {
    let ProcessInfo { process, pid, session, command, attached, status } = info;
    let exit = status.map(process::exit);
    BackgroundStatus { background: process, pid, session, command, attached, exit }
}
