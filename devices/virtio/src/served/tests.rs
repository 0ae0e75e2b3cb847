//! Queues that a loop serves, at once and lazily, and queues that are served in a vCPU's thread.

use super::*;
use crate::testing::{Noise, RawDescriptor, Setup, TestDriver, WRITE, bare_queue};
use crate::{Identity, StartError, VirtioDevice, registers};
use cabana_bus::BusDevice;
use cabana_memory::GuestAddress;
use cabana_os::EventLoop;

/// Answers with what it was told, or with as much of it as there is room for.
struct Echo {
    events: LoopHandle,
    queue: Option<ServedQueue>,
}

impl VirtioDevice for Echo {
    fn identity(&self) -> Identity {
        Identity { device_type: 42, features: 0, queue_sizes: vec![8], config_len: 0 }
    }

    fn start_queue(&mut self, _index: u16, context: QueueContext) -> Result<(), StartError> {
        self.queue = Some(ServedQueue::start(&self.events, context, |chain| {
            let (mut reader, mut writer) = (chain.reader(), chain.writer());
            let mut bytes = vec![0; reader.left().min(writer.left())];
            reader.read_exact(&mut bytes).unwrap();
            writer.write_all(&bytes).unwrap();
            writer.written()
        })?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(ServedQueue::stop)
    }
}

fn echo(events: &EventLoop, setup: Setup) -> TestDriver {
    TestDriver::with(Echo { events: events.handle(), queue: None }, setup)
}

/// More rounds than a 16-bit ring index counts, so that everything wraps.
fn exchange_much(setup: Setup, rounds: usize) {
    let events = EventLoop::spawn("test").unwrap();
    let mut driver = echo(&events, setup);
    let mut noise = Noise::new(1);
    for round in 0..rounds {
        let bytes = noise.next().to_le_bytes();
        let (one, two) = bytes.split_at(noise.below(9) as usize);
        let room = noise.below(9) as usize;
        let answer = driver.send(0, &[one, two], &[room, 8 - room, 3]);
        assert_eq!(answer, bytes, "round {round}");
    }
    assert!(!driver.needs_reset());
}

/// Serves in the vCPU's thread what begins with a zero, and answers with 1 if it did.
struct Prompt {
    events: LoopHandle,
    vcpu: std::thread::ThreadId,
    takes: Duration,
    queue: Option<ServedQueue>,
}

impl VirtioDevice for Prompt {
    fn identity(&self) -> Identity {
        Identity { device_type: 42, features: 0, queue_sizes: vec![8], config_len: 0 }
    }

    fn serves_directly(&self, _index: u16) -> bool {
        true
    }

