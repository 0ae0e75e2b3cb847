//! The host's own resolver, asked on threads of its own.
//!
//! It is `getaddrinfo` and not a DNS client: what the host's administrator has set up (`/etc/hosts`, split DNS of a
//! VPN, mDNS, a company's name service, DNS64 on hosts without IPv4) then holds for guests too, on every operating
//! system and as it changes. It blocks, hence the threads, and tells no lifetimes, hence one lifetime for all
//! answers.
//!
//! A guest has both families of addresses, whatever the host has, and prefers one by its own addresses. So addresses
//! that this host has no way to at the moment are left out while there are others.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cabana_egress::{DomainName, LookupError};

/// The most lookups at a time; others wait.
const MAX_THREADS: usize = 16;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);
/// Enough for `getaddrinfo` with the name services of others in it.
const STACK: usize = 256 << 10;

/// Finds the addresses of names. It may block.
pub trait Resolver: Send + Sync {
    /// Every address of the name, of both families, in the order in which they should be tried.
    ///
    /// # Errors
    ///
    /// [`LookupError`]: the name has none, or nobody could be asked.
    fn resolve(&self, name: &DomainName) -> Result<Vec<IpAddr>, LookupError>;
}

/// `getaddrinfo`.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostResolver;

impl Resolver for HostResolver {
    fn resolve(&self, name: &DomainName) -> Result<Vec<IpAddr>, LookupError> {
        let found = (name.as_str(), 0).to_socket_addrs().map_err(|error| classify(&error))?;
        let mut addresses = Vec::new();
        for address in found.map(|address| address.ip()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let near: Vec<_> =
            addresses.iter().copied().filter(|to| own_address_towards(*to).is_some()).collect();
        Ok(if near.is_empty() { addresses } else { near })
    }
}

/// The host's address from which it would speak to another; `None` without a route to it. No packet leaves for it.
pub(crate) fn own_address_towards(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// `std` keeps of `getaddrinfo`'s error only the text: `EAI_AGAIN` is the one that is worth another try.
fn classify(error: &io::Error) -> LookupError {
    if error.to_string().contains("emporary failure") {
        LookupError::Failed
    } else {
        LookupError::Unknown
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A few threads, started as they are needed, that run what blocks.
#[derive(Clone, Default)]
pub(crate) struct Pool(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    /// Runs `job` on a thread. Whether it could: a host may refuse the first thread.
    pub(crate) fn run(&self, job: Job) -> bool {
        let mut state = self.0.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= MAX_THREADS {
            drop(state);
            self.0.more.notify_one();
            return true;
        }
        state.threads += 1;
        let shared = Arc::clone(&self.0);
        let builder = thread::Builder::new().name("resolver".to_owned()).stack_size(STACK);
        if builder.spawn(move || shared.work()).is_ok() {
            return true;
        }
        state.threads -= 1;
        let nobody = state.threads == 0;
        if nobody {
            state.jobs.pop_back();
        }
        !nobody
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (next, timeout) =
                self.more.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_host_knows_its_own_name() {
        let localhost = DomainName::parse("localhost").unwrap();
        let addresses = HostResolver.resolve(&localhost).unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback));
    }

    #[test]
    fn a_failure_that_passes_is_told_from_one_that_stays() {
        let error = |text: &str| io::Error::other(text);
        let again =
            error("failed to lookup address information: Temporary failure in name resolution");
        assert_eq!(classify(&again), LookupError::Failed);
        let never = error("failed to lookup address information: Name or service not known");
        assert_eq!(classify(&never), LookupError::Unknown);
    }

    #[test]
    fn many_jobs_run_on_few_threads() {
        let pool = Pool::default();
        let (sender, receiver) = mpsc::channel();
        for number in 0..200 {
            let sender = sender.clone();
            assert!(pool.run(Box::new(move || sender.send(number).unwrap())));
        }
        let mut done: Vec<_> = receiver.iter().take(200).collect();
        done.sort_unstable();
        assert_eq!(done, (0..200).collect::<Vec<_>>());
        assert!(pool.0.lock().threads <= MAX_THREADS);
    }
}
