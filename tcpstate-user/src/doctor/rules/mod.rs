//! All rules. To add one: a file with its `RULE` and its tests, and a line in the table.

mod bind;
mod churn;
mod close_wait;
mod closing;
mod cut_short;
mod failed;
mod first_close;
mod listen;
mod nat;
mod orphans;
mod overflow;
mod pile_up;
mod ports;
mod reset;
mod settings;
mod time_wait;

use super::{Finding, Snapshot, Thresholds};

/// Findings, or why nothing can be said.
pub type Checked = Result<Vec<Finding>, &'static str>;

/// A rule: data, and a pure function.
#[derive(Debug)]
pub struct Rule {
    /// The word for it on the command line and in output.
    pub name: &'static str,
    /// What it looks for, in half a line.
    pub summary: &'static str,
    /// What `--explain` says.
    pub explanation: &'static str,
    /// Looks for it.
    pub check: fn(&Snapshot, &Thresholds) -> Checked,
}

#[cfg(test)]
impl Rule {
    /// How bad the first of what it finds is.
    fn severity(&self, snapshot: &Snapshot) -> Option<super::Severity> {
        let found = (self.check)(snapshot, &Thresholds::default()).unwrap_or_default();
        found.first().map(|finding| finding.severity)
    }
}

/// In the order in which equally bad findings are shown: what makes connections fail comes first.
pub const RULES: &[&Rule] = &[
    &ports::RULE,
    &listen::RULE,
    &bind::RULE,
    &failed::RULE,
    &close_wait::RULE,
    &overflow::RULE,
    &orphans::RULE,
    &reset::RULE,
    &churn::RULE,
    &pile_up::RULE,
    &nat::RULE,
    &cut_short::RULE,
    &first_close::RULE,
    &closing::RULE,
    &time_wait::RULE,
    &settings::RULE,
];

/// The rule of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Rule> {
    RULES.iter().copied().find(|rule| rule.name == name)
}

/// Why nothing is known of how connections failed.
const NO_ERRORS: &str = "the classic tracepoint tells no errors";

/// Why nothing is known of what only the kernel counts.
const NO_COUNTERS: &str = "the kernel's counters are not in recordings";

/// Why nothing is known of what stays.
const TOO_SHORT: &str = "what was watched is too short to see something stay for --stay seconds";

/// Why nothing is known of minisockets.
const UNOBSERVED: &str = "the life of TIME_WAIT was not observed";

#[cfg(test)]
mod tests {
    use super::RULES;

    #[test]
    fn every_rule_can_be_listed_and_explained() {
        for rule in RULES {
            assert!(rule.name.len() <= 12, "{}", rule.name);
            assert!(rule.summary.len() <= 64, "{}", rule.name);
            assert!(rule.explanation.len() > 200, "{}", rule.name);
            let alike = RULES.iter().filter(|other| other.name == rule.name);
            assert_eq!(alike.count(), 1, "{}", rule.name);
        }
    }
}
