//! The time spent in one state, and how much the number can be trusted.

use std::{fmt, num::NonZeroU64};

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
///
/// Eight bytes, of which a few million connections keep several each: the nanoseconds, above them the bound and one bit
/// that is always set, so that an `Option` needs no more.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Phase(NonZeroU64);

impl Phase {
    /// A time that is not known.
    pub const UNKNOWN: Self = Self::new(0, Bound::Unknown);

    /// The highest bit.
    const PRESENT: NonZeroU64 = NonZeroU64::MIN.saturating_add(u64::MAX / 2);
    const BITS: u32 = 61;
    /// 73 years.
    const MAX: u64 = (1 << Self::BITS) - 1;

    /// A time in nanoseconds (at most 73 years), and what the number is.
    #[must_use]
    pub const fn new(nanoseconds: u64, bound: Bound) -> Self {
        let nanoseconds = match bound {
            Bound::Unknown => 0,
            _ if nanoseconds > Self::MAX => Self::MAX,
            _ => nanoseconds,
        };
        let packed = (bound as u64) << Self::BITS | nanoseconds;
        Self(Self::PRESENT.saturating_add(packed))
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
        match self.bound() {
            Bound::Unknown => None,
            _ => Some(self.0.get() & Self::MAX),
        }
    }

    /// When it began (or before, or after, as the bound says) if it ended then; `None` if unknown.
    #[must_use]
    pub const fn began(self, ended: u64) -> Option<(u64, Bound)> {
        match self.nanoseconds() {
            Some(nanoseconds) => Some((ended.saturating_sub(nanoseconds), self.bound())),
            None => None,
        }
    }

    /// How much the number can be trusted.
    #[must_use]
    pub const fn bound(self) -> Bound {
        match (self.0.get() >> Self::BITS) & 3 {
            0 => Bound::Exact,
            1 => Bound::AtLeast,
            2 => Bound::AtMost,
            _ => Bound::Unknown,
        }
    }
}

impl fmt::Debug for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}({:?})", self.bound(), self.nanoseconds())
    }
}

#[cfg(test)]
mod tests {
    use super::{Bound, Phase};

    #[test]
    fn a_phase_is_what_it_was_made_of() {
        let bounds = [Bound::Exact, Bound::AtLeast, Bound::AtMost];
        for (nanoseconds, bound) in [0, 1, 60_000_000_000, (1 << 61) - 1]
            .into_iter()
            .flat_map(|nanoseconds| bounds.map(|bound| (nanoseconds, bound)))
        {
            let phase = Phase::new(nanoseconds, bound);
            assert_eq!(
                (phase.nanoseconds(), phase.bound()),
                (Some(nanoseconds), bound)
            );
        }
        assert_eq!(Phase::UNKNOWN.nanoseconds(), None);
        assert_eq!(Phase::new(5, Bound::Unknown), Phase::UNKNOWN);
        assert_eq!(
            Phase::new(u64::MAX, Bound::Exact).nanoseconds(),
            Some((1 << 61) - 1)
        );
        assert_eq!(size_of::<Option<Phase>>(), 8);
    }
}
