//! A machine between one start and its end.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabana_api::{MachineSpec, ShareSpec};
use cabana_os::{LocalStream, OwnedHandle};
use cabana_protocol::ShareMount;
use cabana_sandbox::{Guest, Introduction, Stream, Timeline, machine_card};
use cabana_worker::link::{self, Request, Role, Start, VERSION};

use crate::engine::House;
use crate::folders::{Folders, all_journals, open_folder};
use crate::network::Network;
use crate::worker::{Handles, Told, Worker};
use crate::{Error, disk};

/// A worker that is on its way or runs, and the conversation with its agent once there is one.
#[derive(Debug)]
pub(crate) struct Running {
    // Before the conversation, whose end would make the agent shut down.
    worker: Arc<Worker>,
    guest: Guest,
    network: Option<Network>,
    activity: Mutex<Activity>,
    changed: Condvar,
    room: Room,
    folders: Mutex<Folders>,
}

/// What the machine's memory takes while it is suspended.
#[derive(Debug)]
struct Room {
    bytes: u64,
    folder: PathBuf,
}

#[derive(Debug, Default)]
struct Activity {
    /// Commands.
    processes: u64,
    /// Requests and tunnels.
    uses: u64,
    suspended: bool,
    over: bool,
    /// Counts what happened, so that a wait for idleness notices a short process.
    events: u64,
}

/// A request or a tunnel that keeps a machine from being suspended, and from going with its last handle.
#[derive(Debug)]
pub(crate) struct Use(Arc<Running>);

/// A worker whose guest is not ready yet.
pub(crate) struct Starting {
    pub(crate) worker: Arc<Worker>,
    control: LocalStream,
    introduction: Introduction,
    room: Room,
    folders: Folders,
    network: Option<Network>,
}

impl Starting {
    /// Starts the worker and its machine, with its network and the other end of the network's cable if it has one;
    /// returns as soon as they are on their way.
    pub(crate) fn begin(
        house: &House,
        spec: &MachineSpec,
        network: Option<(Network, OwnedHandle)>,
        tell: impl Fn(Told) + Send + 'static,
    ) -> Result<Self, Error> {
        let artifacts = house.artifacts(spec)?;
        let mut handles = Handles::default();
        handles.open(Role::Kernel, "the kernel", &artifacts.kernel)?;
        handles.open(Role::Initrd, "the agent", &artifacts.agent)?;
        handles.open(Role::Image, "the image", &artifacts.image)?;
        let (file, name) = match &spec.disk {
            None => (
                disk::vanishing(&artifacts.template, &house.scratch())?,
                artifacts.template.display().to_string(),
            ),
            Some(path) => (disk::kept(path, &artifacts.template)?, path.display().to_string()),
        };
        handles.add(Role::Disk { vanishing: spec.disk.is_none() }, name, file);
        let (mut folders, mut mounts) = (Folders::default(), Vec::new());
        for share in &spec.shares {
            let (name, folder) = folders.begin(share)?;
            folder.gather(share, &mut handles);
            mounts.push(mount(name, share));
        }
        for root in &spec.share_roots {
            handles.add(Role::ShareRoot, root.display().to_string(), open_folder(root)?);
        }
        if spec.journals {
            handles.add(Role::ShareRoot, "the folder of all journals", all_journals()?);
        }
        let network = network.map(|(network, cable)| {
            handles.add(Role::Cable { mtu: network.mtu() }, "the network's cable", cable);
            network
        });
        handles.add_parent()?;
        let (control, theirs) = LocalStream::pair().map_err(Error::host("a socket"))?;
        handles.add(Role::Control, "the control socket", theirs);
        let start = Start {
            version: VERSION,
            cpus: spec.cpus,
            memory: spec.memory,
            command_line: spec.command_line.clone(),
            guest: link::Guest::Agent,
            handles: handles.list,
            confine: true,
        };
        let worker = Worker::start(&house.config.worker, start, &handles.open, tell)?;
        let introduction = Introduction {
            hostname: spec.name.clone(),
            has_disk: true,
            shares: mounts,
            network: network.is_some().then(machine_card),
        };
        let room = Room { bytes: spec.memory, folder: house.scratch() };
        Ok(Self { worker: Arc::new(worker), control, introduction, room, folders, network })
    }

    /// Waits until the agent takes commands, or for the machine's end.
    pub(crate) fn finish(self) -> Result<Running, Error> {
        let Self { worker, control, introduction, room, folders, network } = self;
        let control = Stream::from(control);
        let guest = Guest::greet(worker.link(), control, introduction, &Timeline::new())?;
        if let Some(network) = &network {
            network.introduce(&guest)?;
        }
        let (activity, changed) = (Mutex::default(), Condvar::new());
        Ok(Running { worker, guest, network, activity, changed, room, folders: folders.into() })
    }
}

