//! The worker of a network: sockets of the host's on one side, a card in the machine's worker on the other.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};

use cabana_os::{AsHandle, Channel, OwnedHandle, confine, process};
use cabana_sandbox::egress::{Event, Proxies, Secret, What};
use cabana_sandbox::{Error, NetworkConfig, NetworkHost, Publish};

use crate::link::{
    self, Fault, NetworkBegun, NetworkFigures, NetworkStart, Notice, Request, Role, VERSION,
};
use crate::serve::{Place, end_with_parent, report_panics, spawn};

/// Events that wait for an engine that is slow to read.
const MOST_EVENTS: usize = 4096;

/// Serves a network until the engine has had enough of it.
pub(crate) fn serve(
    channel: Channel,
    place: Place,
    call: u64,
    start: &NetworkStart,
    handles: Vec<OwnedHandle>,
) -> io::Result<()> {
    let channel = Arc::new(channel);
    let answer = |result| link::send(&channel, &Notice::Answer { call, result }, &[]);
    if start.version != VERSION || start.handles.len() != handles.len() {
        let (worker, engine) = (VERSION, start.version);
        let message = format!("the worker speaks version {worker} and the engine {engine}");
        return answer(Err(Fault::new("worker-version", message)));
    }
    let mut parts = Parts::of(start, handles);
    // Their script is run by a program that could not be started later.
    let proxies = match proxies(&start.proxy) {
        Ok(proxies) => proxies,
        Err(fault) => return answer(Err(fault)),
    };
    if place == Place::Process {
        let roots = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| std::env::var(name).ok());
        let roots = roots.into_iter().flatten().map(PathBuf::from);
        let readable: Vec<_> = roots.chain(proxies.script_file()).collect();
        let files = parts.log.iter().chain(&parts.capture).map(AsHandle::as_handle);
        if let Err(error) = confine::network(files, &readable) {
            return answer(Err(Fault::new("confine", error)));
        }
        report_panics(&channel);
        end_with_parent(&channel, parts.parent.take())?;
    }
    let network = match begin(start, parts, proxies) {
        Ok(network) => network,
        Err(fault) => return answer(Err(fault)),
    };
    tell_events(&channel, &network)?;
    let begun = NetworkBegun {
        published: network.published(),
        authority: network.egress().authority_pem().map(str::to_owned),
    };
    answer(Ok(serde_json::to_string(&begun)?))?;
    while let Some((request, _)) = link::receive(&channel)? {
        let (call, result) = match request {
            Request::Assign { call, slot, session } => {
                network.egress().assign_session(slot, session.as_deref());
                (call, Ok(String::new()))
            }
            Request::Policy { call, policy } => {
                let version = network.egress().reload(&policy);
                let fault = |error| Fault::new("policy", error);
                (call, version.map(|version| version.to_string()).map_err(fault))
            }
            Request::Reply { call, ask, answer } => {
                network.egress().answer(ask, answer);
                (call, Ok(String::new()))
            }
            Request::Figures { call } => (call, Ok(serde_json::to_string(&figures(&network))?)),
            Request::Stop => break,
            request => return Err(io::Error::other(format!("out of turn: {request:?}"))),
        };
        link::send(&channel, &Notice::Answer { call, result }, &[])?;
    }
    Ok(())
}

/// What was handed over.
#[derive(Default)]
struct Parts {
    cable: Option<OwnedHandle>,
    parent: Option<OwnedHandle>,
    log: Option<OwnedHandle>,
    capture: Option<OwnedHandle>,
}

impl Parts {
    fn of(start: &NetworkStart, handles: Vec<OwnedHandle>) -> Self {
        let mut parts = Self::default();
        for (handle, open) in start.handles.iter().zip(handles) {
            match handle.role {
                Role::Cable { .. } => parts.cable = Some(open),
                Role::Parent => parts.parent = Some(open),
                Role::Log => parts.log = Some(open),
                Role::Capture => parts.capture = Some(open),
                // Nothing that a network is made of.
                _ => {}
            }
        }
        parts
    }
}

/// The proxies that a word of the engine's means.
fn proxies(word: &str) -> Result<Proxies, Fault> {
    let proxies = match word {
        "none" => Ok(Proxies::default()),
        "env" => Proxies::from_environment(|name| std::env::var(name).ok()),
        url => Proxies::only(url),
    };
    let mut proxies = proxies.map_err(|error| Fault::new("proxy", error))?;
    proxies.start_interpreter().map_err(|error| Fault::new("proxy", error))?;
    Ok(proxies)
}

fn begin(start: &NetworkStart, parts: Parts, proxies: Proxies) -> Result<NetworkHost, Fault> {
    let secrets = start.secrets.iter().map(|(word, random)| Secret::parse(word, *random, |_| None));
    let path = |open: &Option<OwnedHandle>| -> Option<PathBuf> {
        open.as_ref().map(|open| process::path_of(open.as_handle()))
    };
    let config = NetworkConfig {
        mtu: start.mtu,
        publish: start.publish.iter().map(|&(host, guest)| Publish { host, guest }).collect(),
        capture: path(&parts.capture),
        egress: start.policy.clone(),
        secrets: secrets.collect::<Result<_, _>>().map_err(|error| Fault::new("secret", error))?,
        proxies,
        log: path(&parts.log),
    };
    let cable = parts.cable.ok_or_else(|| Fault::new("worker-version", "there is no cable"))?;
    NetworkHost::start(&config, cable).map_err(|error: Error| Fault::from(&error))
}

/// Tells the engine what happens, on a thread that may wait for it: the network must not.
fn tell_events(channel: &Arc<Channel>, network: &NetworkHost) -> io::Result<()> {
    let (sender, receiver): (SyncSender<Event>, Receiver<Event>) = sync_channel(MOST_EVENTS);
    let channel = Arc::clone(channel);
    let lost = Arc::new(AtomicU64::new(0));
    let left_out = Arc::clone(&lost);
    spawn("events", move || {
        while let Ok(mut event) = receiver.recv() {
            let at = event.at;
            loop {
                if link::send(&channel, &Notice::Network(Box::new(event)), &[]).is_err() {
                    return;
                }
                match left_out.swap(0, Ordering::Relaxed) {
                    0 => break,
                    events => event = Event { at, session: None, what: What::Lost { events } },
                }
            }
        }
    })?;
    let sender = Mutex::new(sender);
    network.egress().listen(Arc::new(move |event| {
        let sender = sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(TrySendError::Full(_)) = sender.try_send(event.clone()) {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }));
    Ok(())
}

fn figures(network: &NetworkHost) -> NetworkFigures {
    let counters = network.counters();
    let stack = counters.stack;
    NetworkFigures {
        flows: stack.flows,
        flows_opened: stack.flows_opened,
        denied: counters.denied,
        bytes_sent: counters.bytes_sent,
        bytes_received: counters.bytes_received,
        forged: stack.forged,
        ignored: stack.ignored,
        over_limit: stack.over_limit,
        memory: stack.memory,
    }
}
