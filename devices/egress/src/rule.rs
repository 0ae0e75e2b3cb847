//! One rule: what may be reached, or may not.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::domain::DomainPattern;

/// Why a word is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Neither a name, nor an address, nor a set.
    #[error("{0:?} is no host name, no address, no network and no set (sets: {sets})", sets = crate::sets::names())]
    Host(String),
    /// A scheme that no rule has.
    #[error("{0:?} is no scheme of rules; use https, http, tls, tcp, udp, icmp or any")]
    Scheme(String),
    /// A port that is none.
    #[error("{0:?} is no port; write a number or two, as in 8000-8080")]
    Port(String),
    /// ICMP has no ports.
    #[error("{0:?} gives icmp a port")]
    IcmpPort(String),
    /// `any` would leave a name's flows without inspection.
    #[error("{0:?}: any is for addresses; name the protocol for a host name")]
    AnyName(String),
    /// What inspects needs a name to compare with.
    #[error("{0:?}: tls, https and http are for host names; use tcp for an address")]
    InspectedAddress(String),
}

/// What travels in a flow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests of ICMP, version 4 and 6.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// What may stand in the first bytes that a client sends to an allowed name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expect {
    /// A TLS `ClientHello` for the name.
    pub tls: bool,
    /// HTTP/1 requests for the name.
    pub http: bool,
    /// Anything that is neither, in which there is no name to compare.
    pub other: bool,
}

impl Expect {
    const TLS: Self = Self { tls: true, http: false, other: false };
    const HTTP: Self = Self { tls: false, http: true, other: false };
    const ANY: Self = Self { tls: true, http: true, other: true };

    /// What either of two rules lets pass.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            tls: self.tls || other.tls,
            http: self.http || other.http,
            other: self.other || other.other,
        }
    }
}

/// The scheme of a rule, as its word begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Scheme {
    /// No scheme: for a name TLS on 443 and HTTP on 80, or `tcp` on the port given; for an address TCP.
    Plain,
    Tls,
    Http,
    Tcp,
    Udp,
    Icmp,
    Any,
}

/// Whom a rule means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    Name(DomainPattern),
    Network(IpNet),
}

/// First and last port, if a rule names any.
type Ports = Option<(u16, u16)>;

/// A rule: `[SCHEME://]HOST[:PORT[-PORT]]`, where HOST is a name, a name with `*.` before it, an address or a
/// network. [`Rule::parse`] says what each form means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    target: Target,
    scheme: Scheme,
    ports: Ports,
}

impl Rule {
    /// Reads a rule.
    ///
    /// | word | allows |
    /// |---|---|
    /// | `example.com`, `*.example.com` | TLS on port 443 and HTTP on port 80, for these names |
    /// | `https://example.com`, `tls://example.com:8443` | TLS, on port 443 or the given one |
    /// | `http://example.com:8080` | HTTP/1, on port 80 or the given one |
    /// | `example.com:22`, `tcp://example.com:1-1024` | TCP; what looks like TLS or HTTP must be for the name |
    /// | `udp://example.com:123`, `icmp://example.com` | UDP to a port, echo requests |
    /// | `192.0.2.1`, `192.0.2.0/24:80`, `[2001:db8::1]:22` | TCP by address, with no look at what is in it |
    /// | `udp://192.0.2.1:53`, `icmp://192.0.2.1`, `any://192.0.2.0/24` | the same for UDP, for echo, for all |
    ///
    /// # Errors
    ///
    /// [`RuleError`] says what is wrong with the word.
    pub fn parse(word: &str) -> Result<Self, RuleError> {
        let (scheme, rest) = match word.split_once("://") {
            Some((scheme, rest)) => (scheme_of(scheme)?, rest.strip_suffix('/').unwrap_or(rest)),
            None => (Scheme::Plain, word),
        };
        let (host, ports) = split_ports(rest)?;
        let target = target_of(host).ok_or_else(|| RuleError::Host(host.to_owned()))?;
        match (&target, scheme) {
            (_, Scheme::Icmp) if ports.is_some() => Err(RuleError::IcmpPort(word.to_owned())),
            (Target::Name(_), Scheme::Any) => Err(RuleError::AnyName(word.to_owned())),
            (Target::Network(_), Scheme::Tls | Scheme::Http) => {
                Err(RuleError::InspectedAddress(word.to_owned()))
            }
            _ => Ok(Self { target, scheme, ports }),
        }
    }

    /// A rule for one address and port.
    pub(crate) fn address(protocol: Protocol, address: IpAddr, port: u16) -> Self {
        let target = Target::Network(address.into());
        let ports = (protocol != Protocol::Icmp).then_some((port, port));
        Self { target, scheme: protocol.into(), ports }
    }

