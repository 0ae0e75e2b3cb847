//! The board for arm64: its memory map, devices on lines of the hypervisor's interrupt controller, and how a
//! machine starts.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use cabana_boot::aarch64::{self, Boot};
use cabana_bus::{Bus, Interrupt, Line};
use cabana_hv::arm64::{
    Arm64, BootState, GIC_DISTRIBUTOR_SIZE, GIC_REDISTRIBUTOR_SIZE, Gic, VcpuSetup,
};
use cabana_hv::{Arm64Vm, HvError, Hypervisor};
use cabana_memory::{GuestAddress, GuestRam};
use cabana_os::process::random_bytes;
use cabana_platform::{PL011_SIZE, Pl011, SerialInput};
use cabana_virtio::{MmioTransport, VirtioDevice};

use crate::control::Control;
use crate::layout::{MAX_VIRTIO_DEVICES, VIRTIO_STRIDE};
use crate::machine::{Parts, Slots, map_ram};
use crate::restore::check_size;
use crate::vcpu::Begin;
use crate::{Arm64State, Frozen, Machine, MachineError, Platform, Restore, Setup, wiring};

/// RAM begins here, and goes on for as long as there is some.
pub const RAM: u64 = 0x4000_0000;
/// The serial port, on line 0.
pub const SERIAL: u64 = 0x900_0000;
/// Register blocks of virtio devices, one page each, on lines from 1 on.
pub const VIRTIO: u64 = 0xa00_0000;
/// The interrupt controller, to be given to [`cabana_hv::Hypervisor::create_arm64_vm`].
pub const GIC: Gic = Gic {
    distributor: 0x800_0000,
    redistributors: REDISTRIBUTORS,
    lines: FIRST_VIRTIO_LINE + MAX_VIRTIO_DEVICES as u32,
};

/// Redistributors reach up to the serial port.
const REDISTRIBUTORS: u64 = 0x80a_0000;
const MAX_CPUS: u32 = ((SERIAL - REDISTRIBUTORS) / GIC_REDISTRIBUTOR_SIZE) as u32;
const SERIAL_LINE: u32 = 0;
const FIRST_VIRTIO_LINE: u32 = 1;
/// Memory that devices bring along begins at a multiple of this.
const DEVICE_MEMORY_ALIGN: u64 = 1 << 30;

// Nothing overlaps.
const _: () = {
    assert!(GIC.distributor + GIC_DISTRIBUTOR_SIZE <= GIC.redistributors && MAX_CPUS >= 64);
    assert!(SERIAL + PL011_SIZE <= VIRTIO);
    assert!(VIRTIO + MAX_VIRTIO_DEVICES as u64 * VIRTIO_STRIDE <= RAM);
};

impl Platform for Arm64 {
    type Vm = dyn Arm64Vm;
    type Kept = ();
    type AtRest = Arm64State;
    const VIRTIO_REGISTERS: u64 = VIRTIO;

    fn create_vm(hypervisor: &dyn Hypervisor) -> Result<Box<Self::Vm>, HvError> {
        hypervisor.create_arm64_vm(GIC)
    }

    fn ram_pieces(memory: u64) -> Vec<(GuestAddress, usize)> {
        vec![(GuestAddress(RAM), memory as usize)]
    }

    fn device_memory(memory: u64) -> u64 {
        device_memory(memory)
    }

    fn start(vm: Box<Self::Vm>, setup: Setup) -> Result<Machine<Self>, MachineError> {
        Machine::start_arm64(vm, setup)
    }

    fn state(frozen: &Frozen<'_, Self>) -> Result<Arm64State, MachineError> {
        let mut vcpus = frozen.vcpus()?;
        // The counter is one for all, and each has told it at another moment: the last one, so that it goes back for
        // none of them.
        let counter = vcpus.iter().map(|vcpu| vcpu.counter).max().unwrap_or_default();
        for vcpu in &mut vcpus {
            vcpu.counter = counter;
        }
        Ok(Arm64State {
            memory: frozen.ram().size(),
            vcpus,
            gic: frozen.vm().gic_state()?,
            devices: frozen.devices(),
        })
    }

