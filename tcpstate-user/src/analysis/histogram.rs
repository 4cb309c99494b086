//! Distributions of durations with a bounded relative error.

use super::table::Bucket;

/// A distribution of durations in nanoseconds: quantiles are at most 1 % too large, never too small; the maximum is exact.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: hdrhistogram::Histogram<u64>,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        /// Significant decimal digits: 1 % of error.
        const DIGITS: u8 = 2;
        #[expect(
            clippy::expect_used,
            reason = "0 to 5 digits are allowed, and nothing else is checked"
        )]
        let counts = hdrhistogram::Histogram::new(DIGITS).expect("a number of digits");
        Self { counts, max: 0 }
    }
}

impl Histogram {
    /// One more sample.
    pub fn record(&mut self, nanoseconds: u64) {
        // It grows as far as needed, up to 2^64.
        if self.counts.record(nanoseconds).is_err() {
            self.counts.saturating_record(nanoseconds);
        }
        self.max = self.max.max(nanoseconds);
    }

    /// How many samples.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// The largest sample; 0 without any.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The smallest duration that this share of all samples does not exceed (nearest rank), or up to 1 % more.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        self.counts.value_at_quantile(share).min(self.max)
    }

    /// Adds the samples of another one.
    pub fn add(&mut self, other: &Self) {
        // It grows as far as needed, so there is nothing that could not be added.
        let _ = self.counts.add(&other.counts);
        self.max = self.max.max(other.max);
    }

    /// The samples in buckets, without the empty ones at both ends. A sample that is less than 1 % away from a bound may be
    /// counted on its other side.
    #[must_use]
    pub fn buckets(&self, scale: Scale) -> Vec<Bucket> {
        let bounds = match scale {
            Scale::Logarithmic => Bounds::Logarithmic,
            Scale::Linear => Bounds::Linear(self.step()),
        };
        let mut buckets: Vec<Bucket> = Vec::new();
        for value in self.counts.iter_recorded() {
            // The upper end of what is counted together: a timer of 40 ms fires at 40 ms or later.
            let nanoseconds = self
                .counts
                .highest_equivalent(value.value_iterated_to())
                .min(self.max);
            // In the order of values: at most one new bucket behind the last, and empty ones between them.
            while buckets.last().is_none_or(|last| last.to <= nanoseconds) {
                let from = match buckets.last() {
                    Some(last) => last.to,
                    None => bounds.at_or_below(nanoseconds),
                };
                let to = bounds.after(from);
                buckets.push(Bucket { from, to, count: 0 });
            }
            if let Some(last) = buckets.last_mut() {
                last.count += value.count_at_value();
            }
        }
        buckets
    }

    /// The width of buckets of equal width that there are at most twenty of. Narrower ones than the error are pointless.
    fn step(&self) -> u64 {
        const BUCKETS: u64 = 20;
        let range = self.max.saturating_sub(self.counts.min());
        let least = (range / (BUCKETS - 1)).max(self.max / 100);
        let mut step = Bounds::FIRST;
        while step <= least && step < u64::MAX / 10 {
            step = Bounds::Logarithmic.after(step);
        }
        step
    }
}

/// How bounds of buckets follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// 1, 2, 5, 10, 20, 50 and so on.
    Logarithmic,
    /// At the same distance, as small as gives twenty buckets.
    Linear,
}

enum Bounds {
    Logarithmic,
    Linear(u64),
}

impl Bounds {
    /// A microsecond: nothing shorter is told apart.
    const FIRST: u64 = 1000;

    fn at_or_below(&self, nanoseconds: u64) -> u64 {
        match self {
            Self::Linear(step) => nanoseconds / step * step,
            Self::Logarithmic => {
                let mut bound = 0;
                loop {
                    let next = self.after(bound);
                    if next > nanoseconds || next == bound {
                        return bound;
                    }
                    bound = next;
                }
            }
        }
    }

    fn after(&self, bound: u64) -> u64 {
        match self {
            Self::Linear(step) => bound.saturating_add(*step),
            Self::Logarithmic if bound < Self::FIRST => Self::FIRST,
            Self::Logarithmic => {
                let unit = 10_u64.saturating_pow(bound.ilog10());
                match bound / unit {
                    1 => unit.saturating_mul(2),
                    2 => unit.saturating_mul(5),
                    _ => unit.saturating_mul(10),
                }
            }
        }
    }
}
