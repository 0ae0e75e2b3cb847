//! Sessions of a machine: known here by their descriptions, so that a fresh machine has them again.

use cabana_api::{CommandSpec, MachineSpec, SessionLimits, SessionSpec, SessionStatus};
use cabana_protocol::SessionInfo;

use crate::engine::check_share;
use crate::running::Running;
use crate::{Error, Machine, Place, Process};

/// A session of a machine: a user with a home, limits and shares of its own. Cheap to clone. It stays until
/// it is removed, and a machine that starts afresh has it again.
#[derive(Clone, Debug)]
pub struct Session {
    machine: Machine,
    place: Place,
    name: String,
}

/// A session as its machine knows it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) spec: SessionSpec,
    /// What its shares are called in the file server.
    pub(crate) shares: Vec<String>,
}

impl Machine {
    /// Makes a session, and starts the machine before if need be.
    pub fn create_session(&self, spec: SessionSpec) -> Result<Session, Error> {
        for share in &spec.shares {
            check_share(&share.guest)?;
        }
        let running = self.in_use()?;
        let shares = make(running.running(), self.spec(), &spec)?;
        let session = self.handle(&spec.name);
        self.known().insert(spec.name.clone(), Known { spec, shares });
        Ok(session)
    }

    /// The session of this name.
    pub fn session(&self, name: &str) -> Result<Session, Error> {
        if self.known().contains_key(name) {
            return Ok(self.handle(name));
        }
        Err(Error::NotFound { what: "session", name: name.to_owned() })
    }

    /// All sessions, by name; of a machine that does not run, what they are to be.
    pub fn sessions(&self) -> Result<Vec<SessionStatus>, Error> {
        let infos = match self.if_running()? {
            Some(running) => running.guest().sessions()?,
            None => Vec::new(),
        };
        let status = |known: &Known| {
            let info = infos.iter().find(|info| info.name == known.spec.name);
            status(&known.spec, info)
        };
        Ok(self.known().values().map(status).collect())
    }

    fn handle(&self, name: &str) -> Session {
        let place = Place::new(self.clone(), Some(name.to_owned()));
        Session { machine: self.clone(), place, name: name.to_owned() }
    }
}

impl Session {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The way to its files and its ports.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Starts a command in it.
    pub fn exec(&self, command: &CommandSpec) -> Result<Process, Error> {
        let session = Some(self.name.clone());
        self.machine.exec(&CommandSpec { session, ..command.clone() })
    }

    /// How it is.
    pub fn status(&self) -> Result<SessionStatus, Error> {
        let mut all = self.machine.sessions()?.into_iter();
        all.find(|status| status.name == self.name).ok_or_else(|| self.unknown())
    }

    /// Gives it other limits, all of them.
    pub fn limit(&self, limits: SessionLimits) -> Result<SessionStatus, Error> {
        let running = self.machine.in_use()?;
        let info = running.guest().update_session(&self.name, limits_of(&limits))?;
        let mut known = self.machine.known();
        let known = known.get_mut(&self.name).ok_or_else(|| self.unknown())?;
        known.spec.limits = limits;
        Ok(status(&known.spec, Some(&info)))
    }

    /// Ends its processes and deletes what it has.
    pub fn remove(&self) -> Result<(), Error> {
        // What it has on a disk that stays takes the machine to delete.
        let running = match self.machine.if_running()? {
            None if self.machine.spec().disk.is_none() => {
                self.machine.known().remove(&self.name);
                return Ok(());
            }
            None => self.machine.in_use()?,
            Some(running) => running,
        };
        running.guest().remove_session(&self.name)?;
        let Some(known) = self.machine.known().remove(&self.name) else { return Ok(()) };
        known.shares.iter().try_for_each(|share| running.running().detach(share))
    }

    fn unknown(&self) -> Error {
        Error::NotFound { what: "session", name: self.name.clone() }
    }
}

/// Makes a session in a machine that runs; returns what its shares are called in the file server.
pub(crate) fn make(
    running: &Running,
    machine: &MachineSpec,
    spec: &SessionSpec,
) -> Result<Vec<String>, Error> {
    let mut shares = Vec::new();
    let made = spec
        .shares
        .iter()
        .try_for_each(|share| running.attach(machine, share).map(|mount| shares.push(mount)))
        .and_then(|()| {
            let made = cabana_protocol::SessionSpec {
                name: spec.name.clone(),
                limits: limits_of(&spec.limits),
                shares: shares.clone(),
                network: spec.network,
            };
            Ok(running.guest().create_session(&made)?)
        });
    if made.is_err() {
        for share in &shares {
            // The failure before is the one to tell of.
            let _ = running.detach(&share.name);
        }
    }
    made.map(|_| shares.into_iter().map(|share| share.name).collect())
}

fn status(spec: &SessionSpec, info: Option<&SessionInfo>) -> SessionStatus {
    SessionStatus {
        name: spec.name.clone(),
        uid: info.map(|info| info.uid),
        limits: spec.limits,
        shares: spec.shares.clone(),
        network: spec.network,
        pids: info.map_or(0, |info| info.pids),
        memory: info.map_or(0, |info| info.memory),
        disk: info.map_or(0, |info| info.disk),
    }
}

fn limits_of(limits: &SessionLimits) -> cabana_protocol::SessionLimits {
    let SessionLimits { memory, pids, cpu_weight, cpu_max, io_read, io_write, disk } = *limits;
    cabana_protocol::SessionLimits { memory, pids, cpu_weight, cpu_max, io_read, io_write, disk }
}
