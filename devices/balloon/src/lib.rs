//! virtio-balloon (virtio 1.3 §5.5): memory that the guest has no use for goes back to the host. The guest
//! reports its free pages by itself (§5.5.6.6), so there is nothing to steer: the balloon's own size stays zero.

use cabana_memory::{GuestAddress, Le32};
use cabana_os::LoopHandle;
use cabana_virtio::{
    Chain, Identity, QueueContext, QueueState, ServedQueue, StartError, VirtioDevice,
};

/// `VIRTIO_BALLOON_F_REPORTING`: the guest tells of free pages. Without `PAGE_POISON` it expects nothing of what
/// they hold when it takes them into use again.
const REPORTING: u64 = 1 << 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// The specification numbers it 4; a driver counts only the queues that exist, and Linux's is the one to serve.
const REPORT: u16 = 2;

/// As many pages of 4 KiB as Linux puts into one buffer, and pieces of free memory that it reports at once.
const QUEUE_SIZES: [u16; 3] = [8, 8, 32];

/// `struct virtio_balloon_config` up to `actual`.
const CONFIG_LEN: u32 = 8;

/// The unit of page numbers in buffers (virtio 1.3 §5.5.6).
const PAGE: u64 = 4096;
/// The most page numbers that one buffer may hold; Linux sends 256.
const MAX_PAGES: usize = 4096;

/// The device.
#[derive(Debug)]
pub struct Balloon {
    events: LoopHandle,
    queues: [Option<ServedQueue>; QUEUE_SIZES.len()],
}

impl Balloon {
    /// A device that is served on the loop of `events`.
    pub fn new(events: LoopHandle) -> Self {
        Self { events, queues: Default::default() }
    }
}

impl VirtioDevice for Balloon {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 5,
            features: REPORTING,
            queue_sizes: QUEUE_SIZES.to_vec(),
            config_len: CONFIG_LEN,
        }
    }

    fn start_queue(&mut self, index: u16, context: QueueContext) -> Result<(), StartError> {
        let serve = match index {
            INFLATE => inflate,
            DEFLATE => |_: &Chain| 0,
            REPORT => report,
            _ => return Err(StartError::NoSuchQueue(index)),
        };
        self.queues[usize::from(index)] = Some(ServedQueue::start(&self.events, context, serve)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.queues.get_mut(usize::from(index))?.take().map(ServedQueue::stop)
    }
}

/// Pages that the guest puts into the balloon, one number each.
fn inflate(chain: &Chain) -> u32 {
    let mut reader = chain.reader();
    let mut run: Option<(u64, u64)> = None;
    for _ in 0..MAX_PAGES {
        let Ok(number) = reader.read::<Le32>() else { break };
        let page = u64::from(number.to_native()) * PAGE;
        run = match run {
            Some((start, end)) if end == page => Some((start, end + PAGE)),
            Some((start, end)) if page + PAGE == start => Some((page, end)),
            other => {
                give_back(chain, other);
                Some((page, page + PAGE))
            }
        };
    }
    give_back(chain, run);
    0
}

fn give_back(chain: &Chain, run: Option<(u64, u64)>) {
    if let Some((start, end)) = run {
        discard(chain, GuestAddress(start), (end - start) as usize);
    }
}

/// Free memory, as the buffer itself.
fn report(chain: &Chain) -> u32 {
    for (at, len) in chain.writable() {
        discard(chain, at, len);
    }
    0
}

/// What is no RAM stays as it is, and what the host does not take stays the guest's: neither harms anyone.
fn discard(chain: &Chain, at: GuestAddress, len: usize) {
    let _ = chain.ram().discard(at, len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabana_os::EventLoop;
    use cabana_virtio::testing::TestDriver;

    /// Beyond rings and buffers of the driver.
    const AT: u64 = 32 << 20;

    fn driver() -> (EventLoop, TestDriver) {
        let events = EventLoop::spawn("test").unwrap();
        let driver = TestDriver::new(Balloon::new(events.handle()));
        (events, driver)
    }

    /// Writes one byte into each of these pages from `AT` on.
    fn touch(driver: &TestDriver, pages: u64) {
        (0..pages)
            .for_each(|page| driver.ram().write(GuestAddress(AT + page * PAGE), 7u8).unwrap());
    }

    /// Which of them still hold it.
    fn kept(driver: &TestDriver, pages: u64) -> Vec<u64> {
        let byte = |page: &u64| driver.ram().read::<u8>(GuestAddress(AT + page * PAGE)).unwrap();
        (0..pages).filter(|page| byte(page) == 7).collect()
    }

    fn numbers(pages: &[u64]) -> Vec<u8> {
        pages.iter().flat_map(|page| ((AT / PAGE + page) as u32).to_le_bytes()).collect()
    }

    #[test]
    fn reported_memory_is_given_back_and_what_shares_a_page_stays() {
        let (_events, mut driver) = driver();
        let head = driver.submit(REPORT, &[], &[3 * PAGE as usize, 100]);
        let room = driver.wait_for(REPORT, head).room;
        let (large, small) = room.split_at(3 * PAGE as usize);
        let zeroes: usize = large.iter().map(|byte| usize::from(*byte == 0)).sum();
        assert!(zeroes == 2 * PAGE as usize || zeroes == 3 * PAGE as usize, "{zeroes}");
        assert!(large.iter().chain(small).all(|byte| [0, 0xa5].contains(byte)));
        assert_eq!(small, [0xa5; 100]);
    }

    #[test]
    fn pages_in_the_balloon_are_given_back_in_any_order() {
        let (_events, mut driver) = driver();
        touch(&driver, 12);
        driver.send(INFLATE, &[&numbers(&[1, 2, 3, 9, 8, 7, 5])], &[]);
        assert_eq!(kept(&driver, 12), [0, 4, 6, 10, 11]);
        touch(&driver, 12);
        driver.send(DEFLATE, &[&numbers(&[1, 2])], &[]);
        assert_eq!(kept(&driver, 12).len(), 12);
    }

    #[test]
    fn what_is_no_memory_is_passed_over() {
        let (_events, mut driver) = driver();
        touch(&driver, 2);
        let mut pages = u32::MAX.to_le_bytes().to_vec();
        pages.extend(numbers(&[1]));
        // Two bytes that are no whole number.
        pages.extend([1, 2]);
        driver.send(INFLATE, &[&pages], &[]);
        assert_eq!(kept(&driver, 2), [0]);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn one_buffer_gives_back_no_more_than_the_limit() {
        let (_events, mut driver) = driver();
        touch(&driver, 2);
        let mut pages = numbers(&vec![0; MAX_PAGES]);
        pages.extend(numbers(&[1]));
        driver.send(INFLATE, &[&pages], &[]);
        assert_eq!(kept(&driver, 2), [1]);
    }

    #[test]
    fn another_goes_on_where_one_was_paused() {
        let (events, mut driver) = driver();
        touch(&driver, 2);
        driver.send(INFLATE, &[&numbers(&[0])], &[]);
        driver.move_to(Balloon::new(events.handle())).unwrap();
        driver.send(INFLATE, &[&numbers(&[1])], &[]);
        assert_eq!(kept(&driver, 2), [] as [u64; 0]);
    }
}
