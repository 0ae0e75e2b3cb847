//! Flows whose other end is served in this process: what goes through a proxy, and TLS that ends here for the sake
//! of a secret. They run as tasks on one thread, which starts with the first of them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cabana_egress::inspect::{Inspector, Refusal};
use cabana_egress::{DomainName, Expect, FlowId, Secret, rewrite_head};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::{Authority, AuthorityError};
use crate::dial::{self, Stream, Target};
use crate::pac::{Means, Pac, Question, Way};
use crate::prefixed::Prefixed;
use crate::proxies::{Proxies, Proxy, ProxyKind};
use crate::resolver::Resolver;
use crate::trust::Trust;

/// How long a client may take to name its host.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a way may take to be reached before the next one is tried.
const TRY: Duration = Duration::from_secs(10);
/// How long a proxy that was not reached comes last.
const AVOIDED: Duration = Duration::from_secs(300);
/// Bytes that are copied at a time.
const BLOCK: usize = 32 << 10;
/// The first byte of TLS.
const HANDSHAKE: u8 = 22;

/// What goes another way than straight to the address.
pub(crate) struct Routes {
    proxies: Proxies,
    /// The script that goes before them.
    pac: Option<Pac>,
    /// Proxies that were not reached, and until when they come last.
    avoided: Mutex<HashMap<(String, u16), Instant>>,
    secrets: Vec<Secret>,
    authority: Option<Authority>,
    to_proxies: Arc<ClientConfig>,
    to_servers: Arc<ClientConfig>,
    runtime: OnceLock<Option<Handle>>,
}

/// A flow that is served here.
pub(crate) struct Served {
    pub(crate) id: FlowId,
    pub(crate) target: Target,
    /// Every name that may be meant.
    pub(crate) hosts: Vec<DomainName>,
    /// What the guest sends passes the gate.
    pub(crate) inspect: bool,
    /// The guest speaks first.
    pub(crate) client_first: bool,
}

/// What the policy says to the bytes of a flow.
pub(crate) trait Judge: Send + Sync + 'static {
    /// Passes bytes; the host that they named, and whether the rest may pass unseen.
    fn inspect(
        &self,
        id: FlowId,
        bytes: &[u8],
        out: &mut Vec<u8>,
        edit: &mut cabana_egress::inspect::EditHead<'_>,
    ) -> Option<(bool, Option<DomainName>)>;

    /// The flow was refused by what stood deeper in it.
    fn refused(&self, id: FlowId, refusal: Refusal);

    /// The flow failed on its way.
    fn failed(&self, id: FlowId, why: String);
}

impl Routes {
    pub(crate) fn new(
        proxies: Proxies,
        secrets: Vec<Secret>,
        trust: &Trust,
        resolver: &Arc<dyn Resolver>,
    ) -> Result<Self, AuthorityError> {
        let authority = (!secrets.is_empty()).then(Authority::new).transpose()?;
        let to_proxies = trust.client(&[])?;
        let pac = proxies.auto().map(|auto| {
            let (resolver, tls) = (Arc::clone(resolver), Arc::clone(&to_proxies));
            Pac::new(
                auto.clone(),
                Means { interpreter: proxies.interpreter().cloned(), resolver, tls },
            )
        });
        Ok(Self {
            proxies,
            pac,
            avoided: Mutex::default(),
            secrets,
            authority,
            to_proxies,
            to_servers: trust.client(&[b"http/1.1"])?,
            runtime: OnceLock::new(),
        })
    }

    /// The certificate that the guest has to trust, if TLS ends here for any host.
    pub(crate) fn authority_pem(&self) -> Option<&str> {
        self.authority.as_ref().map(Authority::pem)
    }

    /// Whether a flow goes another way than straight to its address, or may.
    pub(crate) fn serves(&self, flow: &Served) -> bool {
        self.pac(&flow.target).is_some()
            || self.proxy(flow).is_some()
            || flow.hosts.iter().any(|host| self.is_secret(host))
    }

