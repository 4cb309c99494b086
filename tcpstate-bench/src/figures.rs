//! Several measurements of one figure.

/// They are in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub struct Figures(pub Vec<f64>);

impl Figures {
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The one in the middle; of two the mean.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(f64::midpoint(lower, upper))
    }

    /// The least and the greatest.
    pub fn range(&self) -> Option<(f64, f64)> {
        let least = self.0.iter().copied().min_by(f64::total_cmp)?;
        let greatest = self.0.iter().copied().max_by(f64::total_cmp)?;
        Some((least, greatest))
    }

    /// All of them in another unit.
    pub fn times(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|figure| figure * factor).collect())
    }

    /// The median and the range, with so many digits.
    pub fn shown(&self, digits: usize) -> String {
        match (self.median(), self.range()) {
            (Some(median), Some((least, greatest))) if self.0.len() > 1 => {
                format!("{median:.digits$} ({least:.digits$} to {greatest:.digits$})")
            }
            (Some(median), _) => format!("{median:.digits$}"),
            _ => "-".to_owned(),
        }
    }
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub const fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Figures(vec![3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Figures(vec![4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(Figures(vec![]).median(), None);
        assert_eq!(Figures(vec![3.0, 1.0]).shown(1), "2.0 (1.0 to 3.0)");
    }
}
