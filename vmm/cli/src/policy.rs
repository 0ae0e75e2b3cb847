//! The egress policy of the command line: words, a file, and the file when it changes.

use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use cabana_api::{NetworkSpec, PolicySpec, PublishSpec};
use cabana_engine::proxies;
use cabana_sandbox::egress::{Egress, EgressPolicy, Proxies, Secret, SessionPolicy};

use crate::Failure;
use crate::args::{NetworkArgs, PolicyArgs, RulesArgs};

/// How often the policy's file is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

impl PolicyArgs {
    /// Whether anything is said.
    pub(crate) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.file.is_none()
    }

    /// Reads the policy.
    pub(crate) fn read(&self) -> Result<EgressPolicy, Failure> {
        let mut policy = match &self.file {
            None => EgressPolicy::default(),
            Some(path) => {
                let named = |error: &dyn std::fmt::Display| {
                    Failure::new(format!("{}: {error}", path.display()))
                };
                let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
                EgressPolicy::parse(&text).map_err(|error| named(&error))?
            }
        };
        policy.allow.extend(self.allow.iter().cloned());
        policy.deny.extend(self.deny.iter().cloned());
        policy.check()?;
        Ok(policy)
    }

    /// Follows the file, if there is one, for as long as the process runs. A file that is no policy any more
    /// changes nothing and is told.
    pub(crate) fn follow(self, egress: Egress) -> Result<(), Failure> {
        let Some(path) = self.file.clone() else { return Ok(()) };
        let mut last = stamp(&path);
        let watch = move || loop {
            thread::sleep(INTERVAL);
            let now = stamp(&path);
            if now.is_none() || now == last {
                continue;
            }
            last = now;
            let reloaded = self.read().and_then(|policy| Ok(egress.reload(&policy)?));
            if let Err(failure) = reloaded {
                eprintln!("cabana: the old policy stays: {}", failure.sentence);
            }
        };
        thread::Builder::new().name("policy".to_owned()).stack_size(256 << 10).spawn(watch)?;
        Ok(())
    }
}

impl NetworkArgs {
    /// The network of a machine that is to be up; none if none is asked for.
    pub(crate) fn spec(&self, ask: bool) -> Result<Option<NetworkSpec>, Failure> {
        if !self.any() && !ask {
            return Ok(None);
        }
        let policy = self.policy.read()?;
        let absolute = |path: &std::path::PathBuf| std::path::absolute(path);
        let publish =
            self.publish.iter().map(|port| PublishSpec { host: port.host, guest: port.guest });
        let sessions = policy.session.iter().map(|(name, own)| {
            let SessionPolicy { allow, deny, ask, ech } = own.clone();
            (name.clone(), PolicySpec { allow, deny, ask, ech })
        });
        Ok(Some(NetworkSpec {
            sessions: sessions.collect(),
            policy: rules(policy, ask),
            publish: publish.collect(),
            secrets: self.secrets.iter().map(|word| with_value(word)).collect::<Result<_, _>>()?,
            proxy: Some(self.proxy.clone()),
            host_trust: self.host_trust,
            log: self.net_log.as_ref().map(absolute).transpose()?,
            capture: self.pcap.as_ref().map(absolute).transpose()?,
            mtu: None,
        }))
    }
}

impl RulesArgs {
    /// The rules; none if none are given.
    pub(crate) fn spec(&self) -> Result<Option<PolicySpec>, Failure> {
        if self.policy.is_empty() && !self.ask {
            return Ok(None);
        }
        Ok(Some(rules(self.policy.read()?, self.ask)))
    }
}

/// A policy without what it says of sessions.
fn rules(policy: EgressPolicy, ask: bool) -> PolicySpec {
    PolicySpec { allow: policy.allow, deny: policy.deny, ask: policy.ask || ask, ech: policy.ech }
}

/// A secret's word with its value, which may be in this process's environment.
fn with_value(word: &str) -> Result<String, Failure> {
    let Some((name, rest)) = word.split_once('@').filter(|(name, _)| !name.contains('=')) else {
        return Ok(word.to_owned());
    };
    let value = std::env::var(name);
    let value = value.map_err(|_| Failure::new(format!("the environment has no {name}")))?;
    Ok(format!("{name}={value}@{rest}"))
}

/// What changes when the file does.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The proxies that `--proxy` means; what runs their script is started.
pub(crate) fn proxies(word: &str) -> Result<Proxies, Failure> {
    let mut proxies = match word {
        "none" => Proxies::default(),
        "env" => {
            let variables = proxies::environment();
            let find = |name: &str| variables.iter().find(|(own, _)| own == name);
            Proxies::from_environment(|name| find(name).map(|(_, value)| value.clone()))?
        }
        url => Proxies::only(url)?,
    };
    proxies.start_interpreter()?;
    Ok(proxies)
}

/// The secrets of `--secret`.
pub(crate) fn secrets(words: &[String]) -> Result<Vec<Secret>, Failure> {
    let read = |word: &String| {
        let random = cabana_sandbox::random_bytes()?;
        Ok(Secret::parse(word, random, |name| std::env::var(name).ok())?)
    };
    words.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(allow: &[&str], file: Option<&Path>) -> PolicyArgs {
        let allow = allow.iter().map(|word| (*word).to_owned()).collect();
        PolicyArgs { allow, deny: Vec::new(), file: file.map(Path::to_owned) }
    }

    #[test]
    fn words_add_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "allow = ['pypi']").unwrap();
        let policy = args(&["a.example"], Some(&path)).read().unwrap();
        assert_eq!(policy.allow, ["pypi", "a.example"]);
    }

    #[test]
    fn a_mistake_names_the_file_or_the_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "alow = []").unwrap();
        let sentence = args(&[], Some(&path)).read().unwrap_err().sentence;
        assert!(sentence.contains("policy.toml") && sentence.contains("alow"), "{sentence}");
        let sentence = args(&["no rule"], None).read().unwrap_err().sentence;
        assert!(sentence.contains("\"no rule\""), "{sentence}");
    }

    #[test]
    fn a_changed_file_is_followed_and_a_broken_one_is_not() {
        use cabana_sandbox::egress::{EgressConfig, What, egress};
        use std::sync::{Arc, Mutex};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "allow = ['pypi']").unwrap();
        let (egress, _gate) = egress(EgressConfig::default()).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        egress.listen(Arc::new(move |event| {
            if let What::Policy { policy } = event.what {
                kept.lock().unwrap().push(policy);
            }
        }));
        args(&[], Some(&path)).follow(egress).unwrap();
        let wait = |count: usize| {
            for _ in 0..600 {
                if seen.lock().unwrap().len() >= count {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
            panic!("{count} policies do not come: {:?}", seen.lock().unwrap());
        };
        std::fs::write(&path, "allow = ['pypi', 'npm']").unwrap();
        wait(1);
        std::fs::write(&path, "allow = [").unwrap();
        thread::sleep(INTERVAL * 3);
        std::fs::write(&path, "allow = ['pypi', 'npm', 'debian']").unwrap();
        wait(2);
        assert_eq!(*seen.lock().unwrap(), [2, 3]);
    }
}
