//! A queue served on an event loop: the loop that most devices share.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cabana_os::{Event, Interest, LoopHandle, Timer, Token};

use crate::{Chain, DeviceInterrupt, Queue, QueueContext, QueueError, QueueState};

/// A queue whose buffers a function answers, one after the other, on a loop's thread.
#[derive(Debug)]
pub struct ServedQueue {
    queue: Arc<Mutex<Queue>>,
    events: LoopHandle,
    tokens: Vec<Token>,
    /// Cuts a round short, so that stopping waits for one buffer only.
    stop: Arc<AtomicBool>,
}

impl ServedQueue {
    /// Calls `serve` for every buffer; it returns the bytes that it wrote. A broken ring ends the
    /// service and asks the driver for a reset.
    pub fn start(
        events: &LoopHandle,
        context: QueueContext,
        mut serve: impl FnMut(&Chain) -> u32 + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_supply(events, context, move |chain| Some(serve(chain)))
    }

    /// Like [`ServedQueue::start`] for buffers that wait for something from the host: where `serve`
    /// has nothing for the buffer it says `None` and sees it again after the next signal of the
    /// context's doorbell, which whoever has something may ring.
    pub fn start_supply(
        events: &LoopHandle,
        context: QueueContext,
        serve: impl FnMut(&Chain) -> Option<u32> + Send + 'static,
    ) -> io::Result<Self> {
        let doorbell = context.doorbell.try_clone()?;
        let (mut service, served) = Service::new(events, context, None, serve);
        served.listen(&doorbell, move || service.round(false))
    }

    /// Like [`ServedQueue::start`] for buffers that nobody waits for. Once there was one, the driver rings
    /// only for every half of a queue more, which spares it exits; what comes meanwhile is served after
    /// `pause`, until a pause went by without any.
    pub fn start_lazy(
        events: &LoopHandle,
        context: QueueContext,
        pause: Duration,
        mut serve: impl FnMut(&Chain) -> u32 + Send + 'static,
    ) -> io::Result<Self> {
        let (doorbell, timer) = (context.doorbell.try_clone()?, Timer::new()?);
        let lazy = Some(Lazy { timer: timer.try_clone()?, pause, pausing: false });
        let (service, mut served) =
            Service::new(events, context, lazy, move |chain| Some(serve(chain)));
        let service = Arc::new(Mutex::new(service));
        let on_time = Arc::clone(&service);
        let round = |service: &Mutex<Service<_>>, paused| {
            service.lock().unwrap_or_else(PoisonError::into_inner).round(paused);
        };
        served.tokens.push(events.add(&timer.try_clone()?, Interest::READ, move |_| {
            if timer.take() {
                round(&on_time, true);
            }
        })?);
        served.listen(&doorbell, move || round(&service, false))
    }

    /// Calls `round` for the doorbell, and for what the driver offered before anyone listened.
    fn listen(
        mut self,
        doorbell: &Event,
        round: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        self.tokens.push(self.events.add_event(doorbell, round)?);
        doorbell.signal();
        Ok(self)
    }

    /// Ends the service and says where the queue stands.
    pub fn stop(self) -> QueueState {
        self.remove();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).state()
    }

    fn remove(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for token in &self.tokens {
            self.events.remove(*token);
        }
    }
}

impl Drop for ServedQueue {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What serves a queue, on the loop's thread.
struct Service<F> {
    queue: Arc<Mutex<Queue>>,
    again: Event,
    interrupt: DeviceInterrupt,
    stop: Arc<AtomicBool>,
    lazy: Option<Lazy>,
    serve: F,
    broken: bool,
}

/// How a queue is served that nobody waits for.
struct Lazy {
    timer: Timer,
    pause: Duration,
    /// There were some, and no pause has gone by since.
    pausing: bool,
}

impl<F: FnMut(&Chain) -> Option<u32>> Service<F> {
    fn new(
        events: &LoopHandle,
        context: QueueContext,
        lazy: Option<Lazy>,
        serve: F,
    ) -> (Self, ServedQueue) {
        let QueueContext { queue, doorbell, interrupt } = context;
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let served = ServedQueue {
            queue: Arc::clone(&queue),
            events: events.clone(),
            tokens: Vec::new(),
            stop: Arc::clone(&stop),
        };
        let service = Self { queue, again: doorbell, interrupt, stop, lazy, serve, broken: false };
        (service, served)
    }

    /// Serves what is there; `paused` if a pause has gone by.
    fn round(&mut self, paused: bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if self.broken {
            return;
        }
        let mut lazy = self.lazy.as_mut();
        if let Some(lazy) = &mut lazy {
            lazy.pausing &= !paused;
        }
        let mut served = false;
        let end = serve_round(&mut queue, &self.stop, lazy, &mut self.serve, &mut served);
        let notify = served && queue.needs_interrupt().unwrap_or(true);
        if notify {
            self.interrupt.used_buffer();
        }
        match end {
            Ok(true) => self.again.signal(),
            Ok(false) => {}
            Err(error) => {
                self.broken = true;
                self.interrupt.needs_reset(error);
            }
        }
    }
}

/// Serves what is there, but no more than a queue full: a driver that never stops must not keep the
/// loop from others. `served` becomes true if buffers went back to the driver; true is returned if there
/// is more.
fn serve_round(
    queue: &mut Queue,
    stop: &AtomicBool,
    mut lazy: Option<&mut Lazy>,
    serve: &mut impl FnMut(&Chain) -> Option<u32>,
    served: &mut bool,
) -> Result<bool, QueueError> {
    queue.disable_doorbell()?;
    let mut chain = Chain::new(queue.ram().clone(), 0);
    for _ in 0..queue.size() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if !queue.pop_into(&mut chain)? {
            let more = match &mut lazy {
                Some(lazy) if *served || lazy.pausing => {
                    if *served {
                        lazy.timer.set(Some(lazy.pause));
                    }
                    lazy.pausing = true;
                    // A ring that came too late for what it was for changes nothing.
                    queue.delay_doorbell(queue.size() / 2)?
                }
                _ => queue.enable_doorbell()?,
            };
            if more {
                continue;
            }
            return Ok(false);
        }
        let Some(written) = serve(&chain) else {
            queue.unpop();
            return Ok(false);
        };
        queue.push(&chain, written)?;
        *served = true;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, RawDescriptor, Setup, TestDriver, WRITE, bare_queue};
    use crate::{Identity, StartError, VirtioDevice};
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
        driver.write_descriptor(
            0,
            0,
            RawDescriptor { addr: u64::MAX, len: 4, flags: WRITE, next: 0 },
        );
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
}