    /// Whether a proxy would look this name up. It may block, for a script.
    pub(crate) fn look_up(&self, name: &DomainName) -> bool {
        let nowhere = (Ipv4Addr::BROADCAST, 443).into();
        let target = Target { address: nowhere, name: Some(name.clone()), elsewhere: true };
        match self.pac(&target).map(|pac| pac.ask(question(&target)).blocking_recv()) {
            Some(Ok(Ok(ways))) => ways.iter().any(Option::is_some),
            Some(_) if self.pac.as_ref().is_some_and(Pac::is_mandatory) => false,
            _ => self.proxies.look_up(name),
        }
    }

    fn proxy(&self, flow: &Served) -> Option<&Proxy> {
        let address = flow.target.address;
        let name = flow.target.name.as_ref();
        self.proxies.find(name, address.ip(), address.port(), flow.client_first)
    }

    /// The script, if it is to be asked.
    fn pac(&self, target: &Target) -> Option<&Pac> {
        let (address, name) = (target.address, target.name.as_ref());
        let excepted = self.proxies.is_exception(name, address.ip(), address.port());
        self.pac.as_ref().filter(|_| !excepted)
    }

    /// The ways of a flow in their order, at least one.
    async fn ways(&self, flow: &Served) -> io::Result<Vec<Way>> {
        let Some(pac) = self.pac(&flow.target) else { return Ok(vec![self.proxy(flow).cloned()]) };
        let asked = dial::within(dial::LIMIT, async {
            let answer = pac.ask(question(&flow.target)).await;
            answer.map_err(io::Error::other)?.map_err(io::Error::other)
        });
        match asked.await {
            Err(_) if !pac.is_mandatory() => Ok(vec![self.proxy(flow).cloned()]),
            ways => ways,
        }
    }

    /// The way that a flow goes: the first that can be reached, with the stream to it, or the last.
    async fn choose(&self, flow: &Served) -> io::Result<(Way, Option<Box<dyn Stream>>)> {
        let mut ways = self.ways(flow).await?;
        ways.sort_by_key(|way| self.is_avoided(way));
        let last = ways.pop().flatten();
        for way in ways {
            let reach = dial::reach(way.as_ref(), &flow.target, &self.to_proxies);
            match (dial::within(TRY, reach).await, way) {
                (Ok(stream), way) => return Ok((way, Some(stream))),
                (Err(_), Some(proxy)) => self.avoid(proxy),
                (Err(_), None) => {}
            }
        }
        Ok((last, None))
    }

    fn is_avoided(&self, way: &Way) -> bool {
        let avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        let until = way.as_ref().and_then(|proxy| avoided.get(&(proxy.host.clone(), proxy.port)));
        until.is_some_and(|until| Instant::now() < *until)
    }

    fn avoid(&self, proxy: Proxy) {
        let mut avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        avoided.retain(|_, until| now < *until);
        avoided.insert((proxy.host, proxy.port), now + AVOIDED);
    }

    fn is_secret(&self, host: &DomainName) -> bool {
        self.secrets.iter().any(|secret| secret.is_for(host))
    }

    /// Serves a flow; the end of it that the stack gets.
    pub(crate) fn serve(
        self: &Arc<Self>,
        flow: Served,
        judge: Arc<dyn Judge>,
    ) -> io::Result<socket2::Socket> {
        let runtime = self.runtime.get_or_init(start).clone();
        let runtime = runtime.ok_or_else(|| io::Error::other("no thread for the relay"))?;
        let (ours, theirs) = pair()?;
        ours.set_nonblocking(true)?;
        let routes = Arc::clone(self);
        runtime.spawn(async move {
            let id = flow.id;
            let served = async {
                let client = TcpStream::from_std(ours)?;
                routes.run(client, flow, &judge).await
            };
            if let Err(End::Failed(error)) = served.await {
                judge.failed(id, error.to_string());
            }
        });
        Ok(theirs.into())
    }

