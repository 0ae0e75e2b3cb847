//! Drivers that do as they should, and drivers that do not.

use std::thread;

use super::*;
use crate::testing::{Noise, RAM_SIZE, Setup, TestDriver};
use crate::{QueueLayout, QueueState, StartError};

const STATUS_ALL: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
const FEATURE: u64 = 1 << 5 | 1 << 40;

/// What the transport did to the device, and what the device holds.
#[derive(Debug, Default)]
struct Record {
    calls: Vec<String>,
    contexts: Vec<Option<QueueContext>>,
    config: [u8; 12],
    refuse_start: bool,
}

#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Record>>);

impl Recorder {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap()
    }

    fn take_calls(&self) -> String {
        std::mem::take(&mut self.record().calls).join(", ")
    }

    fn interrupt(&self, queue: usize) -> DeviceInterrupt {
        self.record().contexts[queue].as_ref().unwrap().interrupt.clone()
    }
}

impl VirtioDevice for Recorder {
    fn identity(&self) -> Identity {
        Identity { device_type: 9, features: FEATURE, queue_sizes: vec![8, 256], config_len: 12 }
    }

    fn read_config(&self, config: &mut [u8]) {
        config.copy_from_slice(&self.record().config);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let at = offset as usize;
        self.record().config[at..at + data.len()].copy_from_slice(data);
    }

    fn set_features(&mut self, features: u64) {
        self.record().calls.push(format!("features {features:#x}"));
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        let mut record = self.record();
        if record.refuse_start {
            return Err(StartError::NoSuchQueue(index));
        }
        record.calls.push(format!("start {index}"));
        record.contexts.resize_with(2, || None);
        assert!(record.contexts[usize::from(index)].replace(context).is_none());
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let mut record = self.record();
        record.calls.push(format!("stop {index}"));
        let context = record.contexts[usize::from(index)].take().expect("a running queue");
        drop(record);
        // A handler that still runs may announce something; stopping waits for it.
        let interrupt = context.interrupt;
        thread::spawn(move || interrupt.config_changed()).join().unwrap();
        Some(context.queue.state())
    }

    fn reset(&mut self) {
        self.record().calls.push("reset".into());
    }

    fn shared_memory(&self, id: u32) -> Option<(u64, u64)> {
        (id == 3).then_some((0x1_2345_0000, 0x2_0000_1000))
    }
}

fn idle() -> (TestDriver, Recorder) {
    let recorder = Recorder::default();
    let setup = Setup { idle: true, ..Setup::default() };
    (TestDriver::with(recorder.clone(), setup), recorder)
}

fn live() -> (TestDriver, Recorder) {
    let (mut driver, recorder) = idle();
    driver.start();
    recorder.take_calls();
    (driver, recorder)
}

