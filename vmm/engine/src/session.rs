//! Sessions of a machine: known here by their descriptions, so that a fresh machine has them again.

use cabana_api::{CommandSpec, MachineSpec, PolicySpec, SessionLimits, SessionSpec, SessionStatus};
use cabana_protocol::{SessionCard, SessionInfo, ShareMount};

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
    pub(crate) made: Made,
}

/// What a session has of a machine that runs.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// What its shares are called in the file server.
    pub(crate) shares: Vec<String>,
    /// Its slot in the network.
    pub(crate) slot: Option<u16>,
}

impl Machine {
    /// Makes a session, and starts the machine before if need be.
    pub fn create_session(&self, spec: SessionSpec) -> Result<Session, Error> {
        for share in &spec.shares {
            check_share(&share.guest)?;
        }
        if spec.network {
            self.has_network()?;
        } else if spec.policy.is_some() {
            let why = "has rules for a network that it does not have";
            return Err(Error::Invalid(format!("the session {} {why}", spec.name)));
        }
        let running = self.in_use()?;
        if self.known().contains_key(&spec.name) {
            return Err(Error::Exists { what: "session", name: spec.name });
        }
        let rules = spec.policy.clone();
        if let Some(rules) = &rules {
            self.set_session_policy(&spec.name, Some(rules.clone()))?;
        }
        match make(running.running(), self.spec(), &spec) {
            Ok(made) => {
                let session = self.handle(&spec.name);
                self.known().insert(spec.name.clone(), Known { spec, made });
                Ok(session)
            }
            Err(error) => {
                if rules.is_some() {
                    self.set_session_policy(&spec.name, None)?;
                }
                Err(error)
            }
        }
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

    /// Gives a session rules of its own, or with `None` those that the machine's description has for it, if any.
    fn set_session_policy(&self, name: &str, rules: Option<PolicySpec>) -> Result<u64, Error> {
        let described = self.spec().network.as_ref().and_then(|network| network.sessions.get(name));
        let rules = rules.or_else(|| described.cloned());
        self.change_policies(|policies| match rules {
            Some(rules) => drop(policies.sessions.insert(name.to_owned(), rules)),
            None => drop(policies.sessions.remove(name)),
        })
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

    /// Puts other rules in place of its own, or with `None` the machine's. They hold at once, for what is open too;
    /// their number, 0 if the machine does not run.
    pub fn set_policy(&self, rules: Option<PolicySpec>) -> Result<u64, Error> {
        match self.machine.known().get(&self.name) {
            Some(known) if known.spec.network => {}
            Some(_) => {
                return Err(Error::Invalid(format!("the session {} has no network", self.name)));
            }
            None => return Err(self.unknown()),
        }
        let version = self.machine.set_session_policy(&self.name, rules.clone())?;
        if let Some(known) = self.machine.known().get_mut(&self.name) {
            known.spec.policy = rules;
        }
        Ok(version)
    }

    /// Ends its processes and deletes what it has.
    pub fn remove(&self) -> Result<(), Error> {
        // What it has on a disk that stays takes the machine to delete.
        let running = match self.machine.if_running()? {
            None if self.machine.spec().disk.is_none() => {
                return match self.machine.known().remove(&self.name) {
                    Some(known) => self.forget_policy(&known),
                    None => Ok(()),
                };
            }
            None => self.machine.in_use()?,
            Some(running) => running,
        };
        running.guest().remove_session(&self.name)?;
        let Some(known) = self.machine.known().remove(&self.name) else { return Ok(()) };
        // What it had of the network is nobody's before its rules go.
        if let (Some(slot), Some(network)) = (known.made.slot, running.running().network()) {
            network.unseat(slot)?;
        }
        self.forget_policy(&known)?;
        known.made.shares.iter().try_for_each(|share| running.running().detach(share))
    }

    fn forget_policy(&self, known: &Known) -> Result<(), Error> {
        match known.spec.policy {
            Some(_) => self.machine.set_session_policy(&self.name, None).map(drop),
            None => Ok(()),
        }
    }

    fn unknown(&self) -> Error {
        Error::NotFound { what: "session", name: self.name.clone() }
    }
}

/// Makes a session in a machine that runs.
pub(crate) fn make(
    running: &Running,
    machine: &MachineSpec,
    spec: &SessionSpec,
) -> Result<Made, Error> {
    let mut made = Made::default();
    let result = gather(running, machine, spec, &mut made).and_then(|(shares, network)| {
        let session = cabana_protocol::SessionSpec {
            name: spec.name.clone(),
            limits: limits_of(&spec.limits),
            shares,
            network,
        };
        Ok(running.guest().create_session(&session)?)
    });
    match result {
        Ok(_) => Ok(made),
        Err(error) => {
            // The failure before is the one to tell of.
            for share in &made.shares {
                let _ = running.detach(share);
            }
            if let (Some(slot), Some(network)) = (made.slot, running.network()) {
                let _ = network.unseat(slot);
            }
            Err(error)
        }
    }
}

/// What a session is made of; `made` is what there is of it, also when something fails.
fn gather(
    running: &Running,
    machine: &MachineSpec,
    spec: &SessionSpec,
    made: &mut Made,
) -> Result<(Vec<ShareMount>, Option<SessionCard>), Error> {
    let mut shares = Vec::new();
    for share in &spec.shares {
        let mount = running.attach(machine, share)?;
        made.shares.push(mount.name.clone());
        shares.push(mount);
    }
    let network = running.network().filter(|_| spec.network);
    let card = match network.map(|network| network.seat(&spec.name)).transpose()? {
        Some((slot, card)) => {
            made.slot = Some(slot);
            Some(card)
        }
        None => None,
    };
    Ok((shares, card))
}

fn status(spec: &SessionSpec, info: Option<&SessionInfo>) -> SessionStatus {
    SessionStatus {
        name: spec.name.clone(),
        uid: info.map(|info| info.uid),
        limits: spec.limits,
        shares: spec.shares.clone(),
        network: spec.network,
        policy: spec.policy.clone(),
        pids: info.map_or(0, |info| info.pids),
        memory: info.map_or(0, |info| info.memory),
        disk: info.map_or(0, |info| info.disk),
    }
}

fn limits_of(limits: &SessionLimits) -> cabana_protocol::SessionLimits {
    let SessionLimits { memory, pids, cpu_weight, cpu_max, io_read, io_write, disk } = *limits;
    cabana_protocol::SessionLimits { memory, pids, cpu_weight, cpu_max, io_read, io_write, disk }
}
