//! The proxies through which the host reaches the rest of the world, as curl and most programs read them from the
//! environment. What Windows and macOS keep in their settings `cabana_os::proxies` puts into the same words.

use std::net::IpAddr;
use std::path::PathBuf;

use cabana_egress::{DomainName, DomainPattern};
use cabana_pac::{Interpreter, StartError};
use ipnet::IpNet;

use crate::pac::{Auto, Place, Running};

/// Stands before the URL of a script in place of a proxy.
const SCRIPT: &str = "pac+";

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// How it is spoken to.
    pub kind: ProxyKind,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password.
    pub credentials: Option<(String, String)>,
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP/1: `CONNECT`, and whole URLs for plain HTTP (RFC 9112 §3.2.2).
    Http,
    /// The same in TLS.
    Https,
    /// SOCKS 5 (RFC 1928) with addresses.
    Socks5,
    /// SOCKS 5 with names.
    Socks5h,
}

/// Why a word is no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} is no proxy: {why}; write http://, https://, socks5:// or socks5h://[USER:PASSWORD@]HOST[:PORT], or \
     pac+file:///PATH or pac+https://HOST/PATH for a script"
)]
pub struct ProxyError {
    /// Where the word stands.
    pub variable: String,
    /// What is wrong; never the word, which may hold a password.
    pub why: &'static str,
}

/// Which proxy is for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    all: Option<Proxy>,
    direct: Vec<Exception>,
    /// A script goes before all of them.
    auto: Option<Auto>,
    interpreter: Option<Running>,
}

/// An entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    Everything,
    /// Every name without a dot.
    Local,
    /// A name and all below it, on one port if there is one.
    Name(DomainName, Option<u16>),
    Network(IpNet),
}

/// Never the password.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} proxy {}:{}", self.kind, self.host, self.port)
    }
}

