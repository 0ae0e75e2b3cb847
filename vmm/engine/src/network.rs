//! A machine's network while it runs: its worker, and who in the guest has which address.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabana_api::{MachineEvent, NetworkSpec, NetworkStatus, PolicySpec, Remember};
use cabana_os::{AsHandle, OwnedHandle, Packets, proxies};
use cabana_protocol::{Exec, SessionCard};
use cabana_sandbox::egress::{self, Answer, Asker, EgressPolicy, Secret, SessionPolicy, Trust};
use cabana_sandbox::{Guest, MAX_SESSIONS, random_bytes, session_card, trusting};
use cabana_worker::link::{
    Handle, NetworkBegun, NetworkFigures, NetworkStart, Request, Role, VERSION,
};

use crate::claims::Claims;
use crate::config::WorkerKind;
use crate::worker::{Handles, Told, Worker};
use crate::{Error, Machine};

/// The largest IP packet unless asked otherwise, as the network has it.
const MTU: u16 = 65_520;
/// What MTUs there can be.
const MTUS: std::ops::RangeInclusive<u16> = 1280..=MTU;

/// What of the engine's environment a network's worker is told beside proxies: whom this host trusts, where the program is
/// that runs scripts of proxies, and which time they have.
const TOLD: [&str; 5] = ["SSL_CERT_FILE", "SSL_CERT_DIR", "CABANA_PAC", "PATH", "TZ"];

/// A network that runs.
#[derive(Debug)]
pub(crate) struct Network {
    worker: Worker,
    mtu: u16,
    /// Of the policies that it began with.
    serial: u64,
    begun: NetworkBegun,
    version: AtomicU64,
    /// Sessions by their slots.
    slots: Mutex<BTreeMap<u16, String>>,
    /// Variables of every command: secrets' placeholders.
    variables: Vec<(String, String)>,
    /// What the guest is to trust beside its image's roots, in PEM.
    roots: String,
    /// Its end is wanted.
    over: Arc<AtomicBool>,
}

/// What a machine and its sessions may reach.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    /// Counts changes.
    serial: u64,
    pub(crate) machine: PolicySpec,
    pub(crate) sessions: BTreeMap<String, PolicySpec>,
}

impl Policies {
    pub(crate) fn of(spec: Option<&NetworkSpec>) -> Self {
        let spec = spec.cloned().unwrap_or_default();
        Self { serial: 0, machine: spec.policy, sessions: spec.sessions }
    }

    /// The same in the network's words, once it is found to be right.
    pub(crate) fn compile(&self) -> Result<EgressPolicy, Error> {
        let policy = egress_policy(&self.machine, &self.sessions);
        policy.check().map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(policy)
    }
}

/// The rules of a machine and of its sessions in the network's words.
pub fn egress_policy(
    machine: &PolicySpec,
    sessions: &BTreeMap<String, PolicySpec>,
) -> EgressPolicy {
    let PolicySpec { allow, deny, ask, ech } = machine.clone();
    let sessions = sessions.iter().map(|(name, own)| {
        let PolicySpec { allow, deny, ask, ech } = own.clone();
        (name.clone(), SessionPolicy { allow, deny, ask, ech })
    });
    EgressPolicy { allow, deny, ask, ech, session: sessions.collect() }
}

/// Whether a description is one, before anything is started.
pub(crate) fn check(spec: &NetworkSpec) -> Result<(), Error> {
    Policies::of(Some(spec)).compile()?;
    secrets(spec)?;
    match spec.mtu {
        Some(mtu) if !MTUS.contains(&mtu) => {
            Err(Error::Invalid(format!("an MTU of {mtu} is not between 1280 and {MTU}")))
        }
        _ => Ok(()),
    }
}

/// A secret's word, and the bytes that make its placeholder.
type SecretWord = (String, [u8; 16]);

fn secrets(spec: &NetworkSpec) -> Result<Vec<(Secret, SecretWord)>, Error> {
    let read = |word: &String| {
        let random = random_bytes().map_err(Error::host("random bytes"))?;
        let secret = Secret::parse(word, random, |_| None);
        let secret = secret.map_err(|error| Error::Invalid(error.to_string()))?;
        Ok((secret, (word.clone(), random)))
    };
    spec.secrets.iter().map(read).collect()
}