    fn restore(vm: Box<Self::Vm>, restore: Restore<Self>) -> Result<Machine<Self>, MachineError> {
        Machine::restore_arm64(vm, restore)
    }

    fn counter_khz((): &Self::Kept) -> Option<u32> {
        None
    }
}

/// The first guest-physical address for memory that devices bring along, such as an image.
pub fn device_memory(memory: u64) -> u64 {
    (RAM + memory).next_multiple_of(DEVICE_MEMORY_ALIGN)
}

/// A line of the hypervisor's interrupt controller. What the hypervisor refuses is lost: the guest then misses an
/// interrupt, and there is nobody to tell.
struct GicLine {
    vm: Arc<dyn Arm64Vm>,
    number: u32,
}

impl Line for GicLine {
    fn set(&self, level: bool) {
        let _ = self.vm.irq_line(self.number, level);
    }
}

impl Interrupt for GicLine {
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl Machine<Arm64> {
    /// Builds the machine and starts its vCPUs. `vm` has its interrupt controller at [`GIC`].
    pub fn start_arm64(vm: Box<dyn Arm64Vm>, setup: Setup) -> Result<Self, MachineError> {
        let vm: Arc<dyn Arm64Vm> = Arc::from(vm);
        setup.check_size(vm.max_vcpus().min(MAX_CPUS))?;
        let Setup { cpus, memory, timeline, .. } = setup;
        let ram = GuestRam::new(&Arm64::ram_pieces(memory))?;
        Arm64::advise_pages(&ram, 0);
        let control = Arc::new(Control::default());
        let wired = Arc::default();
        let Buses { mmio, transports, serial } =
            Buses::new(&vm, &ram, &wired, setup.serial, setup.devices)?;
        timeline.mark("devices made");

        let board = describe(serial.is_some(), transports.len());
        let boot = Boot {
            kernel: &setup.kernel,
            initrd: setup.initrd.as_ref(),
            command_line: setup.command_line.trim_start(),
            cpus,
            board: &board,
            seed: random_bytes().map_err(MachineError::Host)?,
        };
        let start = aarch64::load(&boot, &ram)?;
        timeline.mark("kernel loaded");
        // The first one starts the others.
        vm.set_vcpus((0..cpus).map(|index| VcpuSetup { off: index > 0 }).collect())?;
        map_ram(vm.as_ref(), &ram)?;
        timeline.mark("memory mapped");

        let slots = Slots::of(&setup.device_memory);
        let (pio, kept) = (Bus::new(), ());
        let parts = Parts { vm, control, timeline, ram, mmio, pio, transports, serial, kept };
        let mut machine = Self::assemble(parts, &setup.device_memory);
        let first = BootState { pc: start.entry, x0: start.fdt };
        for index in 0..cpus {
            machine.add_vcpu(if index == 0 { Begin::Boot(first) } else { Begin::Sleep })?;
        }
        machine.start_wiring(Some(slots), wired)?;
        Ok(machine)
    }

    /// Lets a frozen machine go on, which had no serial port. The order is that of `restore`, and the interrupt
    /// controller's state comes when that of the vCPUs stands.
    fn restore_arm64(vm: Box<dyn Arm64Vm>, restore: Restore<Arm64>) -> Result<Self, MachineError> {
        let vm: Arc<dyn Arm64Vm> = Arc::from(vm);
        let Restore { state, ram, devices, device_memory, touched, timeline } = restore;
        let most = vm.max_vcpus().min(MAX_CPUS);
        check_size::<Arm64>(state.memory, &ram, state.vcpus.len(), most)?;
        vm.set_vcpus(state.vcpus.iter().map(|vcpu| VcpuSetup { off: vcpu.off }).collect())?;
        map_ram(vm.as_ref(), &ram)?;
        timeline.mark("memory mapped");

        let control = Arc::new(Control::paused());
        let wired = Arc::default();
        let Buses { mmio, transports, serial } = Buses::new(&vm, &ram, &wired, None, devices)?;
        let (pio, kept) = (Bus::new(), ());
        let parts = Parts { vm, control, timeline, ram, mmio, pio, transports, serial, kept };
        let mut machine = Self::assemble(parts, &device_memory);
        machine.add_restored(state.vcpus.into_iter(), touched)?;
        // Beside the vCPUs' threads.
        machine.map_devices(&Slots::of(&device_memory))?;
        machine.restore_devices(&state.devices)?;
        machine.vm().set_gic_state(&state.gic)?;
        for transport in machine.transports() {
            transport.resume();
        }
        machine.go_on(wired)
    }
}

/// The devices, each on its line of the interrupt controller.
struct Buses {
    mmio: Bus,
    transports: Vec<Arc<MmioTransport>>,
    serial: Option<SerialInput>,
}

impl Buses {
    fn new(
        vm: &Arc<dyn Arm64Vm>,
        ram: &GuestRam,
        wired: &Arc<OnceLock<()>>,
        serial: Option<Box<dyn Write + Send>>,
        devices: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<Self, MachineError> {
        let line = |number| GicLine { vm: Arc::clone(vm), number };
        let mut mmio = Bus::new();
        let serial = match serial {
            Some(output) => {
                let (port, input) = Pl011::new(Box::new(line(SERIAL_LINE)), output);
                mmio.insert(SERIAL..SERIAL + PL011_SIZE, Arc::new(port))?;
                Some(input)
            }
            None => None,
        };
        let place = |index| {
            let (registers, number) = virtio_slot(index);
            Ok((registers, Arc::new(line(number)) as Arc<dyn Interrupt>))
        };
        let transports = wiring::add_virtio(&mut mmio, wired, ram, devices, place)?;
        Ok(Self { mmio, transports, serial })
    }
}

/// Register block and line of the `index`-th virtio device.
fn virtio_slot(index: usize) -> (u64, u32) {
    (VIRTIO + index as u64 * VIRTIO_STRIDE, FIRST_VIRTIO_LINE + index as u32)
}

/// What the device tree says.
fn describe(serial: bool, virtio: usize) -> aarch64::Board {
    let virtio = (0..virtio).map(virtio_slot);
    aarch64::Board {
        gic: aarch64::Gic {
            distributor: (GIC.distributor, GIC_DISTRIBUTOR_SIZE),
            // All that there is room for: which is the last one a redistributor itself says, and a hypervisor may
            // have more of them than vCPUs.
            redistributors: (GIC.redistributors, u64::from(MAX_CPUS) * GIC_REDISTRIBUTOR_SIZE),
        },
        serial: serial.then_some(aarch64::Device {
            start: SERIAL,
            len: PL011_SIZE,
            spi: SERIAL_LINE,
        }),
        virtio: virtio
            .map(|(start, spi)| aarch64::Device { start, len: VIRTIO_STRIDE, spi })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AtRest, Outcome, Timeline, Touched};
    use cabana_boot::Kernel;
    use cabana_hv::arm64::VcpuState;
    use cabana_hv::fake::FakeHypervisor;
    use cabana_hv::{VmEntry, VmExit};
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A kernel of one empty page.
    fn kernel() -> Kernel {
        let mut bytes = vec![0; 0x1000];
        bytes[16..24].copy_from_slice(&0x1000_u64.to_le_bytes());
        bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        Kernel::open(file.path()).unwrap()
    }

    fn setup(output: &Output) -> Setup {
        Setup {
            cpus: 3,
            memory: 8 << 20,
            kernel: kernel(),
            initrd: None,
            command_line: " quiet".to_owned(),
            devices: Vec::new(),
            device_memory: Vec::new(),
            serial: Some(Box::new(output.clone())),
            timeline: Arc::new(Timeline::new()),
        }
    }

    fn run(script: impl IntoIterator<Item = VmExit>) -> (Outcome, FakeHypervisor<Arm64>, Output) {
        let (fake, output) = (FakeHypervisor::with_script(script), Output::default());
        let machine = Machine::start_arm64(Box::new(fake.vm()), setup(&output)).unwrap();
        let outcome = machine.wait();
        drop(machine);
        (outcome, fake, output)
    }

    #[test]
    fn the_first_vcpu_boots_and_the_others_are_off() {
        let (outcome, fake, _) = run([VmExit::PowerOff]);
        assert_eq!(outcome, Outcome::Exit(0));
        let record = fake.record();
        assert_eq!(record.boot, Some(BootState { pc: RAM, x0: RAM + (6 << 20) }));
        assert_eq!(
            record.vcpus.iter().map(|vcpu| vcpu.off).collect::<Vec<_>>(),
            [false, true, true]
        );
        assert_eq!(record.slots, [(RAM, 8 << 20)]);
    }

    #[test]
    fn a_machine_goes_on_where_it_was_kept() {
        let fake = FakeHypervisor::<Arm64>::with_script([VmExit::Halt]);
        let boots = Setup { serial: None, ..setup(&Output::default()) };
        let machine = Machine::start_arm64(Box::new(fake.vm()), boots).unwrap();
        let state = {
            let frozen = machine.freeze();
            let told = VcpuState { counter: 7, ..VcpuState::default() };
            fake.record().states.insert(1, told);
            let mut state = frozen.state().unwrap();
            state.vcpus[0].regs.pc = 42;
            Arm64State::decode(&state.encode()).unwrap()
        };
        assert_eq!(state.memory, 8 << 20);
        assert_eq!(state.vcpus.iter().map(|vcpu| vcpu.counter).collect::<Vec<_>>(), [7; 3]);
        machine.stop();

        let restore = |state: Arm64State, memory: u64| {
            let fake = FakeHypervisor::<Arm64>::with_script([VmExit::PowerOff]);
            let restore = Restore {
                state,
                ram: GuestRam::new(&Arm64::ram_pieces(memory)).unwrap(),
                devices: Vec::new(),
                device_memory: Vec::new(),
                touched: Touched::default(),
                timeline: Arc::new(Timeline::new()),
            };
            let machine = Arm64::restore(Box::new(fake.vm()), restore);
            machine.map(|machine| (machine.wait(), fake))
        };
        let (outcome, went_on) = restore(state.clone(), 8 << 20).unwrap();
        assert_eq!(outcome, Outcome::Exit(0));
        assert_eq!(went_on.record().states[&0].regs.pc, 42);
        let small = restore(state, 4 << 20).map(drop).unwrap_err();
        assert!(matches!(small, MachineError::MemorySize(_)), "{small}");
    }

    #[test]
    fn a_reset_is_told_apart() {
        assert_eq!(run([VmExit::Reset]).0, Outcome::Reset);
    }

    #[test]
    fn the_serial_port_answers_and_has_its_line() {
        let script = [
            VmExit::MmioWrite { addr: SERIAL, size: 1, data: b'x'.into() },
            VmExit::MmioWrite { addr: SERIAL + 0x38, size: 2, data: 1 << 5 },
            VmExit::MmioRead { addr: SERIAL + 0x18, size: 4 },
            VmExit::MmioRead { addr: VIRTIO, size: 4 },
            VmExit::PowerOff,
        ];
        let (_, fake, output) = run(script);
        assert_eq!(*output.0.lock().unwrap(), b"x");
        let record = fake.record();
        assert_eq!(record.lines, [(SERIAL_LINE, true)]);
        // Its flags; nobody home reads as ones.
        assert_eq!(record.entries[3..], [VmEntry::Data(0x90), VmEntry::Data(0xffff_ffff)]);
    }

    #[test]
    fn more_vcpus_than_fit_are_refused() {
        let fake = FakeHypervisor::<Arm64>::with_script([]);
        for cpus in [0, 5] {
            let setup = Setup { cpus, ..setup(&Output::default()) };
            let error = Machine::start_arm64(Box::new(fake.vm()), setup).unwrap_err();
            assert!(matches!(error, MachineError::Cpus(_, 4)), "{error}");
        }
    }

    #[test]
    fn device_memory_lies_behind_ram() {
        assert_eq!(device_memory(1 << 30), RAM + (1 << 30));
        assert_eq!(device_memory((1 << 30) + 4096), 3 << 30);
    }
}
