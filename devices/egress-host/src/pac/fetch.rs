//! Where a script comes from: a file, or a web server that is reached without any proxy.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cabana_egress::DomainName;
use cabana_pac::link::MAX_SCRIPT;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

const TOO_LONG: &str = "it is longer than 1 MiB";
/// The end of an answer's head.
const END: &str = "\r\n\r\n";
/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// A place on the web.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    tls: bool,
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

impl Url {
    /// Reads `http://HOST[:PORT]/PATH` or the same with `https`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let tls = scheme == "https";
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let good = host.parse::<std::net::IpAddr>().is_ok() || DomainName::parse(host).is_some();
        let port = port.map_or(Some(if tls { 443 } else { 80 }), |port| port.parse().ok())?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        good.then(|| Self { tls, host: host.to_owned(), port, path: format!("{slash}{path}") })
    }

    fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// A script in a file. Names in scripts are ASCII, whatever the comments are.
pub(super) fn file(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SCRIPT as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_SCRIPT {
        return Err(io::Error::other(TOO_LONG));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A script on the web. The request is one of HTTP/1.0, so that the answer comes in one
/// piece.
pub(super) fn web(url: &Url, tls: &Arc<ClientConfig>) -> io::Result<String> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                if !url.tls {
                    return get(stream, url);
                }
                let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
                let client = ClientConnection::new(Arc::clone(tls), name);
                return get(StreamOwned::new(client.map_err(io::Error::other)?, stream), url);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn get(mut stream: impl Read + Write, url: &Url) -> io::Result<String> {
    let (path, authority) = (&url.path, url.authority());
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let (mut answer, mut room) = (Vec::new(), [0; 4096]);
    while rest(&answer) != Some(0) {
        let read = match stream.read(&mut room) {
            Ok(read) => room.get(..read).unwrap_or_default(),
            // TLS that ends without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => &[],
            Err(error) => return Err(error),
        };
        if read.is_empty() {
            break;
        }
        answer.extend_from_slice(read);
        if answer.len() > MAX_SCRIPT {
            return Err(io::Error::other(TOO_LONG));
        }
    }
    if rest(&answer).is_some_and(|rest| rest > 0) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once(END).unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        return Err(io::Error::other(format!("the server says {}", status.escape_debug())));
    }
    Ok(body.to_owned())
}

/// How many bytes are missing, if the answer's head is there and says so.
fn rest(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(END.len()).position(|bytes| bytes == END.as_bytes())?;
    let head = String::from_utf8_lossy(answer.get(..end)?).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    let length: usize = length.trim().parse().ok()?;
    Some(length.saturating_sub(answer.len() - end - END.len()))
}