impl Network {
    /// Starts the worker of a network, and waits until it serves. The other end of its cable is for the machine's
    /// worker.
    pub(crate) fn start(
        kind: &WorkerKind,
        spec: &NetworkSpec,
        policies: &Policies,
        claim: impl Fn(Option<&str>, Asker) -> Option<String> + Send + Sync + 'static,
        tell: impl Fn(&MachineEvent) + Send + Sync + 'static,
    ) -> Result<(Self, OwnedHandle), Error> {
        let (serial, policy) = (policies.serial, policies.compile()?);
        let secrets = secrets(spec)?;
        let mtu = spec.mtu.unwrap_or(MTU);
        let (card, ours) = Packets::handles().map_err(Error::host("a socket"))?;
        let mut handles = Handles::default();
        handles.add(Role::Cable { mtu }, "the network's cable", ours);
        handles.add_parent()?;
        for (role, path) in [(Role::Log, &spec.log), (Role::Capture, &spec.capture)] {
            if let Some(path) = path {
                handles.add(role, path.display().to_string(), make(path)?);
            }
        }
        let over = Arc::new(AtomicBool::new(false));
        let silent = Arc::clone(&over);
        let (tell, claims) = (Arc::new(tell), Claims::new(claim));
        let hear = move |told: Told| match told {
            Told::Network(event) => claims.tell(*event, &tell),
            Told::Ended(ended) if !silent.load(Ordering::Relaxed) => {
                let message = ended.err().map(|fault| fault.message).unwrap_or_default();
                tell(&MachineEvent::NetworkDied { message });
            }
            Told::Ended(_) | Told::Progress(_) | Told::DiskFailed(_) => {}
        };
        let variable = |name: &&str| Some(((*name).to_owned(), env::var(name).ok()?));
        // The worker is confined before it could ask the system itself.
        let mut environment = proxies::environment();
        environment.extend(TOLD.iter().filter_map(variable));
        let worker = Worker::spawn(kind, &environment, hear)?;
        let begin = |call, handles: &[Handle]| Request::Network {
            call,
            start: Box::new(NetworkStart {
                version: VERSION,
                mtu,
                policy,
                publish: spec.publish.iter().map(|port| (port.host, port.guest)).collect(),
                proxy: spec.proxy.clone().unwrap_or_else(|| "env".to_owned()),
                secrets: secrets.iter().map(|(_, word)| word.clone()).collect(),
                handles: handles.to_vec(),
            }),
        };
        let Handles { list, open } = handles;
        let open: Vec<_> = open.iter().map(AsHandle::as_handle).collect();
        let begun = worker.call_with(|call| begin(call, &list), &open);
        // A worker that could not begin has said why; that it goes is no news.
        over.store(begun.is_err(), Ordering::Relaxed);
        let begun: NetworkBegun = serde_json::from_str(&begun?).map_err(nonsense)?;
        let mut roots = if spec.host_trust { Trust::of_this_host().pem() } else { String::new() };
        roots.push_str(begun.authority.as_deref().unwrap_or_default());
        let placeholder =
            |(secret, _): &(Secret, _)| (secret.name().to_owned(), secret.placeholder().text);
        let network = Self {
            worker,
            mtu,
            serial,
            begun,
            version: AtomicU64::new(1),
            slots: Mutex::default(),
            variables: secrets.iter().map(placeholder).collect(),
            roots,
            over,
        };
        Ok((network, card))
    }

    /// The largest IP packet.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Makes a fresh guest trust what it has to.
    pub(crate) fn introduce(&self, guest: &Guest) -> Result<(), Error> {
        if self.roots.is_empty() {
            return Ok(());
        }
        Ok(guest.trust(&self.roots)?)
    }

    /// Gives a command what it needs of the network.
    pub(crate) fn prepare(&self, command: &mut Exec) {
        if command.clear_env {
            return;
        }
        for (name, value) in &self.variables {
            if !command.env.iter().any(|(own, _)| own == name.as_bytes()) {
                command.env.push((name.clone().into_bytes(), value.clone().into_bytes()));
            }
        }
        if !self.roots.is_empty() {
            trusting(command);
        }
    }

    /// A free slot for a session, and the card that goes with it. The network knows it from now on.
    pub(crate) fn seat(&self, session: &str) -> Result<(u16, SessionCard), Error> {
        let mut slots = self.slots();
        let free = (1..=MAX_SESSIONS).find(|slot| !slots.contains_key(slot));
        let seat = free.and_then(|slot| Some((slot, session_card(slot)?)));
        let (slot, card) = seat.ok_or_else(|| {
            Error::Invalid("there are as many sessions with a network as can be".to_owned())
        })?;
        self.assign(slot, Some(session.to_owned()))?;
        slots.insert(slot, session.to_owned());
        Ok((slot, card))
    }

