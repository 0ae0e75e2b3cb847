//! The bytes of a machine's state, pinned: `goldens/v<STATE_VERSION>.hex`, and `…-arm64.hex`. A state that no longer encodes
//! to its file cannot be read out of the snapshots that there are: raise `STATE_VERSION`, run
//! `CABANA_NEW_GOLDENS=1 cargo test -p cabana-machine --test goldens`, and commit the new file. The variable
//! makes a missing file; it never changes one that exists.
//!
//! The devices' own states are pinned here too, as they stand in a machine's. One of them is the file server's, which is
//! Linux's today.

#![cfg(target_os = "linux")]

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use cabana_block::BlockState;
use cabana_bus::{Persist, SavedState, StateError};
use cabana_console::ConsoleState;
use cabana_fs::FsState;
use cabana_hv::arm64;
use cabana_hv::x86::{
    Activity, CpuidLeaf, DescriptorTable, PendingEvents, Regs, Segment, SystemRegs, VcpuState,
};
use cabana_machine::{Arm64State, AtRest, MachineState, STATE_VERSION, SavedVcpu};
use cabana_net::NetState;
use cabana_platform::IoApicState;
use cabana_pmem::PmemState;
use cabana_virtio::{QueueLayout, QueueRegisters, QueueState, TransportState};
use cabana_vsock::VsockState;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A part that has this state.
struct Fixed<T>(T);

impl<T: Clone + Serialize + DeserializeOwned> Persist for Fixed<T> {
    const VERSION: u16 = 1;
    type State = T;

    fn save(&self) -> T {
        self.0.clone()
    }

    fn restore(&self, _state: T) -> Result<(), StateError> {
        Ok(())
    }
}

fn saved<T: Clone + Serialize + DeserializeOwned>(state: T) -> SavedState {
    SavedState::of(&Fixed(state))
}

fn device(device: SavedState) -> TransportState {
    let layout = QueueLayout { size: 8, descriptors: 0x1000, avail: 0x2000, used: 0x3000 };
    let mut queue = QueueRegisters::default();
    queue.layout = layout;
    queue.ready = true;
    queue.stopped = Some(QueueState { layout, next_avail: 300, next_used: 299 });
    TransportState {
        registers: (0..64).collect(),
        driver_features: 1 << 32 | 5,
        driver_features_sel: 1,
        queue_sel: 2,
        queues: vec![queue, QueueRegisters::default()],
        device,
    }
}

fn sample() -> MachineState {
    let segment = Segment { selector: 0x10, base: 0x1_0000, limit: 0xfff, attributes: 0xa09b };
    let table = DescriptorTable { base: 0xfff0, limit: 0x7f };
    let regs =
        Regs { rax: 1, rsp: 0x8000, rip: 0xffff_ffff_8100_0000, rflags: 2, ..Regs::default() };
    let system = SystemRegs { cs: segment, gdt: table, cr0: 1 << 31, ..SystemRegs::default() };
    let events = PendingEvents {
        exception: Some((14, Some(2))),
        interrupt: Some((0x30, false)),
        ..PendingEvents::default()
    };
    let state = VcpuState {
        regs,
        system,
        msrs: vec![(0x10, 500), (0x6e0, 900)],
        xsave: vec![0x7f; 8],
        xcrs: vec![(0, 7)],
        lapic: vec![1, 2, 3],
        events,
        debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        activity: Activity::Halted,
    };
    let cpuid = vec![CpuidLeaf { function: 7, index: Some(0), eax: 1, ebx: 2, ecx: 3, edx: 4 }];
    MachineState {
        memory: 512 << 20,
        tsc_khz: 2_600_000,
        clock: 1_000_000_007,
        vcpus: vec![SavedVcpu { cpuid, state }],
        ioapic: saved(IoApicState {
            select: 0x12,
            id: 1,
            pins: vec![(1 << 16, false), (0x30, true)],
        }),
        devices: devices(),
    }
}

fn devices() -> Vec<TransportState> {
    vec![
        device(saved(PmemState { guest: 4 << 30, len: 2 << 20 })),
        device(saved(VsockState { guest_cid: 3, next_port: 1 << 30 })),
        device(saved(FsState { mounted: false })),
        device(saved(ConsoleState { typed: b"typed".to_vec(), columns: 80, rows: 25 })),
        device(SavedState::default()),
        device(saved(BlockState { sectors: 1 << 25 })),
        device(saved(NetState { mac: [2, 0, 0, 0, 0, 1], mtu: 65_520 })),
    ]
}

fn arm64_sample() -> Arm64State {
    let regs = arm64::Regs { pc: 0xffff_8000_8000_0000, pstate: 0x3c5, ..Default::default() };
    let mut simd = arm64::Simd { fpsr: 1, fpcr: 2, ..Default::default() };
    simd.v[31] = 1 << 127;
    let vcpu = arm64::VcpuState {
        regs,
        simd,
        system: vec![(arm64::SystemRegister::new(3, 0, 1, 0, 0), 0x3050_1185)],
        counter: 1_000_000_007,
        off: true,
    };
    Arm64State { memory: 512 << 20, vcpus: vec![vcpu], gic: vec![1, 2, 3], devices: devices() }
}

/// Compares with the pinned file of this name.
fn pinned(name: &str, bytes: &[u8]) {
    let hex = bytes.chunks(32).fold(String::new(), |mut text, line| {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text + "\n"
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let path = folder.join(format!("v{STATE_VERSION}{name}.hex"));
    if env::var_os("CABANA_NEW_GOLDENS").is_some() && !path.exists() {
        fs::write(&path, &hex).unwrap();
    }
    let pinned = fs::read_to_string(&path).unwrap();
    assert_eq!(hex, pinned, "raise STATE_VERSION: {}", path.display());
}

#[test]
fn a_machines_state_has_the_bytes_that_it_had() {
    let bytes = sample().encode();
    pinned("", &bytes);
    assert_eq!(MachineState::decode(&bytes), Some(sample()));
    let bytes = arm64_sample().encode();
    pinned("-arm64", &bytes);
    assert_eq!(Arm64State::decode(&bytes), Some(arm64_sample()));
}

#[test]
fn bytes_that_are_no_state_are_none() {
    let bytes = sample().encode();
    for len in 0..bytes.len() {
        assert_eq!(MachineState::decode(&bytes[..len]), None, "{len} bytes");
    }
    assert_eq!(MachineState::decode(&[bytes.as_slice(), &[0]].concat()), None);
}
