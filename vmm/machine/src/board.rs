//! x86-64's board: devices on buses and interrupt pins.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use cabana_boot::x86_64::acpi;
use cabana_bus::{Bus, Interrupt};
use cabana_hv::X86Vm;
use cabana_hv::x86::{Msi, X86};
use cabana_memory::GuestRam;
use cabana_platform::{
    AbsentTimer, COM1, EXIT_PORT, ExitPort, IO_APIC_SIZE, IoApic, MessageSink, POWER_OFF,
    PULSE_RESET, RESET_PORT, RTC_PORT, RTC_PORTS, ResetPort, Rtc, SERIAL_PORTS, SLEEP_PORT,
    SLEEP_PORTS, Serial, SerialInput, SleepPorts, TIMER_PORT,
};
use cabana_virtio::{MmioTransport, VirtioDevice};

use crate::control::{Control, Outcome};
use crate::layout::{MAX_VIRTIO_DEVICES, Pins, VIRTIO_STRIDE};
use crate::machine::MachineError;
use crate::wiring;

/// Buses with their devices.
pub(crate) struct Board {
    pub(crate) mmio: Bus,
    pub(crate) pio: Bus,
    pub(crate) transports: Vec<Arc<MmioTransport>>,
    pub(crate) pins: Pins,
    /// Set once everything is mapped and every doorbell hung.
    pub(crate) wired: Arc<OnceLock<()>>,
    pub(crate) ioapic: Arc<IoApic>,
}

/// Messages of the I/O APIC go to the hypervisor's local APICs.
struct ToLocalApics(Arc<dyn X86Vm>);

impl MessageSink for ToLocalApics {
    fn send(&self, address: u64, data: u32) {
        // A message that names no APIC is the guest's mistake; it is lost, as on a real board.
        let _ = self.0.signal_msi(Msi { address, data });
    }
}

impl Board {
    /// A board with I/O APIC, reset port and exit port.
    pub(crate) fn new(
        vm: &Arc<dyn X86Vm>,
        control: &Arc<Control<X86>>,
        pins: Pins,
    ) -> Result<Self, MachineError> {
        let ioapic = IoApic::new(pins.count, Box::new(ToLocalApics(Arc::clone(vm))));
        let (mut mmio, mut pio) = (Bus::new(), Bus::new());
        let io_apic = cabana_boot::x86_64::IO_APIC;
        mmio.insert(io_apic..io_apic + IO_APIC_SIZE, Arc::clone(&ioapic) as Arc<_>)?;
        let ends = Arc::clone(control);
        let reset = ResetPort::new(move || ends.end(Outcome::Reset));
        pio.insert(RESET_PORT..RESET_PORT + 1, Arc::new(reset))?;
        let ends = Arc::clone(control);
        let exit = ExitPort::new(move |status| ends.end(Outcome::Exit(status)));
        pio.insert(EXIT_PORT..EXIT_PORT + 1, Arc::new(exit))?;
        Ok(Self { mmio, pio, transports: Vec::new(), pins, wired: Arc::default(), ioapic })
    }

    /// Adds COM1.
    pub(crate) fn add_serial(
        &mut self,
        output: Box<dyn Write + Send>,
    ) -> Result<SerialInput, MachineError> {
        let (port, pin) = COM1;
        let (serial, input) = Serial::new(self.pin(pin)?, output);
        self.pio.insert(port..port + SERIAL_PORTS, Arc::new(serial))?;
        Ok(input)
    }

    /// Adds ACPI's sleep registers: a kernel powers off through them.
    pub(crate) fn add_sleep(&mut self, control: &Arc<Control<X86>>) -> Result<(), MachineError> {
        let ends = Arc::clone(control);
        let sleep = SleepPorts::new(move || ends.end(Outcome::Exit(0)));
        self.pio.insert(SLEEP_PORT..SLEEP_PORT + SLEEP_PORTS, Arc::new(sleep))?;
        Ok(())
    }

    /// Adds the old PC's clocks, for a guest that has no paravirtual one: a real-time clock, and the absence of
    /// an interval timer.
    pub(crate) fn add_clocks(&mut self) -> Result<(), MachineError> {
        self.pio.insert(RTC_PORT..RTC_PORT + RTC_PORTS, Arc::new(Rtc::default()))?;
        self.pio.insert(TIMER_PORT..TIMER_PORT + 1, Arc::new(AbsentTimer))?;
        Ok(())
    }

    /// Adds virtio devices in order.
    pub(crate) fn add_virtio(
        &mut self,
        ram: &GuestRam,
        devices: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<(), MachineError> {
        let (pins, ioapic) = (self.pins, Arc::clone(&self.ioapic));
        let place = |index| {
            let (base, pin) = pins.virtio_slot(index);
            Ok((base, pin_of(&ioapic, pin)?))
        };
        self.transports = wiring::add_virtio(&mut self.mmio, &self.wired, ram, devices, place)?;
        Ok(())
    }

    /// What the kernel must be told of the virtio devices (`Documentation/admin-guide/
    /// kernel-parameters.txt`, `virtio_mmio.device`).
    pub(crate) fn command_line(&self) -> String {
        let mut line = String::new();
        for (base, pin) in (0..self.transports.len()).map(|index| self.pins.virtio_slot(index)) {
            line += &format!(" virtio_mmio.device=4K@{base:#x}:{pin}");
        }
        line
    }

    /// What ACPI tables say of a board with COM1 and sleep registers.
    pub(crate) fn acpi_devices(&self) -> acpi::Devices {
        let (port, pin) = COM1;
        let virtio = (0..self.transports.len()).map(|index| self.pins.virtio_slot(index));
        acpi::Devices {
            serial: acpi::Device { start: port as u32, len: SERIAL_PORTS as u32, pin },
            virtio: virtio
                .map(|(base, pin)| acpi::Device {
                    start: base as u32,
                    len: VIRTIO_STRIDE as u32,
                    pin,
                })
                .collect(),
            reset: (RESET_PORT as u16, PULSE_RESET),
            sleep: (SLEEP_PORT as u16, POWER_OFF),
        }
    }

    fn pin(&self, pin: u8) -> Result<Arc<dyn Interrupt>, MachineError> {
        pin_of(&self.ioapic, pin)
    }
}

fn pin_of(ioapic: &Arc<IoApic>, pin: u8) -> Result<Arc<dyn Interrupt>, MachineError> {
    ioapic.pin(pin).ok_or(MachineError::TooManyDevices(pin.into(), MAX_VIRTIO_DEVICES))
}
