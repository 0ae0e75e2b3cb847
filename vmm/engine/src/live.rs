//! Folders shown and taken away while the machine runs.

use cabana_api::ShareSpec;

use crate::engine::check_share;
use crate::running::Running;
use crate::{Error, Machine, Place};

/// A folder that was shown after the machine's start, and what it is called in the file server.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) spec: ShareSpec,
    name: String,
}

impl Place {
    /// Shows a folder of the host's, and starts the machine before if need be. It has to lie below one that
    /// the machine shares anyway or one of its `share_roots`. A machine that starts afresh shows it again.
    pub fn add_share(&self, share: &ShareSpec) -> Result<(), Error> {
        check_share(&share.guest)?;
        if self.shares()?.iter().any(|other| other.guest == share.guest) {
            return Err(Error::Invalid(format!("there is a share on {} already", share.guest)));
        }
        let running = self.machine().in_use()?;
        let name = show(running.running(), self.machine(), self.session(), share)?;
        let Some(session) = self.session() else {
            self.machine().live().push(Live { spec: share.clone(), name });
            return Ok(());
        };
        let mut known = self.machine().known();
        let Some(known) = known.get_mut(session) else {
            return Err(Error::NotFound { what: "session", name: session.to_owned() });
        };
        known.spec.shares.push(share.clone());
        known.made.shares.push(name);
        Ok(())
    }

    /// Takes the folder on this path of the guest's away. Programs that have files of it open get errors.
    pub fn remove_share(&self, guest: &str) -> Result<(), Error> {
        let shares = &self.machine().spec().shares;
        if self.session().is_none() && shares.iter().any(|share| share.guest == guest) {
            let why = "is shared for as long as the machine is up; leave it out of its description";
            return Err(Error::Invalid(format!("{guest} {why}")));
        }
        if !self.shares()?.iter().any(|share| share.guest == guest) {
            return Err(Error::NotFound { what: "share", name: guest.to_owned() });
        }
        let running = self.machine().if_running()?;
        if let Some(running) = &running {
            running.guest().remove_share(self.session(), guest)?;
        }
        match (self.forget(guest), running) {
            (Some(name), Some(running)) => running.running().detach(&name),
            // It does not run, or somebody else has taken it away meanwhile.
            _ => Ok(()),
        }
    }

    /// Forgets the folder on this path; what it is called in the file server.
    fn forget(&self, guest: &str) -> Option<String> {
        let Some(session) = self.session() else {
            let mut live = self.machine().live();
            let index = live.iter().position(|live| live.spec.guest == guest)?;
            return Some(live.remove(index).name);
        };
        let mut known = self.machine().known();
        let known = known.get_mut(session)?;
        let index = known.spec.shares.iter().position(|spec| spec.guest == guest)?;
        known.spec.shares.remove(index);
        Some(known.made.shares.remove(index))
    }

    /// The folders that are shown here, those of the start first.
    pub fn shares(&self) -> Result<Vec<ShareSpec>, Error> {
        let Some(session) = self.session() else {
            return Ok(self.machine().shares());
        };
        let known = self.machine().known();
        let known = known.get(session);
        known
            .map(|known| known.spec.shares.clone())
            .ok_or_else(|| Error::NotFound { what: "session", name: session.to_owned() })
    }
}

/// Shows again what was shown in an earlier life of the machine; says what could not be.
pub(crate) fn restore(running: &Running, machine: &Machine, lost: &mut Vec<String>) {
    let earlier = std::mem::take(&mut *machine.live());
    for Live { spec, .. } in earlier {
        match show(running, machine, None, &spec) {
            Ok(name) => machine.live().push(Live { spec, name }),
            Err(error) => {
                lost.push(format!("the share on {} is not there again: {error}", spec.guest));
            }
        }
    }
}

/// Gives the file server a folder, and shows it in the guest; what it is called there.
fn show(
    running: &Running,
    machine: &Machine,
    session: Option<&str>,
    share: &ShareSpec,
) -> Result<String, Error> {
    let mount = running.attach(machine.spec(), share)?;
    let shown = running.guest().add_share(session, &mount);
    if shown.is_err() {
        // The failure before is the one to tell of.
        let _ = running.detach(&mount.name);
    }
    shown?;
    Ok(mount.name)
}
