//! What a host can do, found out by doing it.

use serde::Serialize;

/// The outcome of [`crate::Hypervisor::probe`].
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The hypervisor's name.
    pub hypervisor: &'static str,
    /// Can guests run?
    pub verdict: Verdict,
    /// Guest instructions per second, where a payload ran.
    pub instructions_per_second: Option<u64>,
    /// vCPUs that one VM may have, where that could be asked.
    pub max_vcpus: Option<u32>,
    /// What this host promises and does not keep, and what guests miss for that.
    pub quirks: Vec<String>,
}

/// What the probe found, from worst to best.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Verdict {
    /// The host has no such hypervisor (or hides it).
    NoDevice {
        /// What was looked for, and what to do.
        why: String,
    },
    /// It is there, but this user may not use it.
    NoPermission {
        /// What was refused, and what to do.
        why: String,
    },
    /// It lacks something that Cabana needs.
    TooOld {
        /// What is missing.
        why: String,
    },
    /// Creating the VM or running the payload failed.
    Broken {
        /// The call and its error.
        why: String,
    },
    /// It runs, but in an emulator: bare-metal payloads work, Linux does not.
    Emulated {
        /// How that was seen.
        why: String,
    },
    /// It works.
    Works,
}

impl Verdict {
    /// Can real Linux guests run here?
    pub fn runs_linux(&self) -> bool {
        matches!(self, Self::Works)
    }

    /// Can payloads of a few instructions run here?
    pub fn runs_payloads(&self) -> bool {
        matches!(self, Self::Works | Self::Emulated { .. })
    }

    /// Why not, for people; `None` if it works.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::NoDevice { why }
            | Self::NoPermission { why }
            | Self::TooOld { why }
            | Self::Broken { why }
            | Self::Emulated { why } => Some(why),
            Self::Works => None,
        }
    }
}
