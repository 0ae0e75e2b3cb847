//! Who wants what a network asks about, as the guest claims. It is told with the question and decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use cabana_api::MachineEvent;
use cabana_sandbox::egress::{Asker, Event, Question, What};

use crate::verdicts::told;

/// How long a question waits for the guest's word on it.
const LIMIT: Duration = Duration::from_secs(1);
/// The most words of a guest's that are waited for: one that gives none keeps no more threads than these.
const MOST: usize = 4;
/// The most characters of a claim that are told.
const LONGEST: usize = 64;

/// Asks the guest.
type Claim = dyn Fn(Option<&str>, Asker) -> Option<String> + Send + Sync;

pub(crate) struct Claims {
    claim: Arc<Claim>,
    /// Words that are waited for.
    waiting: Arc<AtomicUsize>,
}

impl Claims {
    pub(crate) fn new(
        claim: impl Fn(Option<&str>, Asker) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self { claim: Arc::new(claim), waiting: Arc::default() }
    }

    /// Tells of what happened; of a question with the guest's word, or without it when that takes too long.
    pub(crate) fn tell<T>(&self, event: Event, tell: &Arc<T>)
    where
        T: Fn(&MachineEvent) + Send + Sync + 'static,
    {
        let asker = match &event.what {
            What::Ask(Question { asker: Some(asker), .. })
                if self.waiting.load(Ordering::Relaxed) < MOST =>
            {
                *asker
            }
            _ => return tell(&MachineEvent::Network { event: told(event) }),
        };
        let (claim, waiting) = (Arc::clone(&self.claim), Arc::clone(&self.waiting));
        let (say, said) = sync_channel(1);
        let session = event.session.clone();
        waiting.fetch_add(1, Ordering::Relaxed);
        let ask = move || {
            let _ = say.send(claim(session.as_deref(), asker));
            waiting.fetch_sub(1, Ordering::Relaxed);
        };
        if !spawn("claim", ask) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        let (kept, teller) = (event.clone(), Arc::clone(tell));
        let wait = move || {
            let claim = said.recv_timeout(LIMIT).ok().flatten();
            teller(&MachineEvent::Network { event: told(with(kept, claim)) });
        };
        if !spawn("question", wait) {
            tell(&MachineEvent::Network { event: told(event) });
        }
    }
}

/// The question with a claim.
fn with(mut event: Event, claim: Option<String>) -> Event {
    if let What::Ask(question) = &mut event.what {
        question.process = claim.map(|text| text.chars().take(LONGEST).collect());
    }
    event
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    let builder = thread::Builder::new().name(name.to_owned()).stack_size(128 << 10);
    builder.spawn(work).is_ok()
}
