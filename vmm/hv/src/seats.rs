//! What the vCPUs of a VM are to be, kept until each has its seat.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::HvError;

/// The vCPUs that nobody has taken yet: behind [`crate::Vm::set_vcpus`] and [`crate::Vm::vcpu_seat`] of a backend.
#[derive(Debug)]
pub struct Seats<S> {
    free: Mutex<Vec<Option<S>>>,
}

impl<S> Default for Seats<S> {
    fn default() -> Self {
        Self { free: Mutex::new(Vec::new()) }
    }
}

impl<S> Seats<S> {
    /// Says what all of them are.
    pub fn set(&self, vcpus: Vec<S>) {
        *self.lock() = vcpus.into_iter().map(Some).collect();
    }

    /// Takes the `index`-th, once.
    pub fn take(&self, index: u32) -> Result<S, HvError> {
        let setup = self.lock().get_mut(index as usize).and_then(Option::take);
        setup.ok_or_else(|| HvError::Invalid(format!("there is no vCPU {index} to give")))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<S>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_is_given_once() {
        let seats = Seats::<&str>::default();
        assert!(seats.take(0).is_err());
        seats.set(vec!["first", "second"]);
        assert_eq!(seats.take(1).unwrap(), "second");
        assert!(seats.take(1).unwrap_err().to_string().contains("no vCPU 1"));
        assert!(seats.take(0).is_ok());
    }
}
