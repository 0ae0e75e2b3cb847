//! The board over the scripted hypervisor: what a guest does arrives where it should.

use super::*;
use crate::Touched;
use cabana_hv::fake::FakeHypervisor;
use cabana_hv::{VmEntry, VmExit};

/// A kernel of one empty page at 1 MiB.
fn kernel() -> Kernel {
    let mut bytes = vec![0; 0x2000];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62_u16.to_le_bytes());
    put(24, &0x10_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    for (at, value) in [(0, 1), (8, 0x1000), (24, 0x10_0000), (32, 0x1000_u64), (40, 0x1000)] {
        put(64 + at, &value.to_le_bytes());
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    Kernel::open(file.path()).unwrap()
}

fn setup() -> Setup {
    Setup {
        cpus: 1,
        memory: 4 << 20,
        kernel: kernel(),
        initrd: None,
        command_line: String::new(),
        devices: Vec::new(),
        device_memory: Vec::new(),
        serial: None,
        timeline: Arc::new(Timeline::new()),
    }
}

fn run(script: impl IntoIterator<Item = VmExit>, setup: Setup) -> (Outcome, FakeHypervisor) {
    let fake = FakeHypervisor::with_script(script);
    let machine = Machine::start(Box::new(fake.vm()), setup).unwrap();
    let outcome = machine.wait();
    drop(machine);
    (outcome, fake)
}

#[test]
fn the_exit_port_ends_the_machine() {
    let (outcome, fake) = run([VmExit::PioWrite { port: 0xf4, size: 1, data: 42 }], setup());
    assert_eq!(outcome, Outcome::Exit(42));
    assert_eq!(fake.record().boot.unwrap().regs.rip, 0x10_0000);
    assert_eq!(fake.record().slots, [(0, 4 << 20)]);
}

#[test]
fn a_reset_and_a_triple_fault_are_told_apart() {
    let reset = VmExit::PioWrite { port: 0x64, size: 1, data: 0xfe };
    assert_eq!(run([reset], setup()).0, Outcome::Reset);
    assert_eq!(run([VmExit::Shutdown], setup()).0, Outcome::TripleFault);
}

#[test]
fn only_a_machine_with_com1_has_a_power_switch() {
    let script = || [VmExit::PioWrite { port: 0x600, size: 1, data: 0x34 }, VmExit::Shutdown];
    let foreign = Setup { serial: Some(Box::new(io::sink())), ..setup() };
    assert_eq!(run(script(), foreign).0, Outcome::Exit(0));
    assert_eq!(run(script(), setup()).0, Outcome::TripleFault);
}

#[test]
fn nobody_home_reads_as_ones() {
    let script = [
        VmExit::MmioRead { addr: 0xe000_0000, size: 4 },
        VmExit::PioRead { port: 0x1234, size: 2 },
        VmExit::MmioWrite { addr: 0xe000_0000, size: 8, data: 1 },
        VmExit::Shutdown,
    ];
    let (_, fake) = run(script, setup());
    assert_eq!(
        fake.record().entries,
        [VmEntry::Resume, VmEntry::Data(0xffff_ffff), VmEntry::Data(0xffff), VmEntry::Resume]
    );
}

#[test]
fn serial_output_interrupts_through_the_io_apic() {
    let ioapic =
        |offset: u64, data| VmExit::MmioWrite { addr: 0xfec0_0000 + offset, size: 4, data };
    let port = |port, data| VmExit::PioWrite { port, size: 1, data };
    // Pin 4 to vector 0x34, then "transmitter empty" interrupts on, then a byte.
    let script = [ioapic(0, 0x18), ioapic(0x10, 0x34), port(0x3f9, 2), port(0x3f8, 0x41)];
    let (outcome, fake) = run(script, Setup { serial: Some(Box::new(io::sink())), ..setup() });
    assert_eq!(outcome, Outcome::TripleFault);
    assert!(fake.record().msis.contains(&x86::Msi { address: 0xfee0_0000, data: 0x34 }));
}

#[test]
fn what_cannot_be_is_refused() {
    let start = |setup| Machine::start(Box::new(FakeHypervisor::default().vm()), setup);
    assert!(matches!(start(Setup { cpus: 0, ..setup() }), Err(MachineError::Cpus(0, 4))));
    assert!(matches!(start(Setup { cpus: 5, ..setup() }), Err(MachineError::Cpus(5, 4))));
    let odd = start(Setup { memory: 4095, ..setup() });
    assert!(matches!(odd, Err(MachineError::MemorySize(4095))));
    let small = start(Setup { memory: 1 << 20, ..setup() });
    assert!(matches!(small, Err(MachineError::Boot(BootError::TooLittleMemory { .. }))));
}

#[test]
fn a_halted_machine_can_be_paused_and_stopped() {
    let fake = FakeHypervisor::with_script([VmExit::Halt]);
    let machine = Machine::start(Box::new(fake.vm()), setup()).unwrap();
    machine.stop();
    assert_eq!(machine.wait(), Outcome::Stopped);
}

#[test]
fn a_running_machine_can_be_observed() {
    let fake = FakeHypervisor::with_script([VmExit::PioRead { port: 1, size: 1 }, VmExit::Halt]);
    let machine = Machine::start(Box::new(fake.vm()), setup()).unwrap();
    let exits = loop {
        let exits = machine.observe().exits;
        if exits.pio_reads == 1 {
            break exits;
        }
    };
    assert_eq!((exits.mmio_reads, exits.total), (0, None));
}

#[test]
fn the_guests_stamps_lie_on_the_hosts_clock() {
    let clock = GuestClock { tsc: 3_000_000, at: Duration::from_millis(50), khz: 1_000_000 };
    assert_eq!(clock.host_time(1_000_000), Duration::from_millis(48));
    assert_eq!(clock.host_time(9_000_000), Duration::from_millis(50));
}

/// A pause may come just when a vCPU that has nothing to run has left the one before.
#[test]
fn a_halted_machine_is_paused_again_and_again() {
    let fake = FakeHypervisor::with_script([VmExit::Halt]);
    let machine = Machine::start(Box::new(fake.vm()), setup()).unwrap();
    let (done, all) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..20_000 {
            machine.pause();
            machine.resume();
        }
        done.send(()).unwrap();
    });
    all.recv_timeout(Duration::from_secs(30)).expect("a pause that nobody hears");
}

