//! All of a machine but its RAM and its disk, at rest: what a snapshot keeps, for each processor.

use cabana_bus::SavedState;
use cabana_hv::arm64;
use cabana_hv::x86::{CpuidLeaf, VcpuState};
use cabana_virtio::TransportState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The generation of [`MachineState`] and [`Arm64State`]. Whoever changes it, or what it is made of, raises this and pins
/// the new bytes (`tests/goldens.rs`); snapshots of before are refused.
pub const STATE_VERSION: u16 = 1;

/// A machine at rest, whatever its processor.
pub trait AtRest: Serialize + DeserializeOwned {
    /// What it is called in a snapshot: another name for each processor.
    const PART: &'static str;

    /// Bytes of its RAM.
    fn memory(&self) -> u64;

    /// The state as bytes, in postcard's encoding.
    fn encode(&self) -> Vec<u8> {
        // Plain data always encodes: there is no writer that could fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// The state that [`AtRest::encode`] made bytes of; `None` of other bytes.
    fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((state, [])) => Some(state),
            _ => None,
        }
    }
}

/// An x86-64 machine at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Bytes of RAM.
    pub memory: u64,
    /// Ticks per second of the time-stamp counters, in kHz.
    pub tsc_khz: u32,
    /// The paravirtual clock, in nanoseconds.
    pub clock: u64,
    /// The vCPUs.
    pub vcpus: Vec<SavedVcpu>,
    /// The I/O APIC's.
    pub ioapic: SavedState,
    /// The virtio devices, in the order of their registers.
    pub devices: Vec<TransportState>,
}

/// A vCPU at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVcpu {
    /// The processor that the guest has seen.
    pub cpuid: Vec<CpuidLeaf>,
    /// Its registers.
    pub state: VcpuState,
}

/// An arm64 machine at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm64State {
    /// Bytes of RAM.
    pub memory: u64,
    /// The vCPUs, their timers among them.
    pub vcpus: Vec<arm64::VcpuState>,
    /// The interrupt controller's, in the hypervisor's own form.
    pub gic: Vec<u8>,
    /// The virtio devices, in the order of their registers.
    pub devices: Vec<TransportState>,
}

impl AtRest for MachineState {
    const PART: &'static str = "machine";

    fn memory(&self) -> u64 {
        self.memory
    }
}

impl AtRest for Arm64State {
    const PART: &'static str = "machine-arm64";

    fn memory(&self) -> u64 {
        self.memory
    }
}
