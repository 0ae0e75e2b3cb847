//! What a client's first bytes say about whom it means: TLS names a host in its `ClientHello` and HTTP/1 in every
//! request. Both must be the allowed name that led to the address, since one address serves many names.
//!
//! An [`Inspector`] sits in the way of one flow's bytes from the guest. It holds back what it has not judged yet,
//! at most [`MAX_HELD`] bytes, and never looks at what the server says.
//!
//! What it cannot see: the requests inside TLS. A client that named an allowed host may ask a server that also
//! serves another one for that (domain fronting, and HTTP/2's reuse of connections, RFC 9113 §9.1.1). Servers
//! answer 421 to that, or do as they please. Only terminated TLS shows it.

mod http;
mod tls;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::DomainName;
use crate::rule::Expect;

/// The most bytes that wait for a verdict: a `ClientHello` or the head of a request.
pub const MAX_HELD: usize = 64 << 10;
/// The longest first line of something that may be HTTP or may not.
const MAX_FIRST_LINE: usize = 8 << 10;
/// A TLS record of the handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// Why a flow may not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Refusal {
    /// The client named a host that is not the one allowed.
    OtherHost {
        /// The host that it named, shortened.
        named: String,
    },
    /// The `ClientHello` names no host.
    NoServerName,
    /// The real name is encrypted.
    Ech,
    /// TLS was expected.
    NotTls,
    /// HTTP/1 was expected.
    NotHttp,
    /// A `ClientHello` that breaks RFC 8446.
    MalformedTls,
    /// A request that servers may read in different ways.
    MalformedHttp {
        /// What is wrong with it.
        what: String,
    },
    /// `CONNECT`, or another protocol by `Upgrade`: the rest could not be seen.
    Tunnel {
        /// What the client asked for.
        what: String,
    },
    /// HTTP/2 without TLS, whose compressed heads are not read here.
    Http2,
    /// More than [`MAX_HELD`] bytes without a verdict.
    TooLong,
    /// A secret's placeholder, on the way to a host that the secret is not for.
    Placeholder {
        /// The secret's name.
        secret: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherHost { named } => write!(f, "the client named another host, {named}"),
            Self::NoServerName => f.write_str("the TLS client named no host"),
            Self::Ech => f.write_str("the TLS client encrypted the name of the host (ECH)"),
            Self::NotTls => f.write_str("the client does not speak TLS, which the rule is for"),
            Self::NotHttp => f.write_str("the client does not speak HTTP/1, which the rule is for"),
            Self::MalformedTls => f.write_str("the client's TLS is malformed"),
            Self::MalformedHttp { what } => write!(f, "the client's HTTP is malformed: {what}"),
            Self::Tunnel { what } => write!(f, "the client asked for a tunnel: {what}"),
            Self::Http2 => f.write_str("the client speaks HTTP/2 without TLS"),
            Self::TooLong => f.write_str("the client sent too much without naming a host"),
            Self::Placeholder { secret } => {
                write!(
                    f,
                    "the client sent the placeholder of {secret} to a host that it is not for"
                )
            }
        }
    }
}

/// Writes the head of a request, which goes to a host, as it is to go on, or refuses it.
pub type EditHead<'a> = dyn FnMut(&DomainName, &[u8], &mut Vec<u8>) -> Result<(), Refusal> + 'a;

/// How far the inspection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Go on passing the guest's bytes through the inspector.
    Watching,
    /// The rest of the flow may pass without it.
    Passed,
}

/// The inspection of one flow.
#[derive(Clone, Debug)]
pub struct Inspector {
    hosts: Hosts,
    ech: bool,
    held: Vec<u8>,
    state: State,
}

/// The names that may be named, each with what may be spoken to it.
#[derive(Clone, Debug)]
struct Hosts {
    allowed: Vec<(DomainName, Expect)>,
    named: Option<DomainName>,
}

#[derive(Clone, Debug)]
enum State {
    Start,
    Tls(tls::Watch),
    Http(http::Watch),
    Passed,
}

impl Inspector {
    /// An inspector that lets the client name one of `names`. With `ech`, a `ClientHello` may hide its name
    /// behind an allowed one.
    pub fn new(names: Vec<(DomainName, Expect)>, ech: bool) -> Self {
        let hosts = Hosts { allowed: names, named: None };
        Self { hosts, ech, held: Vec::new(), state: State::Start }
    }

