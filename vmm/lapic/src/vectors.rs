//! A bit for each of the 256 vectors, as in the registers ISR, TMR and IRR.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vectors([u32; 8]);

impl Vectors {
    pub(crate) fn has(self, vector: u8) -> bool {
        self.word(vector >> 5) >> (vector & 31) & 1 != 0
    }

    pub(crate) fn set(&mut self, vector: u8, value: bool) {
        let (word, bit) = (&mut self.0[usize::from(vector >> 5)], 1 << (vector & 31));
        if value {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    pub(crate) fn highest(self) -> Option<u8> {
        let (at, word) = (0u8..).zip(self.0).filter(|(_, word)| *word != 0).last()?;
        Some(at << 5 | word.ilog2() as u8)
    }

    /// The `at`-th of the eight registers.
    pub(crate) fn word(self, at: u8) -> u32 {
        self.0[usize::from(at & 7)]
    }

    pub(crate) fn set_word(&mut self, at: u8, word: u32) {
        self.0[usize::from(at & 7)] = word;
    }
}
