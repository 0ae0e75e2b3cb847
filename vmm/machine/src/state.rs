//! All of a machine but its RAM and its disk, at rest: what a snapshot keeps.

use cabana_bus::SavedState;
use cabana_hv::x86::{CpuidLeaf, VcpuState};
use cabana_virtio::TransportState;
use serde::{Deserialize, Serialize};

/// The generation of [`MachineState`]. Whoever changes it, or what it is made of, raises this and pins
/// the new bytes (`tests/goldens.rs`); snapshots of before are refused.
pub const STATE_VERSION: u16 = 1;

/// A machine at rest.
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

impl MachineState {
    /// The state as bytes, in postcard's encoding.
    pub fn encode(&self) -> Vec<u8> {
        // Plain data always encodes: there is no writer that could fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// The state that [`MachineState::encode`] made bytes of; `None` of other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((state, [])) => Some(state),
            _ => None,
        }
    }
}