    async fn run(
        &self,
        mut client: TcpStream,
        flow: Served,
        judge: &Arc<dyn Judge>,
    ) -> Result<(), End> {
        let mut target = flow.target.clone();
        let (way, reached) = self.choose(&flow).await?;
        let proxy = way.as_ref();
        let mut first = Vec::new();
        let (mut passed, mut whole_urls) = (!flow.inspect, false);
        if flow.inspect && flow.client_first {
            let hear = async {
                while first.is_empty() {
                    let bytes = read(&mut client).await?;
                    if bytes.is_empty() {
                        return Err(End::Refused);
                    }
                    let mut edit = editor(proxy, &mut whole_urls);
                    let judged = judge.inspect(flow.id, &bytes, &mut first, &mut edit);
                    let (done, host) = judged.ok_or(End::Refused)?;
                    passed = done;
                    target.name = host.or(target.name.take());
                }
                Ok::<_, End>(())
            };
            let late = |_| End::Failed(io::ErrorKind::TimedOut.into());
            tokio::time::timeout(PATIENCE, hear).await.map_err(late)??;
        }
        let secret = target.name.clone().filter(|host| self.is_secret(host));
        if let (Some(host), Some(HANDSHAKE)) = (secret, first.first().copied()) {
            let server = dial::dial(proxy, reached, &target, &self.to_proxies).await?;
            return self
                .terminate(Prefixed::new(first, client), server, host, flow.id, judge)
                .await;
        }
        let mut server = match reached {
            Some(stream) if whole_urls => stream,
            None if whole_urls => {
                let reach = dial::reach(proxy, &target, &self.to_proxies);
                dial::within(dial::LIMIT, reach).await?
            }
            reached => dial::dial(proxy, reached, &target, &self.to_proxies).await?,
        };
        server.write_all(&first).await?;
        let (client, server) = (tokio::io::split(client), tokio::io::split(server));
        let proxy = proxy.filter(|_| whole_urls).cloned();
        let judge = Arc::clone(judge);
        both(client, server, move |bytes, out| {
            if passed {
                out.extend_from_slice(bytes);
                return Ok(());
            }
            let mut edited = false;
            let mut edit = editor(proxy.as_ref(), &mut edited);
            let judged = judge.inspect(flow.id, bytes, out, &mut edit);
            (passed, _) = judged.ok_or(End::Refused)?;
            Ok(())
        })
        .await
    }

    /// Is the host towards the guest, and a client with the secrets in its requests towards the host.
    async fn terminate(
        &self,
        client: Prefixed<TcpStream>,
        server: Box<dyn Stream>,
        host: DomainName,
        id: FlowId,
        judge: &Arc<dyn Judge>,
    ) -> Result<(), End> {
        let authority = self.authority.as_ref().ok_or(End::Refused)?;
        let config = authority.server(&host).map_err(io::Error::other)?;
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        // Onward first: a host whose certificate is not good is none for the guest either.
        let connector = TlsConnector::from(Arc::clone(&self.to_servers));
        let server = connector.connect(name, server).await?;
        let client = TlsAcceptor::from(config).accept(client).await?;
        let expect = Expect { tls: false, http: true, other: false };
        let mut inspector = Inspector::new(vec![(host, expect)], false);
        let secrets = self.secrets.clone();
        let judge = Arc::clone(judge);
        both(tokio::io::split(client), tokio::io::split(server), move |bytes, out| {
            let mut edit = |host: &DomainName, head: &[u8], out: &mut Vec<u8>| {
                rewrite_head(&secrets, host, head, out)
            };
            inspector.push_with(bytes, out, &mut edit).map(|_| ()).map_err(|refusal| {
                judge.refused(id, refusal);
                End::Refused
            })
        })
        .await
    }
}

/// Why a served flow ended before its time.
enum End {
    /// The policy said no, and said it to the log; or the guest went away before it named anybody.
    Refused,
    /// The host or the network said no.
    Failed(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Copies both ways, what comes from the guest through `judge`, until both directions have ended.
async fn both<C: Stream, S: Stream>(
    (mut from_client, mut to_client): (ReadHalf<C>, WriteHalf<C>),
    (mut from_server, mut to_server): (ReadHalf<S>, WriteHalf<S>),
    mut judge: impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), End>,
) -> Result<(), End> {
    let up = async {
        let mut out = Vec::new();
        loop {
            let bytes = read(&mut from_client).await?;
            if bytes.is_empty() {
                break;
            }
            out.clear();
            judge(&bytes, &mut out)?;
            to_server.write_all(&out).await?;
            to_server.flush().await?;
        }
        to_server.shutdown().await?;
        Ok::<_, End>(())
    };
    let down = async {
        loop {
            let bytes = read(&mut from_server).await?;
            if bytes.is_empty() {
                break;
            }
            to_client.write_all(&bytes).await?;
            to_client.flush().await?;
        }
        to_client.shutdown().await?;
        Ok::<_, End>(())
    };
    tokio::try_join!(up, down)?;
    Ok(())
}

/// What has come; empty at the end. Memory is held only while there is something.
async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(BLOCK);
    from.read_buf(&mut bytes).await?;
    Ok(bytes)
}

