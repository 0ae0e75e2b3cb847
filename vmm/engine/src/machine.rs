//! A machine over all of its lives.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use cabana_api::{
    CommandSpec, MachineEvent, MachineSpec, MachineState, MachineStatus, NetworkEvent, NetworkWhat,
    ShareSpec,
};
use cabana_os::OwnedHandle;
use cabana_protocol::Event;
use cabana_sandbox::egress::{Asker, Protocol};
use cabana_worker::link::{Fault, Progress, Request};

use crate::engine::House;
use crate::events::Listeners;
use crate::live::{self, Live};
use crate::network::{Network, Policies};
use crate::running::{Running, Starting, Use};
use crate::session::{self, Known};
use crate::worker::{Told, Worker};
use crate::{Error, Events, Process, process};

/// A machine: a description, and at times a worker that runs it. Cheap to clone; with the last clone, and
/// the last process, it stops.
#[derive(Clone, Debug)]
pub struct Machine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    house: Arc<House>,
    spec: MachineSpec,
    life: Mutex<Life>,
    changed: Condvar,
    listeners: Listeners,
    /// Sessions that a fresh machine gets again, by name.
    sessions: Mutex<BTreeMap<String, Known>>,
    /// Folders that a fresh machine is shown again.
    live: Mutex<Vec<Live>>,
    /// What may leave, now and after a fresh start.
    policies: Mutex<Policies>,
}

#[derive(Debug, Default)]
struct Life {
    stage: Stage,
    /// Counts starts.
    generation: u64,
    /// Its end was asked for.
    asked: bool,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// The worker is known as soon as it is on its way, so that it can be stopped.
    Starting(Option<Arc<Worker>>),
    Running(Arc<Running>),
}

impl Inner {
    pub(crate) fn new(house: Arc<House>, spec: MachineSpec) -> Self {
        let (life, changed, listeners) = (Mutex::default(), Condvar::new(), Listeners::default());
        let (sessions, live) = (Mutex::default(), Mutex::default());
        let policies = Mutex::new(Policies::of(spec.network.as_ref()));
        Self { house, spec, life, changed, listeners, sessions, live, policies }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine of this generation has ended.
    fn ended(&self, generation: u64, ended: &Result<(), Fault>) {
        let mut life = self.life();
        if life.generation != generation {
            return;
        }
        // The end of a start is told of by who waits for it.
        let Stage::Running(over) = &life.stage else { return };
        let over = Arc::clone(over);
        life.stage = Stage::Idle;
        let asked = std::mem::take(&mut life.asked);
        drop(life);
        self.changed.notify_all();
        over.end();
        self.listeners.tell(&match ended {
            Err(fault) if !asked => {
                let Fault { code, message } = fault.clone();
                MachineEvent::Died { code, message }
            }
            _ => MachineEvent::Stopped,
        });
        // This is the worker's own thread, on which its end cannot be waited for.
        let _ = thread::Builder::new().name("last rites".to_owned()).spawn(move || drop(over));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let life = self.life.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Running(running) = &life.stage {
            running.end();
        }
    }
}

impl Machine {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    /// What it was made from.
    pub fn spec(&self) -> &MachineSpec {
        &self.inner.spec
    }

    /// What happens to it from now on.
    pub fn events(&self) -> Events {
        self.inner.listeners.listen()
    }

    /// Starts it if it does not run, and waits until it takes commands.
    pub fn start(&self) -> Result<(), Error> {
        self.running().map(drop)
    }

    /// Starts a command, and the machine before it if need be; many may run at once.
    pub fn exec(&self, command: &CommandSpec) -> Result<Process, Error> {
        let running = self.running()?;
        self.wake(&running)?;
        Process::start(running, command)
    }

    /// Lets its vCPUs stand still until it is used again. What is in its memory goes into a file without a name in
    /// [`EngineConfig::scratch`](crate::EngineConfig::scratch), from which it comes back as it is touched, unless
    /// that folder is in memory itself or full. Nothing happens while a process runs, be it in the
    /// background; false then.
    pub fn suspend(&self) -> Result<bool, Error> {
        let running = match &self.inner.life().stage {
            Stage::Running(running) => Arc::clone(running),
            Stage::Idle | Stage::Starting(_) => return Ok(false),
        };
        let suspended = running.suspend()?;
        if suspended {
            self.inner.listeners.tell(&MachineEvent::Suspended);
        }
        Ok(suspended)
    }

    /// Ends all processes, flushes shares and disks, and ends the machine, in a bounded time. The next
    /// command starts it again.
    pub fn shutdown(&self) -> Result<(), Error> {
        let running = {
            let mut life = self.inner.life();
            let Stage::Running(running) = &life.stage else { return Ok(()) };
            let running = Arc::clone(running);
            life.asked = true;
            running
        };
        self.wake(&running)?;
        let ended = running.guest().shutdown();
        running.worker().kill();
        running.worker().wait_gone();
        Ok(ended?)
    }