    /// Takes a slot back: what was open is reset.
    pub(crate) fn unseat(&self, slot: u16) -> Result<(), Error> {
        let mut slots = self.slots();
        self.assign(slot, None)?;
        slots.remove(&slot);
        Ok(())
    }

    fn assign(&self, slot: u16, session: Option<String>) -> Result<(), Error> {
        self.worker.call(|call| Request::Assign { call, slot, session }, None).map(drop)
    }

    /// Puts another policy in the place of the one that holds; its number.
    pub(crate) fn reload(&self, policy: EgressPolicy) -> Result<u64, Error> {
        let version = self.worker.call(|call| Request::Policy { call, policy }, None)?;
        let version = version.parse().unwrap_or_default();
        self.version.store(version, Ordering::Relaxed);
        Ok(version)
    }

    fn answer(&self, ask: u64, answer: Answer) -> Result<(), Error> {
        self.worker.call(|call| Request::Reply { call, ask, answer }, None).map(drop)
    }

    fn figures(&self) -> Result<NetworkFigures, Error> {
        let figures = self.worker.call(|call| Request::Figures { call }, None)?;
        serde_json::from_str(&figures).map_err(nonsense)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<u16, String>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn make(path: &Path) -> Result<File, Error> {
    let made = File::options().write(true).create(true).truncate(true).open(path);
    made.map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn nonsense(error: serde_json::Error) -> Error {
    Error::Host { what: "an answer of the network's worker", source: error.into() }
}

impl Machine {
    /// How its network is.
    pub fn network(&self) -> Result<NetworkStatus, Error> {
        self.has_network()?;
        let Policies { machine, sessions, .. } = self.policies().clone();
        let mut status = NetworkStatus { policy: machine, sessions, ..NetworkStatus::default() };
        if let Some(running) = self.if_started()
            && let Some(network) = running.network()
        {
            let NetworkFigures {
                flows,
                flows_opened,
                denied,
                bytes_sent,
                bytes_received,
                forged,
                ignored,
                over_limit,
                memory,
            } = network.figures()?;
            status = NetworkStatus {
                published: network.begun.published.clone(),
                version: network.version.load(Ordering::Relaxed),
                flows,
                flows_opened,
                denied,
                bytes_sent,
                bytes_received,
                forged,
                ignored,
                over_limit,
                memory,
                ..status
            };
        }
        Ok(status)
    }

    /// Where the host listens for the guest, in the order of the description; nothing while it does not run.
    pub fn published(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(self.network()?.published)
    }

    /// Puts other rules in place of its own. They hold at once, for what is open too; their number, 0 if it does not
    /// run.
    pub fn set_policy(&self, policy: PolicySpec) -> Result<u64, Error> {
        self.change_policies(|policies| policies.machine = policy)
    }

    /// Answers a question of its network ([`NetworkWhat::Ask`](cabana_api::NetworkWhat)).
    pub fn answer(&self, ask: u64, allow: bool, remember: Remember) -> Result<(), Error> {
        self.has_network()?;
        let remember = match remember {
            Remember::Once => egress::Remember::Once,
            Remember::Session => egress::Remember::Session,
            Remember::Machine => egress::Remember::Machine,
        };
        match self.if_started() {
            Some(running) => match running.network() {
                Some(network) => network.answer(ask, Answer { allow, remember }),
                None => Ok(()),
            },
            // Who asked is gone.
            None => Ok(()),
        }
    }

    /// Changes what may leave, as a whole or not at all.
    pub(crate) fn change_policies(&self, change: impl FnOnce(&mut Policies)) -> Result<u64, Error> {
        self.has_network()?;
        let mut policies = self.policies();
        let mut changed = policies.clone();
        change(&mut changed);
        changed.serial += 1;
        let compiled = changed.compile()?;
        let running = self.if_started();
        let version = match running.as_ref().and_then(|running| running.network()) {
            Some(network) => network.reload(compiled)?,
            None => 0,
        };
        *policies = changed;
        Ok(version)
    }

    /// Gives a network that has just begun with the policies of `serial` what they have become since.
    pub(crate) fn catch_up(&self, network: &Network) -> Result<(), Error> {
        let policies = self.policies();
        if policies.serial == network.serial {
            return Ok(());
        }
        network.reload(policies.compile()?).map(drop)
    }

    pub(crate) fn has_network(&self) -> Result<&NetworkSpec, Error> {
        let network = self.spec().network.as_ref();
        network.ok_or_else(|| Error::Invalid(format!("the machine {} has no network", self.name())))
    }
}