/// Makes a request for a proxy out of one for a server: a whole URL, and who asks.
fn editor<'a>(
    proxy: Option<&'a Proxy>,
    edited: &'a mut bool,
) -> impl FnMut(&DomainName, &[u8], &mut Vec<u8>) -> Result<(), Refusal> + 'a {
    let proxy = proxy.filter(|proxy| matches!(proxy.kind, ProxyKind::Http | ProxyKind::Https));
    move |host, head, out| {
        let Some(proxy) = proxy else {
            out.extend_from_slice(head);
            return Ok(());
        };
        *edited = true;
        let mut lines = head.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let at = first.iter().position(|byte| *byte == b' ').map_or(0, |at| at + 1);
        let (method, target) = first.split_at_checked(at).unwrap_or_default();
        out.extend_from_slice(method);
        if target.starts_with(b"/") {
            out.extend_from_slice(format!("http://{}", authority(host, head)).as_bytes());
        }
        out.extend_from_slice(target);
        out.extend_from_slice(dial::authorization(proxy).as_bytes());
        // The guest's own words to a proxy are not for this one.
        for line in lines.filter(|line| !starts_with(line, b"proxy-")) {
            out.extend_from_slice(line);
        }
        Ok(())
    }
}

/// The host with the port that `Host` gives it.
fn authority(host: &DomainName, head: &[u8]) -> String {
    let field = head.split(|byte| *byte == b'\n').find(|line| starts_with(line, b"host:"));
    let value = field.and_then(|line| line.get(5..)).unwrap_or_default().trim_ascii();
    let port = value.iter().position(|byte| *byte == b':').and_then(|at| value.get(at..));
    format!("{host}{}", String::from_utf8_lossy(port.unwrap_or_default()))
}

fn starts_with(line: &[u8], start: &[u8]) -> bool {
    line.get(..start.len()).is_some_and(|own| own.eq_ignore_ascii_case(start))
}

/// What a script is asked about a connection. Of a connection that is neither for the web's ports it gets to see a URL
/// too: a proxy would get `CONNECT` for it, as for TLS.
fn question(target: &Target) -> Question {
    let address = target.address;
    let (host, inside) = match (&target.name, address.ip()) {
        (Some(name), _) => (name.to_string(), name.to_string()),
        (None, IpAddr::V6(v6)) => (v6.to_string(), format!("[{v6}]")),
        (None, IpAddr::V4(v4)) => (v4.to_string(), v4.to_string()),
    };
    let url = match address.port() {
        80 => format!("http://{inside}/"),
        443 => format!("https://{inside}/"),
        port => format!("https://{inside}:{port}/"),
    };
    Question { url, host }
}

/// The thread of all served flows, which ends with the process.
fn start() -> Option<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build().ok()?;
    let handle = runtime.handle().clone();
    let forever = move || runtime.block_on(std::future::pending::<()>());
    thread::Builder::new().name("relay".to_owned()).spawn(forever).ok()?;
    Some(handle)
}

/// Two connected streams. A pair of loopback sockets is the one kind that every operating system has; nobody else
/// on the host can slip in between, since the one that came is compared with the one that was sent.
fn pair() -> io::Result<(std::net::TcpStream, std::net::TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let theirs = std::net::TcpStream::connect(listener.local_addr()?)?;
    loop {
        let (ours, from) = listener.accept()?;
        if from == theirs.local_addr()? {
            ours.set_nodelay(true)?;
            theirs.set_nodelay(true)?;
            return Ok((ours, theirs));
        }
    }
}
