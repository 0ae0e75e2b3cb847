//! Between the stack, which asks, and the policy, which decides: the host's resolver and clock, and the owner's
//! end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cabana_egress::inspect::{EditHead, Refusal};
use cabana_egress::{
    Answer, AskId, Asker, Change, Decision, DnsStep, DomainName, EgressPolicy, Event, FlowId,
    Lookup, LookupError, PolicyError, QueryId, Secret,
};
use cabana_netstack::{Flow, Gate, Inspection, Opening, Order, Protocol, Waker};

use crate::authority::AuthorityError;
use crate::dial::{NOWHERE, Target};
use crate::log;
use crate::nat64::{self, Translation};
use crate::proxies::Proxies;
use crate::relay::{Judge, Routes, Served};
use crate::resolver::{HostResolver, Pool, Resolver};
use crate::trust::Trust;

/// Takes events. It is called on the stack's thread and on those of callers of [`Egress`], and must not block.
pub type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// What an egress gate is made of.
pub struct EgressConfig {
    /// The first policy.
    pub policy: EgressPolicy,
    /// Who looks names up.
    pub resolver: Arc<dyn Resolver>,
    /// A file that gets every event, as JSON, one a line.
    pub log: Option<PathBuf>,
    /// The proxies on the way.
    pub proxies: Proxies,
    /// What the guest does not have.
    pub secrets: Vec<Secret>,
    /// Whom the host trusts.
    pub trust: Trust,
}

impl Default for EgressConfig {
    /// Nothing is allowed, the host's resolver is asked, nobody listens, there is no proxy and no secret.
    fn default() -> Self {
        Self {
            policy: EgressPolicy::default(),
            resolver: Arc::new(HostResolver),
            log: None,
            proxies: Proxies::default(),
            secrets: Vec::new(),
            trust: Trust::default(),
        }
    }
}

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// A word of the policy is no rule.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The log could not be made.
    #[error("cannot write the network's log {}: {source}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// TLS cannot end in the host.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The owner's end of a machine's egress policy, cheap to clone.
#[derive(Clone)]
pub struct Egress(Arc<Shared>);

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").finish_non_exhaustive()
    }
}

/// The stack's end: what a network asks.
pub struct EgressGate(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    resolver: Arc<dyn Resolver>,
    listeners: Mutex<Vec<Listener>>,
    routes: Option<Arc<Routes>>,
    pool: Pool,
    translation: Translation,
    waker: OnceLock<Waker>,
}

struct State {
    gate: cabana_egress::Gate,
    clock: Clock,
    /// Flows whose first packet waits.
    held: HashSet<FlowId>,
    /// The flow to which the answer of a query goes.
    queries: HashMap<QueryId, FlowId>,
    next_query: QueryId,
    orders: VecDeque<Order>,
}

/// The stack's time, between the moments at which the stack tells it.
struct Clock {
    told: Duration,
    at: Instant,
}

impl Clock {
    fn now(&self) -> Duration {
        self.told + self.at.elapsed()
    }

    fn tell(&mut self, now: Duration) {
        *self = Self { told: now, at: Instant::now() };
    }
}

/// Makes the two ends.
///
/// # Errors
///
/// [`EgressError`]: a word of the policy is no rule, or the authority for secrets cannot be made.
pub fn egress(config: EgressConfig) -> Result<(Egress, EgressGate), EgressError> {
    let EgressConfig { policy, resolver, log, proxies, secrets, trust } = config;
    let log = log.map(|path| log::begin(&path).map_err(|source| EgressError::Log { path, source }));
    let mut gate = cabana_egress::Gate::new(&policy)?;
    gate.guard(secrets.iter().map(Secret::placeholder).collect());
    let needed = !proxies.is_empty() || !secrets.is_empty();
    let routes = needed.then(|| Routes::new(proxies, secrets, &trust, &resolver)).transpose()?;
    let state = State {
        gate,
        clock: Clock { told: Duration::ZERO, at: Instant::now() },
        held: HashSet::new(),
        queries: HashMap::new(),
        next_query: 0,
        orders: VecDeque::new(),
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        resolver,
        listeners: Mutex::new(log.transpose()?.into_iter().collect()),
        routes: routes.map(Arc::new),
        pool: Pool::default(),
        translation: Translation::default(),
        waker: OnceLock::new(),
    });
    Ok((Egress(Arc::clone(&shared)), EgressGate(shared)))
}

