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
        known.shares.push(name);
        Ok(())
    }

    /// Takes the folder on this path of the guest's away. Programs that have files of it open get errors.
    pub fn remove_share(&self, guest: &str) -> Result<(), Error> {
        let found =
            match self.session() {
                None => self.machine().live().iter().position(|live| live.spec.guest == guest),
                Some(session) => self.machine().known().get(session).and_then(|known| {
                    known.spec.shares.iter().position(|spec| spec.guest == guest)
                }),
            };
        let of_start = self.session().is_none()
            && self.machine().spec().shares.iter().any(|share| share.guest == guest);
        let Some(index) = found else {
            return Err(if of_start {
                let why =
                    "is shared for as long as the machine is up; leave it out of its description";
                Error::Invalid(format!("{guest} {why}"))
            } else {
                Error::NotFound { what: "share", name: guest.to_owned() }
            });
        };
        let running = self.machine().if_running()?;
        if let Some(running) = &running {
            running.guest().remove_share(self.session(), guest)?;
        }
        let name = match self.session() {
            None => self.machine().live().remove(index).name,
            Some(session) => {
                let mut known = self.machine().known();
                let Some(known) = known.get_mut(session) else { return Ok(()) };
                known.spec.shares.remove(index);
                known.shares.remove(index)
            }
        };
        running.map_or(Ok(()), |running| running.running().detach(&name))
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