impl Proxies {
    /// Reads `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, or the same in capitals. `HTTP_PROXY` does
    /// not count in a CGI program, where a client could set it. `auto_proxy` is the URL of a script.
    ///
    /// # Errors
    ///
    /// [`ProxyError`] names the variable.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let find = |name: &str| {
            let upper = name.to_ascii_uppercase();
            let cgi = name == "http_proxy" && get("REQUEST_METHOD").is_some();
            let value = get(name).or_else(|| if cgi { None } else { get(&upper) });
            value.filter(|value| !value.trim().is_empty())
        };
        let proxy = |name: &str| {
            let value = find(name);
            let error = |why| ProxyError { variable: name.to_owned(), why };
            value.map(|value| Proxy::parse(value.trim()).map_err(error)).transpose()
        };
        let direct = find("no_proxy").unwrap_or_default();
        let auto = find("auto_proxy").map(|url| {
            let error = |why| ProxyError { variable: "auto_proxy".to_owned(), why };
            Auto::parse(url.trim(), false).map_err(error)
        });
        Ok(Self {
            http: proxy("http_proxy")?,
            https: proxy("https_proxy")?,
            all: proxy("all_proxy")?,
            direct: direct.split([',', ' ']).filter_map(exception).collect(),
            auto: auto.transpose()?,
            interpreter: None,
        })
    }

    /// One proxy for everything, or, behind `pac+`, a script that has to be there.
    ///
    /// # Errors
    ///
    /// [`ProxyError`] if the word is none.
    pub fn only(word: &str) -> Result<Self, ProxyError> {
        let error = |why| ProxyError { variable: "--proxy".to_owned(), why };
        if let Some(url) = word.strip_prefix(SCRIPT) {
            let auto = Auto::parse(url, true).map_err(error)?;
            return Ok(Self { auto: Some(auto), ..Self::default() });
        }
        Ok(Self { all: Some(Proxy::parse(word).map_err(error)?), ..Self::default() })
    }

    /// The proxy for a connection, if it does not go directly. `web` says that it is TLS or HTTP for sure.
    pub fn find(
        &self,
        name: Option<&DomainName>,
        address: IpAddr,
        port: u16,
        web: bool,
    ) -> Option<&Proxy> {
        if self.is_exception(name, address, port) {
            return None;
        }
        match port {
            80 => self.http.as_ref().or(self.all.as_ref()),
            443 => self.https.as_ref().or(self.all.as_ref()),
            _ if web => self.https.as_ref().or(self.all.as_ref()),
            _ => self.all.as_ref(),
        }
    }

    /// Starts the program that runs the script, if there is a script. To be called before this process confines
    /// itself; without it the script gives no answers.
    ///
    /// # Errors
    ///
    /// [`StartError`] if nothing goes out without the script. Otherwise all goes as if there were none.
    pub fn start_interpreter(&mut self) -> Result<(), StartError> {
        let Some(auto) = &self.auto else { return Ok(()) };
        match Interpreter::start() {
            Ok(interpreter) => self.interpreter = Some(Running::new(interpreter)),
            Err(error) if auto.mandatory => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    /// What runs the script.
    pub(crate) fn interpreter(&self) -> Option<&Running> {
        self.interpreter.as_ref()
    }

    /// The script, if there is one.
    pub(crate) fn auto(&self) -> Option<&Auto> {
        self.auto.as_ref()
    }

    /// The file of the script, if it is in one: what a process that is confined has to be able to read.
    pub fn script_file(&self) -> Option<PathBuf> {
        match &self.auto.as_ref()?.place {
            Place::File(path) => Some(path.clone()),
            Place::Web(_) => None,
        }
    }

    /// Whether a connection goes directly whatever proxies and scripts there are.
    pub(crate) fn is_exception(
        &self,
        name: Option<&DomainName>,
        address: IpAddr,
        port: u16,
    ) -> bool {
        address.is_loopback() || self.direct.iter().any(|entry| entry.holds(name, address, port))
    }

    /// Whether a proxy would look this name up, on one of the web's ports at least.
    pub(crate) fn look_up(&self, name: &DomainName) -> bool {
        let nowhere = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        let by_name = |port| {
            let proxy = self.find(Some(name), nowhere, port, true);
            proxy.is_some_and(|proxy| proxy.kind != ProxyKind::Socks5)
        };
        by_name(80) || by_name(443)
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none() && self.all.is_none() && self.auto.is_none()
    }
}

impl Proxy {
    fn parse(word: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = word.split_once("://").unwrap_or(("http", word));
        let kind = match scheme.to_ascii_lowercase().as_str() {
            "http" => ProxyKind::Http,
            "https" => ProxyKind::Https,
            "socks5" | "socks" => ProxyKind::Socks5,
            "socks5h" => ProxyKind::Socks5h,
            _ => return Err("its scheme is unknown"),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => {
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                let decode =
                    |text| unescape(text).ok_or("its user or password is not well escaped");
                (Some((decode(user)?, decode(password)?)), host)
            }
            None => (None, authority),
        };
        Ok(Self { credentials, ..Self::at(kind, host)? })
    }

    /// The proxy at `HOST` or `HOST:PORT`.
    pub(crate) fn at(kind: ProxyKind, server: &str) -> Result<Self, &'static str> {
        let (host, port) = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or_default()),
            None => server.split_once(':').unwrap_or((server, "")),
        };
        let port = match (port, kind) {
            ("", ProxyKind::Http) => 80,
            ("", ProxyKind::Https) => 443,
            ("", ProxyKind::Socks5 | ProxyKind::Socks5h) => 1080,
            (port, _) => port.parse().map_err(|_| "its port is no number")?,
        };
        if host.parse::<IpAddr>().is_err() && DomainName::parse(host).is_none() {
            return Err("its host is none");
        }
        Ok(Self { kind, host: host.to_owned(), port, credentials: None })
    }
}

/// `%40` and so on (RFC 3986 §2.1).
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// An entry of `NO_PROXY`; what is none is left out, as curl does.
fn exception(word: &str) -> Option<Exception> {
    if word == "*" {
        return Some(Exception::Everything);
    }
    if word == "<local>" {
        return Some(Exception::Local);
    }
    if let Ok(address) = word.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(Exception::Network(address.into()));
    }
    if let Ok(network) = word.parse() {
        return Some(Exception::Network(network));
    }
    let (name, port) = match word.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (word, None),
    };
    let name = name.trim_start_matches('*').trim_start_matches('.');
    DomainName::parse(name).map(|name| Exception::Name(name, port))
}