impl Egress {
    /// Tells `listener` what happens from now on.
    pub fn listen(&self, listener: Listener) {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Gives an address to a session, or with `None` to the machine itself.
    pub fn assign(&self, source: IpAddr, session: Option<String>) {
        self.0.with(|state| state.gate.assign(source, session));
    }

    /// Takes an address back; its flows are reset.
    pub fn unassign(&self, source: IpAddr) {
        self.0.with(|state| {
            let now = state.clock.now();
            state.gate.unassign(now, source);
        });
        self.0.wake();
    }

    /// Gives the addresses of a slot (`cabana_netstack::session_addresses`) to a session; `None` takes them back.
    pub fn assign_session(&self, slot: u16, session: Option<&str>) {
        let Some((v4, v6)) = cabana_netstack::session_addresses(slot) else { return };
        for source in [IpAddr::V4(v4), IpAddr::V6(v6)] {
            match session {
                Some(session) => self.assign(source, Some(session.to_owned())),
                None => self.unassign(source),
            }
        }
    }

    /// Puts another policy in the place of the one that holds; its number. Open flows that it does not allow are
    /// reset.
    ///
    /// # Errors
    ///
    /// [`PolicyError`]; then the old policy stays.
    pub fn reload(&self, policy: &EgressPolicy) -> Result<u64, PolicyError> {
        let version = self.0.with(|state| {
            let now = state.clock.now();
            state.gate.reload(now, policy)
        });
        self.0.wake();
        version
    }

    /// The certificate, in PEM, that the guest has to trust, if secrets make TLS end in the host.
    pub fn authority_pem(&self) -> Option<&str> {
        self.0.routes.as_ref()?.authority_pem()
    }

    /// Answers a question.
    pub fn answer(&self, ask: AskId, answer: Answer) {
        self.0.with(|state| {
            let now = state.clock.now();
            state.gate.answer(now, ask, answer);
        });
        self.0.wake();
    }

    /// How long questions wait from now on; 30 s unless said.
    pub fn set_ask_limit(&self, limit: Duration) {
        self.0.with(|state| state.gate.set_ask_limit(limit));
    }
}

impl Gate for EgressGate {
    fn start(&mut self, waker: Waker) {
        let _ = self.0.waker.set(waker);
    }

    fn open(&mut self, now: Duration, id: FlowId, flow: &Flow) -> Opening {
        let decision = self.0.with(|state| {
            state.clock.tell(now);
            let asked = cabana_egress::Flow {
                id,
                source: flow.source.ip(),
                source_port: flow.source.port(),
                protocol: protocol(flow.protocol),
                destination: flow.destination,
            };
            let decision = state.gate.open(now, asked);
            if matches!(decision, Decision::Hold(_)) {
                state.held.insert(id);
            }
            decision
        });
        self.0.opening(id, flow.protocol == Protocol::Tcp, flow.destination, decision)
    }

    fn query(&mut self, now: Duration, id: FlowId, flow: &Flow, message: &[u8]) {
        let step = self.0.with(|state| {
            state.clock.tell(now);
            state.next_query += 1;
            let query = state.next_query;
            let from = Asker { protocol: protocol(flow.protocol), address: flow.source };
            let step = state.gate.query(now, query, from, message);
            if !matches!(step, DnsStep::Drop) {
                state.queries.insert(query, id);
            }
            (query, step)
        });
        self.0.dns(step.0, step.1);
    }

    fn inspect(&mut self, id: FlowId, bytes: &[u8], out: &mut Vec<u8>) -> Inspection {
        self.0.with(|state| {
            let now = state.clock.now();
            match state.gate.inspect(now, id, bytes, out) {
                Ok(inspected) if inspected.passed => Inspection::Pass,
                Ok(_) => Inspection::Watch,
                Err(_) => Inspection::Refuse,
            }
        })
    }

    fn closed(&mut self, now: Duration, id: FlowId, sent: u64, received: u64) {
        self.0.with(|state| {
            state.clock.tell(now);
            state.held.remove(&id);
            state.queries.retain(|_, flow| *flow != id);
            state.gate.close(now, id, sent, received);
        });
    }

    fn poll(&mut self, now: Duration) -> Option<Order> {
        let changes = self.0.with(|state| {
            state.clock.tell(now);
            state.gate.poll(now)
        });
        for change in changes {
            match change {
                Change::Flow(id, decision) => self.0.change(id, decision),
                Change::Query(query, step) => self.0.dns(query, step),
            }
        }
        self.0.with(|state| state.orders.pop_front())
    }

