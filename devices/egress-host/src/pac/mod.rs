//! Proxy auto-configuration: a script in JavaScript says for each connection by which proxies it goes.
//!
//! The script is as trusted as the rest of the host's configuration, for it says by whom everything passes; but it may be
//! slow or wrong. One thread fetches and asks it, started by the first connection; it runs in a program of its own
//! (`cabana-pac`), within bounds of time and memory.

mod fetch;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cabana_egress::DomainName;
use cabana_pac::{Failure, Interpreter, World};
use rustls::ClientConfig;
use tokio::sync::oneshot;

use crate::proxies::{Proxy, ProxyKind, unescape};
use crate::resolver::{Resolver, own_address_towards};

pub(crate) use self::fetch::Url;

/// How long an answer holds. Short, since answers change with the network that the host is in.
const ANSWER_HOLDS: Duration = Duration::from_secs(60);
/// How long a script holds before it is fetched anew.
const SCRIPT_HOLDS: Duration = Duration::from_secs(1800);
/// How long it is believed that there is none.
const FAILURE_HOLDS: Duration = Duration::from_secs(10);
/// Answers that are kept, and questions that wait.
const MOST: usize = 1024;
/// Bytes of the thread's stack.
const STACK: usize = 256 << 10;

/// Where a script is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    File(PathBuf),
    Web(Url),
}

/// A script, and what becomes of connections without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Auto {
    pub(crate) place: Place,
    /// Without an answer nothing goes out. Otherwise it goes as if there were no script, as in browsers: a system's
    /// settings stay when a computer leaves its company.
    pub(crate) mandatory: bool,
}

impl Auto {
    /// Reads `file:///…`, `http://…` or `https://…`.
    pub(crate) fn parse(word: &str, mandatory: bool) -> Result<Self, &'static str> {
        let place = match word.split_once("://") {
            Some(("file", path)) => {
                let path = path.strip_prefix("localhost").unwrap_or(path);
                let path = unescape(path).filter(|path| path.starts_with('/'));
                Place::File(path.ok_or("its path is none")?.into())
            }
            Some(("http" | "https", _)) => Place::Web(Url::parse(word).ok_or("its URL is none")?),
            _ => return Err("a script is at file:///…, http://… or https://…"),
        };
        Ok(Self { place, mandatory })
    }
}

/// The interpreter of a script, shared by whoever has the same proxies.
#[derive(Clone, Debug)]
pub(crate) struct Running(Arc<Mutex<Interpreter>>);

impl Running {
    pub(crate) fn new(interpreter: Interpreter) -> Self {
        Self(Arc::new(Mutex::new(interpreter)))
    }
}

impl PartialEq for Running {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Running {}

/// A way to the world: by a proxy, or directly.
pub(crate) type Way = Option<Proxy>;

/// A question: the URL and the host, as the script gets them.
pub(crate) struct Question {
    pub(crate) url: String,
    pub(crate) host: String,
}

type Answer = Result<Vec<Way>, String>;
type Asked = (Question, oneshot::Sender<Answer>);

/// Asks a script.
pub(crate) struct Pac {
    auto: Auto,
    /// What the thread is to know.
    means: Means,
    thread: Mutex<Option<SyncSender<Asked>>>,
}

/// What a script is fetched and asked with.
#[derive(Clone)]
pub(crate) struct Means {
    /// Without one there is never an answer.
    pub(crate) interpreter: Option<Running>,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Pac {
    pub(crate) fn new(auto: Auto, means: Means) -> Self {
        Self { auto, means, thread: Mutex::default() }
    }

    /// Whether nothing goes out without an answer.
    pub(crate) fn is_mandatory(&self) -> bool {
        self.auto.mandatory
    }

    /// Asks; the ways in their order come later, at least one, or why there are none.
    pub(crate) fn ask(&self, question: Question) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            *thread = self.start();
        }
        // Without a thread, or with too many questions, the reply is dropped, which is an answer too.
        if let Some(sender) = &*thread {
            let _ = sender.try_send((question, reply));
        }
        answer
    }

    fn start(&self) -> Option<SyncSender<Asked>> {
        let (sender, questions) = sync_channel(MOST);
        let (auto, means) = (self.auto.clone(), self.means.clone());
        let builder = thread::Builder::new().name("pac".to_owned()).stack_size(STACK);
        let serve =
            move || Asker { auto, means, script: None, known: HashMap::new() }.serve(&questions);
        builder.spawn(serve).ok()?;
        Some(sender)
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
enum Trouble {
    /// There is nothing to ask.
    #[error("{0}")]
    Missing(String),
    /// It was asked.
    #[error(transparent)]
    Asked(#[from] Failure),
}

/// What a script may ask of this host.
struct Host<'a>(&'a dyn Resolver);

impl World for Host<'_> {
    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        let found = DomainName::parse(name).and_then(|name| self.0.resolve(&name).ok());
        found.unwrap_or_default()
    }

    fn own_addresses(&self) -> Vec<IpAddr> {
        let far: [IpAddr; 2] = [
            Ipv4Addr::new(192, 0, 2, 1).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ];
        far.into_iter().filter_map(own_address_towards).collect()
    }
}

/// What the thread knows.
struct Asker {
    auto: Auto,
    means: Means,
    /// Whether the interpreter has the script, or why not, and until when that holds.
    script: Option<(Instant, Result<(), Trouble>)>,
    known: HashMap<String, (Instant, Answer)>,
}

