//! The engine: where machines come from.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cabana_api::MachineSpec;
use cabana_sandbox::KERNEL_FILE;
use cabana_store::{Kind, Store};

use crate::machine::{Inner, Machine};
use crate::network;
use crate::{Bare, BareSpec, EngineConfig, Error};

/// The longest name of a machine.
const MAX_NAME: usize = 64;
/// Names of the store's kernel and agent.
const DEFAULT: &str = "default";

/// Makes machines and knows them by name. Cheap to clone. Several engines, in one process or in many, do
/// not know of one another; a persistent disk has one machine at a time all the same.
#[derive(Clone, Debug)]
pub struct Engine {
    house: Arc<House>,
}

/// What machines share.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) config: EngineConfig,
    machines: Mutex<BTreeMap<String, Weak<Inner>>>,
}

/// The files that a machine is made of.
#[derive(Debug)]
pub(crate) struct Artifacts {
    pub(crate) kernel: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) template: PathBuf,
}

impl Engine {
    /// An engine. It starts nothing, and looks for its store and its worker when they are needed.
    pub fn new(config: EngineConfig) -> Result<Self, Error> {
        Ok(Self { house: Arc::new(House { config, machines: Mutex::default() }) })
    }

    /// A machine. It starts with its first command. Its name is free again when its last handle is gone.
    pub fn machine(&self, spec: MachineSpec) -> Result<Machine, Error> {
        check_name("machine", &spec.name)?;
        for share in &spec.shares {
            check_share(&share.guest)?;
        }
        if let Some(network) = &spec.network {
            network::check(network)?;
        }
        let name = spec.name.clone();
        let mut machines = self.house.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.retain(|_, machine| machine.strong_count() > 0);
        if machines.contains_key(&name) {
            return Err(Error::Exists { what: "machine", name });
        }
        let inner = Arc::new(Inner::new(Arc::clone(&self.house), spec));
        machines.insert(name, Arc::downgrade(&inner));
        Ok(Machine::new(inner))
    }

    /// The machine of this name.
    pub fn find(&self, name: &str) -> Result<Machine, Error> {
        let machines = self.house.machines.lock().unwrap_or_else(PoisonError::into_inner);
        let found = machines.get(name).and_then(Weak::upgrade).map(Machine::new);
        found.ok_or_else(|| Error::NotFound { what: "machine", name: name.to_owned() })
    }

    /// All machines, by name.
    pub fn machines(&self) -> Vec<Machine> {
        let machines = self.house.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.values().filter_map(Weak::upgrade).map(Machine::new).collect()
    }

    /// Boots any kernel in a worker, without an agent, at once.
    pub fn boot(&self, spec: BareSpec) -> Result<Bare, Error> {
        Bare::start(&self.house.config.worker, spec)
    }
}

impl House {
    pub(crate) fn artifacts(&self, spec: &MachineSpec) -> Result<Artifacts, Error> {
        let store = match &self.config.home {
            Some(home) => Store::open_at(home)?,
            None => Store::open()?,
        };
        let image = store.find(Kind::Image, &spec.image)?;
        let kernel = match &spec.kernel {
            Some(kernel) => kernel.clone(),
            None => store.find(Kind::Kernel, DEFAULT)?.file(KERNEL_FILE)?,
        };
        Ok(Artifacts {
            kernel,
            agent: store.find(Kind::Agent, DEFAULT)?.file("agent.cpio")?,
            image: image.file("root.erofs")?,
            template: image.file("scratch.ext4")?,
        })
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.config.scratch.clone().unwrap_or_else(env::temp_dir)
    }
}

/// Letters, digits, `.`, `_` and `-`, a letter or digit first.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= MAX_NAME && name.bytes().all(inner) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{name:?} is no name for a {what}; use at most {MAX_NAME} letters, digits, `.`, `_` and `-`"
    )))
}

pub(crate) fn check_share(guest: &str) -> Result<(), Error> {
    if guest.starts_with('/') {
        return Ok(());
    }
    Err(Error::Invalid(format!("{guest:?} is not an absolute path in the guest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_belong_to_one_machine() {
        let engine = Engine::new(EngineConfig::default()).unwrap();
        let named = |name: &str| {
            engine.machine(MachineSpec { name: name.to_owned(), ..MachineSpec::default() })
        };
        for bad in ["", "../x", "-x", "a b", &"n".repeat(65)] {
            assert_eq!(named(bad).unwrap_err().code(), "invalid", "{bad}");
        }
        let one = named("one").unwrap();
        assert_eq!(named("one").unwrap_err().code(), "exists");
        assert_eq!(engine.find("one").unwrap().name(), "one");
        drop(one);
        assert_eq!(engine.find("one").unwrap_err().code(), "not-found");
        named("one").unwrap();
    }

    #[test]
    fn what_is_missing_is_told_when_it_is_needed() {
        let home = tempfile::tempdir().unwrap();
        let config = EngineConfig { home: Some(home.path().into()), ..EngineConfig::default() };
        let machine = Engine::new(config).unwrap().machine(MachineSpec::default()).unwrap();
        let error = machine.exec(&crate::CommandSpec::new(["true"])).unwrap_err();
        assert_eq!(error.code(), "store", "{error}");
        assert!(error.to_string().contains("default"), "{error}");
    }
}