    fn start_queue(&mut self, _index: u16, context: QueueContext) -> Result<(), StartError> {
        let first = |chain: &Chain| {
            let mut first = [0];
            chain.reader().read_exact(&mut first).unwrap();
            first[0]
        };
        let (vcpu, takes) = (self.vcpu, self.takes);
        let serve = move |chain: &Chain| {
            if first(chain) == 1 {
                std::thread::sleep(takes);
            }
            let here = std::thread::current().id() == vcpu;
            chain.writer().write_all(&[here.into()]).unwrap();
            1
        };
        let quick = move |chain: &Chain| first(chain) < 2;
        self.queue = Some(ServedQueue::start_direct(&self.events, context, quick, serve)?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(ServedQueue::stop)
    }
}

fn prompt(events: &EventLoop, setup: Setup) -> TestDriver {
    let vcpu = std::thread::current().id();
    let takes = DIRECT_TIME * 2;
    TestDriver::with(Prompt { events: events.handle(), vcpu, takes, queue: None }, setup)
}

/// Is the buffer with this first byte served in this thread?
fn is_served_here(driver: &mut TestDriver, first: u8) -> bool {
    driver.send(0, &[&[first]], &[1]) == [1]
}

/// What the loop began when the driver came is behind it.
fn settle(driver: &mut TestDriver) {
    while !is_served_here(driver, 0) {}
}

#[test]
fn a_quick_buffer_is_served_where_it_is_rung_for_and_others_on_the_loop() {
    for setup in [Setup::default(), Setup::plain()] {
        let events = EventLoop::spawn("test").unwrap();
        let mut driver = prompt(&events, setup);
        for round in 0..1000 {
            settle(&mut driver);
            assert!(!is_served_here(&mut driver, 2), "round {round}");
        }
        assert!(!driver.needs_reset());
    }
}

#[test]
fn after_a_slow_buffer_the_loop_serves_for_a_while() {
    let events = EventLoop::spawn("test").unwrap();
    let mut driver = prompt(&events, Setup::default());
    while !is_served_here(&mut driver, 1) {}
    for _ in 0..DIRECT_REST {
        assert!(!is_served_here(&mut driver, 0));
    }
    settle(&mut driver);
}

#[test]
fn a_queue_whose_loop_is_busy_is_served_by_vcpus() {
    let events = EventLoop::spawn("test").unwrap();
    let mut driver = prompt(&events, Setup::default());
    settle(&mut driver);
    let (busy, (enter, entered), (leave, may_leave)) =
        (Event::new().unwrap(), std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let is_in = move || {
        enter.send(()).unwrap();
        let _let_go = may_leave.recv();
    };
    events.handle().add_event(&busy, is_in).unwrap();
    busy.signal();
    entered.recv().unwrap();
    for _ in 0..1000 {
        driver.submit(0, &[&[0]], &[1]);
        let used = loop {
            // On a busy machine this thread may have rested in the middle, and is taken for slow.
            match driver.poll(0) {
                Some(used) => break used,
                None => driver.notify(0),
            }
        };
        assert_eq!(used.written, [1]);
    }
    drop(leave);
}

#[test]
fn no_buffer_is_forgotten_while_many_ring() {
    for setup in [Setup::default(), Setup::plain()] {
        let events = EventLoop::spawn("test").unwrap();
        let mut driver = prompt(&events, setup);
        let (transport, stop) = (Arc::clone(driver.transport()), AtomicBool::new(false));
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        transport.write(registers::QUEUE_NOTIFY, &0u32.to_le_bytes());
                    }
                });
            }
            let mut noise = Noise::new(7);
            for round in 0..5000 {
                let count = 1 + noise.below(3);
                for _ in 0..count {
                    driver.submit(0, &[&[noise.below(3) as u8 * 2]], &[1]);
                }
                for _ in 0..count {
                    driver.wait(0);
                }
                if round % 100 == 0 {
                    driver.pause_and_resume();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!driver.needs_reset());
    }
}

#[test]
fn every_buffer_is_answered_with_event_index() {
    exchange_much(Setup::default(), 70_000);
}

#[test]
fn every_buffer_is_answered_with_flags() {
    exchange_much(Setup::plain(), 70_000);
}

#[test]
fn every_buffer_is_answered_through_indirect_tables() {
    exchange_much(Setup { indirect: true, ..Setup::default() }, 2000);
}

#[test]
fn buffers_offered_together_come_back_together() {
    let events = EventLoop::spawn("test").unwrap();
    let mut driver = echo(&events, Setup::default());
    for round in 0..1000u32 {
        let sent: Vec<u16> =
            (0..4).map(|at| driver.submit(0, &[&[at, round as u8]], &[2])).collect();
        for (at, head) in (0..4).zip(sent) {
            assert_eq!(driver.wait_for(0, head).written, [at, round as u8]);
        }
    }
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_works_after_it() {
    let events = EventLoop::spawn("test").unwrap();
    let mut driver = echo(&events, Setup::default());
    assert_eq!(driver.send(0, &[b"one"], &[3]), b"one");
    driver.write_descriptor(0, 0, RawDescriptor { addr: u64::MAX, len: 4, flags: WRITE, next: 0 });
    driver.offer(0, 0);
    driver.notify(0);
    assert!(driver.wait_needs_reset().contains("0xffffffffffffffff"));
    driver.start();
    assert_eq!(driver.send(0, &[b"two"], &[3]), b"two");
}

#[test]
fn a_device_goes_on_where_another_was_paused() {
    for setup in [Setup::default(), Setup::plain()] {
        let events = EventLoop::spawn("test").unwrap();
        let mut driver = echo(&events, setup);
        for round in 0..300u16 {
            let bytes = round.to_le_bytes();
            assert_eq!(driver.send(0, &[&bytes], &[2]), bytes);
            let early = driver.submit(0, &[&bytes], &[2]);
            match round % 3 {
                0 => driver.pause_and_resume(),
                1 => driver.move_to(Echo { events: events.handle(), queue: None }).unwrap(),
                _ => {}
            }
            assert_eq!(driver.wait_for(0, early).written, bytes, "round {round}");
        }
        assert!(!driver.needs_reset());
    }
}

#[test]
fn stopping_waits_for_one_buffer_and_leaves_the_others() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut driver, context) = bare_queue(8, Setup::default());
    for _ in 0..4 {
        driver.submit(0, &[b"x"], &[]);
    }
    let (entered, has_entered) = std::sync::mpsc::channel();
    let (leave, may_leave) = std::sync::mpsc::channel();
    let queue = ServedQueue::start(&events.handle(), context, move |_| {
        entered.send(()).unwrap();
        may_leave.recv().unwrap();
        0
    })
    .unwrap();
    has_entered.recv().unwrap();
    let stop = Arc::clone(&queue.stop);
    let stopping = std::thread::spawn(move || queue.stop());
    while !stop.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    leave.send(()).unwrap();
    let state = stopping.join().unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert_eq!(driver.wait(0).head, 0);
    assert!(driver.poll(0).is_none());
}