    /// Takes bytes from the guest and adds to `out` what may go on to the server.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: the flow must be reset. Nothing of what is held may go on, nor may anything that follows.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Progress, Refusal> {
        self.push_with(bytes, out, &mut |_, head, out| {
            out.extend_from_slice(head);
            Ok(())
        })
    }

    /// [`Self::push`], with `edit` in the way of every head of a request.
    ///
    /// # Errors
    ///
    /// As [`Self::push`], and whatever `edit` refuses.
    pub fn push_with(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        edit: &mut EditHead<'_>,
    ) -> Result<Progress, Refusal> {
        if matches!(self.state, State::Passed) {
            out.extend_from_slice(bytes);
            return Ok(Progress::Passed);
        }
        self.held.extend_from_slice(bytes);
        if matches!(self.state, State::Start) {
            match classify(&self.held, self.hosts.expect())? {
                None => return self.bounded(),
                Some(state) => self.state = state,
            }
        }
        let (length, progress) = match &mut self.state {
            State::Tls(watch) => {
                let (length, progress) = watch.advance(&self.held, &mut self.hosts, self.ech)?;
                out.extend(self.held.get(..length).unwrap_or_default());
                (length, progress)
            }
            State::Http(watch) => watch.advance(&self.held, &mut self.hosts, out, edit)?,
            State::Start | State::Passed => (0, Progress::Passed),
        };
        self.held.drain(..length);
        if progress == Progress::Passed {
            self.state = State::Passed;
            self.hosts.settle();
            out.append(&mut std::mem::take(&mut self.held));
            return Ok(Progress::Passed);
        }
        self.bounded()
    }

    fn bounded(&self) -> Result<Progress, Refusal> {
        if self.held.len() > MAX_HELD { Err(Refusal::TooLong) } else { Ok(Progress::Watching) }
    }

    /// Other names may be named from now on. One that has been named stays what it is.
    pub(crate) fn allow(&mut self, names: Vec<(DomainName, Expect)>, ech: bool) {
        self.hosts.allowed = names;
        self.ech = ech;
    }

    /// How many bytes wait for a verdict.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The host that the client named, or the one that the flow leads to if it names none; `None` while
    /// nothing has been judged.
    pub fn host(&self) -> Option<&DomainName> {
        self.hosts.named.as_ref()
    }
}

impl Hosts {
    /// What any of the names allows.
    fn expect(&self) -> Expect {
        self.allowed.iter().fold(Expect::default(), |all, (_, expect)| all.or(*expect))
    }

    /// Checks a name that the client gave.
    fn check(&mut self, text: &[u8], speaks: impl Fn(&Expect) -> bool) -> Result<(), Refusal> {
        let name = std::str::from_utf8(text).ok().and_then(DomainName::parse);
        let allowed = name
            .filter(|name| self.allowed.iter().any(|(own, expect)| own == name && speaks(expect)));
        match allowed {
            Some(name) => {
                self.named = Some(name);
                Ok(())
            }
            None => Err(Refusal::OtherHost { named: excerpt(text) }),
        }
    }

    /// Whom the flow means when its bytes name nobody.
    fn settle(&mut self) {
        if self.named.is_none() {
            self.named =
                self.allowed.iter().find(|(_, expect)| expect.other).map(|(name, _)| name.clone());
        }
    }
}

/// What the client speaks; `None` while that cannot be said.
fn classify(held: &[u8], expect: Expect) -> Result<Option<State>, Refusal> {
    let Some(first) = held.first() else { return Ok(None) };
    let (tls, http) = (State::Tls(tls::Watch::new()), State::Http(http::Watch::new()));
    if *first == HANDSHAKE {
        return if expect.tls { Ok(Some(tls)) } else { Err(Refusal::NotHttp) };
    }
    if !expect.other {
        return if expect.http { Ok(Some(http)) } else { Err(Refusal::NotTls) };
    }
    // Servers skip empty lines before a request (RFC 9112 §2.2).
    let start = held.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = held.get(start..).unwrap_or_default();
    let text = |byte: &&u8| (b' '..=b'~').contains(*byte) || **byte == b'\t';
    let length = line.iter().take_while(text).count();
    match line.get(length) {
        _ if length > MAX_FIRST_LINE => Err(Refusal::TooLong),
        None => Ok(None),
        Some(b'\r' | b'\n') if is_request(line.get(..length).unwrap_or_default()) => Ok(Some(http)),
        // A byte above ASCII may stand in a request's target, so that it may be one all the same.
        Some(0x80..) if line.get(..length).unwrap_or_default().contains(&b' ') => Ok(Some(http)),
        Some(_) => Ok(Some(State::Passed)),
    }
}

/// `METHOD target HTTP/…`.
fn is_request(line: &[u8]) -> bool {
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    words.any(|word| word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/")))
}

/// The beginning of hostile bytes, fit to be shown.
fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let mut text: String =
        bytes.iter().take(SHOWN).flat_map(|byte| byte.escape_ascii()).map(char::from).collect();
    if bytes.len() > SHOWN {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
