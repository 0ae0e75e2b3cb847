//! The timer (Intel SDM 3A §10.5.4): one-shot, periodic, or at a value of the time-stamp counter.

/// What time it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Of a clock that only goes forward.
    pub nanoseconds: u64,
    /// The guest's time-stamp counter.
    pub tsc: u64,
}

/// When the timer's time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// At [`Now::nanoseconds`].
    Nanoseconds(u64),
    /// At [`Now::tsc`].
    Tsc(u64),
}

/// What the timer does, by bits 17 and 18 of its local vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

impl Mode {
    pub(crate) fn of(vector: u32) -> Self {
        match vector >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            _ => Self::Deadline,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timer {
    /// The initial count.
    pub(crate) initial: u32,
    /// The divide configuration register.
    pub(crate) divide: u32,
    /// How much was left of the count at `since`; zero of a timer that stands still.
    left: u32,
    since: u64,
    /// `IA32_TSC_DEADLINE`; zero is none.
    pub(crate) at: u64,
}

impl Timer {
    /// Nanoseconds of a count.
    fn divisor(&self) -> u64 {
        let value = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((value + 1) & 7)
    }

    fn end(&self) -> u64 {
        self.since.saturating_add(u64::from(self.left) * self.divisor())
    }

    pub(crate) fn deadline(&self, vector: u32) -> Option<Deadline> {
        match Mode::of(vector) {
            Mode::Deadline => (self.at != 0).then_some(Deadline::Tsc(self.at)),
            _ => (self.left != 0).then(|| Deadline::Nanoseconds(self.end())),
        }
    }

    /// Has its time come? Then it begins anew, or ends. What was missed in between is one interrupt.
    pub(crate) fn fires(&mut self, vector: u32, now: Now) -> bool {
        match Mode::of(vector) {
            Mode::Deadline => {
                let come = self.at != 0 && now.tsc >= self.at;
                if come {
                    self.at = 0;
                }
                come
            }
            mode => {
                let end = self.end();
                if self.left == 0 || now.nanoseconds < end {
                    return false;
                }
                self.left = 0;
                let period = u64::from(self.initial) * self.divisor();
                if mode == Mode::Periodic && period != 0 {
                    self.left = self.initial;
                    self.since = end + (now.nanoseconds - end) / period * period;
                }
                true
            }
        }
    }

    /// The current count.
    pub(crate) fn count(&self, now: Now) -> u32 {
        let gone = now.nanoseconds.saturating_sub(self.since) / self.divisor();
        u64::from(self.left).saturating_sub(gone) as u32
    }

    /// Counts down from here on.
    pub(crate) fn start(&mut self, left: u32, now: Now) {
        (self.left, self.since) = (left, now.nanoseconds);
    }

    /// Another divider: what is left is counted by it.
    pub(crate) fn set_divide(&mut self, divide: u32, now: Now) {
        let left = self.count(now);
        self.divide = divide & 0b1011;
        self.start(left, now);
    }

    /// Another local vector: to and from deadlines, the timer is disarmed.
    pub(crate) fn switch(&mut self, before: u32, after: u32) {
        if (Mode::of(before) == Mode::Deadline) != (Mode::of(after) == Mode::Deadline) {
            (self.left, self.at) = (0, 0);
        }
    }
}