    /// Ends it now, as if its power had failed; a start that is under way, too. The next command starts it
    /// again.
    pub fn stop(&self) {
        let stage = {
            let mut life = self.inner.life();
            life.asked = true;
            match &life.stage {
                Stage::Idle => return,
                Stage::Starting(worker) => Stage::Starting(worker.clone()),
                Stage::Running(running) => Stage::Running(Arc::clone(running)),
            }
        };
        let worker = match &stage {
            Stage::Running(running) => running.worker(),
            Stage::Starting(Some(worker)) => worker,
            // Who starts it looks whether it is still wanted.
            Stage::Starting(None) | Stage::Idle => return,
        };
        worker.kill();
        worker.wait_gone();
    }

    /// What its console said last; nothing while it does not run.
    pub fn console(&self) -> Result<String, Error> {
        let running = match &self.inner.life().stage {
            Stage::Running(running) => Arc::clone(running),
            Stage::Idle | Stage::Starting(_) => return Ok(String::new()),
        };
        running.worker().call(|call| Request::Console { call }, None)
    }

    /// How it is.
    pub fn status(&self) -> MachineStatus {
        let shares = self.shares();
        let life = self.inner.life();
        let (state, worker, processes) = match &life.stage {
            Stage::Idle => (MachineState::Idle, None, 0),
            Stage::Starting(worker) => {
                (MachineState::Starting, worker.as_ref().and_then(|worker| worker.pid()), 0)
            }
            Stage::Running(running) => {
                let state = if running.is_suspended() {
                    MachineState::Suspended
                } else {
                    MachineState::Running
                };
                (state, running.worker().pid(), running.processes())
            }
        };
        let spec = &self.inner.spec;
        MachineStatus {
            name: spec.name.clone(),
            state,
            generation: life.generation,
            image: spec.image.clone(),
            cpus: spec.cpus,
            memory: spec.memory,
            shares,
            worker,
            processes,
        }
    }

    /// The machine, started and awake, for as long as this is kept.
    pub(crate) fn in_use(&self) -> Result<Use, Error> {
        let running = self.running()?;
        self.wake(&running)?;
        running.keep()
    }

    /// As [`in_use`](Self::in_use), if it runs already.
    pub(crate) fn if_running(&self) -> Result<Option<Use>, Error> {
        let running = match &self.inner.life().stage {
            Stage::Running(running) if !running.worker().has_ended() => Arc::clone(running),
            _ => return Ok(None),
        };
        self.wake(&running)?;
        running.keep().map(Some)
    }

    /// The sessions that are known.
    pub(crate) fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folders that are shown, those of the start first.
    pub(crate) fn shares(&self) -> Vec<ShareSpec> {
        let live = self.live();
        let live = live.iter().map(|live| live.spec.clone());
        self.inner.spec.shares.iter().cloned().chain(live).collect()
    }

    /// The folders that are shown since.
    pub(crate) fn live(&self) -> MutexGuard<'_, Vec<Live>> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may leave.
    pub(crate) fn policies(&self) -> MutexGuard<'_, Policies> {
        self.inner.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine as it runs, awake or not.
    pub(crate) fn if_started(&self) -> Option<Arc<Running>> {
        match &self.inner.life().stage {
            Stage::Running(running) => Some(Arc::clone(running)),
            Stage::Idle | Stage::Starting(_) => None,
        }
    }

    fn wake(&self, running: &Running) -> Result<(), Error> {
        if running.resume()? {
            self.inner.listeners.tell(&MachineEvent::Resumed);
        }
        Ok(())
    }