impl Exception {
    fn holds(&self, name: Option<&DomainName>, address: IpAddr, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Local => name.is_some_and(|name| !name.to_string().contains('.')),
            Self::Network(network) => network.contains(&address),
            Self::Name(own, only) => name.is_some_and(|name| {
                let same = own == name || DomainPattern::Below(own.clone()).matches(name);
                same && only.is_none_or(|only| only == port)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, ProxyError> {
        Proxies::from_environment(|name| {
            let found = variables.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn host(proxies: &Proxies, name: &str, port: u16) -> Option<String> {
        let name = DomainName::parse(name).unwrap();
        let address = "198.51.100.1".parse().unwrap();
        proxies.find(Some(&name), address, port, false).map(|proxy| proxy.host.clone())
    }

    #[test]
    fn each_port_has_its_proxy() {
        let proxies = proxies(&[
            ("http_proxy", "http://web.example:3128"),
            ("HTTPS_PROXY", "secure.example"),
            ("ALL_PROXY", "socks5h://all.example"),
        ])
        .unwrap();
        assert_eq!(host(&proxies, "a.example", 80).as_deref(), Some("web.example"));
        assert_eq!(host(&proxies, "a.example", 443).as_deref(), Some("secure.example"));
        assert_eq!(host(&proxies, "a.example", 22).as_deref(), Some("all.example"));
        assert!(super::Proxies::default().is_empty() && !proxies.is_empty());
    }

    #[test]
    fn a_proxy_is_read_with_its_credentials() {
        let proxy = Proxy::parse("https://me%40work:p%3Aw@[2001:db8::1]:8443/").unwrap();
        assert_eq!((proxy.kind, proxy.port), (ProxyKind::Https, 8443));
        assert_eq!(proxy.host, "2001:db8::1");
        assert_eq!(proxy.credentials, Some(("me@work".to_owned(), "p:w".to_owned())));
        assert!(!format!("{proxy:?}").contains("p:w"));
        assert_eq!(Proxy::parse("proxy.example:8080").unwrap().port, 8080);
        for word in ["ftp://a", "http://", "http://a:b", "http://a b", "http://u:%zz@a"] {
            assert!(Proxy::parse(word).is_err(), "{word}");
        }
    }

    #[test]
    fn exceptions_go_directly() {
        let proxies = proxies(&[
            ("all_proxy", "http://p.example"),
            (
                "no_proxy",
                "corp.example,.dot.example, *.star.example,port.example:81,10.0.0.0/8,[::2],<local>",
            ),
        ])
        .unwrap();
        for (name, port, proxied) in [
            ("corp.example", 443, false),
            ("x.corp.example", 443, false),
            ("xcorp.example", 443, true),
            ("a.dot.example", 80, false),
            ("a.star.example", 80, false),
            ("intranet", 80, false),
            ("port.example", 81, false),
            ("port.example", 80, true),
        ] {
            assert_eq!(host(&proxies, name, port).is_some(), proxied, "{name}:{port}");
        }
        let by_address =
            |text: &str| proxies.find(None, text.parse().unwrap(), 443, false).is_some();
        assert!(!by_address("10.1.2.3") && !by_address("::2") && !by_address("127.0.0.1"));
        assert!(by_address("198.51.100.1"));
    }

    #[test]
    fn a_cgi_program_takes_no_proxy_from_a_client() {
        let variables = [("HTTP_PROXY", "http://evil.example"), ("REQUEST_METHOD", "GET")];
        assert!(proxies(&variables).unwrap().is_empty());
    }

    #[test]
    fn a_mistake_names_the_variable_and_no_password() {
        let error = proxies(&[("https_proxy", "ftp://u:hush@a")]).unwrap_err().to_string();
        assert!(error.contains("https_proxy") && !error.contains("hush"), "{error}");
    }
}