    fn deadline(&self) -> Option<Duration> {
        self.0.lock().gate.deadline()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something under the lock, and passes on what happened when the lock is free again.
    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = work(&mut state);
        let now = state.clock.now();
        let events = state.gate.take_events(now);
        drop(state);
        if !events.is_empty() {
            let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for event in &events {
                for listener in &listeners {
                    listener(event);
                }
            }
        }
        result
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    /// Does what a DNS step asks for.
    fn dns(self: &Arc<Self>, query: QueryId, step: DnsStep) {
        match step {
            DnsStep::Reply(bytes) => {
                self.with(|state| {
                    if let Some(flow) = state.queries.remove(&query) {
                        state.orders.push_back(Order::Answer(flow, bytes));
                    }
                });
                self.wake();
            }
            DnsStep::Resolve(lookup) => {
                let shared = Arc::clone(self);
                let failed = lookup.clone();
                let job = move || {
                    let mut found = shared.resolver.resolve(lookup.name());
                    if let Ok(addresses) = &mut found {
                        shared.translation.uncover(addresses, &*shared.resolver);
                    }
                    shared.resolved(query, &lookup, found.as_deref().map_err(|error| *error));
                };
                if !self.pool.run(Box::new(job)) {
                    self.resolved(query, &failed, Err(LookupError::Failed));
                }
            }
            DnsStep::Hold(_) => {}
            DnsStep::Drop => {
                self.with(|state| state.queries.remove(&query));
            }
        }
    }

    fn resolved(
        self: &Arc<Self>,
        query: QueryId,
        lookup: &Lookup,
        found: Result<&[IpAddr], LookupError>,
    ) {
        // Behind a proxy this host may know no names at all.
        let elsewhere = found.is_err()
            && self.routes.as_ref().is_some_and(|routes| routes.look_up(lookup.name()));
        let step = self.with(|state| {
            let now = state.clock.now();
            match found {
                Err(_) if elsewhere => state.gate.resolved_elsewhere(now, lookup),
                found => state.gate.resolved(now, lookup, found),
            }
        });
        self.dns(query, step);
    }
}

impl Shared {
    /// What the stack does with a flow.
    fn opening(
        self: &Arc<Self>,
        id: FlowId,
        tcp: bool,
        to: SocketAddr,
        decision: Decision,
    ) -> Opening {
        let (hosts, inspect, client_first) = match decision {
            Decision::Allow { host } => (host.into_iter().collect(), false, false),
            Decision::Inspect { hosts, client_first } => (hosts, true, client_first),
            Decision::Hold(_) => return Opening::Hold,
            Decision::Deny(_) => return Opening::Refuse,
        };
        let by_address = hosts.is_empty();
        if let Some(routes) = self.routes.as_ref().filter(|_| tcp) {
            let elsewhere = self.lock().gate.is_elsewhere(to.ip());
            let target = Target { address: to, name: hosts.first().cloned(), elsewhere };
            let flow = Served { id, target, hosts, inspect, client_first };
            if routes.serves(&flow) {
                return match routes.serve(flow, Arc::clone(self) as Arc<dyn Judge>) {
                    Ok(socket) => Opening::Serve(socket),
                    Err(error) => {
                        self.failed(id, error.to_string());
                        Opening::Refuse
                    }
                };
            }
        }
        if self.lock().gate.is_elsewhere(to.ip()) {
            self.failed(id, NOWHERE.to_owned());
            return Opening::Refuse;
        }
        match to {
            SocketAddr::V4(to) if by_address && nat64::may_help(*to.ip()) => {
                self.translate(id, to, inspect)
            }
            _ => Opening::Connect { to, inspect },
        }
    }

    /// Connects to an address of IPv4 by one of IPv6, once it is known which.
    fn translate(self: &Arc<Self>, id: FlowId, to: SocketAddrV4, inspect: bool) -> Opening {
        let shared = Arc::clone(self);
        let job = move || {
            let found = shared.translation.towards(*to.ip(), &*shared.resolver);
            let to = found.map_or(to.into(), |address| SocketAddr::new(address, to.port()));
            shared.with(|state| {
                // Meanwhile the guest may have given up, or the policy have changed its mind.
                if state.held.remove(&id) {
                    state.orders.push_back(Order::Open(id, Opening::Connect { to, inspect }));
                }
            });
            shared.wake();
        };
        self.with(|state| state.held.insert(id));
        if self.pool.run(Box::new(job)) {
            return Opening::Hold;
        }
        self.with(|state| state.held.remove(&id));
        Opening::Connect { to: to.into(), inspect }
    }

    /// What the stack has to do about a flow that it knows.
    fn change(self: &Arc<Self>, id: FlowId, decision: Decision) {
        let (held, flow) = self.with(|state| (state.held.remove(&id), state.gate.flow(id)));
        let order = match flow {
            _ if !held => Order::Close(id),
            Some(flow) => {
                let tcp = flow.protocol == cabana_egress::Protocol::Tcp;
                Order::Open(id, self.opening(id, tcp, flow.destination, decision))
            }
            None => Order::Open(id, Opening::Refuse),
        };
        self.with(|state| state.orders.push_back(order));
    }
}

/// The same in the policy's words.
fn protocol(protocol: Protocol) -> cabana_egress::Protocol {
    match protocol {
        Protocol::Tcp => cabana_egress::Protocol::Tcp,
        Protocol::Udp => cabana_egress::Protocol::Udp,
        Protocol::Icmp => cabana_egress::Protocol::Icmp,
    }
}

impl Judge for Shared {
    fn inspect(
        &self,
        id: FlowId,
        bytes: &[u8],
        out: &mut Vec<u8>,
        edit: &mut EditHead<'_>,
    ) -> Option<(bool, Option<DomainName>)> {
        self.with(|state| {
            let now = state.clock.now();
            let inspected = state.gate.inspect_with(now, id, bytes, out, edit).ok()?;
            Some((inspected.passed, inspected.host))
        })
    }

    fn refused(&self, id: FlowId, refusal: Refusal) {
        self.with(|state| {
            let now = state.clock.now();
            state.gate.refuse_deeper(now, id, refusal);
        });
    }

    fn failed(&self, id: FlowId, why: String) {
        self.with(|state| {
            let now = state.clock.now();
            state.gate.failed(now, id, why);
        });
    }
}
