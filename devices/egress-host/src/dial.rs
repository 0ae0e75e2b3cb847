//! Connects onward: directly, by an HTTP proxy's `CONNECT`, or by SOCKS 5.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cabana_egress::DomainName;
use data_encoding::BASE64;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::proxies::{Proxy, ProxyKind};

/// How long a connection may take, proxies included.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Why a name cannot be reached.
pub(crate) const NOWHERE: &str = "this host knows no address of the name, and no proxy is for it";
/// The longest answer of a proxy to `CONNECT`.
const MAX_ANSWER: usize = 16 << 10;

/// A stream of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a connection goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) name: Option<DomainName>,
    /// The address only stands for the name: this host does not know where it is, and a proxy may.
    pub(crate) elsewhere: bool,
}

impl Target {
    /// `name:port`, or `address:port`, as `CONNECT` and `Host` have it.
    pub(crate) fn authority(&self) -> String {
        match &self.name {
            Some(name) => format!("{name}:{}", self.address.port()),
            None => self.address.to_string(),
        }
    }
}

/// Connects to the target, through a stream to the proxy if there is one already.
pub(crate) async fn dial(
    proxy: Option<&Proxy>,
    reached: Option<Box<dyn Stream>>,
    target: &Target,
    tls: &Arc<ClientConfig>,
) -> io::Result<Box<dyn Stream>> {
    within(LIMIT, async {
        let mut stream = match reached {
            Some(stream) => stream,
            None => reach(proxy, target, tls).await?,
        };
        match proxy.map(|proxy| (proxy, proxy.kind)) {
            None => {}
            Some((proxy, ProxyKind::Http | ProxyKind::Https)) => {
                connect(&mut stream, proxy, target).await?;
            }
            Some((proxy, ProxyKind::Socks5 | ProxyKind::Socks5h)) => {
                socks(&mut stream, proxy, target).await?;
            }
        }
        Ok(stream)
    })
    .await
}

/// Does something that has a time.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    tokio::time::timeout(limit, work).await.map_err(late)?
}

/// Connects to the proxy itself, which then takes whole URLs and more; without one, to the target.
pub(crate) async fn reach(
    proxy: Option<&Proxy>,
    target: &Target,
    tls: &Arc<ClientConfig>,
) -> io::Result<Box<dyn Stream>> {
    let Some(proxy) = proxy else {
        if target.elsewhere {
            return Err(io::Error::other(NOWHERE));
        }
        return Ok(Box::new(TcpStream::connect(target.address).await?));
    };
    let stream = TcpStream::connect((proxy.host.as_str(), proxy.port)).await?;
    if proxy.kind != ProxyKind::Https {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(proxy.host.clone()).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?))
}

/// The field by which a proxy knows its users (RFC 9110 §11.7.2).
pub(crate) fn authorization(proxy: &Proxy) -> String {
    match &proxy.credentials {
        None => String::new(),
        Some((user, password)) => {
            let credentials = BASE64.encode(format!("{user}:{password}").as_bytes());
            format!("Proxy-Authorization: Basic {credentials}\r\n")
        }
    }
}

/// `CONNECT` (RFC 9110 §9.3.6).
async fn connect(stream: &mut Box<dyn Stream>, proxy: &Proxy, target: &Target) -> io::Result<()> {
    let authority = target.authority();
    let fields = authorization(proxy);
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte, since what follows the head belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await?);
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::other("the proxy's answer to CONNECT has no end"));
        }
    }
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let version = words.next().unwrap_or_default();
    match words.next() {
        Some([b'2', _, _]) if version.starts_with(b"HTTP/1.") => Ok(()),
        Some(b"407") => Err(io::Error::other("the proxy wants a user and a password (407)")),
        _ => {
            let line = line.escape_ascii();
            Err(io::Error::other(format!("the proxy refuses {authority}: {line}")))
        }
    }
}

/// SOCKS 5 (RFC 1928), with user and password (RFC 1929) if there are any.
async fn socks(stream: &mut Box<dyn Stream>, proxy: &Proxy, target: &Target) -> io::Result<()> {
    const VERSION: u8 = 5;
    const PLAIN: u8 = 0;
    const PASSWORD: u8 = 2;
    let method = if proxy.credentials.is_some() { PASSWORD } else { PLAIN };
    stream.write_all(&[VERSION, 1, method]).await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    if chosen != [VERSION, method] {
        return Err(io::Error::other("the SOCKS proxy refuses this way of authentication"));
    }
    if let Some((user, password)) = &proxy.credentials {
        let mut message = vec![1];
        for part in [user, password] {
            let long = |_| io::Error::other("the proxy's user or password is too long for SOCKS");
            message.push(u8::try_from(part.len()).map_err(long)?);
            message.extend(part.bytes());
        }
        stream.write_all(&message).await?;
        let mut status = [0; 2];
        stream.read_exact(&mut status).await?;
        if status[1] != 0 {
            return Err(io::Error::other("the SOCKS proxy refuses its user or password"));
        }
    }
    let mut request = vec![VERSION, 1, 0];
    match (&target.name, target.address.ip()) {
        (Some(name), _) if proxy.kind == ProxyKind::Socks5h => {
            request.extend([3, name.as_str().len() as u8]);
            request.extend(name.as_str().bytes());
        }
        (_, IpAddr::V4(address)) => {
            request.push(1);
            request.extend(address.octets());
        }
        (_, IpAddr::V6(address)) => {
            request.push(4);
            request.extend(address.octets());
        }
    }
    request.extend(target.address.port().to_be_bytes());
    stream.write_all(&request).await?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).await?;
    if reply[..2] != [VERSION, 0] {
        let authority = target.authority();
        return Err(io::Error::other(format!(
            "the SOCKS proxy refuses {authority} ({})",
            reply[1]
        )));
    }
    let rest = match reply[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await?),
        _ => return Err(io::Error::other("the SOCKS proxy's answer makes no sense")),
    };
    stream.read_exact(&mut vec![0; rest + 2]).await?;
    Ok(())
}
