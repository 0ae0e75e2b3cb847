//! Proxy auto-configuration: a script in JavaScript says for each connection by which proxies it goes.
//!
//! The script is as trusted as the rest of the host's configuration, for it says by whom everything passes; but it may be
//! slow or wrong. One thread fetches and asks it, started by the first connection, within bounds of time and memory, so
//! that whoever has no script pays nothing. A program that is built without the feature `pac` has no interpreter.

mod fetch;
#[cfg(feature = "pac")]
mod script;
#[cfg(not(feature = "pac"))]
#[path = "no_script.rs"]
mod script;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::sync::oneshot;

use self::script::Script;
use crate::proxies::{Proxy, ProxyKind, unescape};

pub(crate) use self::fetch::Url;
pub(crate) use self::script::AVAILABLE;

/// How long an answer holds. Short, since answers change with the network that the host is in.
const ANSWER_HOLDS: Duration = Duration::from_secs(60);
/// How long a script holds before it is fetched anew.
const SCRIPT_HOLDS: Duration = Duration::from_secs(1800);
/// How long it is believed that there is none.
const FAILURE_HOLDS: Duration = Duration::from_secs(10);
/// Answers that are kept, and questions that wait.
const MOST: usize = 1024;
/// Bytes of the thread's stack, of which the script has a part.
const STACK: usize = 1 << 20;

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
    tls: Arc<ClientConfig>,
    thread: Mutex<Option<SyncSender<Asked>>>,
}

impl Pac {
    pub(crate) fn new(auto: Auto, tls: Arc<ClientConfig>) -> Self {
        Self { auto, tls, thread: Mutex::default() }
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
        let (auto, tls) = (self.auto.clone(), Arc::clone(&self.tls));
        let builder = thread::Builder::new().name("pac".to_owned()).stack_size(STACK);
        // The interpreter is bound to its thread.
        let serve =
            move || Asker { auto, tls, script: None, known: HashMap::new() }.serve(&questions);
        builder.spawn(serve).ok()?;
        Some(sender)
    }
}

/// What the thread knows.
struct Asker {
    auto: Auto,
    tls: Arc<ClientConfig>,
    /// The script, or why there is none, and until when that holds.
    script: Option<(Instant, Result<Script, String>)>,
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
        if self.script.as_ref().is_none_or(|(until, _)| *until <= now) {
            let script = self.fetch();
            let holds = if script.is_ok() { SCRIPT_HOLDS } else { FAILURE_HOLDS };
            self.script = Some((Instant::now() + holds, script));
        }
        let script = match &self.script {
            Some((_, Ok(script))) => Ok(script),
            Some((_, Err(why))) => Err(why.clone()),
            None => Err(String::new()),
        };
        let said = script.and_then(|script| script.find(&question.url, &question.host));
        let answer = said.and_then(|said| ways(&said));
        if self.known.len() >= MOST {
            self.known.clear();
        }
        let holds = if answer.is_ok() { ANSWER_HOLDS } else { FAILURE_HOLDS };
        self.known.insert(question.url.clone(), (Instant::now() + holds, answer.clone()));
        answer
    }

    fn fetch(&self) -> Result<Script, String> {
        let text = match &self.auto.place {
            Place::File(path) => {
                let read = fetch::file(path);
                read.map_err(|error| format!("cannot read the script {}: {error}", path.display()))?
            }
            Place::Web(url) => {
                let got = fetch::web(url, &self.tls);
                got.map_err(|error| format!("cannot fetch the script {url}: {error}"))?
            }
        };
        Script::new(text.trim_start_matches('\u{feff}'))
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