#[test]
fn the_page_says_who_the_device_is() {
    let (driver, _recorder) = idle();
    assert_eq!(driver.read_register(registers::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read_register(registers::VERSION), 2);
    assert_eq!(driver.read_register(registers::DEVICE_ID), 9);
    let ring = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;
    assert_eq!(driver.offered_features(), FEATURE | ring);
    driver.write_register(registers::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read_register(registers::DEVICE_FEATURES), 0);
    for (select, max) in [(0, 8), (1, 256), (2, 0), (u32::MAX, 0)] {
        driver.write_register(registers::QUEUE_SEL, select);
        assert_eq!(driver.read_register(registers::QUEUE_SIZE_MAX), max);
    }
    assert!(!driver.needs_reset());
}

#[test]
fn the_mapped_page_and_the_bus_say_the_same() {
    let (driver, _recorder) = live();
    let page = driver.transport().register_page();
    for at in 0..0x1000 {
        let mut byte = [0];
        driver.transport().read(at, &mut byte);
        // SAFETY: within the page, which lives as long as the transport.
        assert_eq!(byte[0], unsafe { page.host().wrapping_add(at as usize).read_volatile() });
    }
}

#[test]
fn shared_memory_regions_are_found_by_number() {
    let (driver, _recorder) = idle();
    let region = || {
        [
            registers::SHM_BASE_LOW,
            registers::SHM_BASE_HIGH,
            registers::SHM_LEN_LOW,
            registers::SHM_LEN_HIGH,
        ]
        .map(|register| driver.read_register(register))
    };
    assert_eq!(region(), [u32::MAX; 4]);
    driver.write_register(registers::SHM_SEL, 3);
    assert_eq!(region(), [0x2345_0000, 1, 0x1000, 2]);
    driver.write_register(registers::SHM_SEL, 4);
    assert_eq!(region(), [u32::MAX; 4]);
}

#[test]
fn a_start_a_stop_and_a_reset_reach_the_device_in_order() {
    let (mut driver, recorder) = idle();
    driver.start();
    let features = FEATURE | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;
    assert_eq!(recorder.take_calls(), format!("reset, features {features:#x}, start 0, start 1"));
    assert_eq!(driver.status(), STATUS_ALL);
    driver.write_register(registers::QUEUE_SEL, 1);
    assert_eq!(driver.read_register(registers::QUEUE_READY), 1);
    driver.write_register(registers::QUEUE_READY, 0);
    assert_eq!(driver.read_register(registers::QUEUE_READY), 0);
    assert_eq!(recorder.take_calls(), "stop 1");
    driver.make_ready(1, driver.layout(1));
    assert_eq!(recorder.take_calls(), "start 1");
    driver.reset();
    assert_eq!(recorder.take_calls(), "stop 0, stop 1, reset");
    driver.start();
    driver.transport().stop();
    assert!(recorder.take_calls().ends_with("stop 0, stop 1"));
}

#[test]
fn features_are_refused_when_too_many_or_too_few() {
    let (driver, recorder) = idle();
    for features in [0, FEATURE, F_VERSION_1 | 1 << 6, u64::MAX] {
        driver.write_register(registers::STATUS, 0);
        driver.write_register(registers::STATUS, ACKNOWLEDGE);
        driver.write_register(registers::STATUS, ACKNOWLEDGE | DRIVER);
        driver.accept_features(features);
        driver.write_register(registers::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "{features:#x}");
    }
    assert!(!recorder.take_calls().contains("features"));
    driver.accept_features(F_VERSION_1);
    driver.write_register(registers::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    driver.accept_features(F_VERSION_1 | FEATURE);
    assert!(driver.needs_reset(), "the features are settled");
}

#[test]
fn a_status_out_of_order_asks_for_a_reset() {
    let known = ACKNOWLEDGE | DRIVER;
    for wrong in [
        vec![DRIVER],
        vec![ACKNOWLEDGE, ACKNOWLEDGE | DRIVER_OK],
        vec![ACKNOWLEDGE, known, known | DRIVER_OK],
        vec![ACKNOWLEDGE, known, ACKNOWLEDGE],
        vec![ACKNOWLEDGE | NEEDS_RESET],
        vec![ACKNOWLEDGE | 0x100],
        vec![u32::MAX],
    ] {
        let (mut driver, recorder) = idle();
        for &status in &wrong {
            driver.write_register(registers::STATUS, status);
        }
        assert!(driver.needs_reset(), "{wrong:x?}");
        assert_eq!(driver.interrupts(), 0, "nobody is live");
        assert!(!recorder.take_calls().contains("start"));
        driver.start();
        assert_eq!(driver.status(), STATUS_ALL);
    }
}

#[test]
fn nothing_starts_until_a_reset_that_was_asked_for() {
    let (mut driver, recorder) = idle();
    driver.start();
    driver.write_register(registers::QUEUE_SEL, 1);
    driver.write_register(registers::QUEUE_READY, 0);
    driver.write_register(registers::STATUS, DRIVER);
    assert!(driver.needs_reset());
    recorder.take_calls();
    driver.make_ready(1, driver.layout(1));
    assert_eq!(recorder.take_calls(), "");
}

#[test]
fn a_driver_may_give_up() {
    let (driver, _recorder) = idle();
    driver.write_register(registers::STATUS, ACKNOWLEDGE | FAILED);
    assert_eq!(driver.status(), ACKNOWLEDGE | FAILED);
}

#[test]
fn queues_are_changed_only_while_they_rest() {
    for (select, register) in [
        (0, registers::QUEUE_SIZE),
        (1, registers::QUEUE_DEVICE_HIGH),
        (2, registers::QUEUE_DESC_LOW),
        (0, registers::QUEUE_PFN),
        (2, registers::QUEUE_PFN),
        (2, registers::QUEUE_READY),
        (u32::MAX, registers::QUEUE_READY),
        (0x1_0001, registers::QUEUE_READY),
    ] {
        let (driver, recorder) = live();
        driver.write_register(registers::QUEUE_SEL, select);
        driver.write_register(register, 1);
        assert!(driver.needs_reset(), "{select} {register:#x}");
        assert_eq!(driver.interrupts(), 1);
        assert_eq!(
            driver.read_register(registers::INTERRUPT_STATUS),
            DeviceInterrupt::CONFIG_CHANGED
        );
        assert_eq!(recorder.take_calls(), "");
    }
}

#[test]
fn a_queue_is_placed_by_one_write() {
    let (driver, recorder) = live();
    driver.write_register(registers::QUEUE_SEL, 1);
    let size = driver.read_register(registers::QUEUE_SIZE_MAX);
    driver.write_register(registers::QUEUE_READY, 0);
    driver.write_register(registers::QUEUE_PFN, 0x345);
    assert_eq!(recorder.take_calls(), "stop 1, start 1");
    assert_eq!(driver.read_register(registers::QUEUE_READY), 1);
    // As `vring_init` of Linux has it: the used ring begins a page of its own.
    let (descriptors, avail) = (0x34_5000, 0x34_5000 + 16 * u64::from(size));
    let layout = QueueLayout { size: size as u16, descriptors, avail, used: 0x34_7000 };
    assert_eq!(driver.transport().save().queues[1].layout, layout);
    driver.write_register(registers::QUEUE_READY, 0);
    driver.write_register(registers::QUEUE_PFN, u32::MAX);
    assert!(driver.needs_reset(), "there is no RAM");
}

#[test]
fn rings_that_cannot_be_are_found_when_the_queue_starts() {
    let (driver, _recorder) = live();
    let good = driver.layout(0);
    for bad in [
        QueueLayout { size: 0, ..good },
        QueueLayout { size: 7, ..good },
        QueueLayout { size: 16, ..good },
        QueueLayout { descriptors: u64::MAX - 7, ..good },
        QueueLayout { avail: RAM_SIZE as u64 - 2, ..good },
        QueueLayout { used: good.used + 1, ..good },
    ] {
        let (driver, recorder) = live();
        driver.write_register(registers::QUEUE_SEL, 0);
        driver.write_register(registers::QUEUE_READY, 0);
        driver.make_ready(0, bad);
        assert!(driver.needs_reset(), "{bad:?}");
        assert!(driver.transport().fault().unwrap().starts_with("queue 0 cannot start"));
        assert_eq!(recorder.take_calls(), "stop 0");
    }
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    let (mut driver, recorder) = idle();
    recorder.record().refuse_start = true;
    driver.start();
    assert!(driver.needs_reset());
    assert_eq!(driver.interrupts(), 1);
    recorder.record().refuse_start = false;
    driver.start();
    assert_eq!(driver.status(), STATUS_ALL);
}

#[test]
fn doorbells_ring_the_queue_that_they_name() {
    let (driver, recorder) = live();
    let heard = |queue: usize| recorder.record().contexts[queue].as_ref().unwrap().doorbell.take();
    driver.notify(1);
    driver.notify(2);
    driver.write_register(registers::QUEUE_NOTIFY, u32::MAX);
    assert_eq!((heard(0), heard(1)), (false, true));
    let doorbells: Vec<Doorbell> = driver.transport().doorbells().collect();
    assert_eq!(doorbells.len(), 3);
    assert_eq!((doorbells[0].offset, doorbells[0].value), (0x50, 0));
    doorbells[0].event.signal();
    assert_eq!((heard(0), heard(1)), (true, false));
    assert_eq!((doorbells[2].offset, doorbells[2].value), (0x64, 1));
    assert!(!driver.needs_reset());
}

#[test]
fn interrupts_carry_their_reason() {
    let (driver, recorder) = live();
    let interrupt = recorder.interrupt(0);
    interrupt.used_buffer();
    assert_eq!((driver.interrupts(), driver.read_register(registers::INTERRUPT_STATUS)), (1, 1));
    interrupt.config_changed();
    assert_eq!((driver.interrupts(), driver.read_register(registers::INTERRUPT_STATUS)), (2, 3));
    driver.write_register(registers::INTERRUPT_ACK, 3);
    assert_eq!(driver.read_register(registers::INTERRUPT_STATUS), 1, "used buffers stay possible");
    driver.write_register(registers::STATUS, 0);
    assert_eq!(driver.read_register(registers::INTERRUPT_STATUS), 0);
}

#[test]
fn a_changed_configuration_is_seen_and_numbered() {
    let (driver, recorder) = live();
    let generation = || driver.read_register(registers::CONFIG_GENERATION);
    let before = generation();
    recorder.record().config = *b"abcdefghijkl";
    assert_eq!(driver.config(0, 12), [0; 12], "not announced yet");
    recorder.interrupt(1).config_changed();
    assert_eq!(driver.config(0, 12), *b"abcdefghijkl");
    assert_eq!(generation(), before + 2, "once before and once after");
    recorder.interrupt(1).config_changed();
    assert_eq!(generation(), before + 2, "nothing has changed");
    let mut half = [0; 2];
    driver.transport().read(registers::CONFIG + 3, &mut half);
    assert_eq!(half, *b"de");
    let mut word = [0; 8];
    driver.transport().read(registers::CONFIG + 4, &mut word);
    assert_eq!(word, *b"efghijkl");
}

#[test]
fn a_change_before_the_device_could_say_so_is_announced_at_the_start() {
    let (mut driver, recorder) = live();
    driver.write_register(registers::STATUS, 0);
    let steps = [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK];
    driver.accept_features(F_VERSION_1);
    for status in steps {
        driver.write_register(registers::STATUS, status);
    }
    recorder.record().config = [1; 12];
    driver.write_register(registers::STATUS, STATUS_ALL);
    assert_eq!((driver.config(0, 12), driver.interrupts()), (vec![1; 12], 1));
    driver.start();
    assert_eq!(driver.interrupts(), 1, "nothing has changed");
}

#[test]
fn a_change_announced_while_the_device_is_busy_is_not_lost() {
    let (mut driver, recorder) = live();
    recorder.record().config = [7; 12];
    // `stop_queue` announces from another thread and waits for it.
    driver.write_register(registers::QUEUE_SEL, 0);
    driver.write_register(registers::QUEUE_READY, 0);
    assert_eq!(driver.config(0, 12), [7; 12]);
    assert_eq!(driver.interrupts(), 1);
    driver.reset();
    assert_eq!(driver.interrupts(), 1, "nobody is live after a reset");
}

#[test]
fn the_driver_writes_within_the_configuration_only() {
    let (driver, _recorder) = live();
    let write = |offset: u64, data: &[u8]| driver.transport().write(0x100 + offset, data);
    write(1, &[1]);
    write(2, &[2, 3]);
    write(4, &[4, 5, 6, 7, 8, 9, 10, 11]);
    write(9, &[0xff; 4]);
    write(12, &[0xff]);
    write(0xeff, &[0xff; 8]);
    assert_eq!(driver.config(0, 12), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert!(!driver.needs_reset());
}

#[test]
fn registers_are_written_whole() {
    let (driver, _recorder) = live();
    for len in [1, 2, 8] {
        driver.transport().write(registers::STATUS, &[0; 8][..len]);
    }
    driver.transport().write(registers::STATUS + 1, &[0; 4]);
    assert_eq!(driver.status(), STATUS_ALL);
}

/// Two processors write anything anywhere, in any order, while the device talks.
#[test]
fn a_hostile_driver_cannot_break_the_transport() {
    let (mut driver, recorder) = live();
    let layout = driver.layout(0);
    thread::scope(|scope| {
        for seed in 1..=2 {
            let (transport, recorder) = (driver.transport(), &recorder);
            scope.spawn(move || {
                let mut noise = Noise::new(seed);
                for _ in 0..30_000 {
                    let offset = match noise.below(4) {
                        0 => noise.next() & 0xffc,
                        1 => registers::STATUS,
                        _ => registers::QUEUE_SEL + 4 * noise.below(32),
                    };
                    let value = match noise.below(6) {
                        0 => noise.next() as u32,
                        1 => STATUS_ALL & noise.next() as u32,
                        2 => STATUS_ALL >> noise.below(4),
                        3 => layout.size.into(),
                        4 => (layout.avail + 8 * noise.below(9)) as u32,
                        _ => noise.below(3) as u32,
                    };
                    let bytes = u64::from(value).to_le_bytes();
                    let len = if noise.below(8) == 0 { 1 << noise.below(4) } else { 4 };
                    transport.write(offset, &bytes[..len]);
                    transport.read(noise.below(0x1000), &mut [0; 8]);
                    if noise.below(16) == 0 {
                        let contexts = recorder.record();
                        let interrupt = contexts
                            .contexts
                            .iter()
                            .flatten()
                            .next()
                            .map(|context| context.interrupt.clone());
                        drop(contexts);
                        if let Some(interrupt) = interrupt {
                            interrupt.config_changed();
                            interrupt.used_buffer();
                        }
                    }
                }
            });
        }
    });
    driver.start();
    assert_eq!(driver.status(), STATUS_ALL);
    let _ = recorder.take_calls();
    driver.transport().stop();
    assert_eq!(recorder.take_calls(), "stop 0, stop 1");
}

#[test]
fn a_restored_transport_says_what_the_first_one_said() {
    let device = Recorder::default();
    device.record().config = *b"twelve bytes";
    let mut driver = TestDriver::new(device.clone());
    device.interrupt(0).used_buffer();
    let seen = |driver: &TestDriver| {
        [registers::STATUS, registers::INTERRUPT_STATUS, registers::QUEUE_READY, registers::CONFIG]
            .map(|register| driver.read_register(register))
    };
    let before = seen(&driver);
    assert_eq!(before[..2], [STATUS_ALL, DeviceInterrupt::USED_BUFFER]);
    let other = Recorder::default();
    other.record().config = *b"twelve bytes";
    driver.move_to(other.clone()).unwrap();
    assert_eq!(seen(&driver), before);
    let calls = other.take_calls();
    assert!(calls.starts_with("features 0x"), "{calls}");
    assert!(calls.contains("start 0, start 1"), "{calls}");
    // A driver that begins anew finds the device as ever.
    driver.start();
    assert_eq!(driver.status(), STATUS_ALL);
}

#[test]
fn state_of_another_device_is_refused() {
    struct Other;
    impl VirtioDevice for Other {
        fn identity(&self) -> Identity {
            Identity { device_type: 8, features: 0, queue_sizes: vec![8, 8], config_len: 0 }
        }
        fn start_queue(&mut self, index: u16, _: QueueContext) -> Result<(), StartError> {
            Err(StartError::NoSuchQueue(index))
        }
        fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
            None
        }
    }
    let mut driver = TestDriver::new(Recorder::default());
    let refused = driver.move_to(Other).unwrap_err().to_string();
    assert!(refused.contains("type was 9 and is 8 here"), "{refused}");
}