    /// A rule for one name, and one port if there is one.
    pub(crate) fn name(protocol: Protocol, name: crate::DomainName, port: Option<u16>) -> Self {
        let target = Target::Name(DomainPattern::Exactly(name));
        let scheme = match protocol {
            Protocol::Tcp => Scheme::Plain,
            other => other.into(),
        };
        Self { target, scheme, ports: port.map(|port| (port, port)) }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the rule speaks of this protocol and port, and what the first bytes then must be.
    pub(crate) fn covers(&self, protocol: Protocol, port: u16) -> Option<Expect> {
        let by_name = matches!(self.target, Target::Name(_));
        let within = |default: RangeInclusive<u16>| match self.ports {
            Some((first, last)) => (first..=last).contains(&port),
            None => default.contains(&port),
        };
        let covered = match (self.scheme, protocol) {
            (Scheme::Plain, Protocol::Tcp) if by_name => within(80..=80) || within(443..=443),
            (Scheme::Tls, Protocol::Tcp) => within(443..=443),
            (Scheme::Http, Protocol::Tcp) => within(80..=80),
            (Scheme::Plain | Scheme::Tcp | Scheme::Any, Protocol::Tcp)
            | (Scheme::Udp | Scheme::Any, Protocol::Udp) => within(0..=u16::MAX),
            (Scheme::Icmp | Scheme::Any, Protocol::Icmp) => true,
            _ => false,
        };
        covered.then_some(match (self.scheme, port) {
            _ if !by_name || protocol != Protocol::Tcp => Expect::ANY,
            (Scheme::Tls, _) | (Scheme::Plain, 443) => Expect::TLS,
            (Scheme::Http, _) | (Scheme::Plain, 80) => Expect::HTTP,
            _ => Expect::ANY,
        })
    }

    /// Whether the rule, as one that denies, speaks of this protocol and port. Without a scheme it denies
    /// every protocol, without a port every port.
    pub(crate) fn forbids(&self, protocol: Protocol, port: u16) -> bool {
        let ports = self.ports.is_none_or(|(first, last)| (first..=last).contains(&port));
        match (self.scheme, protocol) {
            (Scheme::Plain | Scheme::Any, _)
            | (Scheme::Tls | Scheme::Http | Scheme::Tcp, Protocol::Tcp)
            | (Scheme::Udp, Protocol::Udp) => ports,
            (Scheme::Icmp, Protocol::Icmp) => true,
            _ => false,
        }
    }

    /// Whether the rule, as one that denies, leaves nothing of its target open.
    pub(crate) fn forbids_all(&self) -> bool {
        self.scheme == Scheme::Plain && self.ports.is_none()
    }
}

impl From<Protocol> for Scheme {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Icmp => Self::Icmp,
        }
    }
}

fn scheme_of(text: &str) -> Result<Scheme, RuleError> {
    Ok(match text {
        "https" | "tls" => Scheme::Tls,
        "http" => Scheme::Http,
        "tcp" => Scheme::Tcp,
        "udp" => Scheme::Udp,
        "icmp" => Scheme::Icmp,
        "any" => Scheme::Any,
        other => return Err(RuleError::Scheme(other.to_owned())),
    })
}

/// Takes `:PORT` or `:PORT-PORT` off the end; an IPv6 address with ports stands in brackets.
fn split_ports(text: &str) -> Result<(&str, Ports), RuleError> {
    let (host, ports) = match text.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => {
            let ports = rest.strip_prefix(':').ok_or_else(|| RuleError::Host(text.to_owned()))?;
            (host, Some(ports))
        }
        None if text.matches(':').count() > 1 => (text, None),
        None => match text.split_once(':') {
            Some((host, ports)) => (host, Some(ports)),
            None => (text, None),
        },
    };
    let Some(ports) = ports else { return Ok((host, None)) };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse().ok().filter(|_| !text.starts_with('+'));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((host, Some((first, last)))),
        _ => Err(RuleError::Port(ports.to_owned())),
    }
}