impl Asker {
    fn serve(&mut self, questions: &Receiver<Asked>) {
        while let Ok((question, reply)) = questions.recv() {
            // Whoever asked may have waited enough.
            if !reply.is_closed() {
                let _ = reply.send(self.answer(&question));
            }
        }
    }

    fn answer(&mut self, question: &Question) -> Answer {
        let now = Instant::now();
        if let Some((until, answer)) = self.known.get(&question.url)
            && now < *until
        {
            return answer.clone();
        }
        let mut said = self.ask(question);
        if let Err(Trouble::Asked(Failure::Ended(_))) = said {
            // It may have ended while nobody asked it anything. Over one question twice is enough.
            self.script = None;
            said = self.ask(question);
        }
        if let Err(Trouble::Asked(failure)) = &said
            && !matches!(failure, Failure::Script(_))
        {
            self.script = Some((Instant::now() + FAILURE_HOLDS, Err(failure.clone().into())));
        }
        let said = said.map_err(|trouble| trouble.to_string());
        let answer = said.and_then(|said| ways(&said));
        if self.known.len() >= MOST {
            self.known.clear();
        }
        let holds = if answer.is_ok() { ANSWER_HOLDS } else { FAILURE_HOLDS };
        self.known.insert(question.url.clone(), (Instant::now() + holds, answer.clone()));
        answer
    }

    /// What the script says, which is fetched first when it is time.
    fn ask(&mut self, question: &Question) -> Result<String, Trouble> {
        let Means { interpreter, resolver, .. } = self.means.clone();
        let missing = || Trouble::Missing("nothing here runs the proxies' script".to_owned());
        let running = interpreter.ok_or_else(missing)?;
        let mut interpreter = running.0.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Host(&*resolver);
        let now = Instant::now();
        if self.script.as_ref().is_none_or(|(until, _)| *until <= now) {
            let text = self.fetch().map_err(Trouble::Missing);
            let loaded = text
                .and_then(|text| Ok(interpreter.load(text.trim_start_matches('\u{feff}'), &host)?));
            let holds = if loaded.is_ok() { SCRIPT_HOLDS } else { FAILURE_HOLDS };
            self.script = Some((Instant::now() + holds, loaded));
        }
        if let Some((_, Err(trouble))) = &self.script {
            return Err(trouble.clone());
        }
        Ok(interpreter.find(&question.url, &question.host, &host)?)
    }

    fn fetch(&self) -> Result<String, String> {
        match &self.auto.place {
            Place::File(path) => {
                let read = fetch::file(path);
                read.map_err(|error| format!("cannot read the script {}: {error}", path.display()))
            }
            Place::Web(url) => {
                let got = fetch::web(url, &self.means.tls);
                got.map_err(|error| format!("cannot fetch the script {url}: {error}"))
            }
        }
    }
}

/// What a script says: `PROXY host:port; SOCKS host:port; DIRECT`. Words that nobody knows are left out.
fn ways(said: &str) -> Answer {
    let ways = said.split(';').map(str::trim).filter(|way| !way.is_empty());
    let known: Vec<Way> = ways.filter_map(way).collect();
    match known {
        known if !known.is_empty() => Ok(known),
        _ if said.trim().is_empty() => Ok(vec![None]),
        _ => Err(format!("the script's answer makes no sense: {}", said.escape_debug())),
    }
}

fn way(word: &str) -> Option<Way> {
    let (kind, server) = word.split_once(char::is_whitespace).unwrap_or((word, ""));
    let kind = match kind.to_ascii_uppercase().as_str() {
        "DIRECT" => return Some(None),
        "PROXY" | "HTTP" => ProxyKind::Http,
        "HTTPS" => ProxyKind::Https,
        // Names are the proxy's to look up, as in browsers.
        "SOCKS" | "SOCKS5" => ProxyKind::Socks5h,
        _ => return None,
    };
    Proxy::at(kind, server.trim()).ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Vec<String>, String> {
        let ways = ways(text)?;
        Ok(ways
            .iter()
            .map(|way| way.as_ref().map_or("direct".into(), |p| format!("{p:?}")))
            .collect())
    }

    #[test]
    fn answers_are_lists_of_ways() {
        let all = "PROXY a.example:3128; https b.example;SOCKS [2001:db8::1]:9; SOCKS4 c; DIRECT;";
        let expected = [
            "Http proxy a.example:3128",
            "Https proxy b.example:443",
            "Socks5h proxy 2001:db8::1:9",
            "direct",
        ];
        assert_eq!(said(all).unwrap(), expected);
        assert_eq!(said(" ").unwrap(), ["direct"]);
        assert!(said("CARRIER pigeon").is_err() && said("PROXY a b:x").is_err());
    }

    #[test]
    fn a_script_has_a_place() {
        let file = |word: &str| match Auto::parse(word, true).unwrap().place {
            Place::File(path) => path.display().to_string(),
            Place::Web(url) => url.to_string(),
        };
        assert_eq!(file("file:///a%20b/p.pac"), "/a b/p.pac");
        assert_eq!(file("file://localhost/p.pac"), "/p.pac");
        assert_eq!(file("https://wpad.example/p?x=1"), "https://wpad.example/p?x=1");
        for word in ["ftp://a/p.pac", "p.pac", "file://p.pac", "http://", "http://a b/"] {
            assert!(Auto::parse(word, true).is_err(), "{word}");
        }
    }
}
