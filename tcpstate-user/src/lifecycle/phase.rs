//! The time spent in one state, and how much the number can be trusted.

/// How much a number can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It is this.
    Exact,
    /// It is this or more: the beginning was not seen.
    AtLeast,
    /// It is this or less: something in between was not seen.
    AtMost,
    /// Not known.
    Unknown,
}

impl Bound {
    /// The word for it in machine formats.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::AtLeast => "at_least",
            Self::AtMost => "at_most",
            Self::Unknown => "unknown",
        }
    }
}

/// Time spent in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    nanoseconds: u64,
    bound: Bound,
}

impl Phase {
    /// A time that is not known.
    pub const UNKNOWN: Self = Self::new(0, Bound::Unknown);

    /// A time in nanoseconds, and what the number is.
    #[must_use]
    pub const fn new(nanoseconds: u64, bound: Bound) -> Self {
        Self { nanoseconds, bound }
    }

    /// From one point in time to another; unknown if the clock went backwards between them.
    #[must_use]
    pub const fn between(from: u64, to: u64, bound: Bound) -> Self {
        match to.checked_sub(from) {
            Some(nanoseconds) => Self::new(nanoseconds, bound),
            None => Self::UNKNOWN,
        }
    }

    /// Nanoseconds, or `None` if unknown.
    #[must_use]
    pub const fn nanoseconds(self) -> Option<u64> {
        match self.bound {
            Bound::Unknown => None,
            _ => Some(self.nanoseconds),
        }
    }

    /// When it began (or before, or after, as the bound says) if it ended then; `None` if unknown.
    #[must_use]
    pub const fn began(self, ended: u64) -> Option<(u64, Bound)> {
        match self.nanoseconds() {
            Some(nanoseconds) => Some((ended.saturating_sub(nanoseconds), self.bound)),
            None => None,
        }
    }

    /// How much the number can be trusted.
    #[must_use]
    pub const fn bound(self) -> Bound {
        self.bound
    }
}
