//! A queue served on an event loop: the loop that most devices share.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cabana_os::{Event, LoopHandle, Timer, Token};

use crate::{Chain, DeviceInterrupt, Direct, Queue, QueueContext, QueueError, QueueState};

/// The most buffers that a vCPU serves at once: it has a guest to run.
const DIRECT_BUFFERS: u16 = 4;
/// A buffer that keeps a vCPU for longer than this is one too slow.
const DIRECT_TIME: Duration = Duration::from_micros(200);
/// How many notifications go to the loop after a slow one: the host's disk is at work, or the buffers are long.
const DIRECT_REST: u32 = 32;

/// A queue whose buffers a function answers, one after the other, on a loop's thread.
#[derive(Debug)]
pub struct ServedQueue {
    queue: Arc<Mutex<Queue>>,
    events: LoopHandle,
    tokens: Vec<Token>,
    direct: Direct,
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
        served.tokens.push(events.add_timer(&timer, move || round(&on_time, true))?);
        served.listen(&doorbell, move || round(&service, false))
    }

    /// Like [`ServedQueue::start`] for a queue that the device [serves directly]: a buffer that is `quick` is
    /// served in the thread of the vCPU that rings for it, which costs a driver that waits for the answer no
    /// turn of threads; the others on the loop.
    ///
    /// [serves directly]: crate::VirtioDevice::serves_directly
    pub fn start_direct(
        events: &LoopHandle,
        context: QueueContext,
        quick: impl Fn(&Chain) -> bool + Send + 'static,
        mut serve: impl FnMut(&Chain) -> u32 + Send + 'static,
    ) -> io::Result<Self> {
        let (doorbell, direct) = (context.doorbell.try_clone()?, context.direct.clone());
        let (service, served) =
            Service::new(events, context, None, move |chain| Some(serve(chain)));
        let service = Arc::new(Mutex::new(service));
        let (in_vcpu, mut rest) = (Arc::clone(&service), 0);
        direct.open(move || {
            // Whoever is in it looks again when the doorbell rings.
            let Ok(mut service) = in_vcpu.try_lock() else { return false };
            if rest > 0 {
                rest -= 1;
                return false;
            }
            let begun = Instant::now();
            let all = service.serve_at_most(DIRECT_BUFFERS, &quick);
            if begun.elapsed() > DIRECT_TIME {
                rest = DIRECT_REST;
            }
            all
        });
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
        self.direct.close();
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

/// A round of a service that not only the loop's thread uses.
fn round<F: FnMut(&Chain) -> Option<u32>>(service: &Mutex<Service<F>>, paused: bool) {
    service.lock().unwrap_or_else(PoisonError::into_inner).round(paused);
}

/// What serves a queue.
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
        let QueueContext { queue, doorbell, interrupt, direct } = context;
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let served = ServedQueue {
            queue: Arc::clone(&queue),
            events: events.clone(),
            tokens: Vec::new(),
            direct,
            stop: Arc::clone(&stop),
        };
        let service = Self { queue, again: doorbell, interrupt, stop, lazy, serve, broken: false };
        (service, served)
    }

    /// Serves what is there, but no more than a queue full: a driver that never stops must not keep the
    /// loop from others. `paused` if a pause has gone by.
    fn round(&mut self, paused: bool) {
        if let Some(lazy) = &mut self.lazy {
            lazy.pausing &= !paused;
        }
        if !self.serve_at_most(u16::MAX, &|_| true) {
            self.again.signal();
        }
    }

    /// Serves buffers, `most` or a queue full, until one is not `quick`; false if there is something left.
    fn serve_at_most(&mut self, most: u16, quick: &impl Fn(&Chain) -> bool) -> bool {
        let queue = Arc::clone(&self.queue);
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        if self.broken {
            return true;
        }
        let mut served = false;
        let end = self.serve_buffers(&mut queue, most, quick, &mut served);
        let notify = served && queue.needs_interrupt().unwrap_or(true);
        if notify {
            self.interrupt.used_buffer();
        }
        end.unwrap_or_else(|error| {
            self.broken = true;
            self.interrupt.needs_reset(error);
            true
        })
    }

    /// `served` becomes true if buffers went back to the driver.
    fn serve_buffers(
        &mut self,
        queue: &mut Queue,
        most: u16,
        quick: &impl Fn(&Chain) -> bool,
        served: &mut bool,
    ) -> Result<bool, QueueError> {
        queue.disable_doorbell()?;
        let mut chain = Chain::new(queue.ram().clone(), 0);
        for _ in 0..queue.size().min(most) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            if !queue.pop_into(&mut chain)? {
                let more = match &mut self.lazy {
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
                return Ok(true);
            }
            if !quick(&chain) {
                queue.unpop();
                break;
            }
            let Some(written) = (self.serve)(&chain) else {
                queue.unpop();
                return Ok(true);
            };
            queue.push(&chain, written)?;
            *served = true;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