/// A frozen machine in bytes, as a snapshot has it.
fn frozen(fake: &FakeHypervisor, machine: &Machine) -> MachineState {
    fake.record().clock = 77;
    let frozen = machine.freeze();
    MachineState::decode(&frozen.state().unwrap().encode()).unwrap()
}

fn restored(
    state: MachineState,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> (Result<Machine, MachineError>, FakeHypervisor) {
    restored_with(state, devices, Touched::default())
}

fn restored_with(
    state: MachineState,
    devices: Vec<Box<dyn VirtioDevice>>,
    touched: Touched,
) -> (Result<Machine, MachineError>, FakeHypervisor) {
    let fake = FakeHypervisor::with_script([VmExit::PioWrite { port: 0xf4, size: 1, data: 5 }]);
    let ram = GuestRam::new(&layout::ram_pieces(state.memory)).unwrap();
    let timeline = Arc::new(Timeline::new());
    let device_memory = Vec::new();
    let restore = crate::Restore { state, ram, devices, device_memory, touched, timeline };
    (Machine::restore(Box::new(fake.vm()), restore), fake)
}

#[test]
fn a_frozen_machine_goes_on_in_another_vm_and_in_its_own() {
    let fake = FakeHypervisor::with_script([VmExit::Halt]);
    for index in 0..2 {
        let mut state = x86::VcpuState::default();
        state.regs.rip = 0x1000 + u64::from(index);
        fake.record().states.insert(index, state);
    }
    let machine = Machine::start(Box::new(fake.vm()), Setup { cpus: 2, ..setup() }).unwrap();
    let state = frozen(&fake, &machine);
    assert_eq!((state.vcpus.len(), state.clock, state.memory), (2, 77, 4 << 20));
    assert_eq!(state.vcpus[1].state.regs.rip, 0x1001);
    machine.stop();
    assert_eq!(machine.wait(), Outcome::Stopped);

    let (other, fake) = restored(state.clone(), Vec::new());
    assert_eq!(other.unwrap().wait(), Outcome::Exit(5));
    let record = fake.record();
    assert_eq!((record.states[&0].regs.rip, record.states[&1].regs.rip), (0x1000, 0x1001));
    assert!(record.boot.is_none());
    assert_eq!(record.clock, 77);
    drop(record);

    let refused = |state| restored(state, Vec::new()).0.unwrap_err().to_string();
    let slow = MachineState { tsc_khz: state.tsc_khz / 2, ..state.clone() };
    assert!(refused(slow).contains("500000 kHz, and here it is 1000000"));
    let mut foreign = state.clone();
    foreign.vcpus[0].cpuid[0].ebx = u32::from_le_bytes(*b"Auth");
    assert!(refused(foreign).contains("another processor"));
    let empty = MachineState { vcpus: Vec::new(), ..state.clone() };
    assert!(refused(empty).contains("0 vCPUs"));
    let more = MachineState { devices: vec![device_state()], ..state };
    assert!(refused(more).contains("1 devices, and this one has 0"));
}

fn device_state() -> cabana_virtio::TransportState {
    cabana_virtio::TransportState {
        registers: Vec::new(),
        driver_features: 0,
        driver_features_sel: 0,
        queue_sel: 0,
        queues: Vec::new(),
        device: SavedState::default(),
    }
}

#[test]
fn what_a_machine_is_known_to_touch_is_entered_before_it_runs_and_nonsense_does_no_harm() {
    let fake = FakeHypervisor::with_script([VmExit::Halt]);
    let machine = Machine::start(Box::new(fake.vm()), Setup { cpus: 2, ..setup() }).unwrap();
    let state = frozen(&fake, &machine);
    let pages = |guest, len, written| crate::Pages { guest, len, written };
    let ram = vec![
        pages(0x1000, 0x2000, false),
        pages(0x3000, 0x1000, true),
        pages(0x8000, 0x1000, true),
        pages(u64::MAX - 0xfff, 0x1000, true),
    ];
    let touched = Touched { ram, devices: vec![pages(1 << 30, 0x1000, false)] };
    let (machine, fake) = restored_with(state, Vec::new(), touched);
    assert_eq!(machine.unwrap().wait(), Outcome::Exit(5));
    let entered =
        [(0x1000, 0x3000), (0x8000, 0x1000), (u64::MAX - 0xfff, 0x1000), (1 << 30, 0x1000)];
    assert_eq!(fake.record().prefaults, entered);
}