fn target_of(host: &str) -> Option<Target> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(Target::Network(address.into()));
    }
    if let Ok(network) = host.parse::<IpNet>() {
        return Some(Target::Network(network.trunc()));
    }
    DomainPattern::parse(host).map(Target::Name)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.scheme {
            Scheme::Plain => "",
            Scheme::Tls => "tls://",
            Scheme::Http => "http://",
            Scheme::Tcp => "tcp://",
            Scheme::Udp => "udp://",
            Scheme::Icmp => "icmp://",
            Scheme::Any => "any://",
        })?;
        match &self.target {
            Target::Name(pattern) => pattern.fmt(f)?,
            Target::Network(network) => {
                let whole = network.prefix_len() == network.max_prefix_len();
                let text = if whole { network.addr().to_string() } else { network.to_string() };
                if matches!(network, IpNet::V6(_)) && self.ports.is_some() {
                    write!(f, "[{text}]")?;
                } else {
                    f.write_str(&text)?;
                }
            }
        }
        match self.ports {
            None => Ok(()),
            Some((first, last)) if first == last => write!(f, ":{first}"),
            Some((first, last)) => write!(f, ":{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(word: &str, protocol: Protocol, port: u16) -> Option<Expect> {
        Rule::parse(word).unwrap().covers(protocol, port)
    }

    #[test]
    fn a_bare_name_means_the_web() {
        assert_eq!(covers("example.com", Protocol::Tcp, 443), Some(Expect::TLS));
        assert_eq!(covers("example.com", Protocol::Tcp, 80), Some(Expect::HTTP));
        assert_eq!(covers("example.com", Protocol::Tcp, 22), None);
        assert_eq!(covers("example.com", Protocol::Udp, 443), None);
        assert_eq!(covers("example.com", Protocol::Icmp, 0), None);
    }

    #[test]
    fn a_port_replaces_those_of_the_web() {
        assert_eq!(covers("example.com:22", Protocol::Tcp, 22), Some(Expect::ANY));
        assert_eq!(covers("example.com:22", Protocol::Tcp, 443), None);
        assert_eq!(covers("example.com:443", Protocol::Tcp, 443), Some(Expect::TLS));
        assert_eq!(covers("tcp://example.com:443", Protocol::Tcp, 443), Some(Expect::ANY));
        assert_eq!(covers("tls://example.com:8443", Protocol::Tcp, 8443), Some(Expect::TLS));
        assert_eq!(covers("example.com:8000-8080", Protocol::Tcp, 8081), None);
    }

    #[test]
    fn addresses_mean_tcp_unless_said() {
        assert_eq!(covers("192.0.2.1", Protocol::Tcp, 9), Some(Expect::ANY));
        assert_eq!(covers("192.0.2.1", Protocol::Udp, 9), None);
        assert_eq!(covers("udp://192.0.2.0/24:53", Protocol::Udp, 53), Some(Expect::ANY));
        assert_eq!(covers("any://192.0.2.0/24", Protocol::Icmp, 0), Some(Expect::ANY));
        assert_eq!(covers("[2001:db8::1]:22", Protocol::Tcp, 23), None);
    }

    #[test]
    fn a_denying_rule_means_all_that_it_does_not_narrow() {
        let forbids =
            |word: &str, protocol, port| Rule::parse(word).unwrap().forbids(protocol, port);
        assert!(forbids("example.com", Protocol::Tcp, 22));
        assert!(forbids("example.com", Protocol::Icmp, 0));
        assert!(forbids("example.com:53", Protocol::Udp, 53));
        assert!(!forbids("example.com:53", Protocol::Udp, 54));
        assert!(!forbids("udp://example.com", Protocol::Tcp, 1));
        assert!(Rule::parse("192.0.2.0/24").unwrap().forbids_all());
        assert!(!Rule::parse("tcp://example.com").unwrap().forbids_all());
    }

    #[test]
    fn a_rule_prints_as_it_is_written() {
        for word in [
            "example.com",
            "*.example.com:8000-8080",
            "udp://ntp.example.com:123",
            "192.0.2.1",
            "192.0.2.0/24:80",
            "[2001:db8::/32]:443",
            "2001:db8::1",
            "icmp://192.0.2.1",
            "any://10.0.0.0/8",
            "*",
        ] {
            let rule = Rule::parse(word).unwrap();
            assert_eq!(rule.to_string(), word);
            assert_eq!(Rule::parse(&rule.to_string()), Ok(rule));
        }
    }

    #[test]
    fn what_is_no_rule_says_why() {
        for (word, part) in [
            ("ftp://a.example", "scheme"),
            ("a.example:http", "no port"),
            ("a.example:9-8", "no port"),
            ("a.example:70000", "no port"),
            ("a.example:", "no port"),
            ("icmp://192.0.2.1:1", "port"),
            ("any://a.example", "addresses"),
            ("tls://192.0.2.1", "host names"),
            ("", "no host name"),
            ("10.0.0.0/33", "no host name"),
            ("127.1", "no host name"),
            ("[::1", "no host name"),
            ("[::1]x", "no host name"),
        ] {
            let error = Rule::parse(word).unwrap_err().to_string();
            assert!(error.contains(part), "{word}: {error}");
        }
    }
}
