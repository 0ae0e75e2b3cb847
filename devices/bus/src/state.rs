//! State that outlives its machine: plain data, of a version of its own.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A part of a machine whose state can be kept and taken over by its like in another machine.
///
/// `State` is plain data in a file of its own. Whoever changes it raises `VERSION` and pins the new
/// bytes beside the old ones' refusal; see `tests/goldens` of `cabana-machine`.
pub trait Persist {
    /// The generation of `State`.
    const VERSION: u16;

    /// All that the part has to remember.
    type State: Serialize + DeserializeOwned;

    /// The state, of a part that nobody uses meanwhile.
    fn save(&self) -> Self::State;

    /// Takes the state over, before anybody uses the part. A snapshot is a file of a user's: what it
    /// says is checked.
    fn restore(&self, state: Self::State) -> Result<(), StateError>;
}

/// A part's state on its way into a snapshot or out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// [`Persist::VERSION`].
    version: u16,
    /// The state, in postcard's encoding.
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

/// State that does not fit the part that is to take it over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// State of another generation.
    #[error("its state has version {found}, and this program reads version {known}")]
    Version {
        /// That of the state.
        found: u16,
        /// The one that is understood.
        known: u16,
    },
    /// Bytes that are no state.
    #[error("its state cannot be read")]
    Malformed,
    /// State of a part of another kind or shape.
    #[error("{0}")]
    Differs(String),
}

impl SavedState {
    /// What `part` has to remember.
    pub fn of<P: Persist>(part: &P) -> Self {
        // Plain data always encodes: there is no writer that could fail.
        let bytes = postcard::to_allocvec(&part.save()).unwrap_or_default();
        Self { version: P::VERSION, bytes }
    }

    /// Lets `part` take this over.
    pub fn into_part<P: Persist>(&self, part: &P) -> Result<(), StateError> {
        if self.version != P::VERSION {
            return Err(StateError::Version { found: self.version, known: P::VERSION });
        }
        match postcard::take_from_bytes(&self.bytes) {
            Ok((state, [])) => part.restore(state),
            _ => Err(StateError::Malformed),
        }
    }

    /// The encoded state, for tests that pin it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl StateError {
    /// Fails where what a state says of the part differs from what it is.
    pub fn unless_same<T: PartialEq + std::fmt::Debug>(
        what: &str,
        was: &T,
        here: &T,
    ) -> Result<(), Self> {
        if was == here {
            return Ok(());
        }
        Err(Self::Differs(format!("{what} was {was:?} and is {here:?} here")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Counter(Cell<u32>);

    impl Persist for Counter {
        const VERSION: u16 = 3;
        type State = u32;

        fn save(&self) -> u32 {
            self.0.get()
        }

        fn restore(&self, state: u32) -> Result<(), StateError> {
            self.0.set(state);
            Ok(())
        }
    }

    #[test]
    fn state_goes_from_one_part_to_its_like() {
        let saved = SavedState::of(&Counter(Cell::new(300)));
        assert_eq!(saved.bytes(), [0xac, 2]);
        let other = Counter(Cell::new(0));
        saved.into_part(&other).unwrap();
        assert_eq!(other.0.get(), 300);
    }

    #[test]
    fn other_generations_and_other_bytes_are_refused() {
        let counter = Counter(Cell::new(1));
        let old = SavedState { version: 2, bytes: vec![1] };
        assert_eq!(old.into_part(&counter), Err(StateError::Version { found: 2, known: 3 }));
        for bytes in [vec![], vec![0x80], vec![1, 2]] {
            let bad = SavedState { version: 3, bytes };
            assert_eq!(bad.into_part(&counter), Err(StateError::Malformed));
        }
        assert_eq!(counter.0.get(), 1);
    }
}