#[test]
fn buffers_offered_at_the_end_of_a_round_are_not_forgotten() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut driver, context) = bare_queue(8, Setup::default());
    let (leave, may_leave) = std::sync::mpsc::channel();
    for _ in 0..8 {
        driver.submit(0, &[b"x"], &[]);
    }
    let queue = ServedQueue::start(&events.handle(), context, move |_| {
        let _let_go = may_leave.recv();
        0
    })
    .unwrap();
    for _ in 0..5 {
        // The last buffer of the round is in hand while seven more are offered; a device that
        // is at it asks for no notification.
        (0..7).for_each(|_| leave.send(()).unwrap());
        while driver.ram().load_u16(GuestAddress(driver.layout(0).used + 2)).unwrap() % 8 != 7 {
            std::thread::yield_now();
        }
        (0..7).for_each(|_| assert!(driver.poll(0).is_some()));
        for _ in 0..7 {
            driver.submit(0, &[b"x"], &[]);
        }
        leave.send(()).unwrap();
        driver.wait(0);
        driver.submit(0, &[b"x"], &[]);
    }
    drop(leave);
    queue.stop();
}

#[test]
fn a_driver_that_never_stops_offering_leaves_the_loop_to_others_and_can_be_stopped() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut driver, context) = bare_queue(8, Setup::default());
    driver.submit(0, &[b"x"], &[]);
    let (ram, avail) = (driver.ram().clone(), GuestAddress(driver.layout(0).avail + 2));
    // The driver offers another buffer whenever one is served.
    let queue = ServedQueue::start(&events.handle(), context, move |_| {
        let next = ram.load_u16(avail).unwrap().wrapping_add(1);
        ram.store_u16(avail, next).unwrap();
        0
    })
    .unwrap();
    let (other, (called, is_called)) =
        (cabana_os::Event::new().unwrap(), std::sync::mpsc::channel());
    events.handle().add_event(&other, move || called.send(()).unwrap()).unwrap();
    other.signal();
    is_called.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
    queue.stop();
}

#[test]
fn a_lazy_queue_is_rung_for_again_once_it_is_half_full() {
    let events = EventLoop::spawn("test").unwrap();
    let (mut driver, context) = bare_queue(8, Setup::default());
    let layout = driver.layout(0);
    let pause = Duration::from_secs(3600);
    let queue = ServedQueue::start_lazy(&events.handle(), context, pause, |_| 0).unwrap();
    let avail_event = GuestAddress(layout.used + 4 + 8 * u64::from(layout.size));
    driver.submit(0, &[b"x"], &[]);
    driver.wait(0);
    for round in 0..20_000u16 {
        // One was served, and four at each round: the next to ring for is the fourth from there.
        let ring_at = round.wrapping_mul(4).wrapping_add(1 + 3);
        while driver.ram().load_u16(avail_event).unwrap() != ring_at {
            std::thread::yield_now();
        }
        for _ in 0..3 {
            driver.submit(0, &[b"x"], &[]);
        }
        assert!(driver.poll(0).is_none(), "nobody rang");
        driver.submit(0, &[b"x"], &[]);
        for _ in 0..4 {
            driver.wait(0);
        }
    }
    queue.stop();
}

#[test]
fn a_lazy_queue_is_served_after_its_pause() {
    for setup in [Setup::default(), Setup::plain()] {
        let events = EventLoop::spawn("test").unwrap();
        let (mut driver, context) = bare_queue(8, setup);
        let pause = Duration::from_millis(2);
        let queue = ServedQueue::start_lazy(&events.handle(), context, pause, |_| 0).unwrap();
        for round in 0..100u64 {
            for _ in 0..3 {
                driver.submit(0, &[b"x"], &[]);
            }
            for _ in 0..3 {
                driver.wait(0);
            }
            // Sometimes long enough for the queue to come to rest.
            std::thread::sleep(pause * 3 * u32::from(round % 10 == 0));
        }
        queue.stop();
    }
}