    /// The running machine, started if need be.
    fn running(&self) -> Result<Arc<Running>, Error> {
        let mut life = self.inner.life();
        loop {
            match &life.stage {
                Stage::Running(running) if !running.worker().has_ended() => {
                    return Ok(Arc::clone(running));
                }
                Stage::Idle => break,
                // Its end, or somebody else's start, is about to be noted.
                Stage::Running(_) | Stage::Starting(_) => {
                    life = self.inner.changed.wait(life).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        life.generation += 1;
        let generation = life.generation;
        life.stage = Stage::Starting(None);
        life.asked = false;
        drop(life);
        self.inner.listeners.tell(&MachineEvent::Starting { generation });
        let mut lost = Vec::new();
        let started = self.start_now(generation, &mut lost);
        let mut life = self.inner.life();
        life.stage = match &started {
            Ok(running) => Stage::Running(Arc::clone(running)),
            Err(_) => Stage::Idle,
        };
        let asked = life.asked;
        drop(life);
        self.inner.changed.notify_all();
        match &started {
            Ok(running) => {
                let mut warnings = running.guest().warnings().to_vec();
                warnings.extend(lost);
                let caught_up = running.network().map(|network| self.catch_up(network));
                if let Some(Err(error)) = caught_up {
                    warnings.push(format!("its network has an older policy: {error}"));
                }
                self.inner.listeners.tell(&MachineEvent::Ready { warnings });
            }
            Err(_) if asked => self.inner.listeners.tell(&MachineEvent::Stopped),
            Err(error) => {
                let (code, message) = (error.code().to_owned(), error.to_string());
                self.inner.listeners.tell(&MachineEvent::Died { code, message });
            }
        }
        // It may have ended between its greeting and the note of it.
        if let Ok(running) = &started
            && running.worker().has_ended()
        {
            let why = running.worker().wait().map_err(|error| Fault {
                code: error.code().to_owned(),
                message: error.to_string(),
            });
            self.inner.ended(generation, &why);
        }
        started
    }

    /// Starts its network, if it is to have one.
    fn start_network(&self) -> Result<Option<(Network, OwnedHandle)>, Error> {
        let Some(spec) = &self.inner.spec.network else { return Ok(None) };
        let inner = Arc::downgrade(&self.inner);
        let tell = move |event: &MachineEvent| {
            if let Some(inner) = Weak::upgrade(&inner) {
                inner.listeners.tell(event);
            }
        };
        let inner = Arc::downgrade(&self.inner);
        let claim = move |session: Option<&str>, asker: Asker| {
            let running = match &Weak::upgrade(&inner)?.life().stage {
                Stage::Running(running) => Arc::clone(running),
                Stage::Idle | Stage::Starting(_) => return None,
            };
            let udp = asker.protocol == Protocol::Udp;
            let owner = running.guest().find_owner(session, udp, asker.address).ok()??;
            Some(format!("{} ({})", owner.name, owner.pid))
        };
        let policies = self.policies().clone();
        Network::start(&self.inner.house.config.worker, spec, &policies, claim, tell).map(Some)
    }

    /// Starts it, with its sessions and shares; says which of them it could not make again.
    fn start_now(&self, generation: u64, lost: &mut Vec<String>) -> Result<Arc<Running>, Error> {
        let inner = Arc::downgrade(&self.inner);
        let tell = move |told| {
            if let Some(inner) = Weak::upgrade(&inner) {
                hear(&inner, generation, told);
            }
        };
        let network = self.start_network()?;
        let starting = Starting::begin(&self.inner.house, &self.inner.spec, network, tell)?;
        {
            let mut life = self.inner.life();
            life.stage = Stage::Starting(Some(Arc::clone(&starting.worker)));
            if life.asked {
                starting.worker.kill();
            }
        }
        let running = Arc::new(starting.finish()?);
        let inner = Arc::downgrade(&self.inner);
        running.guest().on_event(move |event| {
            if let Some(inner) = Weak::upgrade(&inner) {
                inner.listeners.tell(&told(event));
            }
        })?;
        live::restore(&running, self, lost);
        self.known().retain(|name, known| {
            let made = session::make(&running, &self.inner.spec, &known.spec);
            let failed = |error| lost.push(format!("session {name} is not there again: {error}"));
            made.map(|made| known.made = made).map_err(failed).is_ok()
        });
        if let Some(idle) = self.inner.spec.suspend_after_ms {
            watch_idle(&self.inner, &running, Duration::from_millis(idle))?;
        }
        Ok(running)
    }
}

fn hear(inner: &Inner, generation: u64, told: Told) {
    let event = match told {
        Told::Progress(progress) => MachineEvent::Progress {
            step: match progress {
                Progress::Confined { system_calls: true, files: true } => "confined",
                Progress::Confined { .. } => "partly-confined",
                Progress::Booting => "booting",
                Progress::Connected => "connected",
            }
            .to_owned(),
        },
        Told::DiskFailed(message) => MachineEvent::DiskFailed { message },
        // Its network has a worker of its own.
        Told::Network(_) => return,
        Told::Ended(ended) => return inner.ended(generation, &ended),
    };
    inner.listeners.tell(&event);
}

/// What the guest tells, for applications.
fn told(event: Event) -> MachineEvent {
    match event {
        Event::OutOfMemory { session, pid, command, memory } => {
            MachineEvent::OutOfMemory { session, pid, command, memory }
        }
        Event::ProcessLimit { session } => MachineEvent::ProcessLimit { session },
        Event::SessionDied { session } => MachineEvent::SessionDied { session },
        Event::Lost(events) => MachineEvent::Lost { events },
        Event::ProcessEnded { process, status } => {
            MachineEvent::BackgroundEnded { background: process, exit: process::exit(status) }
        }
        Event::Listening { session, address } => {
            let what = NetworkWhat::Listening { address: address.ip(), port: address.port() };
            MachineEvent::Network { event: NetworkEvent { session, what } }
        }
        Event::ListeningEnded { session, address } => {
            let what = NetworkWhat::ListeningEnded { address: address.ip(), port: address.port() };
            MachineEvent::Network { event: NetworkEvent { session, what } }
        }
    }
}

/// Suspends the machine whenever it has been idle for so long.
fn watch_idle(inner: &Arc<Inner>, running: &Arc<Running>, idle: Duration) -> Result<(), Error> {
    let (inner, running) = (Arc::downgrade(inner), Arc::clone(running));
    let watch = move || {
        while running.wait_idle(idle) {
            // One that cannot be suspended has ended, or is in use again.
            if let (Ok(true), Some(inner)) = (running.suspend(), Weak::upgrade(&inner)) {
                inner.listeners.tell(&MachineEvent::Suspended);
            }
        }
    };
    let builder = thread::Builder::new().name("idle".to_owned()).stack_size(128 << 10);
    builder.spawn(watch).map_err(Error::host("a thread"))?;
    Ok(())
}
