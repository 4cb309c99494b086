//! From "thousands of TIME_WAIT" to the cause, the evidence and the right setting.
//!
//! [`Watch`] counts transitions during the watch and leaves a [`Snapshot`]; rules are small pure functions over it
//! ([`rules::RULES`]), so that they say the same of a recording as of this machine, but for what only the kernel's counters
//! tell.

mod binds;
mod counters;
mod ends;
mod finding;
mod json;
mod looked;
pub mod rules;
mod snapshot;
mod text;
pub mod thresholds;
mod watch;

pub use binds::{FailedBind, Listens};
pub use counters::NetCounters;
pub use finding::{Cause, Evidence, Finding, Number, Process, Severity, Shown, Who, plural};
pub use json::json;
pub use looked::Looked;
pub use rules::{Checked, Rule};
pub use snapshot::{
    Closes, Ends, Namespace, Portless, Ports, Snapshot, Stay, Waits, real, share, whole,
};
pub use text::{explanation, list, text};
pub use thresholds::{Thresholds, longest_stay};
pub use watch::{Known, Seen, Watch};

/// What all rules together have to say.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// Worst first.
    pub findings: Vec<Finding>,
    /// Rules that had more to say, and how many findings more.
    pub left_out: Vec<(&'static str, usize)>,
    /// Rules that could not be decided, and why.
    pub unknown: Vec<(&'static str, &'static str)>,
}

impl Diagnosis {
    /// Asks all rules.
    #[must_use]
    pub fn of(snapshot: &Snapshot, thresholds: &Thresholds) -> Self {
        /// More findings of one rule tell nothing new.
        const MOST: usize = 5;
        let mut diagnosis = Self::default();
        for rule in rules::RULES {
            match (rule.check)(snapshot, thresholds) {
                Ok(mut findings) => {
                    findings.sort_by_key(|finding| finding.severity);
                    let more = findings.len().saturating_sub(MOST);
                    if more > 0 {
                        diagnosis.left_out.push((rule.name, more));
                    }
                    let findings = findings.into_iter().take(MOST);
                    diagnosis.findings.extend(findings.map(|finding| Finding {
                        rule: rule.name,
                        ..finding
                    }));
                }
                Err(why) => diagnosis.unknown.push((rule.name, why)),
            }
        }
        // Rules stand in the order of what they cost; that is kept among equals.
        diagnosis.findings.sort_by_key(|finding| finding.severity);
        diagnosis
    }

    /// How many findings are that bad.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        let all = self.findings.iter();
        all.filter(|finding| finding.severity == severity).count()
    }
}