impl Running {
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    pub(crate) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    pub(crate) fn processes(&self) -> u64 {
        self.activity().processes
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.activity().suspended
    }

    /// A process begins: the machine is resumed if need be, and not suspended before the process ends.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        let mut activity = self.activity();
        self.wake(&mut activity)?;
        activity.processes += 1;
        activity.events += 1;
        self.changed.notify_all();
        Ok(())
    }

    /// A process has ended.
    pub(crate) fn finish(&self) {
        let mut activity = self.activity();
        activity.processes -= 1;
        activity.events += 1;
        self.changed.notify_all();
    }

    /// Keeps the machine awake, after having resumed it if need be.
    pub(crate) fn keep(self: Arc<Self>) -> Result<Use, Error> {
        {
            let mut activity = self.activity();
            self.wake(&mut activity)?;
            activity.uses += 1;
            activity.events += 1;
        }
        self.changed.notify_all();
        Ok(Use(self))
    }

    /// Gives the guest's file server one more folder of the host's; the guest does not show it yet.
    pub(crate) fn attach(
        &self,
        spec: &MachineSpec,
        share: &ShareSpec,
    ) -> Result<ShareMount, Error> {
        let (name, folder) = self.folders().add(spec, share)?;
        let (shown, read_only, journal) = (name.clone(), share.read_only, folder.journal());
        let attach = |call| Request::Attach { call, name: shown, read_only, journal };
        if let Err(error) = self.worker.call_with(attach, &folder.handles()) {
            self.folders().remove(&name);
            return Err(error);
        }
        Ok(mount(name, share))
    }

    fn folders(&self) -> MutexGuard<'_, Folders> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes such a folder away again.
    pub(crate) fn detach(&self, name: &str) -> Result<(), Error> {
        let gone = name.to_owned();
        self.worker.call(|call| Request::Detach { call, name: gone }, None)?;
        self.folders().remove(name);
        Ok(())
    }

    /// Lets the vCPUs stand still, and puts memory on the disk. True if they ran before; false if they stood still or
    /// a process runs, be it in the background.
    pub(crate) fn suspend(&self) -> Result<bool, Error> {
        let before = {
            let activity = self.activity();
            if activity.suspended || activity.is_busy() {
                return Ok(false);
            }
            activity.events
        };
        // The guest may take its time, which nobody else should wait for.
        if self.guest.processes()?.iter().any(|process| process.status.is_none()) {
            return Ok(false);
        }
        let mut activity = self.activity();
        if activity.suspended || activity.events != before {
            return Ok(false);
        }
        // Without room for its memory it keeps it.
        let file = disk::for_memory(self.room.bytes, &self.room.folder).ok().flatten();
        self.worker.call(|call| Request::Pause { call }, file.map(OwnedHandle::from).as_ref())?;
        activity.suspended = true;
        Ok(true)
    }

    /// Lets them run. True if they stood still before.
    pub(crate) fn resume(&self) -> Result<bool, Error> {
        self.wake(&mut self.activity())
    }

    fn wake(&self, activity: &mut Activity) -> Result<bool, Error> {
        if !activity.suspended {
            return Ok(false);
        }
        self.worker.call(|call| Request::Resume { call }, None)?;
        activity.suspended = false;
        Ok(true)
    }

    /// Waits until no process has run for this long; false once the machine is over.
    pub(crate) fn wait_idle(&self, idle: Duration) -> bool {
        let mut activity = self.activity();
        loop {
            let before = activity.events;
            let busy = |activity: &mut Activity| !activity.over && activity.events == before;
            if activity.over {
                return false;
            }
            let quiet = if activity.is_busy() || activity.suspended {
                activity =
                    self.changed.wait_while(activity, busy).unwrap_or_else(PoisonError::into_inner);
                false
            } else {
                let waited = self.changed.wait_timeout_while(activity, idle, busy);
                let (now, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                activity = now;
                waited.timed_out()
            };
            if quiet {
                return true;
            }
        }
    }

    /// The machine is over: whoever waits for idleness hears of it.
    pub(crate) fn end(&self) {
        self.activity().over = true;
        self.changed.notify_all();
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Activity {
    fn is_busy(&self) -> bool {
        self.processes > 0 || self.uses > 0
    }
}

impl Use {
    pub(crate) fn guest(&self) -> &Guest {
        &self.0.guest
    }

    pub(crate) fn running(&self) -> &Running {
        &self.0
    }

    pub(crate) fn running_machine(&self) -> Arc<Running> {
        Arc::clone(&self.0)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.uses -= 1;
        activity.events += 1;
        drop(activity);
        self.0.changed.notify_all();
    }
}

fn mount(name: String, share: &ShareSpec) -> ShareMount {
    ShareMount { name, guest_path: share.guest.clone(), read_only: share.read_only }
}
